package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/daemon/server"
	"github.com/distributed-servers/ds/internal/cli"
)

var (
	dsaAddr    = netip.MustParseAddr("2001:db8:1::80")
	clientAddr = netip.MustParseAddr("2001:db8:9::1")
	careOf     = netip.MustParseAddr("2001:db8:5::80:a")
)

// fake is a node's daemon with one client.
type fake struct {
	server.Unsupported
	servers  int
	clients  int            // of node a; default 1
	draining bool           // node c
	nodes    []api.NodeInfo // nil: the usual ones
	asked    []string
}

func (f *fake) Status(ctx context.Context) (*api.Status, error) {
	servers, err := f.Servers(ctx)
	return &api.Status{
		Role: api.RoleNode, Node: "a", Started: time.Now().Add(-3 * time.Hour), Servers: servers,
		Peers:    []api.Peer{{Node: "b", Address: careOf.Next(), Connected: true}, {Node: "c", Address: careOf, Error: "connection refused"}},
		Counters: map[string]uint64{"refused": 7, "nothing": 0},
	}, err
}

func (f *fake) Servers(context.Context) ([]api.Server, error) {
	var servers []api.Server
	a := dsaAddr
	for range f.servers {
		servers = append(servers, api.Server{
			Address: a, CareOf: careOf, Contact: api.Contact{Server: a, Node: "a", Epoch: 4}, Local: true, Registered: time.Now().Add(3 * time.Hour), // which is told in minutes
			Application: &api.Application{Program: "www", PID: 321}, TUN: "ds0", Clients: 1, Optimised: 1,
		})
		a = a.Next()
	}
	return servers, nil
}

func (f *fake) Nodes(context.Context, netip.Addr) ([]api.NodeInfo, error) {
	if f.nodes != nil {
		return f.nodes, nil
	}
	return []api.NodeInfo{
		{Node: "a", CareOf: careOf, Local: true, Contact: true, Attached: true, AcceptsHandoffs: true, Clients: max(1, f.clients)},
		{Node: "b", CareOf: careOf.Next(), Connected: true},
		{Node: "c", CareOf: careOf.Next(), Connected: true, Attached: true, AcceptsHandoffs: true, Draining: f.draining},
	}, nil
}

func (f *fake) Drain(_ context.Context, _ netip.Addr, node string, r api.MoveRequest, tell func(api.MoveProgress) error) error {
	f.did(fmt.Sprintf("drain %s %v %g %d", node, r.To, r.Rate, r.Concurrency))
	if node == "z" {
		return api.Errorf(api.ErrConflict, "", "there is no node z")
	}
	failed := []api.MoveFailure{{Client: clientAddr, To: "b", Error: "full", GivenUp: node == "c"}}
	if err := tell(api.MoveProgress{Node: node, Moved: 1, Left: 2, Moving: 1, Rate: 10, ETA: api.Seconds(200 * time.Millisecond), Failed: 1, Failures: failed}); err != nil {
		return err
	}
	last := api.MoveProgress{Node: node, Moved: 3, Failed: 1, Done: true, To: []api.MoveTarget{{Node: "b", Clients: 1}, {Node: "d", Clients: 2}}}
	if node == "c" {
		last.Error = "one is left"
	}
	return tell(last)
}

func (f *fake) Move(_ context.Context, _ netip.Addr, node string, r api.MoveRequest, tell func(api.MoveProgress) error) error {
	f.did(fmt.Sprintf("move %s %v %g %d", node, r.To, r.Rate, r.Concurrency))
	return tell(api.MoveProgress{Node: node, Moved: 3, Done: true, To: r.To})
}

func (f *fake) Undrain(_ context.Context, _ netip.Addr, node string) error {
	f.did("undrain " + node)
	return nil
}

func (f *fake) Clients(_ context.Context, dsa netip.Addr) ([]api.ClientInfo, error) {
	i, err := f.Client(context.Background(), dsa, clientAddr)
	i.Binding = nil
	return []api.ClientInfo{*i}, err
}

func (f *fake) Client(_ context.Context, dsa, client netip.Addr) (*api.ClientInfo, error) {
	if client != clientAddr {
		return nil, api.Errorf(api.ErrNotFound, "ds clients shows those that it knows", "this node does not know client %s", client)
	}
	age := api.Seconds(90 * time.Second)
	return &api.ClientInfo{
		Server: dsa, Client: client, Owner: "a", Local: true, Epoch: 3, Mode: api.Optimised, State: "established", Handoff: "transfer", Connections: 2,
		Since: time.Now().Add(-50 * time.Hour), Binding: &api.ClientBinding{CareOf: careOf, Sequence: 258, HomeTokenAge: &age},
	}, nil
}

func (f *fake) did(s string) { f.asked = append(f.asked, s) }

