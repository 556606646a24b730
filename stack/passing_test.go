package stack_test

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"github.com/distributed-servers/ds/stack"
)

// eventually waits for what has no event of its own, without sleeping.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// TestPause: while nothing is read nothing is lost.
func TestPause(t *testing.T) {
	bothFamilies(t, func(t *testing.T, addr, _ netip.Addr) {
		client, server := newNodes(t, nil)
		c, s := connect(t, client.Stack, server.Stack, addr)
		if err := server.Resume(); err == nil {
			t.Error("Resume without Pause worked")
		}
		offset := 0
		for range 20 {
			if err := server.Pause(); err != nil {
				t.Fatal(err)
			}
			if err := server.Pause(); err == nil {
				t.Error("Pause twice worked")
			}
			before, _ := server.dev.counts()
			mustSend(t, c, offset, 5000)
			if n, _ := server.dev.counts(); n != before {
				t.Errorf("%d packets read while paused", n-before)
			}
			if err := server.Resume(); err != nil {
				t.Fatal(err)
			}
			mustReceive(t, s, offset, 5000)
			offset += 5000
		}
		if n := client.Netstack().Stats().TCP.Retransmits.Value(); n > 0 && server.dev.Drops() > 0 {
			t.Errorf("%d packets dropped", server.dev.Drops())
		}
	})
}

