package server

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/internal/probe"
)

func TestMain(m *testing.M) {
	probe.Main()
	if path := os.Getenv(otherUserEnv); path != "" {
		os.Exit(otherUser(path))
	}
	if path := os.Getenv(daemonEnv); path != "" {
		os.Exit(daemonOnly(path))
	}
	os.Exit(m.Run())
}

var (
	dsa     = netip.MustParseAddr("2001:db8:1::1")
	client1 = netip.MustParseAddr("2001:db8:9::1")
)

// fake is a daemon in memory.
type fake struct {
	mu    sync.Mutex
	calls []string

	err    error                    // what calls answer
	admit  func(Cred) error         // nil: everyone
	asked  chan struct{}            // if not nil, Handoff says here that it waits for its context
	attach func(*api.Session) error // nil: a Welcome, and echoes until the end
}

func (f *fake) called(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, name)
	return f.err
}

func (f *fake) Status(context.Context) (*api.Status, error) {
	return &api.Status{Role: api.RoleNode, API: api.Version, Node: "a", PID: os.Getpid()}, f.called("status")
}

func (f *fake) Servers(context.Context) ([]api.Server, error) {
	return []api.Server{{Address: dsa, Contact: api.Contact{Server: dsa, Node: "a", Epoch: 1}}}, f.called("servers")
}

func (f *fake) Nodes(_ context.Context, d netip.Addr) ([]api.NodeInfo, error) {
	return []api.NodeInfo{{Node: "a", Local: true}, {Node: "b"}}, f.called("nodes " + d.String())
}

func (f *fake) LocalNode(_ context.Context, d netip.Addr) (*api.NodeInfo, error) {
	return &api.NodeInfo{Node: "a", Local: true}, f.called("local " + d.String())
}

func (f *fake) Clients(_ context.Context, d netip.Addr) ([]api.ClientInfo, error) {
	return nil, f.called("clients " + d.String())
}

func (f *fake) Client(_ context.Context, d, c netip.Addr) (*api.ClientInfo, error) {
	return &api.ClientInfo{Server: d, Client: c, Owner: "a", Mode: api.Optimised}, f.called("client " + c.String())
}

func (f *fake) Sequence(_ context.Context, d, c netip.Addr) (*api.Sequence, error) {
	return &api.Sequence{Client: c, Sequence: 65535, Known: true}, f.called("sequence " + c.String())
}

func (f *fake) Optimise(_ context.Context, d, c netip.Addr) error {
	return f.called("optimise " + c.String())
}

func (f *fake) DeleteBinding(_ context.Context, d, c netip.Addr) error {
	return f.called("delete " + c.String())
}

func (f *fake) Handoff(ctx context.Context, d, c netip.Addr, to string) (*api.Handoff, error) {
	err := f.called("handoff " + c.String() + " " + to)
	if f.asked != nil {
		f.asked <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return &api.Handoff{Server: d, Client: c, From: "a", To: to, Connections: 3, Took: api.Seconds(1500 * time.Microsecond)}, err
}

func (f *fake) Drain(ctx context.Context, d netip.Addr, node string, r api.MoveRequest, tell func(api.MoveProgress) error) error {
	if err := f.called(fmt.Sprintf("drain %s %+v", node, r)); err != nil {
		return err
	}
	if f.asked != nil {
		f.asked <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}
	if err := tell(api.MoveProgress{Node: node, Moved: 1, Left: 1}); err != nil {
		return err
	}
	return tell(api.MoveProgress{Node: node, Moved: 2, Done: true, Failures: []api.MoveFailure{{Client: client1, To: "b", Error: "no"}}})
}

func (f *fake) Move(_ context.Context, d netip.Addr, node string, r api.MoveRequest, tell func(api.MoveProgress) error) error {
	if err := f.called(fmt.Sprintf("move %s %+v", node, r)); err != nil {
		return err
	}
	return tell(api.MoveProgress{Node: node, Moved: 2, Done: true})
}

func (f *fake) Undrain(_ context.Context, d netip.Addr, node string) error {
	return f.called("undrain " + node)
}

func (f *fake) SetContact(_ context.Context, d netip.Addr, node string) (*api.Contact, error) {
	return &api.Contact{Server: d, Node: node}, f.called("contact " + node)
}

func (f *fake) TakeOver(_ context.Context, d netip.Addr, force bool) (*api.Contact, error) {
	name := "takeover"
	if force {
		name += " force"
	}
	return &api.Contact{Server: d, Node: "a", Epoch: 2, Previous: "b", Told: []api.Told{{Node: "b"}}}, f.called(name)
}

func (f *fake) Admit(_ context.Context, d netip.Addr, who Cred) error {
	if f.admit != nil {
		return f.admit(who)
	}
	return f.called("admit")
}

func (f *fake) Attach(_ context.Context, d netip.Addr, who Cred, s *api.Session) error {
	if f.attach != nil {
		return f.attach(s)
	}
	if _, err := s.Receive(); err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	defer w.Close()
	w.WriteString("through the descriptor")
	config := &api.SessionConfig{Addr: d, CareOf: d.Next(), Via: d.Next(), Node: "a", MTU: 1500, Queues: 1, TUN: "dsco0"}
	words, err := api.ShareDecisions()
	if err != nil {
		return err
	}
	defer words.Close()
	words.Put(1, 2)
	if err := s.SendFiles(&api.Message{Kind: api.Welcome, Config: config}, r, words.File()); err != nil {
		return err
	}
	for {
		m, err := s.Receive()
		if err != nil {
			return err
		}
		if err := s.Send(&api.Message{Kind: api.Bound, Client: m.Client}); err != nil {
			return err
		}
	}
}

// temp is a directory that every user may enter, with a short name.
func temp(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "dsco")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// patience is longer than a busy machine stands still.
const patience = time.Minute

// serve runs a server until the test ends.
func serve(t testing.TB, cfg Config) (*Server, *api.Client) {
	t.Helper()
	if cfg.Socket == "" {
		cfg.Socket = filepath.Join(temp(t), "s")
	}
	if cfg.Backend == nil {
		cfg.Backend = new(fake)
	}
	if cfg.RequestTimeout == 0 {
		cfg.RequestTimeout = patience
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.closeTimeout = patience
	end := make(chan error, 1)
	go func() { end <- s.Serve() }()
	c := &api.Client{Socket: cfg.Socket}
	t.Cleanup(func() {
		c.Close()
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		if err := <-end; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return s, c
}

func dialRaw(t testing.TB, s *Server) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", s.cfg.Socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}
