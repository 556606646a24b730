//go:build linux

package handover

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/faketime"

	"github.com/distributed-servers/ds/migrate"
	"github.com/distributed-servers/ds/stack"
	"github.com/distributed-servers/ds/tun/tuntest"
)

var (
	clientAddr = netip.MustParseAddr("fd00:1::1")
	serverAddr = netip.MustParseAddr("fd00:2::1")
)

const mtu = 1500

// world is a client on a link that two processes have, of which one reads it:
//
//	client ─────┬── node 0 ──┐
//	            └── node 1 ──┘ socket
type world struct {
	t      *testing.T
	link   *tuntest.End // the processes'
	client *stack.Stack
	nodes  [2]*node
	owner  int          // which of them serves
	syns   atomic.Int32 // sent by the client
}

// node is one of the processes: it echoes.
type node struct {
	*stack.Stack
	listener *stack.Listener
	conn     *Conn
	raw      *net.UnixConn
	sent     atomic.Pointer[func(p []byte)] // called with what it sends
}

// watch has f called with what a node sends from now on.
func (n *node) watch(f func(p []byte)) { n.sent.Store(&f) }

func newWorld(t *testing.T) *world { return newWorldClock(t, nil) }

// newWorldClock has the client go by a clock, nil: the one on the wall.
func newWorldClock(t *testing.T, clock tcpip.Clock) *world {
	t.Helper()
	w := &world{t: t}
	end, link := tuntest.Pair(mtu)
	end.Out = func(p []byte) {
		if isSYN(p) {
			w.syns.Add(1)
		}
		link.Deliver(p)
	}
	w.link = link
	var err error
	if w.client, err = stack.New(stack.Config{Device: end, Addrs: []netip.Addr{clientAddr}, Clock: clock}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.client.Close() })
	socks := socketpair(t)
	for i := range w.nodes {
		n := &node{raw: socks[i], conn: New(socks[i])}
		w.nodes[i] = n
		t.Cleanup(func() { n.conn.Close() })
		dev := link.Dup()
		dev.Out = func(p []byte) {
			if sent := n.sent.Load(); sent != nil {
				(*sent)(p)
			}
			end.Deliver(p)
		}
		dev.SetReadDeadline(time.Unix(1, 0))
		if n.Stack, err = stack.New(stack.Config{Device: dev, Addrs: []netip.Addr{serverAddr}}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { n.Close() })
		if err := n.Pause(); err != nil {
			t.Fatal(err)
		}
		if n.listener, err = n.Listen("tcp", ":80"); err != nil {
			t.Fatal(err)
		}
		go func() {
			for {
				c, err := n.listener.AcceptConn()
				if err != nil {
					return
				}
				go echo(c)
			}
		}()
	}
	if err := w.nodes[0].Resume(); err != nil {
		t.Fatal(err)
	}
	return w
}

// packet is the next that the client sends, when no process reads.
func (w *world) packet() []byte {
	w.t.Helper()
	p := make([]byte, mtu)
	n, err := w.link.Read(p)
	if err != nil {
		w.t.Fatal(err)
	}
	return p[:n]
}

// isSYN tells whether a packet begins a connection, or answers one that does.
func isSYN(p []byte) bool { return p[40+13]&0x2 != 0 }

// echo has no state of its own between its calls: what it has read it puts back into the
// world when it cannot write any more, as it would save it with the connection.
func echo(c *stack.Conn) {
	b := make([]byte, 32<<10)
	for {
		n, err := c.Read(b)
		if err != nil {
			return
		}
		if _, err := c.Write(b[:n]); err != nil {
			return
		}
	}
}

func socketpair(t *testing.T) (ends [2]*net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = c.(*net.UnixConn)
	}
	return ends
}

func (w *world) dial() *stack.Conn {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 20*time.Second)
	defer cancel()
	c, err := w.client.DialContext(ctx, "tcp", netip.AddrPortFrom(serverAddr, 80).String())
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute))
	return c
}

