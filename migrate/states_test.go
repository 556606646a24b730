package migrate_test

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/faketime"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"github.com/distributed-servers/ds/internal/lab"
	"github.com/distributed-servers/ds/migrate"
	"github.com/distributed-servers/ds/migrate/snapshot"
	"github.com/distributed-servers/ds/stack"
)

// TestStoryStates moves connections in every state that an application can
// leave one in, and sees them to their proper end.
func TestStoryStates(t *testing.T) {
	for _, service := range []netip.Addr{service6, service4} {
		for _, story := range []struct {
			name string
			tell func(t *testing.T, w *world)
		}{
			{"CLOSE_WAIT", closeWait},
			{"FIN_WAIT_2", finWait2},
			{"FIN_WAIT_1 behind a closed window", finWait1},
			{"CLOSING", closing},
			{"LAST_ACK", lastAck},
			{"orphan in FIN_WAIT_1", orphan},
		} {
			t.Run(story.name+" "+family(service), func(t *testing.T) {
				w := newWorld(t, options{service: service})
				story.tell(t, w)
				w.watch.check(t)
			})
		}
	}
}

func family(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// eventually waits for netstack's goroutines to bring something about.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !cond(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func waitState(t testing.TB, c *stack.Conn, want tcp.EndpointState) {
	t.Helper()
	eventually(t, want.String(), func() bool { return c.Endpoint().EndpointState() == want })
}

// must moves a connection that nobody uses at the moment.
func (w *world) must(c *stack.Conn) *stack.Conn {
	w.t.Helper()
	state := c.Endpoint().EndpointState()
	n, err := w.move(c)
	if err != nil {
		w.t.Fatal(err)
	}
	if n == nil { // an orphan
		ns := w.node[w.at].ConnsOf(c.Tuple().Remote.Addr())
		if len(ns) != 1 {
			w.t.Fatalf("%d connections after the move", len(ns))
		}
		n = ns[0]
	}
	if got := n.Endpoint().EndpointState(); got != state {
		w.t.Fatalf("in state %v after the move, %v before", got, state)
	}
	return n
}

// look describes a connection, which stays where it is.
func look(t testing.TB, c *stack.Conn) *snapshot.Conn {
	t.Helper()
	d := migrate.NewDonor(c)
	if err := d.Freeze(); err != nil {
		t.Fatal(err)
	}
	b, err := d.Export(nil)
	if e := errors.Join(err, d.Thaw()); e != nil {
		t.Fatal(e)
	}
	s, err := snapshot.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	return &s.Conns[0]
}

// settled waits until everything is acknowledged.
func settled(t testing.TB, conns ...*stack.Conn) {
	t.Helper()
	for _, c := range conns {
		eventually(t, "the last acknowledgement", func() bool {
			s := look(t, c).Send
			return s.Una == s.Nxt && len(s.Queue) == 0
		})
	}
}

// wantEnd reads the end of a stream.
func wantEnd(t testing.TB, c io.Reader) {
	t.Helper()
	var b [1]byte
	if n, err := c.Read(b[:]); n != 0 || err != io.EOF {
		t.Fatalf("read %d octets, %v: want the end", n, err)
	}
}

// deaf makes the network lose everything the service sends, or no longer.
func (w *world) deaf(on bool) {
	lose := func(client bool, _ header.TCP) bool { return !client }
	if on {
		w.watch.lose.Store(&lose)
	} else {
		w.watch.lose.Store(nil)
	}
}

