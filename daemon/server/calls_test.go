package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/internal/netns/netnstest"
	"github.com/distributed-servers/ds/internal/probe"
)

// A call of the client, for each route but those that have tests of their own.
type clientCall struct {
	route string
	call  func(context.Context, *api.Client) error
	want  string // what the backend is asked
}

var clientCalls = []clientCall{
	{"GET /status", func(ctx context.Context, c *api.Client) error {
		v, err := c.Status(ctx)
		return expect(err, v != nil && v.Node == "a")
	}, "status"},
	{"GET /servers", func(ctx context.Context, c *api.Client) error {
		v, err := c.Servers(ctx)
		return expect(err, len(v) == 1 && v[0].Contact.Epoch == 1)
	}, "servers"},
	{"GET /servers/{dsa}/nodes", func(ctx context.Context, c *api.Client) error {
		v, err := c.Nodes(ctx, dsa)
		return expect(err, len(v) == 2 && v[0].Local)
	}, "nodes 2001:db8:1::1"},
	{"GET /servers/{dsa}/nodes/local", func(ctx context.Context, c *api.Client) error {
		v, err := c.LocalNode(ctx, dsa)
		return expect(err, v != nil && v.Node == "a")
	}, "local 2001:db8:1::1"},
	{"GET /servers/{dsa}/clients", func(ctx context.Context, c *api.Client) error {
		v, err := c.Clients(ctx, dsa)
		return expect(err, v != nil && len(v) == 0)
	}, "clients 2001:db8:1::1"},
	{"GET /servers/{dsa}/clients/{client}", func(ctx context.Context, c *api.Client) error {
		v, err := c.Client(ctx, dsa, client1)
		return expect(err, v != nil && v.Client == client1 && v.Mode == api.Optimised)
	}, "client 2001:db8:9::1"},
	{"GET /servers/{dsa}/clients/{client}/sequence", func(ctx context.Context, c *api.Client) error {
		v, err := c.Sequence(ctx, dsa, client1)
		return expect(err, v != nil && v.Sequence == 65535)
	}, "sequence 2001:db8:9::1"},
	{"POST /servers/{dsa}/clients/{client}/optimise", func(ctx context.Context, c *api.Client) error {
		return c.Optimise(ctx, dsa, client1)
	}, "optimise 2001:db8:9::1"},
	{"DELETE /servers/{dsa}/clients/{client}/binding", func(ctx context.Context, c *api.Client) error {
		return c.DeleteBinding(ctx, dsa, client1)
	}, "delete 2001:db8:9::1"},
	{"POST /servers/{dsa}/clients/{client}/handoff", func(ctx context.Context, c *api.Client) error {
		v, err := c.Handoff(ctx, dsa, client1, "b")
		return expect(err, v != nil && v.To == "b" && v.Connections == 3 && v.Took == 1500000)
	}, "handoff 2001:db8:9::1 b"},
	{"POST /servers/{dsa}/nodes/{node}/drain", func(ctx context.Context, c *api.Client) error {
		var last api.MoveProgress
		n := 0
		for p, err := range c.Drain(ctx, dsa, "b", api.MoveRequest{To: []api.MoveTarget{{Node: "a", Weight: 2}}, Rate: 0.5, Concurrency: 3}) {
			if err != nil {
				return err
			}
			last = p
			n++
		}
		return expect(nil, n == 2 && last.Done && last.Moved == 2 && last.Failures[0].Error == "no")
	}, "drain b {To:[{Node:a Weight:2 Clients:0}] Rate:0.5 Concurrency:3}"},
	{"DELETE /servers/{dsa}/nodes/{node}/drain", func(ctx context.Context, c *api.Client) error {
		return c.Undrain(ctx, dsa, "b")
	}, "undrain b"},
	{"POST /servers/{dsa}/nodes/{node}/move", func(ctx context.Context, c *api.Client) error {
		for p, err := range c.Move(ctx, dsa, "b", api.MoveRequest{To: []api.MoveTarget{{Node: "a", Clients: 2}}}) {
			if err != nil || p.Done {
				return expect(err, p.Moved == 2)
			}
		}
		return errors.New("no last line")
	}, "move b {To:[{Node:a Weight:0 Clients:2}] Rate:0 Concurrency:0}"},
	{"PUT /servers/{dsa}/contact", func(ctx context.Context, c *api.Client) error {
		v, err := c.SetContact(ctx, dsa, "b")
		return expect(err, v != nil && v.Node == "b")
	}, "contact b"},
	{"POST /servers/{dsa}/contact/takeover", func(ctx context.Context, c *api.Client) error {
		v, err := c.TakeOver(ctx, dsa, true)
		return expect(err, v != nil && v.Epoch == 2 && len(v.Told) == 1)
	}, "takeover force"},
}