func (f *fake) Optimise(_ context.Context, _, c netip.Addr) error {
	f.did("optimise " + c.String())
	return nil
}

func (f *fake) DeleteBinding(_ context.Context, _, c netip.Addr) error {
	f.did("delete " + c.String())
	return nil
}

func (f *fake) Handoff(_ context.Context, dsa, client netip.Addr, to string) (*api.Handoff, error) {
	f.did("handoff " + to)
	if to == "z" {
		return nil, api.Errorf(api.ErrNotFound, "ds nodes shows them", "there is no node z")
	}
	return &api.Handoff{Server: dsa, Client: client, From: "a", To: to, Mode: api.Relayed, Connections: 2, Took: api.Seconds(1234 * time.Microsecond)}, nil
}

func (f *fake) SetContact(_ context.Context, dsa netip.Addr, node string) (*api.Contact, error) {
	f.did("set " + node)
	return &api.Contact{Server: dsa, Node: node, Epoch: 4}, nil
}

func (f *fake) TakeOver(_ context.Context, dsa netip.Addr, force bool) (*api.Contact, error) {
	if force {
		f.did("force")
	}
	return &api.Contact{Server: dsa, Node: "a", Address: careOf, Epoch: 5, Previous: "b", Told: []api.Told{{Node: "b"}, {Node: "c", Error: "no answer"}}}, nil
}

// daemon runs a fake one, and returns its socket.
func daemon(t *testing.T, f *fake) (string, *server.Events) {
	t.Helper()
	dir, err := os.MkdirTemp("", "ds")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	events := new(server.Events)
	events.Publish(api.Event{Kind: api.EventOwned, Server: dsaAddr, Client: clientAddr, Epoch: 3})
	events.Publish(api.Event{Kind: api.EventPeerUp, Node: "b", Detail: "for the first time"})
	socket := filepath.Join(dir, "s")
	s, err := server.New(server.Config{Socket: socket, Backend: f, Events: events})
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve()
	t.Cleanup(func() { s.Close() })
	return socket, events
}

func TestDaemonCommands(t *testing.T) {
	f := &fake{servers: 1, clients: 9}
	socket, _ := daemon(t, f)
	for _, tt := range []struct {
		args string
		want []string // parts of the table
		ask  string   // of the daemon
	}{
		{"status", []string{"node a, version ", "since 3h", "SERVER ", "2001:db8:1::80  2001:db8:5::80:a  a (this)  4      3h0m        www (321)    ds0        1        1          –",
			"PEER  ADDRESS           CONNECTED", "c     2001:db8:5::80:a  no         –      connection refused", "refused  7"}, ""},
		{"nodes", []string{"NODE  CARE-OF", "a     2001:db8:5::80:a  –       yes        yes          yes            9        contact, this"}, ""},
		{"clients", []string{"CLIENT ", "2001:db8:9::1  a      3      optimised  established, handoff: transfer  2            2d"}, ""},
		{"trace 2001:db8:9::1", []string{"owner          a (this), epoch 3", "binding        at 2001:db8:5::80:a, sequence 258", "home token     of 1m30s", "care-of token  none", "owned    epoch 3  \n"}, ""},
		{"handoff 2001:db8:9::1 b", []string{"2001:db8:9::1 went from a to b in 1.234ms: connections: 2, relayed\n"}, "handoff b"},
		{"drain a", []string{"ds: a is the contact, where new clients begin", "ds: 2001:db8:9::1 stays at a: full (to b; it is tried again)\n",
			"a is drained: clients that have gone: 3 (1 to b, 2 to d), failed handoffs: 1, in "}, "drain a [] 0 64"},
		{"drain b --to a,c --weight c=2 --rate 0.5 --concurrency 3", []string{"b is drained"}, "drain b [{a 0 0} {c 2 0}] 0.5 3"},
		{"drain b --weight c=2", []string{"b is drained"}, "drain b [{a 0 0} {c 2 0}] 0 64"},
		{"drain b --undo", nil, "undrain b"},
		{"undrain b", nil, "undrain b"},
		{"rebalance", []string{"rebalanced: clients that have gone: 3 (4 to c), in "}, "move a [{c 0 4}] 0 64"},
		{"rebalance --weight c=2 --rate 5", []string{"rebalanced"}, "move a [{c 0 6}] 5 64"},
		{"rebalance --dry-run", []string{"a     1       9        5      –\n", "b     1       0        0      left alone: drained, not connected, or without application\n", "FROM  TO  CLIENTS\na     c   4\n"}, ""},
		{"binding start 2001:db8:9::1", nil, "optimise 2001:db8:9::1"},
		{"binding delete 2001:db8:9::1", nil, "delete 2001:db8:9::1"},
		{"contact show", []string{"contact  a\nepoch    4\n"}, ""},
		{"contact set b", []string{"contact  b"}, "set b"},
		{"contact takeover", []string{"epoch    5\nbefore   b\n", "NODE  ANSWER\nb     knows\nc     no answer\n"}, ""},
		{"contact takeover --force", []string{"epoch    5"}, "force"},
	} {
		f.asked = nil
		args := append(strings.Fields(tt.args), "--socket", socket)
		out, err := ds(t, args...)
		if err != nil {
			t.Errorf("%s: %v", tt.args, err)
		}
		for _, want := range tt.want {
			if !strings.Contains(out, want) {
				t.Errorf("%s: want %q in\n%s", tt.args, want, out)
			}
		}
		if got := strings.Join(f.asked, ", "); got != tt.ask {
			t.Errorf("%s: the daemon was asked %q, want %q", tt.args, got, tt.ask)
		}
		out, err = ds(t, append(args, "--json")...)
		for line := range strings.Lines(out) {
			if !json.Valid([]byte(line)) && !strings.HasPrefix(line, "ds: ") || len(tt.want) == 0 {
				t.Errorf("%s --json: %s", tt.args, line)
			}
		}
		if len(tt.want) > 0 && (err != nil || out == "") {
			t.Errorf("%s --json: %v\n%s", tt.args, err, out)
		}
	}
}