// TestPauseTraffic pauses and resumes under traffic both ways.
func TestPauseTraffic(t *testing.T) {
	client, server := newNodes(t, nil)
	c, s := connect(t, client.Stack, server.Stack, server6)
	const size = 4 << 20
	errs := make(chan error, 4)
	go func() { _, err := send(c, 0, size); errs <- err }()
	go func() { _, err := send(s, 1, size); errs <- err }()
	go func() { errs <- receive(s, 0, size) }()
	go func() { errs <- receive(c, 1, size) }()
	for left := 4; left > 0; {
		select {
		case err := <-errs:
			if err != nil {
				t.Error(err)
			}
			left--
		default:
			for _, n := range []node{client, server} {
				if err := n.Pause(); err != nil {
					t.Fatal(err)
				}
				runtime.Gosched()
				if err := n.Resume(); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

// TestPauseClose: a paused stack can be closed.
func TestPauseClose(t *testing.T) {
	_, server := newPair(t)
	if err := server.Pause(); err != nil {
		t.Fatal(err)
	}
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
}

func suspend(t testing.TB, c *stack.Conn) {
	t.Helper()
	if err := c.Suspend(); err != nil {
		t.Fatal(err)
	}
}

// TestSuspend: calls wait, and go on where they were.
func TestSuspend(t *testing.T) {
	client, server := newPair(t)
	c, s := connect(t, client, server, server6)
	suspend(t, s)
	if err := s.Suspend(); !errors.Is(err, stack.ErrSuspended) {
		t.Errorf("Suspend again: %v", err)
	}
	errs := make(chan error, 2)
	go func() { errs <- receive(s, 0, 1000) }()
	go func() { _, err := send(s, 7, 1000); errs <- err }()
	mustSend(t, c, 0, 1000)
	eventually(t, "octets to read", func() bool { return unread(t, s) == 1000 })
	select {
	case err := <-errs:
		t.Fatalf("a call came back: %v", err)
	default:
	}
	s.Resume()
	for range 2 {
		if err := result(t, "Read and Write", errs); err != nil {
			t.Error(err)
		}
	}
	mustReceive(t, c, 7, 1000)
}

// unread is how many octets wait to be read.
func unread(t testing.TB, c *stack.Conn) int {
	t.Helper()
	n, err := c.Endpoint().GetSockOptInt(tcpip.ReceiveQueueSizeOption)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestSuspendDeadline: deadlines count while a connection is being moved.
func TestSuspendDeadline(t *testing.T) {
	client, server := newPair(t)
	_, s := connect(t, client, server, server6)
	suspend(t, s)
	calls := map[string]func() error{
		"Read":       func() error { _, err := s.Read(make([]byte, 1)); return err },
		"Write":      func() error { _, err := s.Write(make([]byte, 1)); return err },
		"CloseWrite": s.CloseWrite,
		"SetNoDelay": func() error { return s.SetNoDelay(true) },
	}
	for name, call := range calls {
		for when, at := range map[string]time.Time{"past": time.Unix(1, 0), "soon": time.Now().Add(5 * time.Millisecond)} {
			if err := s.SetDeadline(at); err != nil {
				t.Fatal(err)
			}
			err := call()
			var op net.Error
			if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &op) || !op.Timeout() {
				t.Errorf("%s, %s: %v", name, when, err)
			}
		}
		// And one that is set meanwhile.
		if err := s.SetDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		errs := make(chan error, 1)
		go func() { errs <- call() }()
		runtime.Gosched()
		if err := s.SetDeadline(time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
		if err := result(t, name, errs); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s, meanwhile: %v", name, err)
		}
	}
	s.Resume()
	if err := s.SetDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	if err := s.SetNoDelay(true); err != nil {
		t.Errorf("after Resume: %v", err)
	}
}

// TestSuspendClose: Close takes effect when the move has failed.
func TestSuspendClose(t *testing.T) {
	client, server := newNodes(t, nil)
	c, s := connect(t, client.Stack, server.Stack, server6)
	pingPong(t, c, s)
	suspend(t, s)
	_, before := server.dev.counts()
	read := make(chan error, 1)
	go func() { _, err := s.Read(make([]byte, 1)); read <- err }()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := result(t, "Read", read); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Read: %v", err)
	}
	if err := s.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Close again: %v", err)
	}
	for name, err := range map[string]error{
		"SetReadDeadline": s.SetReadDeadline(time.Now()), "SetWriteDeadline": s.SetWriteDeadline(time.Now()), "CloseWrite": s.CloseWrite(),
	} {
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if slices.ContainsFunc(server.dev.sent(before), isFin) || s.Endpoint().EndpointState() != tcp.StateEstablished {
		t.Error("Close took effect before Resume")
	}
	s.Resume()
	server.dev.waitSent(t, "FIN", before, isFin)
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the peer's Read: %v: want EOF", err)
	}
}

// TestDetachClose: after a move closing is up to the application there.
func TestDetachClose(t *testing.T) {
	client, server := newNodes(t, nil)
	c, s := connect(t, client.Stack, server.Stack, server6)
	pingPong(t, c, s)
	suspend(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_, before := server.dev.counts()
	s.Detach()
	s.Resume() // nothing is due any more
	if slices.ContainsFunc(server.dev.sent(before), isFin) || s.Endpoint().EndpointState() != tcp.StateEstablished {
		t.Error("a connection that moved was closed")
	}
	s.Endpoint().Abort()
}

// TestDetach: calls on a connection that moved say so, and Write says how
// much went along.
func TestDetach(t *testing.T) {
	for _, suspended := range []bool{false, true} {
		bothFamilies(t, func(t *testing.T, addr, _ netip.Addr) {
			client, server := newNodes(t, nil)
			c, s := connect(t, client.Stack, server.Stack, addr)
			read := make(chan error, 1)
			type written struct {
				n   int
				err error
			}
			write := make(chan written, 1)
			const size = 64 << 20 // more than all buffers
			go func() { _, err := s.Read(make([]byte, 1)); read <- err }()
			go func() { n, err := send(s, 0, size); write <- written{n, err} }()
			mustReceive(t, c, 0, 100_000)
			if suspended {
				suspend(t, s)
			}
			s.Detach()
			r := result(t, "Read", read)
			w := result(t, "Write", write)
			for name, err := range map[string]error{
				"Read": r, "Write": w.err, "Close": s.Close(), "CloseRead": s.CloseRead(), "CloseWrite": s.CloseWrite(),
				"SetDeadline": s.SetDeadline(time.Time{}), "SetReadDeadline": s.SetReadDeadline(time.Now()),
				"SetNoDelay": s.SetNoDelay(false), "Read again": second(s.Read(make([]byte, 1))), "Write again": second(s.Write(make([]byte, 1))),
			} {
				if !errors.Is(err, stack.ErrMoved) || !errors.Is(err, net.ErrClosed) {
					t.Errorf("%s: %v: want ErrMoved, which is net.ErrClosed", name, err)
				}
				var op *net.OpError
				if !errors.As(err, &op) {
					t.Errorf("%s: %T: want a *net.OpError", name, err)
				}
			}
			if err := s.Suspend(); !errors.Is(err, stack.ErrMoved) {
				t.Errorf("Suspend: %v", err)
			}
			if cs := server.ConnsOf(c.Tuple().Local.Addr()); len(cs) != 0 {
				t.Errorf("%d connections are still listed", len(cs))
			}
			// The endpoint still has what Write said, and not an octet more.
			if w.n < 100_000 || w.n >= size {
				t.Fatalf("Write took %d octets", w.n)
			}
			if err := s.Endpoint().Shutdown(tcpip.ShutdownWrite); err != nil {
				t.Fatal(err)
			}
			mustReceive(t, c, 100_000, w.n-100_000)
			if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
				t.Fatal(err)
			}
			if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
				t.Errorf("behind the %d octets that Write took: %d, %v: want EOF", w.n, n, err)
			}
			s.Endpoint().Abort()
		})
	}
}

func second(_ int, err error) error { return err }

// TestBlockWrites: only Write waits.
func TestBlockWrites(t *testing.T) {
	client, server := newPair(t)
	c, s := connect(t, client, server, server6)
	s.BlockWrites(true)
	errs := make(chan error, 1)
	go func() { _, err := send(s, 0, 1000); errs <- err }()
	mustSend(t, c, 7, 1000)
	mustReceive(t, s, 7, 1000)
	if err := s.SetWriteDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if err := result(t, "Write", errs); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("deadline while writes are blocked: %v", err)
	}
	if err := s.SetWriteDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	go func() { _, err := send(s, 0, 1000); errs <- err }()
	s.BlockWrites(false)
	if err := result(t, "Write", errs); err != nil {
		t.Error(err)
	}
	mustReceive(t, c, 0, 1000)
}