// The client has ended its stream; the service streams on while it moves.
func closeWait(t *testing.T, w *world) {
	c, s := w.connect(w.service)
	if err := errors.Join(send(c, 0, 5), c.CloseWrite()); err != nil {
		t.Fatal(err)
	}
	waitState(t, s, tcp.StateCloseWait)
	const size = 4 << 20
	got := make(chan error, 1)
	go func() { got <- receiveAll(c, size) }()
	for at := int64(0); at < size; at += 32 << 10 {
		if err := send(s, at, 32<<10); err != nil {
			t.Fatal(err)
		}
		s = w.must(s)
		if at == 0 { // what it had not read has moved, and so has the end
			if err := receive(s, 0, 5); err != nil {
				t.Fatal(err)
			}
			wantEnd(t, s)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	waitState(t, s, tcp.StateClose)
}

// The service has ended its stream; the client streams on while it moves.
func finWait2(t *testing.T, w *world) {
	c, s := w.connect(w.service)
	if err := s.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	waitState(t, s, tcp.StateFinWait2)
	const size = 2 << 20
	sent := make(chan error, 1)
	go func() { sent <- errors.Join(send(c, 0, size), c.CloseWrite()) }()
	for at := int64(0); at < size; at += 32 << 10 {
		if err := receive(s, at, 32<<10); err != nil {
			t.Fatal(err)
		}
		n, err := w.move(s) // the end can arrive any moment
		if err != nil {
			t.Fatal(err)
		}
		s = n
	}
	wantEnd(t, s)
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	wantEnd(t, c)
	waitState(t, s, tcp.StateTimeWait)
	w.must(s)
}

// The service's FIN waits behind data that the client's window does not admit.
func finWait1(t *testing.T, w *world) {
	c, s := w.connect(w.service)
	const size = 900 << 10 // more than the client's window, less than the send buffer
	if err := errors.Join(send(s, 0, size), s.CloseWrite()); err != nil {
		t.Fatal(err)
	}
	waitState(t, s, tcp.StateFinWait1)
	for range 50 {
		s = w.must(s)
	}
	for at := int64(0); at < size; at += 25 << 10 {
		if err := receive(c, at, 25<<10); err != nil {
			t.Fatal(err)
		}
		if s.Endpoint().EndpointState() == tcp.StateFinWait1 {
			n, err := w.move(s) // it may go on to FIN_WAIT_2 any moment
			if err != nil {
				t.Fatal(err)
			}
			s = n
		}
	}
	wantEnd(t, c)
	waitState(t, s, tcp.StateFinWait2)
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	waitState(t, s, tcp.StateTimeWait)
}

// Both ends close at once.
func closing(t *testing.T, w *world) {
	c, s := w.connect(w.service)
	w.deaf(true)
	if err := s.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	waitState(t, s, tcp.StateFinWait1)
	s = w.must(s)
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	waitState(t, s, tcp.StateClosing)
	for range 10 {
		s = w.must(s)
	}
	w.deaf(false)
	waitState(t, s, tcp.StateTimeWait) // by retransmission
	wantEnd(t, c)
	wantEnd(t, s)
}

// The service's FIN, the last word, is not acknowledged yet.
func lastAck(t *testing.T, w *world) {
	c, s := w.connect(w.service)
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	waitState(t, s, tcp.StateCloseWait)
	w.deaf(true)
	if err := s.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	waitState(t, s, tcp.StateLastAck)
	for range 10 {
		s = w.must(s)
	}
	w.deaf(false)
	waitState(t, s, tcp.StateClose)
	wantEnd(t, c)
	wantEnd(t, s)
	eventually(t, "the end of the connection", func() bool { return len(w.node[w.at].Clients()) == 0 })
}

// The application has closed with data unsent; nobody watches over it.
func orphan(t *testing.T, w *world) {
	c, s := w.connect(w.service)
	w.deaf(true)
	const size = 100 << 10
	if err := errors.Join(send(s, 0, size), s.Close()); err != nil {
		t.Fatal(err)
	}
	waitState(t, s, tcp.StateFinWait1)
	for range 10 {
		s = w.must(s)
		if _, err := s.Read(make([]byte, 1)); err == nil {
			t.Fatal("an orphan can be read")
		}
	}
	w.deaf(false)
	if err := receiveAll(c, size); err != nil {
		t.Fatal(err)
	}
	waitState(t, s, tcp.StateFinWait2)
	s = w.must(s)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	waitState(t, s, tcp.StateTimeWait)
}

// TestStoryTimeWait moves a connection whose time is running out: on any node
// it ends when it would have ended on the first.
func TestStoryTimeWait(t *testing.T) {
	clock := faketime.NewManualClock()
	w := newWorld(t, options{clock: clock})
	c, s := w.connect(service6)
	if err := s.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	waitState(t, s, tcp.StateFinWait2)
	var fin []byte
	lose := func(client bool, h header.TCP) bool {
		if client && h.Flags().Contains(header.TCPFlagFin) {
			fin = append([]byte(nil), h...)
		}
		return false
	}
	w.watch.lose.Store(&lose)
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	waitState(t, s, tcp.StateTimeWait)
	look(t, s)                      // the timer is set under the same lock
	waitState(t, c, tcp.StateClose) // it does not send its FIN again, which would set it anew
	clock.Advance(25 * time.Second)
	s = w.must(s)
	clock.Advance(25 * time.Second)
	s = w.must(s)
	left, ok := look(t, s).TimeWaitTimer.Left()
	if !ok || left < 9*time.Second || left > 10*time.Second {
		t.Errorf("%v left of TIME_WAIT after 50 of 60 s", left)
	}
	clock.Advance(9 * time.Second)
	waitState(t, s, tcp.StateTimeWait)
	clock.Advance(2 * time.Second)
	waitState(t, s, tcp.StateClose)
	if fin == nil {
		t.Error("no FIN seen")
	}
	w.watch.check(t)
}

// TestStoryOrphanFinWait2 does the same for an orphan in FIN_WAIT_2.
func TestStoryOrphanFinWait2(t *testing.T) {
	clock := faketime.NewManualClock()
	w := newWorld(t, options{clock: clock})
	_, s := w.connect(service6)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	waitState(t, s, tcp.StateFinWait2)
	look(t, s) // the timer is set under the same lock
	clock.Advance(40 * time.Second)
	s = w.must(s)
	clock.Advance(19 * time.Second)
	waitState(t, s, tcp.StateFinWait2)
	clock.Advance(2 * time.Second)
	waitState(t, s, tcp.StateClose)
	w.watch.check(t)
}

// TestStoryLongFreeze freezes a connection with octets in flight for an hour of
// its stack's clock. For the connection no time passes: nothing times out, and
// the retransmission comes when it would have come.
func TestStoryLongFreeze(t *testing.T) {
	for _, thaw := range []bool{true, false} {
		t.Run(map[bool]string{true: "thawed", false: "moved"}[thaw], func(t *testing.T) {
			clock := faketime.NewManualClock()
			w := newWorld(t, options{clock: clock})
			c, s := w.connect(service6)
			if err := s.SetKeepAlivePeriod(10 * time.Minute); err != nil {
				t.Fatal(err)
			}
			for range 20 {
				if err := errors.Join(exchange(s, c, 0, 4000), exchange(c, s, 0, 4000)); err != nil {
					t.Fatal(err)
				}
				clock.Advance(5 * time.Millisecond)
			}
			settled(t, c, s)
			w.deaf(true)
			if err := send(s, 0, 3000); err != nil {
				t.Fatal(err)
			}
			clock.Advance(20 * time.Millisecond) // less than the probe timer
			before := look(t, s)
			d := migrate.NewDonor(s)
			if err := d.Freeze(); err != nil {
				t.Fatal(err)
			}
			snap, err := d.Export(nil)
			if err != nil {
				t.Fatal(err)
			}
			goroutines := runtime.NumGoroutine()
			clock.Advance(time.Hour)
			if n := runtime.NumGoroutine(); n > goroutines {
				eventually(t, fmt.Sprintf("no goroutine waits for the frozen connection: %d instead of %d", n, goroutines),
					func() bool { return runtime.NumGoroutine() <= goroutines })
			}
			if thaw {
				if err := d.Thaw(); err != nil {
					t.Fatal(err)
				}
			} else {
				target, err := migrate.Import(w.node[1], snap)
				if err != nil {
					t.Fatal(err)
				}
				w.route(1)
				late, err := d.Discard(nil, 0)
				if err != nil {
					t.Fatal(err)
				}
				conns, err := target.Activate(late...)
				if err != nil {
					t.Fatal(err)
				}
				s = conns[0]
			}
			after := look(t, s)
			wantSame(t, before, after)
			w.deaf(false)
			if n := w.node[w.at].Netstack().Stats().TCP.Timeouts.Value(); n != 0 {
				t.Errorf("%d timeouts", n)
			}
			clock.Advance(2 * time.Second) // probe or retransmission
			if err := receive(c, 0, 3000); err != nil {
				t.Fatal(err)
			}
			w.watch.check(t)
		})
	}
}

// wantSame compares what must not depend on the node, nor on how long a freeze
// took.
func wantSame(t *testing.T, a, b *snapshot.Conn) {
	t.Helper()
	for _, c := range []*snapshot.Conn{a, b} {
		c.Pieces = nil
		c.Options.RecvBuffer, c.Options.SendBuffer = 0, 0
	}
	type pair struct {
		name string
		a, b any
	}
	// Ages may differ by the millisecond that the timestamp clock is cut to.
	near := func(x, y snapshot.Age) bool {
		d := int64(x) - int64(y)
		return (x == 0) == (y == 0) && d <= int64(2*time.Millisecond) && d >= -int64(2*time.Millisecond)
	}
	if !near(a.Send.LastSend, b.Send.LastSend) || !near(a.Receive.LastAck, b.Receive.LastAck) || !near(a.TSRecentAge, b.TSRecentAge) {
		t.Errorf("ages: %v %v %v, then %v %v %v", a.Send.LastSend, a.Receive.LastAck, a.TSRecentAge, b.Send.LastSend, b.Receive.LastAck, b.TSRecentAge)
	}
	for _, p := range []pair{
		{"SND.UNA", a.Send.Una, b.Send.Una},
		{"SND.NXT", a.Send.Nxt, b.Send.Nxt},
		{"cwnd", a.Send.Cwnd, b.Send.Cwnd},
		{"ssthresh", a.Send.Ssthresh, b.Send.Ssthresh},
		{"SRTT", a.Send.SRTT, b.Send.SRTT},
		{"RTTVAR", a.Send.RTTVar, b.Send.RTTVar},
		{"RTO", a.Send.RTO, b.Send.RTO},
		{"RACK RTT", a.Send.RACK.RTT, b.Send.RACK.RTT},
		{"RCV.NXT", a.Receive.Nxt, b.Receive.Nxt},
		{"window", a.Receive.Wnd, b.Receive.Wnd},
		{"queue", len(a.Send.Queue), len(b.Send.Queue)},
		{"options", a.Options, b.Options},
		{"recent timestamp", a.TSRecent, b.TSRecent},
	} {
		if p.a != p.b {
			t.Errorf("%s is %v, was %v", p.name, p.b, p.a)
		}
	}
	if d := int32(b.TSVal - a.TSVal); d < 0 || d > 2 {
		t.Errorf("the timestamp clock went on by %d ms", d)
	}
}

// TestStoryUnaccepted moves connections that nobody has accepted: they wait at
// the other node's listener, with what the client has sent.
func TestStoryUnaccepted(t *testing.T) {
	w := newWorld(t, options{})
	var ls [2]*stack.Listener
	for i, n := range w.node {
		l, err := n.Listen("tcp", ":443")
		if err != nil {
			t.Fatal(err)
		}
		ls[i] = l
	}
	const conns = 5
	var cs [conns]*stack.Conn
	for i := range cs {
		c, err := w.client.Dial("tcp", netip.AddrPortFrom(service6, 443).String())
		if err != nil {
			t.Fatal(err)
		}
		if err := send(c, 0, 10_000); err != nil {
			t.Fatal(err)
		}
		cs[i] = c
	}
	for range 20 {
		out, err := w.moveClient(client6)
		for errors.Is(err, migrate.ErrHandshake) {
			out, err = w.moveClient(client6) // the last ACK is on its way
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(out) != conns {
			t.Fatalf("%d connections moved", len(out))
		}
		for _, c := range out {
			if c != nil {
				t.Fatal("a connection nobody accepted was handed out")
			}
		}
	}
	// A freeze undone puts them back, too.
	d := migrate.NewClientDonor(w.node[w.at], client6)
	if err := errors.Join(d.Freeze(), d.Thaw()); err != nil {
		t.Fatal(err)
	}
	served := map[netip.AddrPort]bool{}
	for range cs {
		s, err := ls[w.at].AcceptConn()
		if err != nil {
			t.Fatal(err)
		}
		served[s.Tuple().Remote] = true
		if err := receive(s, 0, 10_000); err != nil {
			t.Fatal(err)
		}
		if err := send(s, 0, 10_000); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range cs {
		if !served[c.Tuple().Local] {
			t.Errorf("%s was not served", c.Tuple())
		}
		if err := receive(c, 0, 10_000); err != nil {
			t.Fatal(err)
		}
	}
	w.watch.check(t)
}

// TestStoryHandshake refuses to move a client in the middle of a handshake,
// and moves it afterwards.
func TestStoryHandshake(t *testing.T) {
	clock := faketime.NewManualClock()
	w := newWorld(t, options{clock: clock})
	for _, n := range w.node {
		if _, err := n.Listen("tcp", ":443"); err != nil {
			t.Fatal(err)
		}
	}
	w.deaf(true)
	dialled := make(chan *stack.Conn)
	go func() {
		c, err := w.client.Dial("tcp", netip.AddrPortFrom(service6, 443).String())
		if err != nil {
			t.Error(err)
		}
		dialled <- c
	}()
	var err error
	eventually(t, "SYN_RCVD", func() bool {
		d := migrate.NewClientDonor(w.node[0], client6)
		if err = d.Freeze(); err == nil { // with the SYN in the listener's queue
			err = d.Thaw()
		}
		return errors.Is(err, migrate.ErrHandshake)
	})
	t.Log(err)
	w.deaf(false)
	clock.Advance(2 * time.Second) // SYN-ACK again
	c := <-dialled
	w.watch.forget() // netstack does not scale the window while it shakes hands
	if err := send(c, 0, 100); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end of the handshake", func() bool {
		_, err = w.moveClient(client6)
		return !errors.Is(err, migrate.ErrHandshake)
	})
	if err != nil {
		t.Fatal(err)
	}
	w.watch.check(t)
}

// TestStoryEverything moves all that a node has, again and again, while clients
// connect: none is turned away, wherever its connection request was when a
// move began.
func TestStoryEverything(t *testing.T) {
	w := newWorld(t, options{})
	var ls [2]*stack.Listener
	for i, n := range w.node {
		l, err := n.Listen("tcp", ":443")
		if err != nil {
			t.Fatal(err)
		}
		ls[i] = l
	}
	const conns = 100
	dialled := make(chan *stack.Conn, conns)
	go func() {
		defer close(dialled)
		for i := range conns {
			to := netip.AddrPortFrom([]netip.Addr{service6, service4}[i%2], 443)
			c, err := w.client.Dial("tcp", to.String())
			if err == nil {
				err = send(c, 0, 1000)
			}
			if err != nil {
				t.Errorf("client %d: %v", i, err)
				return
			}
			dialled <- c
		}
	}()
	var cs []*stack.Conn
	moves, handshakes := 0, 0
	for open, seen := true, 0; open || moves < 20; {
		select {
		case c, ok := <-dialled:
			if open = ok; ok {
				cs = append(cs, c)
				continue
			}
			dialled = nil
		default:
		}
		if open && w.watch.count() < seen+10 { // let them get somewhere
			runtime.Gosched()
			continue
		}
		seen = w.watch.count()
		_, err := w.moveDonor(migrate.NewStackDonor(w.node[w.at]))
		switch {
		case err == nil:
			moves++
		case errors.Is(err, migrate.ErrHandshake):
			handshakes++
		case !errors.Is(err, migrate.ErrEnded):
			t.Fatal(err)
		}
	}
	t.Logf("%d clients, %d moves, %d put off by a handshake", len(cs), moves, handshakes)
	for range cs {
		s, err := ls[w.at].AcceptConn()
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(receive(s, 0, 1000), send(s, 0, 1000)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range cs {
		if err := receive(c, 0, 1000); err != nil {
			t.Fatal(err)
		}
	}
	w.watch.check(t)
}

// TestStoryRequest moves a connection request to a node that gets nothing else:
// a snapshot without connections, of a client and of a whole stack.
func TestStoryRequest(t *testing.T) {
	for _, client := range []netip.Addr{client6, {}} {
		t.Run(client.String(), func(t *testing.T) {
			w := newWorld(t, options{})
			for _, n := range w.node {
				if _, err := n.Listen("tcp", ":443"); err != nil {
					t.Fatal(err)
				}
			}
			// The network keeps the SYN from both nodes.
			w.net.Unroute(prefix(service6))
			syns := make(chan []byte, 10)
			defer w.net.Tap(func(e lab.Event) {
				if e.From == "client" && tcpHeader(e.Packet) != nil {
					select {
					case syns <- slices.Clone(e.Packet):
					default:
					}
				}
			})()
			dialled := make(chan error, 1)
			go func() {
				_, err := w.client.Dial("tcp", netip.AddrPortFrom(service6, 443).String())
				dialled <- err
			}()
			syn := <-syns
			snap, err := snapshot.Append(nil, &snapshot.Snapshot{Client: client})
			if err != nil {
				t.Fatal(err)
			}
			target, err := migrate.Import(w.node[1], snap)
			if err != nil {
				t.Fatal(err)
			}
			w.route(1)
			if conns, err := target.Activate(syn); err != nil || len(conns) != 0 {
				t.Fatalf("%d connections, %v", len(conns), err)
			}
			if err := <-dialled; err != nil {
				t.Fatal(err)
			}
			w.watch.check(t)
		})
	}
}