func TestDaemonErrors(t *testing.T) {
	socket, _ := daemon(t, &fake{servers: 2})
	none, _ := daemon(t, &fake{})
	for _, tt := range []struct {
		args, socket, want string
	}{
		{"status", "/nonexistent/socket", "no daemon at /nonexistent/socket (connect: no such file or directory); start it"},
		{"clients", socket, "several distributed servers; say which with --server: 2001:db8:1::80, 2001:db8:1::81"},
		{"clients", none, "no distributed server; add one"},
		{"clients --server x", socket, `--server: "x" is not an address`},
		{"trace x", socket, `CLIENT: "x" is not an address`},
		{"trace 2001:db8:9::2 --server 2001:db8:1::80", socket, "this node does not know client 2001:db8:9::2; ds clients shows"},
		{"handoff 2001:db8:9::1 z --server 2001:db8:1::80", socket, "there is no node z; ds nodes shows them"},
		{"handoff 2001:db8:9::1", socket, "accepts 2 arg"},
		{"drain z --server 2001:db8:1::80", socket, "there is no node z"},
		{"drain c --server 2001:db8:1::80", socket, "one is left; c is being drained: run it again to go on, or ds undrain c"},
		{"drain b --weight x=2 --to c --server 2001:db8:1::80", socket, "--weight x: clients do not go to that node"},
		{"drain b --rate -1 --server 2001:db8:1::80", socket, "rate -1"},
		{"rebalance --weight x=2 --server 2001:db8:1::80", socket, "--weight x: there is no such node"},
		{"rebalance --weight c=0 --server 2001:db8:1::80", socket, "--weight c=0: want 1 to 1000"},
		{"contact show --server 2001:db8:1::99", socket, "no distributed server 2001:db8:1::99"},
		{"contact nothing", socket, "nothing"},
		{"watch --client x", socket, `--client: "x"`},
		{"watch --since -1", socket, "since"},
	} {
		_, err := ds(t, append(strings.Fields(tt.args), "--socket", tt.socket)...)
		if tt.args == "contact nothing" {
			_, err = ds(t, "contact", "nothing")
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %s", tt.args, err, tt.want)
		}
	}
	if _, err := ds(t, "clients", "--socket", socket, "--server", "2001:db8:1::81"); err != nil {
		t.Error(err)
	}
}

func TestWatch(t *testing.T) {
	for _, format := range []string{"", "--json"} {
		socket, events := daemon(t, &fake{servers: 1})
		r, w := io.Pipe()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ended := make(chan error, 1)
		c := command()
		c.SetOut(w)
		c.SetArgs(slices.DeleteFunc([]string{"watch", "--socket", socket, "--since", "1", format}, func(s string) bool { return s == "" }))
		go func() { ended <- c.ExecuteContext(ctx) }()
		lines := bufio.NewReader(r)
		for _, want := range []string{"for the first time", "as it happens"} {
			line, err := lines.ReadString('\n')
			if err != nil || !strings.Contains(line, want) || format != "" && !json.Valid([]byte(line)) {
				t.Errorf("got %q, %v, want %s", line, err, want)
			}
			events.Publish(api.Event{Kind: api.EventBound, Client: clientAddr, Detail: "as it happens"})
		}
		cancel()
		go io.Copy(io.Discard, r)
		if err := <-ended; err != nil {
			t.Errorf("interrupted: %v", err)
		}
	}
}