// TestControlsPassWrite: only Write waits for room in the send buffer, or for
// BlockWrites; a call that ends the other direction or sets an option does not
// wait for Write, as with net.TCPConn.
func TestControlsPassWrite(t *testing.T) {
	client, server := newPair(t)
	for name, call := range map[string]func(*stack.Conn) error{
		"SetNoDelay":   func(c *stack.Conn) error { return c.SetNoDelay(true) },
		"SetKeepAlive": func(c *stack.Conn) error { return c.SetKeepAlive(true) },
		"CloseRead":    (*stack.Conn).CloseRead,
	} {
		_, s := connect(t, client, server, server6)
		s.BlockWrites(true)
		started, done := make(chan struct{}), make(chan error, 2)
		go func() { close(started); _, err := s.Write([]byte{1}); done <- err }()
		<-started
		runtime.Gosched()
		// A Write that waits has the lock that serialises writers.
		errs := make(chan error, 1)
		go func() { errs <- call(s) }()
		if err := result(t, name+", which waits for a Write that waits", errs); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		s.BlockWrites(false)
		if err := result(t, "Write", done); err != nil {
			t.Error(err)
		}
	}
}

// TestSuspendRaces: a connection under traffic is suspended again and again.
func TestSuspendRaces(t *testing.T) {
	client, server := newPair(t)
	c, s := connect(t, client, server, server6)
	const size = 4 << 20
	errs := make(chan error, 4)
	go func() { _, err := send(c, 0, size); errs <- err }()
	go func() { _, err := send(s, 1, size); errs <- err }()
	go func() { errs <- receive(s, 0, size) }()
	go func() { errs <- receive(c, 1, size) }()
	for left := 4; left > 0; {
		select {
		case err := <-errs:
			if err != nil {
				t.Error(err)
			}
			left--
		default:
			for _, x := range []*stack.Conn{c, s} {
				suspend(t, x)
				x.BlockWrites(true)
				runtime.Gosched()
				x.Resume()
				x.BlockWrites(false)
			}
		}
	}
}

