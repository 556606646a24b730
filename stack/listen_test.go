package stack_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/distributed-servers/ds/stack"
	"github.com/distributed-servers/ds/tun/tuntest"
)

func TestNewErrors(t *testing.T) {
	dev, _ := tuntest.Pair(1500)
	good := []netip.Addr{server6}
	for name, c := range map[string]struct {
		cfg  stack.Config
		want string
	}{
		"no device":     {stack.Config{Addrs: good}, "Config.Device is nil"},
		"no addresses":  {stack.Config{Device: dev}, "Config.Addrs is empty"},
		"zero address":  {stack.Config{Device: dev, Addrs: []netip.Addr{{}}}, `"invalid IP"`},
		"unspecified":   {stack.Config{Device: dev, Addrs: []netip.Addr{netip.IPv6Unspecified()}}, "unicast"},
		"mapped":        {stack.Config{Device: dev, Addrs: []netip.Addr{netip.MustParseAddr("::ffff:192.0.2.1")}}, "unicast"},
		"zone":          {stack.Config{Device: dev, Addrs: []netip.Addr{netip.MustParseAddr("fe80::1%eth0")}}, "without zone"},
		"twice":         {stack.Config{Device: dev, Addrs: []netip.Addr{server6, server6}}, "address fd00:2::1: "},
		"no such cubic": {stack.Config{Device: dev, Addrs: good, CongestionControl: "vegas"}, "vegas"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := stack.New(c.cfg)
			if s != nil || err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, %v: want %q", s, err, c.want)
			}
		})
	}
}

func TestAddAddr(t *testing.T) {
	client, server := newPair(t)
	more := netip.MustParseAddr("fd00:2::2")
	if err := server.AddAddr(more); err != nil {
		t.Fatal(err)
	}
	c, s := connect(t, client, server, more)
	pingPong(t, c, s)
	for _, a := range []netip.Addr{more, {}, netip.IPv4Unspecified()} {
		if err := server.AddAddr(a); err == nil {
			t.Errorf("AddAddr(%v) worked", a)
		}
	}
	if server.MTU() != 1500 {
		t.Errorf("MTU %d", server.MTU())
	}
}

func TestAddressErrors(t *testing.T) {
	client, _ := newPair(t)
	for _, c := range []struct{ network, address, want string }{
		{"tcp", "", "missing port"},
		{"tcp", "fd00:2::1", "too many colons"},
		{"tcp", "[fd00:2::1]", "missing port"},
		{"tcp", "[fd00:2::1]:http", `port "http": want a number`},
		{"tcp", "[fd00:2::1]:65536", `port "65536": want a number`},
		{"tcp", "[fd00:2::1]:-1", `port "-1": want a number`},
		{"tcp", "example.org:80", `host "example.org": want an IPv6 or IPv4 address`},
		{"tcp", "192.0.2.300:80", `host "192.0.2.300"`},
		{"udp", "[fd00:2::1]:80", `network "udp": want tcp, tcp4 or tcp6`},
		{"", "[fd00:2::1]:80", `network ""`},
		{"tcp4", "[fd00:2::1]:80", "does not fit network tcp4"},
		{"tcp6", "192.0.2.1:80", "does not fit network tcp6"},
		{"tcp6", "[::ffff:192.0.2.1]:80", "does not fit network tcp6"},
	} {
		for name, f := range map[string]func() error{
			"Listen": func() error { _, err := client.Listen(c.network, c.address); return err },
			"Dial":   func() error { _, err := client.Dial(c.network, c.address); return err },
		} {
			if err := f(); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s(%q, %q): %v: want %q", name, c.network, c.address, err, c.want)
			}
		}
	}
	for _, address := range []string{":80", "[fd00:2::1]:0"} {
		if _, err := client.Dial("tcp", address); err == nil || !strings.Contains(err.Error(), "want an address and a port") {
			t.Errorf("Dial(%q): %v", address, err)
		}
	}
}

func TestListenErrors(t *testing.T) {
	_, server := newPair(t)
	l, err := server.Listen("tcp", "[fd00:2::1]:80")
	if err != nil {
		t.Fatal(err)
	}
	_, err = server.Listen("tcp", "[fd00:2::1]:80")
	var op *net.OpError
	if !errors.Is(err, syscall.EADDRINUSE) || !errors.As(err, &op) || op.Op != "listen" || op.Addr.String() != "[fd00:2::1]:80" {
		t.Errorf("the same address again: %v", err)
	}
	if _, err = server.Listen("tcp", "[fd00:2::99]:80"); !errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Errorf("an address of others: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := l.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Close again: %v", err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) || !errors.As(err, &op) || op.Op != "accept" {
		t.Errorf("Accept of a closed listener: %v", err)
	}
	if l, err = server.Listen("tcp", "[fd00:2::1]:80"); err != nil {
		t.Errorf("after Close: %v", err)
	}
	l.Close()
}

