package daemon

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/daemon/identity"
	"github.com/distributed-servers/ds/daemon/member"
	"github.com/distributed-servers/ds/daemon/peer"
	"github.com/distributed-servers/ds/internal/testcert"
)

// A frozen peer is a file: all that two nodes of a release, a and b, and their
// applications have said to each other, octet for octet. It plays either node
// against this release. A file is never changed: when a test here fails, this
// release does not understand its neighbour any more, and has to speak the old
// version beside the new one (daemon/member/version.go).
//
// A line of it is one of
//
//	app NODE HEX        a message of the application to its node
//	toapp NODE HEX      and back
//	peer FROM TO HEX    a frame between the nodes
//	tick NODE DURATION  time passes
//	takeover NODE TO    an operator's command
//	drain NODE TO       another
//
// -freeze writes the file of a version that has none.
var freeze = flag.Bool("freeze", false, "write what the present release says, if there is no file of its version")

var (
	frozenHome   = netip.MustParsePrefix("2001:db8:1::80/64")
	frozenClient = netip.MustParseAddr("2001:db8:c::1")
)

// zeros are random numbers that are the same each time.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func frozenMember(t *testing.T, name string) *member.Member {
	t.Helper()
	nodes := make(map[string]member.Addrs)
	for _, n := range []string{"a", "b"} {
		nodes[n] = member.Addrs{Daemon: netip.MustParseAddr("2001:db8:5::" + n), CareOf: netip.MustParseAddr("2001:db8:5::80:" + n)}
	}
	m, err := member.New(member.Config{
		Name: name, Home: frozenHome, HomeAgent: netip.MustParseAddr("2001:db8:1::1"), SPI: 256, Key: []byte("sixteen octets!!"), Nodes: nodes,
		Contact: member.Contact{Name: "a"}, Words: api.NewDecisions(), Epoch: time.Unix(1795000000, 0), Rand: zeros{},
		Session: api.SessionConfig{MTU: 1500, Queues: 1, TUN: "ds0"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// recorder has two members of this release talk, and writes it down.
type recorder struct {
	t       *testing.T
	members map[string]*member.Member
	now     map[string]time.Duration
	todo    []func() // what is under way
	answer  func(node string, m *api.Message) []*api.Message
	out     bytes.Buffer
}

func (r *recorder) step(node string, in member.Input) {
	out := r.members[node].Step(r.now[node], in)
	for _, m := range out.App {
		r.note("toapp", node, appBytes(r.t, m))
		for _, a := range r.answer(node, m) {
			r.todo = append(r.todo, func() { r.app(node, a) })
		}
	}
	for _, p := range out.Peers {
		b, err := p.Message.Append(nil)
		if err != nil {
			r.t.Fatal(err)
		}
		r.todo = append(r.todo, func() {
			r.note("peer", node+" "+p.To, b)
			m, err := member.Parse(b)
			if err != nil {
				r.t.Fatal(err)
			}
			r.step(p.To, member.Peer{From: node, Message: m})
		})
	}
	if len(out.Record) > 0 {
		r.step(node, member.Recorded{})
	}
}

func (r *recorder) app(node string, m *api.Message) {
	b := appBytes(r.t, m)
	r.note("app", node, b)
	r.step(node, member.App{Message: appMessage(r.t, b)})
}

func (r *recorder) note(what, who string, b []byte) {
	fmt.Fprintf(&r.out, "%s %s %s\n", what, who, hex.EncodeToString(b))
}

// settle lets everything arrive.
func (r *recorder) settle() {
	for len(r.todo) > 0 {
		next := r.todo[0]
		r.todo = r.todo[1:]
		next()
	}
}

// tick lets a second pass, in which clients do not answer.
func (r *recorder) tick(node string) {
	r.now[node] += time.Second
	fmt.Fprintf(&r.out, "tick %s %v\n", node, r.now[node])
	r.step(node, member.Tick{})
	r.settle()
}

func appBytes(t *testing.T, m *api.Message) []byte {
	b, err := api.AppendMessage(nil, m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func appMessage(t *testing.T, b []byte) *api.Message {
	m, err := api.ReadMessage(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// aDay is a day in the life of two nodes: they meet, a client is handed off with
// packets that come late, another handoff is called off, the contact changes, a
// client leaves, one node orders another to drain.
func aDay(t *testing.T) []byte {
	r := &recorder{t: t, members: make(map[string]*member.Member), now: make(map[string]time.Duration)}
	r.answer = func(node string, m *api.Message) []*api.Message {
		switch m.Kind {
		case api.Expect:
			return []*api.Message{{Kind: api.Expected, ID: m.ID}}
		case api.Activate:
			return []*api.Message{{Kind: api.Activated, ID: m.ID}}
		case api.Done:
			return []*api.Message{{Kind: api.Settled, ID: m.ID}}
		}
		return nil
	}
	for _, name := range []string{"a", "b"} {
		r.members[name] = frozenMember(t, name)
		r.step(name, member.Start{})
	}
	r.step("a", member.PeerUp{Name: "b"})
	r.step("b", member.PeerUp{Name: "a"})
	r.settle()
	for _, name := range []string{"a", "b"} {
		r.app(name, &api.Message{Kind: api.Hello, Program: "frozen", AcceptsHandoffs: true})
		r.settle()
	}
	other := frozenClient.Next()
	for _, c := range []netip.Addr{frozenClient, other} {
		r.app("a", &api.Message{Kind: api.Owned, Client: c, Connections: 1})
		r.settle()
	}
	r.app("a", &api.Message{Kind: api.Prepare, ID: 1, Client: frozenClient, To: "b"})
	r.settle()
	r.tick("b")
	r.app("a", &api.Message{Kind: api.Transfer, ID: 1, Snapshot: []byte("snapshot"), State: [][]byte{[]byte("state")}, Connections: 1})
	r.app("a", &api.Message{Kind: api.Late, ID: 1, Client: frozenClient, Packets: [][]byte{[]byte("a packet")}})
	r.settle()
	r.app("a", &api.Message{Kind: api.Prepare, ID: 2, Client: other, To: "b"})
	r.settle()
	r.app("a", &api.Message{Kind: api.Abort, ID: 2, Error: "called off"})
	r.settle()
	fmt.Fprintln(&r.out, "takeover a b")
	r.step("a", member.Takeover{ID: 3, To: "b"})
	r.settle()
	r.app("a", &api.Message{Kind: api.Gone, Client: other})
	r.settle()
	fmt.Fprintln(&r.out, "drain a b")
	r.step("a", member.Command{ID: 4, Node: "b", Job: member.Job{What: member.Drain}})
	r.settle()
	return r.out.Bytes()
}

func frozenFile(version int) string {
	return filepath.Join("testdata", fmt.Sprintf("peer-v%d.txt", version))
}

// TestFreeze: every version that this release speaks has its file.
func TestFreeze(t *testing.T) {
	for v := member.Oldest; v <= member.Newest; v++ {
		file := frozenFile(v)
		if _, err := os.Stat(file); err == nil {
			continue
		}
		if !*freeze || v != member.Newest {
			t.Errorf("%s is missing: go test ./daemon -run TestFreeze -freeze, with the release that speaks it", file)
			continue
		}
		if err := os.WriteFile(file, aDay(t), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(aDay(t), aDay(t)) {
		t.Error("two recordings differ")
	}
}

// live is a node of this release: its member and its end of the connection.
type live struct {
	t     *testing.T
	mesh  *peer.Mesh
	mu    sync.Mutex
	m     *member.Member
	now   time.Duration
	toApp chan *api.Message
	done  chan string // a frame has been taken, or a connection is up
}

func (l *live) step(in member.Input) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.stepLocked(in) {
		in = member.Recorded{}
	}
}

func (l *live) stepLocked(in member.Input) (recorded bool) {
	out := l.m.Step(l.now, in)
	for _, m := range out.App {
		l.toApp <- m
	}
	for _, p := range out.Peers {
		b, err := p.Message.Append(nil)
		if err == nil {
			err = l.mesh.Send(p.To, b)
		}
		if err != nil {
			l.t.Errorf("%s is not sent: %v", p.Message.Kind, err)
		}
	}
	return len(out.Record) > 0
}

func (l *live) Up(name string) {
	l.step(member.PeerUp{Name: name})
	l.done <- "up"
}

func (l *live) Down(string, error) { l.done <- "down" }

func (l *live) Received(name string, frames [][]byte) {
	for _, frame := range frames {
		m, err := member.Parse(frame)
		if err != nil {
			l.t.Error(err)
		} else {
			l.step(member.Peer{From: name, Message: m})
		}
		l.done <- "frame"
	}
}

func (l *live) wait(what string) {
	l.t.Helper()
	select {
	case got := <-l.done:
		if got != what {
			l.t.Fatalf("%s in place of %s", got, what)
		}
	case <-time.After(30 * time.Second):
		l.t.Fatalf("no %s", what)
	}
}

// covers tells whether a message says all that another one did: it may say more.
func covers(got, want []byte) error {
	var g, w map[int]any
	if err := cbor.Unmarshal(got, &g); err != nil {
		return err
	}
	if err := cbor.Unmarshal(want, &w); err != nil {
		return err
	}
	const oldest, newest, features = 13, 25, 26 // of a Hello: they are agreed upon
	for key, v := range w {
		if key != oldest && key != newest && key != features && !reflect.DeepEqual(g[key], v) {
			return fmt.Errorf("field %d is %v, and was %v", key, g[key], v)
		}
	}
	return nil
}

// frozen is the other end: TLS, its protocol and its frames as they were.
type frozen struct {
	t    *testing.T
	conn *tls.Conn
	r    *bufio.Reader
}

const frozenProtocol = "dsco/1"

func (f *frozen) send(b []byte) {
	f.t.Helper()
	if _, err := f.conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)); err != nil {
		f.t.Fatal(err)
	}
}

// receive skips frames with nothing in them.
func (f *frozen) receive() []byte {
	f.t.Helper()
	f.conn.SetReadDeadline(time.Now().Add(30 * time.Second))
	for {
		var head [4]byte
		if _, err := io.ReadFull(f.r, head[:]); err != nil {
			f.t.Fatal(err)
		}
		b := make([]byte, binary.BigEndian.Uint32(head[:]))
		if _, err := io.ReadFull(f.r, b); err != nil {
			f.t.Fatal(err)
		}
		if len(b) > 0 {
			return b
		}
	}
}

// meet connects a live node with a frozen one, whichever of them connects.
func meet(t *testing.T, l *live, name, other string) *frozen {
	t.Helper()
	ca, err := testcert.New()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := ca.Write(dir, name); err != nil {
		t.Fatal(err)
	}
	keeper, err := identity.Open(name, identity.Files{
		CA: filepath.Join(dir, "ca.pem"), Cert: filepath.Join(dir, name+".pem"), Key: filepath.Join(dir, name+".key"),
	})
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Issue(other)
	if err != nil {
		t.Fatal(err)
	}
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, RootCAs: ca.Pool(), ClientCAs: ca.Pool(),
		ClientAuth: tls.RequireAndVerifyClientCert, ServerName: name, NextProtos: []string{frozenProtocol},
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	l.mesh, err = peer.Open(peer.Config{
		Name: name, Listen: netip.MustParseAddrPort("127.0.0.1:0"), Identity: keeper, Handler: l, Logger: slog.New(slog.DiscardHandler),
		Peers:   map[string]netip.AddrPort{other: listener.Addr().(*net.TCPAddr).AddrPort()},
		Timeout: 5 * time.Minute, // the file has no empty frames
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.mesh.Close() })
	f := &frozen{t: t}
	if name < other {
		c, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		f.conn = tls.Server(c, cfg)
	} else {
		c, err := net.Dial("tcp", l.mesh.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		f.conn = tls.Client(c, cfg)
	}
	t.Cleanup(func() { f.conn.Close() })
	if err := f.conn.Handshake(); err != nil {
		t.Fatal(err)
	}
	f.r = bufio.NewReader(f.conn)
	f.send(nil)
	return f
}

// Nodes of this release understand a neighbour that is frozen, and say to it what
// it expects, as donor and as target.
func TestFrozenPeer(t *testing.T) {
	for v := member.Oldest; v <= member.Newest; v++ {
		script, err := os.ReadFile(frozenFile(v))
		if err != nil {
			t.Fatal(err)
		}
		for _, names := range [][2]string{{"a", "b"}, {"b", "a"}} {
			t.Run(fmt.Sprintf("version %d, this is %s", v, names[0]), func(t *testing.T) {
				replay(t, string(script), names[0], names[1])
			})
		}
	}
}

func replay(t *testing.T, script, name, other string) {
	l := &live{t: t, m: frozenMember(t, name), toApp: make(chan *api.Message, 1000), done: make(chan string, 1000)}
	l.m.Step(0, member.Start{})
	f := meet(t, l, name, other)
	l.wait("up")
	for i, line := range strings.Split(strings.TrimSpace(script), "\n") {
		w := strings.Fields(line)
		at := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatalf("line %d, %s: %v", i+1, strings.Join(w[:2], " "), err)
			}
		}
		last, err := hex.DecodeString(w[len(w)-1])
		switch {
		case w[0] == "peer" && w[1] == other:
			at(err)
			f.send(last)
			l.wait("frame")
		case w[0] == "peer":
			at(err)
			at(covers(f.receive(), last))
		case w[1] != name: // what happens at the other node is its own affair
		case w[0] == "app":
			at(err)
			l.step(member.App{Message: appMessage(t, last)})
		case w[0] == "toapp":
			at(err)
			select {
			case m := <-l.toApp:
				at(covers(appBytes(t, m)[4:], last[4:]))
			case <-time.After(30 * time.Second):
				at(fmt.Errorf("the application is told nothing"))
			}
		case w[0] == "tick":
			l.now, err = time.ParseDuration(w[2])
			at(err)
			l.step(member.Tick{})
		case w[0] == "takeover":
			l.step(member.Takeover{ID: 3, To: w[2]})
		case w[0] == "drain":
			l.step(member.Command{ID: 4, Node: w[2], Job: member.Job{What: member.Drain}})
		default:
			at(fmt.Errorf("not a line of a frozen peer"))
		}
	}
	if len(l.toApp) > 0 {
		t.Errorf("the application is told more: %+v", <-l.toApp)
	}
}