func TestOptions(t *testing.T) {
	client, server := newPair(t)
	_, s := connect(t, client, server, server6)
	ep := s.Endpoint()
	so := ep.SocketOptions()
	if so.GetDelayOption() || so.GetKeepAlive() {
		t.Error("Nagle's algorithm or keepalive is on by default")
	}
	do := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	do("SetNoDelay", s.SetNoDelay(false))
	if !so.GetDelayOption() {
		t.Error("SetNoDelay(false) did nothing")
	}
	do("SetNoDelay", s.SetNoDelay(true))
	if so.GetDelayOption() {
		t.Error("SetNoDelay(true) did nothing")
	}
	keep := func() (idle, interval time.Duration, count int) {
		var i tcpip.KeepaliveIdleOption
		var v tcpip.KeepaliveIntervalOption
		if ep.GetSockOpt(&i) != nil || ep.GetSockOpt(&v) != nil {
			t.Fatal("GetSockOpt")
		}
		n, err := ep.GetSockOptInt(tcpip.KeepaliveCountOption)
		if err != nil {
			t.Fatal(err)
		}
		return time.Duration(i), time.Duration(v), n
	}
	for _, c := range []struct {
		cfg            net.KeepAliveConfig
		idle, interval time.Duration
		count          int
	}{
		{net.KeepAliveConfig{Enable: true, Idle: time.Minute, Interval: 2 * time.Second, Count: 3}, time.Minute, 2 * time.Second, 3},
		{net.KeepAliveConfig{Enable: true, Idle: -1, Interval: -1, Count: -1}, time.Minute, 2 * time.Second, 3},
		{net.KeepAliveConfig{Enable: false, Idle: time.Hour, Interval: -1, Count: 5}, time.Hour, 2 * time.Second, 5},
		{net.KeepAliveConfig{Enable: true}, 15 * time.Second, 15 * time.Second, 9},
	} {
		do("SetKeepAliveConfig", s.SetKeepAliveConfig(c.cfg))
		idle, interval, count := keep()
		if so.GetKeepAlive() != c.cfg.Enable || idle != c.idle || interval != c.interval || count != c.count {
			t.Errorf("%+v: %v, %v, %v, %d", c.cfg, so.GetKeepAlive(), idle, interval, count)
		}
	}
	do("SetKeepAlivePeriod", s.SetKeepAlivePeriod(7*time.Second))
	if idle, interval, count := keep(); idle != 7*time.Second || interval != 7*time.Second || count != 9 {
		t.Errorf("SetKeepAlivePeriod: %v, %v, %d", idle, interval, count)
	}
	do("SetKeepAlive", s.SetKeepAlive(false))
	if so.GetKeepAlive() {
		t.Error("SetKeepAlive(false) did nothing")
	}
	do("SetUserTimeout", s.SetUserTimeout(9*time.Second))
	var ut tcpip.TCPUserTimeoutOption
	if err := ep.GetSockOpt(&ut); err != nil || time.Duration(ut) != 9*time.Second {
		t.Errorf("user timeout %v, %v", time.Duration(ut), err)
	}
	for sec, want := range map[int]tcpip.LingerOption{5: {Enabled: true, Timeout: 5 * time.Second}, 0: {Enabled: true}, -1: {}} {
		do("SetLinger", s.SetLinger(sec))
		if got := so.GetLinger(); got != want {
			t.Errorf("SetLinger(%d): %+v", sec, got)
		}
	}
	do("SetReadBuffer", s.SetReadBuffer(100_000))
	do("SetWriteBuffer", s.SetWriteBuffer(200_000))
	if r, w := so.GetReceiveBufferSize(), so.GetSendBufferSize(); r < 100_000 || r > 200_000 || w < 200_000 || w > 400_000 {
		t.Errorf("buffers of %d and %d", r, w)
	}
}

// TestLingerZero: closing with a linger time of 0 is a reset, as for
// net.TCPConn.
func TestLingerZero(t *testing.T) {
	client, server := newPair(t)
	c, s := connect(t, client, server, server6)
	if err := s.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%v: want a reset", err)
	}
}