func TestMissed(t *testing.T) {
	var out bytes.Buffer
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	eventRow(w, api.Event{Kind: api.EventMissed, Missed: 12}, true)
	w.Flush()
	if !strings.Contains(out.String(), "missed        12 events\n") {
		t.Errorf("got %s", out.String())
	}
}

func TestCompletion(t *testing.T) {
	defer func(d time.Duration) { completionTimeout = d }(completionTimeout)
	completionTimeout = time.Minute // a busy machine is no fault
	socket, _ := daemon(t, &fake{servers: 2})
	for args, want := range map[string]string{
		"trace|":                                         "",
		"trace|--server|2001:db8:1::80|":                 "2001:db8:9::1\tat a\n",
		"handoff|--server|2001:db8:1::80|":               "2001:db8:9::1\tat a\n",
		"handoff|--server|2001:db8:1::80|2001:db8:9::1|": "a\nb\nc\n",
		"contact|set|--server|2001:db8:1::80|":           "a\nb\nc\n",
		"drain|--server|2001:db8:1::80|":                 "a\nb\nc\n",
		"clients|--server|":                              "2001:db8:1::80\n2001:db8:1::81\n",
		"watch|--server|2001:db8:1::80|--client|":        "2001:db8:9::1\tat a\n",
	} {
		f := strings.Split(args, "|")
		f = append([]string{"__complete"}, append(f[:len(f)-1], "--socket", socket, "")...)
		if i := len(f) - 4; strings.HasPrefix(f[i], "--") { // the flag is completed, so it comes last
			f = append(append(slices.Clone(f[:i]), "--socket", socket), f[i], "")
		}
		out, err := ds(t, f...)
		got, _, _ := strings.Cut(out, ":4")
		if err != nil || got != want {
			t.Errorf("%s: got %q, %v, want %q", args, out, err, want)
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if out, err := ds(t, "completion", shell); err != nil || len(out) < 1000 {
			t.Errorf("%s: %v, %d octets", shell, err, len(out))
		}
	}
}

// Every command has an example, and a page of the manual.
func TestHelp(t *testing.T) {
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		for _, sub := range c.Commands() {
			if !sub.IsAvailableCommand() || sub.Name() == "help" || sub.Name() == "completion" || sub.Name() == "version" {
				continue
			}
			if !sub.HasSubCommands() && sub.Example == "" {
				t.Errorf("%s: no example", sub.CommandPath())
			}
			walk(sub)
		}
	}
	walk(command())
	dir := t.TempDir()
	if err := cli.CheckMan(command(), "1", dir); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "ds-contact-takeover.1")); err != nil {
		t.Error(err)
	}
	if _, err := ds(t, "docs", "man", filepath.Join(dir, "more")); err != nil {
		t.Error(err)
	}
}

// On a terminal one line shows how far moves are, of all nodes together: how many have
// gone and are to go, how fast, for how long yet.
func TestMoveLine(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var said strings.Builder
	c := new(cobra.Command)
	c.SetErr(&said)
	m := newMover(c, false, []string{"a", "b"})
	m.show = &progress{w: w, live: true}
	err = m.follow(func(yield func(api.MoveProgress, error) bool) {
		_ = yield(api.MoveProgress{Node: "a", Moved: 30, Moving: 4, Left: 70, Rate: 10, ETA: api.Seconds(7 * time.Second)}, nil) &&
			yield(api.MoveProgress{Node: "b", Moved: 5, Left: 5, Stuck: 1, Failed: 2, Rate: 2.6, ETA: api.Seconds(2 * time.Second)}, nil) &&
			yield(api.MoveProgress{Node: "a", Moved: 100, Done: true, Error: "one has stayed"}, nil)
	})
	w.Close()
	shown, _ := io.ReadAll(r)
	want := clearLine + "a, b: 30 of 100 gone, 4 going, 10/s, 7s left" +
		clearLine + "a, b: 35 of 111 gone, 4 going, 13/s, 7s left, failed handoffs: 2" +
		clearLine + "a, b: 105 of 111 gone, 0 going, 3/s, 2s left, failed handoffs: 2"
	if string(shown) != want || err == nil || err.Error() != "one has stayed" || said.Len() > 0 {
		t.Errorf("it shows %q, not %q, says %q and ends with %v", shown, want, &said, err)
	}
	if got := m.summary(); !strings.HasPrefix(got, "clients that have gone: 105, left: 6, failed handoffs: 2, in ") {
		t.Error(got)
	}
}

func TestSpan(t *testing.T) {
	now := time.Now()
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 1234 * time.Millisecond: "1.2s", 75 * time.Second: "1m15s", 3 * time.Hour: "3h0m", 50 * time.Hour: "2d",
	} {
		if got := span(d, now); got != want {
			t.Errorf("%s: %s, want %s", d, got, want)
		}
	}
	if got := age(time.Time{}); got != "" {
		t.Errorf("no time: %s", got)
	}
}