// say has the server echo something.
func (w *world) say(c *stack.Conn, s string) {
	w.t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		w.t.Fatalf("%q: %v", s, err)
	}
	w.hear(c, s)
}

func (w *world) hear(c *stack.Conn, s string) {
	w.t.Helper()
	b := make([]byte, len(s))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != s {
		w.t.Fatalf("got %q, %v: want %q", b, err, s)
	}
}

// give is what a donor's process does. frozen is called when nobody serves.
func (n *node) give(frozen func(), state []byte, files ...syscall.Conn) error {
	conns := n.Conns()
	d, err := Prepare(n.conn, n.Stack)
	if err != nil {
		return err
	}
	for _, c := range conns {
		<-c.Rest(false)
		defer c.EndRest()
	}
	if err := n.Pause(); err != nil {
		return err
	}
	donor := migrate.NewStackDonor(n.Stack)
	donor.AllowEmpty()
	if err := donor.Freeze(); err != nil {
		d.Cancel(err)
		return errors.Join(err, n.Resume())
	}
	frozen()
	if err := d.Give(donor, state, files...); err != nil {
		return errors.Join(err, donor.Thaw(), n.Resume())
	}
	return nil
}

// take is what a target's process does. at is called at each stage; after an error that
// is what its end leaves.
func (n *node) take(at func(stage string) error) (t *Target, err error) {
	if t, err = Receive(n.conn, n.Stack); err != nil {
		n.conn.Refuse(err)
		return nil, err
	}
	if err := at("received"); err != nil {
		return nil, err
	}
	conns, err := t.Activate()
	if err != nil {
		return nil, err
	}
	for _, c := range conns {
		if c != nil {
			go echo(c)
		}
	}
	if err := at("active"); err != nil {
		return nil, err
	}
	if err := n.Resume(); err != nil {
		return nil, err
	}
	return t, t.Confirm()
}

func never(string) error { return nil }

// move hands everything over to the other node.
func (w *world) move(frozen func(), state []byte, files ...syscall.Conn) *Target {
	w.t.Helper()
	var target *Target
	taken := make(chan error, 1)
	go func() {
		t, err := w.nodes[1-w.owner].take(never)
		target = t
		taken <- err
	}()
	if err := w.nodes[w.owner].give(frozen, state, files...); err != nil {
		w.t.Fatal(err)
	}
	if err := <-taken; err != nil {
		w.t.Fatal(err)
	}
	w.owner = 1 - w.owner
	return target
}

func nothing() {}

// A stream goes to and fro with its connection, and arrives as it was sent, whatever comes
// while nobody serves; so do connections that are idle.
func TestToAndFro(t *testing.T) {
	const moves, octets = 40, 64 << 10
	w := newWorld(t)
	idle, c := w.dial(), w.dial()
	w.say(idle, "hello")
	stream := make([]byte, moves*octets)
	for i := range stream {
		stream[i] = byte(i * i >> 7)
	}
	var got bytes.Buffer
	read := make(chan error, 1)
	go func() {
		_, err := io.CopyN(&got, c, int64(len(stream)))
		read <- err
	}()
	for i := range moves {
		part := stream[i*octets : (i+1)*octets]
		if _, err := c.Write(part[:octets/2]); err != nil {
			t.Fatal(err)
		}
		w.move(func() {
			if _, err := c.Write(part[octets/2:]); err != nil {
				t.Error(err)
			}
		}, nil)
	}
	if err := <-read; err != nil || !bytes.Equal(got.Bytes(), stream) {
		t.Errorf("after %d of %d octets: %v", got.Len(), len(stream), err)
	}
	w.say(idle, "still here")
}

