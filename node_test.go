package ds_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/distributed-servers/ds"
	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/dstest"
)

func clientAddr(i int) netip.Addr {
	a := client1.As16()
	a[14], a[15] = byte(i>>8), byte(i)
	return netip.AddrFrom16(a)
}

// Many clients move at the same time, each several times.
func TestParallel(t *testing.T) {
	w := newWorld(t, nil, "a", "b", "c")
	const clients = 20
	var wg sync.WaitGroup
	for i := range clients {
		s := w.dial(clientAddr(i + 1))
		s.ping(t) // so that the node has accepted it
		s.run()
		wg.Go(func() {
			at := "a"
			for j := range 10 {
				to := []string{"a", "b", "c"}[(i+j)%3]
				if to == at {
					continue
				}
				if _, err := w.nodes[at].handoff(clientAddr(i+1), to); err != nil {
					t.Error(err)
					break
				}
				at = to
			}
			s.finish(t)
		})
	}
	wg.Wait()
	w.noFaults()
}

// What cannot be handed off is refused before anything happens to it.
func TestRefusals(t *testing.T) {
	w := newWorld(t, nil, "a", "b")
	s := w.dial(client1)
	s.ping(t)
	for _, tt := range []struct {
		name   string
		client netip.Addr
		to     string
		stage  ds.Stage
		is     error
		says   string
	}{
		{"to itself", client1, "a", ds.StagePrepare, ds.ErrSelf, "itself"},
		{"to nobody", client1, "x", ds.StagePrepare, ds.ErrRefused, `there is no node "x"`},
		{"of nobody", clientAddr(99), "b", ds.StagePrepare, ds.ErrRefused, "this node does not own the client"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := w.nodes["a"].handoff(tt.client, tt.to)
			var he *ds.HandoffError
			if !errors.As(err, &he) || he.Stage != tt.stage || he.Committed || !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v, want stage %s, %q, %q", err, tt.stage, tt.is, tt.says)
			}
			s.ping(t)
		})
	}
	w.noFaults()
}

// Of two handoffs of a client at the same time one is refused.
func TestSimultaneous(t *testing.T) {
	begun, goOn := make(chan struct{}), make(chan struct{})
	w := newWorld(t, func(c *dstest.Cluster) {
		var once sync.Once
		c.Intercept = func(node string, m *api.Message) error {
			if node == "a" && m.Kind == api.Prepared {
				once.Do(func() { close(begun); <-goOn })
			}
			return nil
		}
	}, "a", "b", "c")
	s := w.dial(client1)
	s.ping(t)
	first := make(chan error, 1)
	go func() { _, err := w.nodes["a"].handoff(client1, "b"); first <- err }()
	<-begun
	if _, err := w.nodes["a"].handoff(client1, "c"); !errors.Is(err, ds.ErrBusy) {
		t.Errorf("got %v, want ErrBusy", err)
	}
	close(goOn)
	if err := <-first; err != nil {
		t.Error(err)
	}
	s.ping(t)
	w.noFaults()
}

// A handoff that is cancelled before its transfer is undone; one that is cancelled
// later is called off, unless the target has taken the client.
func TestCancel(t *testing.T) {
	for _, tt := range []struct {
		at        api.Kind
		stage     ds.Stage
		committed bool
		owner     string
	}{
		{api.Prepare, "", false, "a"}, // the answer may be there first
		{api.Offer, ds.StageTransfer, true, ""},
		{api.Activate, ds.StageTransfer, true, ""},
		{api.Activated, ds.StageTransfer, true, "b"},
	} {
		t.Run(tt.at.String(), func(t *testing.T) {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			returned := make(chan struct{})
			w := newWorld(t, func(c *dstest.Cluster) {
				var once sync.Once
				c.Intercept = func(node string, m *api.Message) error {
					if m.Kind == tt.at {
						once.Do(cancel)
					}
					return nil
				}
			}, "a", "b")
			s := w.dial(client1)
			s.ping(t)
			_, err := w.nodes["a"].Handoff(ctx, client1, "b", w.nodes["a"].state)
			close(returned)
			var he *ds.HandoffError
			if errors.As(err, &he) && (he.Stage != tt.stage && tt.committed || he.Committed != tt.committed || !errors.Is(err, context.Canceled)) {
				t.Errorf("got %v", err)
			}
			if err == nil && tt.owner == "a" {
				t.Error("it was not cancelled")
			}
			s.ping(t)
			if tt.owner != "" {
				w.awaitOwner(client1, tt.owner) // whom the daemon may be told of only now
			}
			w.noFaults()
		})
	}
}