func TestListenAddr(t *testing.T) {
	client, server := newPair(t)
	for _, c := range []struct {
		network, address, want string
		dial                   []netip.Addr
		refused                []netip.Addr
	}{
		{"tcp", ":80", "[::]:80", []netip.Addr{server6, server4}, nil},
		{"tcp", "[::]:81", "[::]:81", []netip.Addr{server6, server4}, nil},
		{"tcp6", ":82", "[::]:82", []netip.Addr{server6}, []netip.Addr{server4}},
		{"tcp4", ":83", "0.0.0.0:83", []netip.Addr{server4}, []netip.Addr{server6}},
		{"tcp", "0.0.0.0:84", "0.0.0.0:84", []netip.Addr{server4}, []netip.Addr{server6}},
		{"tcp", "[fd00:2::1]:85", "[fd00:2::1]:85", []netip.Addr{server6}, []netip.Addr{server4}},
		{"tcp4", "198.51.100.1:86", "198.51.100.1:86", []netip.Addr{server4}, []netip.Addr{server6}},
		{"tcp", "[::ffff:198.51.100.1]:87", "198.51.100.1:87", []netip.Addr{server4}, nil},
	} {
		l, err := server.Listen(c.network, c.address)
		if err != nil {
			t.Errorf("Listen(%q, %q): %v", c.network, c.address, err)
			continue
		}
		if got := l.Addr().String(); got != c.want {
			t.Errorf("Listen(%q, %q) is at %s: want %s", c.network, c.address, got, c.want)
		}
		port := uint16(l.Addr().(*net.TCPAddr).Port)
		for _, a := range c.dial {
			conn, err := client.Dial("tcp", netip.AddrPortFrom(a, port).String())
			if err != nil {
				t.Errorf("Listen(%q, %q): dial %s: %v", c.network, c.address, a, err)
				continue
			}
			accepted, err := l.AcceptConn()
			if err != nil {
				t.Fatal(err)
			}
			if want := netip.AddrPortFrom(a, port); accepted.Tuple().Local != want || conn.Tuple().Remote != want {
				t.Errorf("%v and %v: want %s", accepted.Tuple(), conn.Tuple(), want)
			}
			if found := server.ListenerFor(netip.AddrPortFrom(a, port)); found != l {
				t.Errorf("ListenerFor %s is %v: want %s", a, found, l.Addr())
			}
		}
		for _, a := range c.refused {
			if _, err := client.Dial("tcp", netip.AddrPortFrom(a, port).String()); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("Listen(%q, %q): dial %s: %v: want a refusal", c.network, c.address, a, err)
			}
			if found := server.ListenerFor(netip.AddrPortFrom(a, port)); found != nil {
				t.Errorf("ListenerFor %s is %s", a, found.Addr())
			}
		}
	}
	l, err := server.Listen("tcp", "[fd00:2::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	if l.Addr().(*net.TCPAddr).Port == 0 {
		t.Error("port 0 was not replaced")
	}
	if n := len(server.Listeners()); n != 9 {
		t.Errorf("%d listeners: want 9", n)
	}
}

// TestListenerForSpecific: the most specific listener is the one.
func TestListenerForSpecific(t *testing.T) {
	_, server := newPair(t)
	for range 10 { // the order of a map
		all, err := server.Listen("tcp", ":80")
		if err != nil {
			t.Fatal(err)
		}
		one, err := server.Listen("tcp", "[fd00:2::1]:80")
		if err != nil {
			t.Skipf("netstack has no two listeners on one port: %v", err)
		}
		if got := server.ListenerFor(netip.AddrPortFrom(server6, 80)); got != one {
			t.Errorf("IPv6: %v", got)
		}
		if got := server.ListenerFor(netip.AddrPortFrom(server4, 80)); got != all {
			t.Errorf("IPv4: %v", got)
		}
		all.Close()
		one.Close()
	}
}