// What the application gives arrives, and more descriptors than fit into a message.
func TestState(t *testing.T) {
	w := newWorld(t)
	w.say(w.dial(), "hello")
	var files []syscall.Conn
	for i := range maxFrameFiles + 10 {
		f, err := os.Create(t.TempDir() + fmt.Sprint(i))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		fmt.Fprint(f, i)
		files = append(files, f)
	}
	state := bytes.Repeat([]byte("state"), 100000)
	got := w.move(nothing, state, files...)
	defer closeFiles(got.Files)
	if !bytes.Equal(got.State, state) || len(got.Files) != len(files) {
		t.Fatalf("%d octets, %d descriptors: want %d and %d", len(got.State), len(got.Files), len(state), len(files))
	}
	for i, f := range got.Files {
		b := make([]byte, 10)
		if n, _ := f.ReadAt(b, 0); string(b[:n]) != fmt.Sprint(i) {
			t.Fatalf("descriptor %d is that of %q", i, b[:n])
		}
	}
}

// A stack without connections is handed over, too, and serves who comes then.
func TestNothing(t *testing.T) {
	w := newWorld(t)
	if got := w.move(nothing, nil); len(got.State) != 0 {
		t.Errorf("state %q", got.State)
	}
	w.say(w.dial(), "hello")
}

// What the donor has read, and not looked at, moves, too: nobody has to send it again.
func TestLate(t *testing.T) {
	w := newWorldClock(t, faketime.NewManualClock()) // which does not go on: nothing is sent again
	w.say(w.dial(), "hello")
	var c *stack.Conn
	dialled := make(chan struct{})
	w.syns.Store(0)
	w.move(func() {
		go func() { defer close(dialled); c = w.dial() }()
		for syn := false; !syn; { // there may be an acknowledgement before
			p := w.packet()
			syn = isSYN(p)
			w.nodes[0].Arrive(p)
		}
	}, nil)
	<-dialled
	w.say(c, "hello")
	if n := w.syns.Load(); n != 1 {
		t.Errorf("the client had to try %d times", n)
	}
}

// Both cannot have the word, and who has it keeps it.
func TestWord(t *testing.T) {
	for range 1000 {
		ours, f, err := newWord()
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := openWord(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		var took, over bool
		var wg sync.WaitGroup
		wg.Go(func() { took = theirs.take() })
		wg.Go(func() { over = ours.overrule() })
		wg.Wait()
		if took == over {
			t.Fatalf("taken %v, overruled %v", took, over)
		}
		if theirs.take() || ours.overrule() != over {
			t.Fatal("decided again")
		}
		ours.close()
		theirs.close()
		if theirs.take() {
			t.Fatal("taken when closed")
		}
	}
}

var errDead = errors.New("dead")

// Whatever becomes of a target before it has the word, the donor goes on, and the target
// never gets the connections.
func TestTargetFails(t *testing.T) {
	// die is the end of a process: its socket is closed.
	die := func(n *node) { n.raw.Close() }
	for _, tt := range []struct {
		name, want string
		target     func(w *world, n *node, over <-chan struct{}) error
	}{
		{"dead at first", "", func(w *world, n *node, _ <-chan struct{}) error { die(n); return errDead }},
		{"dead when asked to prepare", "", func(w *world, n *node, _ <-chan struct{}) error {
			n.conn.wantWith(kindWord)
			die(n)
			return errDead
		}},
		{"dead when prepared", "", func(w *world, n *node, over <-chan struct{}) error {
			err := new(Target{conn: n.conn}).prepare(n.Stack)
			die(n)
			return errors.Join(err, errDead)
		}},
		{"dead before it has the word", "", func(w *world, n *node, over <-chan struct{}) error {
			_, err := n.take(func(string) error { die(n); <-over; return nil })
			return err
		}},
		{"refuses", "no thanks", func(w *world, n *node, over <-chan struct{}) error {
			_, err := n.take(func(string) error { n.conn.Refuse(errors.New("no thanks")); <-over; return nil })
			return err
		}},
		{"hangs", "timeout", func(w *world, n *node, over <-chan struct{}) error {
			_, err := n.take(func(string) error { w.nodes[0].conn.SetDeadline(time.Unix(1, 0)); <-over; return nil })
			return err
		}},
		{"hangs when asked to prepare", "timeout", func(w *world, n *node, over <-chan struct{}) error {
			w.nodes[0].conn.SetDeadline(time.Unix(1, 0))
			<-over
			return errDead
		}},
		{"cannot import", "closed", func(w *world, n *node, _ <-chan struct{}) error {
			n.Close()
			_, err := n.take(never)
			return err
		}},
		{"speaks out of order", "frame of kind", func(w *world, n *node, _ <-chan struct{}) error {
			n.conn.send(kindActive, nil)
			return errDead
		}},
		{"speaks something else", "unknown kind", func(w *world, n *node, _ <-chan struct{}) error {
			n.raw.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
			return errDead
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			c := w.dial()
			w.say(c, "hello from 0")
			w.nodes[1].watch(func(p []byte) { t.Errorf("the target has sent %x", p) })
			over, failed := make(chan struct{}), make(chan error, 1)
			go func() { failed <- tt.target(w, w.nodes[1], over) }()
			err := w.nodes[0].give(nothing, []byte("state"))
			close(over)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("donor: %v: want %q", err, tt.want)
			}
			if err := <-failed; err == nil {
				t.Error("the target has the connections")
			}
			w.say(c, "and still")
		})
	}
}