// The daemon hears of a client when it comes and when it has gone; also when it
// was away meanwhile.
func TestOwned(t *testing.T) {
	w := newWorld(t, func(c *dstest.Cluster) { c.Optimise = true }, "a", "b")
	s, s2 := w.dial(client1), w.dial(clientAddr(2))
	s.ping(t)
	s2.ping(t)
	for _, client := range []netip.Addr{client1, clientAddr(2)} {
		w.awaitOwner(client, "a")
		w.awaitBound(client, "a") // nobody relays while the contact's daemon is down
	}
	reset(s2)
	w.awaitOwner(clientAddr(2), "")
	w.cluster.SetDown("a", true)
	s2 = w.dial(clientAddr(2))
	s.ping(t)
	s2.ping(t)
	reset(s)
	w.cluster.SetDown("a", false)
	w.awaitOwner(clientAddr(2), "a")
	w.awaitOwner(client1, "")
	reset(s2)
	w.awaitOwner(clientAddr(2), "")
}

// Traffic goes on while a daemon is away and when it is back, bindings or not.
func TestDaemonRestart(t *testing.T) {
	for _, optimise := range []bool{false, true} {
		w := newWorld(t, func(c *dstest.Cluster) { c.Optimise = optimise }, "a", "b")
		s := w.dial(client1)
		s.ping(t)
		s.run()
		for range 10 {
			w.cluster.SetDown("a", true)
			w.cluster.SetDown("a", false)
			w.awaitHandoff(client1, "a", "b")
			w.cluster.Restart("b")
			w.awaitHandoff(client1, "b", "a")
		}
		s.finish(t)
		w.noFaults()
	}
}

func reset(s *stream) {
	s.Conn.(interface{ SetLinger(int) error }).SetLinger(0)
	s.Close()
}

// An operator's handoff uses the Node's State.
func TestAsked(t *testing.T) {
	w := newWorld(t, nil, "a", "b")
	s := w.dial(client1)
	s.ping(t)
	w.awaitOwner(client1, "a")
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	m, err := w.cluster.Ask(ctx, client1, "a", "b")
	if err != nil || m.Error != "" || m.Connections != 1 {
		t.Fatalf("%+v, %v", m, err)
	}
	s.ping(t)
	if m, err = w.cluster.Ask(ctx, client1, "a", "b"); err != nil || m.Error == "" {
		t.Fatalf("a client that has left: %+v, %v", m, err)
	}
	w.noFaults()
}

// A server that knows nothing of handoffs never gets a connection that has
// begun elsewhere.
func TestUnaware(t *testing.T) {
	c := dstest.New("a", "b")
	defer c.Close()
	a, b := c.Node("a"), c.Node("b")
	defer a.Close()
	defer b.Close()
	serve := func(n *ds.Node, name string) {
		l, err := n.Listen("tcp", ":80")
		if err != nil {
			t.Fatal(err)
		}
		go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, name) }))
	}
	serve(a, "a")
	serve(b, "b")
	hc := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
		return c.Client(client1).Dial(ctx, addr)
	}}}
	get := func() string {
		res, err := hc.Get("http://" + c.Address(80) + "/")
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		body, _ := io.ReadAll(res.Body)
		return string(body)
	}
	if got := get(); got != "a" {
		t.Fatalf("got %q", got)
	}
	_, err := a.Handoff(context.Background(), client1, "b", nil)
	if !errors.Is(err, ds.ErrRefused) || !strings.Contains(err.Error(), "takes no clients") {
		t.Errorf("got %v, want a refusal", err)
	}
	if got := get(); got != "a" {
		t.Errorf("got %q", got)
	}
	if f := c.Faults(); len(f) > 0 {
		t.Error(f)
	}
}

// A node may begin to accept handoffs, and cease to, at any time.
func TestListenHandoffLater(t *testing.T) {
	c := dstest.New("a", "b")
	defer c.Close()
	a, b := c.Node("a"), c.Node("b")
	defer a.Close()
	defer b.Close()
	for _, n := range []*ds.Node{a, b} {
		l, err := n.Listen("tcp", ":80")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			for {
				if _, err := l.Accept(); err != nil {
					return
				}
			}
		}()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if _, err := c.Client(client1).Dial(ctx, c.Address(80)); err != nil {
		t.Fatal(err)
	}
	if err := c.AwaitOwner(ctx, client1, "a"); err != nil {
		t.Fatal(err)
	}
	refused := func() {
		t.Helper()
		if _, err := a.Handoff(ctx, client1, "b", nil); !errors.Is(err, ds.ErrRefused) {
			t.Errorf("got %v, want a refusal", err)
		}
	}
	refused()
	l, err := b.ListenHandoff()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.ListenHandoff(); err == nil {
		t.Error("a second HandoffListener")
	}
	l.Close()
	refused()
	if l, err = b.ListenHandoff(); err != nil {
		t.Fatal(err)
	}
	c.Restart("b")
	for {
		_, err := a.Handoff(ctx, client1, "b", nil)
		if err == nil {
			break
		}
		if !errors.Is(err, ds.ErrRefused) || ctx.Err() != nil { // until it is attached again
			t.Fatal(err)
		}
	}
	in, err := l.Accept()
	if err != nil || in.Client != client1 || in.From != "a" || len(in.Conns) != 1 || len(in.State) != 1 || in.State[0] != nil {
		t.Errorf("%+v, %v", in, err)
	}
}