// TestHalfClose: each direction ends by itself.
func TestHalfClose(t *testing.T) {
	bothFamilies(t, func(t *testing.T, addr, _ netip.Addr) {
		client, server := newPair(t)
		c, s := connect(t, client, server, addr)
		mustSend(t, s, 0, 10)
		if err := s.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if n, err := s.Write([]byte{1}); n != 0 || !errors.Is(err, syscall.EPIPE) {
			t.Errorf("Write after CloseWrite: %d, %v", n, err)
		}
		mustReceive(t, c, 0, 10)
		if _, err := c.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("the peer: %v: want EOF", err)
		}
		mustSend(t, c, 5, 10)
		mustReceive(t, s, 5, 10)
		if err := s.CloseRead(); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("Read after CloseRead: %v: want EOF", err)
		}
	})
}

// TestConnsListed: a connection is listed until it has ended, not until it is
// closed.
func TestConnsListed(t *testing.T) {
	client, server := newPair(t)
	c, s := connect(t, client, server, server6)
	c2, s2 := connect(t, client, server, server6)
	listed := func() []*stack.Conn { return server.ConnsOf(client6) }
	if cs := listed(); len(cs) != 2 || !slices.Contains(cs, s) || !slices.Contains(cs, s2) {
		t.Fatalf("listed: %v", cs)
	}
	if s.Stack() != server || s.Queue() == nil {
		t.Error("another stack")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Fatal(err)
	}
	if cs := listed(); len(cs) != 2 {
		t.Errorf("a closed connection in FIN_WAIT_2 is not listed: %v", cs)
	}
	s2.Endpoint().Abort()
	if _, err := c2.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the peer of an aborted one: %v", err)
	}
	if cs := listed(); len(cs) != 1 || cs[0] != s {
		t.Errorf("an aborted connection is listed: %v", cs)
	}
}

// TestReset: what both ends see of a reset.
func TestReset(t *testing.T) {
	client, server := newPair(t)
	c, s := connect(t, client, server, server6)
	mustSend(t, c, 0, 10)
	eventually(t, "octets to read", func() bool { return unread(t, s) == 10 })
	s.Endpoint().Abort()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the peer's Read: %v", err)
	}
	if _, err := c.Write(make([]byte, 1)); err == nil {
		t.Error("the peer's Write worked")
	}
	if _, err := s.Write(make([]byte, 1)); err == nil {
		t.Error("Write worked")
	}
}

// TestCloseLeaks: Close ends every goroutine of a stack, whatever its
// connections are at.
func TestCloseLeaks(t *testing.T) {
	ours := func() []string {
		b := make([]byte, 4<<20)
		b = b[:runtime.Stack(b, true)]
		var all []string
		for _, g := range strings.Split(string(b), "\n\n") {
			if strings.Contains(g, "gvisor.dev/gvisor/pkg/tcpip") || strings.Contains(g, "ds/stack.(") {
				all = append(all, g)
			}
		}
		return all
	}
	before := len(ours()) // of earlier tests
	for range 5 {
		client, server := newNodes(t, nil)
		c, s := connect(t, client.Stack, server.Stack, server6)
		c2, s2 := connect(t, client.Stack, server.Stack, server4)
		pingPong(t, c, s)
		pingPong(t, c2, s2)
		s.Close()
		l, err := server.Listen("tcp", ":90")
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{}, 3)
		go func() { l.Accept(); ended <- struct{}{} }()
		go func() { s2.Read(make([]byte, 1)); ended <- struct{}{} }()
		go func() { send(c2, 0, 64<<20); ended <- struct{}{} }()
		h, err := server.HoldClient(client6)
		h = mustHold(t, h, err)
		h.Forward(nil, time.Hour)
		if _, err := server.HoldClient(client4); err != nil {
			t.Fatal(err)
		}
		client.dev.waitSent(t, "data", 0, hasFlag(header.TCPFlagPsh))
		server.Close()
		client.Close()
		for range 3 {
			result(t, "a call on a closed stack", ended)
		}
	}
	end := time.Now().Add(patience)
	for {
		now := ours()
		if len(now) <= before {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d goroutines before, %d after:\n%s", before, len(now), strings.Join(now, "\n\n"))
		}
		runtime.Gosched()
	}
}