// freeze is what a donor does before Give.
func (n *node) freeze(t *testing.T) (*Donor, *migrate.Donor) {
	t.Helper()
	d, err := Prepare(n.conn, n.Stack)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range n.Conns() {
		<-c.Rest(false)
	}
	if err := n.Pause(); err != nil {
		t.Fatal(err)
	}
	donor := migrate.NewStackDonor(n.Stack)
	if err := donor.Freeze(); err != nil {
		t.Fatal(err)
	}
	return d, donor
}

// A donor that ends with its message sent is not missed. One that ends before, at any
// octet of it, leaves a target that has nothing.
func TestDonorDies(t *testing.T) {
	const cuts = 12
	for i := range cuts + 1 {
		t.Run(fmt.Sprintf("%d of %d", i, cuts), func(t *testing.T) {
			w := newWorld(t)
			c := w.dial()
			w.say(c, "hello from 0")
			live := i == cuts
			if !live {
				w.nodes[1].watch(func(p []byte) { t.Errorf("the target has sent %x", p) })
			}
			taken, closed := make(chan error, 1), make(chan struct{})
			go func() {
				_, err := w.nodes[1].take(func(string) error { <-closed; return nil })
				taken <- err
			}()
			donor := w.nodes[0]
			_, frozen := donor.freeze(t)
			snap, err := frozen.Export(nil)
			if err != nil {
				t.Fatal(err)
			}
			message := append(appendHeader(nil, kindState, 0, 5), "state"...)
			message = append(append(message, appendHeader(nil, kindSnapshot, 0, len(snap))...), snap...)
			if _, err := donor.raw.Write(message[:len(message)*i/cuts]); err != nil {
				t.Fatal(err)
			}
			if live {
				// What the target says when it serves can go nowhere.
				donor.raw.Close()
				close(closed)
				if err := <-taken; !errors.Is(err, unix.EPIPE) {
					t.Fatalf("the target says %v: want what Confirm does", err)
				}
				w.say(c, "hello from 1")
				return
			}
			donor.raw.CloseWrite()
			if err := <-taken; !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("the target says %v: want an end of the stream", err)
			}
			if err := errors.Join(frozen.Thaw(), donor.Resume()); err != nil {
				t.Fatal(err)
			}
			for _, c := range donor.Conns() {
				c.EndRest()
			}
			w.say(c, "hello")
		})
	}
}

// A target that ends once it has the word has taken the connections with it: the donor
// does not serve them.
func TestTargetDiesLater(t *testing.T) {
	w := newWorld(t)
	c := w.dial()
	w.say(c, "hello from 0")
	taken := make(chan error, 1)
	target := w.nodes[1]
	go func() {
		_, err := target.take(func(stage string) error {
			if stage == "active" {
				target.raw.Close()
				return errDead
			}
			return nil
		})
		taken <- err
	}()
	if err := w.nodes[0].give(func() { w.nodes[0].watch(func(p []byte) { t.Errorf("the donor has sent %x", p) }) }, nil); err != nil {
		t.Errorf("donor: %v: want nothing, the connections are not its own", err)
	}
	if err := <-taken; !errors.Is(err, errDead) {
		t.Error(err)
	}
	if n := len(w.nodes[0].Conns()); n != 0 {
		t.Errorf("the donor has %d connections", n)
	}
}