func TestDialRefused(t *testing.T) {
	bothFamilies(t, func(t *testing.T, addr, clientAddr netip.Addr) {
		client, _ := newPair(t)
		_, err := client.Dial("tcp", netip.AddrPortFrom(addr, 9).String())
		var op *net.OpError
		if !errors.Is(err, syscall.ECONNREFUSED) || !errors.As(err, &op) || op.Op != "dial" {
			t.Errorf("%v: want a refusal", err)
		}
		if cs := client.ConnsOf(addr); len(cs) != 0 {
			t.Errorf("%d connections listed", len(cs))
		}
	})
}

func TestDialContext(t *testing.T) {
	client, server := newNodes(t, nil)
	h, err := server.HoldClient(client6) // nobody answers
	h = mustHold(t, h, err)
	ctx, cancel := context.WithCancel(context.Background())
	errs := make(chan error, 1)
	go func() { _, err := client.DialContext(ctx, "tcp", "[fd00:2::1]:80"); errs <- err }()
	client.dev.waitSent(t, "SYN", 0, hasFlag(header.TCPFlagSyn))
	cancel()
	err = result(t, "Dial", errs)
	var op *net.OpError
	if !errors.Is(err, context.Canceled) || !errors.As(err, &op) || op.Op != "dial" {
		t.Errorf("cancelled: %v", err)
	}
	if cs := client.ConnsOf(server6); len(cs) != 0 {
		t.Errorf("%d connections listed after that", len(cs))
	}
	if _, err = client.DialContext(ctx, "tcp", "[fd00:2::1]:80"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled before: %v", err)
	}
	ctx, cancel = context.WithTimeout(context.Background(), 5*time.Millisecond)
	defer cancel()
	_, err = client.DialContext(ctx, "tcp", "[fd00:2::1]:80")
	var timeout net.Error
	if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("timeout: %v", err)
	}
	h.Release()
}

// TestDialListed: a handshake in progress counts as one of the peer's.
func TestDialListed(t *testing.T) {
	client, server := newNodes(t, nil)
	l, err := server.Listen("tcp", "[fd00:2::1]:80")
	if err != nil {
		t.Fatal(err)
	}
	h, err := server.HoldClient(client6)
	h = mustHold(t, h, err)
	done := make(chan error, 1)
	go func() { _, err := client.Dial("tcp", l.Addr().String()); done <- err }()
	client.dev.waitSent(t, "SYN", 0, hasFlag(header.TCPFlagSyn))
	// It is listed before Connect returns to anybody, but perhaps a moment
	// after the SYN has left.
	eventually(t, "the connection to be listed", func() bool { return len(client.ConnsOf(server6)) == 1 })
	h.Release()
	if err := result(t, "Dial", done); err != nil {
		t.Fatal(err)
	}
	if as := client.Clients(); len(as) != 1 || as[0] != server6 {
		t.Errorf("Clients() = %v", as)
	}
}

func TestAcceptDeadline(t *testing.T) {
	client, server := newPair(t)
	l, err := server.Listen("tcp", "[fd00:2::1]:80")
	if err != nil {
		t.Fatal(err)
	}
	for name, at := range map[string]time.Time{"past": time.Unix(1, 0), "soon": time.Now().Add(5 * time.Millisecond)} {
		if err := l.SetDeadline(at); err != nil {
			t.Fatal(err)
		}
		_, err := l.Accept()
		var timeout net.Error
		if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A deadline that is set while Accept waits counts, too.
	if err := l.SetDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	errs := make(chan error, 1)
	go func() { _, err := l.Accept(); errs <- err }()
	if err := l.SetDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if err := result(t, "Accept", errs); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("meanwhile: %v", err)
	}
	if err := l.SetDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	c, err := client.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.AcceptConn()
	if err != nil {
		t.Fatal(err)
	}
	pingPong(t, c, s)

	go func() { _, err := l.Accept(); errs <- err }()
	l.Close()
	if err := result(t, "Accept", errs); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Close meanwhile: %v", err)
	}
}

