package ds_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/distributed-servers/ds"
	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/daemon/server"
	"github.com/distributed-servers/ds/internal/netns/netnstest"
	"github.com/distributed-servers/ds/internal/probe"
	"github.com/distributed-servers/ds/mobility/wire"
	"github.com/distributed-servers/ds/tun"
)

func TestMain(m *testing.M) {
	probe.Main()
	os.Exit(m.Run())
}

// backend is a daemon that knows how to be attached to, and nothing else.
type backend struct {
	server.Unsupported
	servers map[netip.Addr]error // whether one may attach
	files   []*os.File           // of the TUN
	hellos  chan *api.Message
	settled chan struct{}
	events  server.Events

	mu        sync.Mutex
	sessions  []*api.Session
	decisions *api.Decisions // of the latest
}

func (b *backend) Servers(context.Context) (all []api.Server, err error) {
	for a := range b.servers {
		all = append(all, api.Server{Address: a})
	}
	return all, nil
}

func (b *backend) Nodes(_ context.Context, dsa netip.Addr) ([]api.NodeInfo, error) {
	return []api.NodeInfo{{Node: "a", Local: true, CareOf: attachCareOf}}, b.servers[dsa]
}

func (b *backend) Clients(_ context.Context, dsa netip.Addr) ([]api.ClientInfo, error) {
	return []api.ClientInfo{{Server: dsa, Client: attachVia, Owner: "a"}}, b.servers[dsa]
}

func (b *backend) Admit(_ context.Context, dsa netip.Addr, _ server.Cred) error {
	return b.servers[dsa]
}

func (b *backend) Attach(_ context.Context, dsa netip.Addr, _ server.Cred, s *api.Session) error {
	hello, err := s.Receive()
	if err != nil {
		return err
	}
	b.mu.Lock()
	b.sessions = append(b.sessions, s)
	b.mu.Unlock()
	m := &api.Message{Kind: api.Welcome, Config: &api.SessionConfig{
		Addr: dsa, CareOf: attachCareOf, Via: attachVia, Node: "a", MTU: 1500, Queues: len(b.files), TUN: "ds0",
	}}
	words, err := api.ShareDecisions()
	if err != nil {
		return err
	}
	defer words.Close()
	files := []*os.File{words.File()}
	if !hello.HasTUN {
		files = slices.Concat(b.files, files)
	}
	if err := s.SendFiles(m, files...); err != nil {
		return err
	}
	b.mu.Lock()
	b.decisions = words
	b.mu.Unlock()
	b.hellos <- hello
	for {
		switch m, err := s.Receive(); {
		case err != nil:
			return nil
		case m.Kind == api.Settled:
			b.settled <- struct{}{}
		}
	}
}

var (
	attachServer = netip.MustParseAddr("fd00:d::1")
	otherServer  = netip.MustParseAddr("fd00:d::2")
	attachCareOf = netip.MustParseAddr("fd00:c::1")
	attachVia    = netip.MustParseAddr("fd00:1::1") // the kernel
)

func startServer(t *testing.T, b *backend, socket string) *server.Server {
	t.Helper()
	s, err := server.New(server.Config{Socket: socket, Backend: b, Events: &b.events})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); s.Serve() }()
	t.Cleanup(func() { s.Close(); <-done })
	return s
}