// A handshake that is in progress is not rehearsed, and is no reason not to hand over
// when it is over by then.
func TestRehearsalInAHandshake(t *testing.T) {
	w := newWorld(t)
	w.say(w.dial(), "hello")
	before := len(w.nodes[0].Conns())
	if snap, err := rehearsal(w.nodes[0].Stack); err != nil || len(snap) == 0 {
		t.Errorf("%d octets, %v", len(snap), err)
	}
	if got := len(w.nodes[0].Conns()); got != before {
		t.Errorf("%d connections after the rehearsal: want %d", got, before)
	}
	if err := w.nodes[0].Pause(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go w.client.DialContext(ctx, "tcp", netip.AddrPortFrom(serverAddr, 80).String())
	answered := make(chan struct{}, 16)
	w.nodes[0].watch(func(p []byte) {
		if isSYN(p) {
			answered <- struct{}{}
		}
	})
	syn := w.packet()
	for !isSYN(syn) {
		syn = w.packet()
	}
	w.nodes[0].Inject(syn)
	<-answered
	if snap, err := rehearsal(w.nodes[0].Stack); err != nil || snap != nil {
		t.Errorf("in a handshake: %d octets, %v", len(snap), err)
	}
}

func TestPeer(t *testing.T) {
	ends := socketpair(t)
	for _, e := range ends {
		c := New(e)
		defer c.Close()
		if pid, err := c.Peer(); err != nil || pid != os.Getpid() {
			t.Errorf("process %d, %v: want %d", pid, err, os.Getpid())
		}
	}
}

func TestMessages(t *testing.T) {
	ends := socketpair(t)
	a, b := New(ends[0]), New(ends[1])
	defer a.Close()
	defer b.Close()
	if err := a.Send(make([]byte, MaxMessage+1)); err == nil {
		t.Error("a message that is too long was sent")
	}
	for _, m := range []string{"", "hello"} {
		if err := a.Send([]byte(m), ends[0]); err != nil {
			t.Fatal(err)
		}
		got, files, err := b.Receive()
		closeFiles(files)
		if err != nil || string(got) != m || len(files) != 1 {
			t.Errorf("got %q, %d descriptors, %v: want %q", got, len(files), err, m)
		}
	}
	a.Refuse(errors.New(strings.Repeat("no", maxRefusal)))
	if _, _, err := b.Receive(); err == nil || !strings.Contains(err.Error(), "nonono") {
		t.Errorf("refused: %v", err)
	}
	a.Close()
	if _, _, err := b.Receive(); !errors.Is(err, io.EOF) {
		t.Errorf("closed: %v", err)
	}
}

func FuzzFrame(f *testing.F) {
	f.Add([]byte{})
	f.Add(append(appendHeader(nil, kindMessage, 0, 2), "{}"...))
	f.Add(appendHeader(nil, kindSnapshot, 0, 1<<30)) // announces much, has nothing
	f.Add(appendHeader(nil, kindFiles, maxFrameFiles, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		fr, err := readFrame(r)
		if err != nil {
			if fr.body != nil {
				t.Errorf("error %v with a body", err)
			}
			return
		}
		again := append(appendHeader(nil, fr.kind, fr.files, len(fr.body)), fr.body...)
		if used := b[:len(b)-r.Len()]; !bytes.Equal(again, used) {
			t.Errorf("%x parsed, %x written again", used, again)
		}
		if cap(fr.body) > 2*len(b)+(64<<10)+1024 {
			t.Errorf("%d octets of memory for %d", cap(fr.body), len(b))
		}
	})
}