func expect(err error, ok bool) error {
	if err == nil && !ok {
		return errors.New("not the answer")
	}
	return err
}

func TestCalls(t *testing.T) {
	f := new(fake)
	_, c := serve(t, Config{Backend: f})
	var covered []string
	for _, tt := range clientCalls {
		covered = append(covered, tt.route)
		f.calls = nil
		if err := tt.call(t.Context(), c); err != nil {
			t.Errorf("%s: %v", tt.route, err)
		}
		if !slices.Equal(f.calls, []string{tt.want}) {
			t.Errorf("%s: the backend was asked %q, want %q", tt.route, f.calls, tt.want)
		}
	}
	for _, r := range routes {
		name := r.Method + " " + r.Pattern
		if r.Pattern != "/watch" && r.Access != Attach && !slices.Contains(covered, name) {
			t.Errorf("no call of the client for %s", name)
		}
	}
}

// An error of the backend comes out as it went in.
func TestErrors(t *testing.T) {
	f := new(fake)
	_, c := serve(t, Config{Backend: f})
	for _, tt := range []struct {
		err  error
		is   error
		want string
	}{
		{api.Errorf(api.ErrNotFound, "see ds clients", "no client %s", client1), api.ErrNotFound, "no client 2001:db8:9::1; see ds clients"},
		{fmt.Errorf("node: %w", api.Errorf(api.ErrConflict, "", "a handoff is under way")), api.ErrConflict, "a handoff is under way"},
		{errors.New("it broke"), api.ErrFailed, "it broke"},
		{&api.Error{Code: 200, Message: "no error at all"}, api.ErrFailed, "no error at all"},
	} {
		f.err = tt.err
		for _, call := range clientCalls {
			err := call.call(t.Context(), c)
			if !errors.Is(err, tt.is) || err.Error() != tt.want {
				t.Errorf("%s: got %v, want %s", call.route, err, tt.want)
			}
		}
	}
}

func TestMoveRequests(t *testing.T) {
	f := new(fake)
	_, c := serve(t, Config{Backend: f})
	for _, tt := range []struct {
		counts bool
		r      api.MoveRequest
		want   string
	}{
		{false, api.MoveRequest{Rate: -1}, "rate -1"},
		{false, api.MoveRequest{Rate: 1e7}, "rate 1e+07"},
		{false, api.MoveRequest{Concurrency: 1025}, "concurrency 1025"},
		{false, api.MoveRequest{To: []api.MoveTarget{{}}}, "a node without name"},
		{false, api.MoveRequest{To: []api.MoveTarget{{Node: "b", Weight: 1001}}}, `node "b": weight 1001`},
		{false, api.MoveRequest{To: []api.MoveTarget{{Node: "b", Clients: 1}}}, "drained of all"},
		{true, api.MoveRequest{}, "no node to move clients to"},
		{true, api.MoveRequest{To: []api.MoveTarget{{Node: "b"}}}, `node "b": 0 clients`},
	} {
		stream := c.Drain
		if tt.counts {
			stream = c.Move
		}
		for _, err := range stream(t.Context(), dsa, "a", tt.r) {
			if !errors.Is(err, api.ErrInvalid) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%+v: %v", tt.r, err)
			}
		}
	}
	if len(f.calls) > 0 {
		t.Errorf("the backend was asked %q", f.calls)
	}
}

func TestUnsupported(t *testing.T) {
	_, c := serve(t, Config{Backend: Unsupported{Role: api.RoleHomeAgent}})
	for _, call := range clientCalls {
		err := call.call(t.Context(), c)
		if e := api.AsError(err); !errors.Is(err, api.ErrUnsupported) || !strings.Contains(e.Message, "home-agent") || e.Cure == "" {
			t.Errorf("%s: got %v", call.route, err)
		}
	}
	if _, err := api.Attach(t.Context(), c.Socket, dsa, &api.Message{Kind: api.Hello, Program: "test"}); !errors.Is(err, api.ErrUnsupported) {
		t.Errorf("attach: got %v", err)
	}
}