// A Node finds the distributed server that its user may attach to, or says what
// is in the way.
func TestAttachRefused(t *testing.T) {
	no := api.Errorf(api.ErrForbidden, "be another", "you may not")
	pipe, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	defer w.Close()
	const gotThere = "not the descriptor of a TUN" // a pipe is none: but so far it has come
	for _, tt := range []struct {
		name    string
		servers map[netip.Addr]error
		addr    netip.Addr
		want    string
	}{
		{"none", nil, netip.Addr{}, "has no distributed server"},
		{"the only one", map[netip.Addr]error{attachServer: nil}, netip.Addr{}, gotThere},
		{"the permitted one", map[netip.Addr]error{attachServer: nil, otherServer: no}, netip.Addr{}, gotThere},
		{"the named one", map[netip.Addr]error{attachServer: nil, otherServer: nil}, otherServer, gotThere},
		{"no permission", map[netip.Addr]error{attachServer: no}, netip.Addr{}, "you may not; be another"},
		{"no permission at all", map[netip.Addr]error{attachServer: no, otherServer: no}, netip.Addr{}, "none of the daemon's 2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := &backend{servers: tt.servers, files: []*os.File{pipe}, hellos: make(chan *api.Message, 2)}
			socket := filepath.Join(t.TempDir(), "s")
			startServer(t, b, socket)
			n := &ds.Node{Socket: socket, Addr: tt.addr}
			defer n.Close()
			_, err := n.Listen("tcp", ":80")
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	n := &ds.Node{Socket: filepath.Join(t.TempDir(), "s")}
	if _, err := n.Listen("tcp", ":80"); !errors.Is(err, api.ErrNotRunning) {
		t.Errorf("without a daemon: %v", err)
	}
	n.Close()
	if _, err := n.Listen("tcp", ":80"); !errors.Is(err, net.ErrClosed) || !errors.Is(err, ds.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// With the descriptors of a real TUN the Node answers the kernel, and it goes on
// when the daemon is restarted; and so does who watches it.
//
//	kernel fd00:1::1 ── ds0 ── Node: fd00:d::1, care-of address fd00:c::1
func TestAttach(t *testing.T) {
	if !netnstest.Run(t) {
		return
	}
	probe.Skip(t, probe.TUN)
	dev, err := tun.Open(tun.Config{
		Name:   "ds0",
		Addrs:  []netip.Prefix{netip.PrefixFrom(attachVia, 64)},
		Routes: []netip.Prefix{netip.PrefixFrom(attachServer, 128), netip.PrefixFrom(attachCareOf, 128)},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	b := &backend{servers: map[netip.Addr]error{attachServer: nil}, files: dev.Files(), hellos: make(chan *api.Message, 2), settled: make(chan struct{}, 2)}
	socket := filepath.Join(t.TempDir(), "s")
	s := startServer(t, b, socket)
	n := &ds.Node{Socket: socket, Program: "probe"}
	defer n.Close()
	if _, err := n.Listen("tcp", ":80"); err != nil {
		t.Fatal(err)
	}
	if m := <-b.hellos; m.Program != "probe" || m.HasTUN || m.AcceptsHandoffs {
		t.Errorf("hello: %+v", m)
	}
	answersKernel(t)
	first := decides(t, b, n)
	if st, err := n.Status(t.Context()); err != nil || st.Server != attachServer || !st.Attached || len(st.Nodes) != 1 || st.Nodes[0].CareOf != attachCareOf {
		t.Errorf("status: %+v, %v", st, err)
	}
	if clients, err := n.Clients(t.Context()); err != nil || len(clients) != 1 || clients[0].Client != attachVia {
		t.Errorf("clients: %+v, %v", clients, err)
	}
	events := make(chan api.Event, 100)
	go func() {
		for e, err := range n.Watch(t.Context()) {
			if err == nil {
				events <- e
			}
		}
	}()
	watched := func() api.Event {
		for {
			select {
			case e := <-events:
				return e
			case <-time.After(10 * time.Millisecond): // it begins with what comes next
				b.events.Publish(api.Event{Kind: api.EventOwned, Server: otherServer}) // that of others is nothing
				b.events.Publish(api.Event{Kind: api.EventOwned, Server: attachServer, Client: attachVia})
			}
		}
	}
	if e := watched(); e.Kind != api.EventOwned || e.Server != attachServer || e.Client != attachVia {
		t.Errorf("event: %+v", e)
	}

	s.Close()
	startServer(t, b, socket)
	if m := <-b.hellos; !m.HasTUN {
		t.Errorf("hello again: %+v", m)
	}
	answersKernel(t)
	if second := decides(t, b, n); second == first || first.Take(4, 1) {
		t.Error("the decisions of the session before")
	}
	last := watched()
	b.events.Publish(api.Event{Kind: api.EventGone, Server: attachServer, Client: attachVia})
	for last.Kind != api.EventGone {
		e := <-events
		if e.Seq != last.Seq+2 && e.Kind == api.EventOwned { // every second one is of another server
			t.Errorf("event %d after %d", e.Seq, last.Seq)
		}
		last = e
	}
}

// decides has the application take what the daemon puts, and the other way round.
func decides(t *testing.T, b *backend, n *ds.Node) *api.Decisions {
	t.Helper()
	b.mu.Lock()
	s, daemon := b.sessions[len(b.sessions)-1], b.decisions
	b.mu.Unlock()
	// What the Node answers has come to it when the session was its own.
	if err := s.Send(&api.Message{Kind: api.Done, ID: 1, CareOf: attachCareOf}); err != nil {
		t.Fatal(err)
	}
	<-b.settled
	application := n.Decisions()
	daemon.Put(3, 1)
	daemon.Put(4, 1)
	if !application.Take(3, 1) || daemon.Overrule(3, 1) || !daemon.Overrule(4, 1) || application.Take(4, 1) {
		t.Error("the application does not have the daemon's decisions")
	}
	return application
}

// answersKernel sends a SYN and waits for the answer in the tunnel.
func answersKernel(t *testing.T) {
	t.Helper()
	tunnel, err := net.ListenIP("ip6:41", &net.IPAddr{IP: attachVia.AsSlice()})
	if err != nil {
		t.Fatal(err)
	}
	defer tunnel.Close()
	tunnel.SetReadDeadline(time.Now().Add(20 * time.Second))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go new(net.Dialer).DialContext(ctx, "tcp", fmt.Sprintf("[%s]:80", attachServer))
	b := make([]byte, 2000)
	k, from, err := tunnel.ReadFromIP(b)
	if err != nil {
		t.Fatal(err)
	}
	p, err := wire.ParsePacket(b[:k])
	const flags, synAck = 13, 0x12
	if a, _ := netip.AddrFromSlice(from.IP); err != nil || a != attachCareOf || p.Src != attachServer || p.Dst != attachVia ||
		p.Protocol != wire.TCP || p.Payload[flags] != synAck {
		t.Errorf("from %s: %+v, %v", from, p, err)
	}
}