// TestListenerClose: connections that nobody has accepted are reset, accepted
// ones go on.
func TestListenerClose(t *testing.T) {
	client, server := newPair(t)
	l, err := server.Listen("tcp", "[fd00:2::1]:80")
	if err != nil {
		t.Fatal(err)
	}
	dial := func() *stack.Conn {
		c, err := client.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	first := dial()
	s, err := l.AcceptConn()
	if err != nil {
		t.Fatal(err)
	}
	second, third := dial(), dial()
	moved, err := l.AcceptConn() // as if it had come from elsewhere
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Deliver(moved); err != nil {
		t.Fatal(err)
	}
	l.Close()
	for _, c := range []*stack.Conn{second, third} {
		if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		// Netstack drops the end of a handshake that comes while the listener closes, as if
		// it were lost: what is sent then is reset, but who does not send hears nothing.
		_, err := c.Write([]byte{1})
		if err == nil {
			_, err = c.Read(make([]byte, 1))
		}
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("not accepted: %v: want a reset", err)
		}
	}
	pingPong(t, first, s)
	if err := l.Deliver(s); err == nil {
		t.Error("Deliver to a closed listener worked")
	}
}

// TestDeliver: connections given to a listener come out of Accept in order,
// unless taken back.
func TestDeliver(t *testing.T) {
	client, server := newPair(t)
	var conns []*stack.Conn
	for range 3 {
		_, s := connect(t, client, server, server6)
		conns = append(conns, s)
	}
	l, err := server.Listen("tcp", "[fd00:2::1]:81")
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan *stack.Conn, 1)
	go func() { c, _ := l.AcceptConn(); accepted <- c }()
	for _, c := range conns {
		if err := l.Deliver(c); err != nil {
			t.Fatal(err)
		}
	}
	if c := result(t, "Accept", accepted); c != conns[0] {
		t.Errorf("got %v first", c.Tuple())
	}
	for _, c := range []struct {
		conn *stack.Conn
		want *stack.Listener
	}{{conns[1], l}, {conns[1], nil}, {conns[0], nil}} {
		if got := c.conn.Withdraw(); got != c.want {
			t.Errorf("Withdraw: %v: want %v", got, c.want)
		}
	}
	if c, err := l.AcceptConn(); c != conns[2] || err != nil {
		t.Errorf("got %v, %v second", c, err)
	}
	if conns[2].Withdraw() != nil {
		t.Error("Withdraw took an accepted connection")
	}
}

func TestClosedStack(t *testing.T) {
	client, server := newPair(t)
	c, s := connect(t, client, server, server6)
	l, err := server.Listen("tcp", ":81")
	if err != nil {
		t.Fatal(err)
	}
	pingPong(t, c, s)
	accept := make(chan error, 1)
	read := make(chan error, 1)
	go func() { _, err := l.Accept(); accept <- err }()
	go func() { _, err := s.Read(make([]byte, 1)); read <- err }()
	if server.Closed() {
		t.Error("closed already")
	}
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	if err := server.Close(); err != nil {
		t.Errorf("again: %v", err)
	}
	if !server.Closed() {
		t.Error("not closed")
	}
	if err := result(t, "Accept", accept); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: %v", err)
	}
	if err := result(t, "Read", read); err == nil || err == io.EOF {
		t.Errorf("Read: %v: want an error, no clean end", err)
	}
	if _, err := server.Listen("tcp", ":82"); !errors.Is(err, stack.ErrClosed) {
		t.Errorf("Listen: %v", err)
	}
	if _, err := server.Dial("tcp", "[fd00:1::1]:82"); !errors.Is(err, stack.ErrClosed) {
		t.Errorf("Dial: %v", err)
	}
	if err := server.Pause(); !errors.Is(err, stack.ErrClosed) {
		t.Errorf("Pause: %v", err)
	}
	if err := server.Resume(); !errors.Is(err, stack.ErrClosed) {
		t.Errorf("Resume: %v", err)
	}
	// The peer learns of it.
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the peer's Read: %v: want a reset", err)
	}
	server.Inject([]byte{0x60}) // no harm
	server.Inject(nil)
}

// A connection that is just being accepted, neither in netstack's queue any more nor
// listed yet, is not overlooked by who wants all of a client's.
func TestSettled(t *testing.T) {
	client, server := newPair(t)
	l, err := server.Listen("tcp", netip.AddrPortFrom(server6, 80).String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := client.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	between, settled := make(chan struct{}), make(chan int, 1)
	t.Cleanup(stack.SetAccepted(func() {
		close(between)
		for range 10_000 { // time enough for who does not wait
			runtime.Gosched()
			if len(settled) > 0 {
				return
			}
		}
	}))
	go l.Accept()
	<-between
	server.Settled(func() { settled <- len(server.ConnsOf(client6)) })
	if n := <-settled; n != 1 {
		t.Errorf("%d connections, one is being accepted", n)
	}
}