func TestMayWrite(t *testing.T) {
	gid := uint32(500)
	for _, tt := range []struct {
		name  string
		who   Cred
		group *uint32
		want  bool
	}{
		{"root", Cred{UID: 0}, nil, true},
		{"the daemon's own user", Cred{UID: 77}, nil, true},
		{"another", Cred{UID: 1000, GID: 1000}, &gid, false},
		{"another, without a group", Cred{UID: 1000, GID: 500, Groups: []uint32{500}}, nil, false},
		{"by the first group", Cred{UID: 1000, GID: 500}, &gid, true},
		{"by another group", Cred{UID: 1000, GID: 1000, Groups: []uint32{7, 500}}, &gid, true},
		{"root's group is not root", Cred{UID: 1000, GID: 0, Groups: []uint32{0}}, &gid, false},
		{"a uid that looks like the group", Cred{UID: 500, GID: 1000}, &gid, false},
	} {
		s := &Server{own: 77, group: tt.group}
		if got := s.mayWrite(tt.who); got != tt.want {
			t.Errorf("%s: %t", tt.name, got)
		}
	}
}

const otherUserEnv = "DS_TEST_OTHER_USER"

// otherUser makes all calls, and says which were allowed.
func otherUser(path string) int {
	c := &api.Client{Socket: path}
	for _, call := range clientCalls {
		err := call.call(context.Background(), c)
		switch {
		case err == nil:
			fmt.Println("yes", call.route)
		case errors.Is(err, api.ErrForbidden):
			fmt.Println("no", call.route)
		default:
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	s, err := api.Attach(context.Background(), path, dsa, &api.Message{Kind: api.Hello, Program: "test"})
	if err != nil {
		fmt.Println("no POST /servers/{dsa}/attach")
		return 0
	}
	s.Close()
	fmt.Println("yes POST /servers/{dsa}/attach")
	return 0
}

// Real processes of other users.
func TestPermissions(t *testing.T) {
	if !netnstest.Run(t) { // where an ordinary user is root, but alone
		return
	}
	probe.Skip(t, probe.Users)
	admit := func(who Cred) error {
		if who.UID == 4242 {
			return nil
		}
		return api.Errorf(api.ErrForbidden, "", "user %d may not attach", who.UID)
	}
	s, _ := serve(t, Config{Backend: &fake{admit: admit}, Group: "4300"})
	for _, tt := range []struct {
		name          string
		cred          syscall.Credential
		write, attach bool
	}{
		{"root", syscall.Credential{Uid: 0}, true, false},
		{"a user", syscall.Credential{Uid: 4241, Gid: 4241}, false, false},
		{"one that may attach", syscall.Credential{Uid: 4242, Gid: 4242}, false, true},
		{"a member of the group", syscall.Credential{Uid: 4243, Gid: 4243, Groups: []uint32{4300}}, true, false},
		{"one in the group", syscall.Credential{Uid: 4244, Gid: 4300}, true, false},
	} {
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
		cmd.Env = append(os.Environ(), otherUserEnv+"="+s.cfg.Socket, "GORACE=atexit_sleep_ms=0")
		cmd.Stderr = os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &tt.cred}
		out, err := cmd.Output()
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		answer := map[bool]string{true: "yes", false: "no"}
		for _, r := range routes {
			may := map[Access]bool{Read: true, Write: tt.write, Attach: tt.attach}[r.Access]
			if want := answer[may] + " " + r.Method + " " + r.Pattern + "\n"; r.Pattern != "/watch" && !strings.Contains(string(out), want) {
				t.Errorf("%s: want %q in\n%s", tt.name, want, out)
			}
		}
	}
}

// A caller that goes away ends its call, and so does the server.
func TestCallEnds(t *testing.T) {
	f := &fake{asked: make(chan struct{})}
	s, c := serve(t, Config{Backend: f})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := c.Handoff(ctx, dsa, client1, "b")
		ended <- err
	}()
	<-f.asked
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	go func() {
		_, err := c.Handoff(t.Context(), dsa, client1, "b")
		ended <- err
	}()
	<-f.asked
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; !errors.Is(err, api.ErrBusy) {
		t.Errorf("got %v", err)
	}
	if _, err := c.Status(t.Context()); !errors.Is(err, api.ErrNotRunning) || !strings.Contains(err.Error(), "start it") {
		t.Errorf("got %v", err)
	}
}

func TestBadAddresses(t *testing.T) {
	_, c := serve(t, Config{})
	for _, a := range []netip.Addr{{}, netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("::ffff:192.0.2.1"), netip.MustParseAddr("fe80::1%eth0")} {
		if _, err := c.Client(t.Context(), dsa, a); api.AsError(err).Code != http.StatusBadRequest {
			t.Errorf("%s: got %v", a, err)
		}
	}
}
