package stack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// backlog is how many established connections wait for Accept, as Linux's
// net.core.somaxconn.
const backlog = 4096

// Listener accepts connections. It implements [net.Listener].
type Listener struct {
	stack *Stack
	ep    *tcp.Endpoint
	wq    waiter.Queue
	addr  netip.AddrPort
	only6 bool // an unspecified address does not mean IPv4 too
	end   deadline

	mu     sync.Mutex
	closed bool
	ready  []*Conn // moved here before they were accepted
}

// Listen accepts TCP connections to address, "host:port" with a literal host;
// an empty host means all of the Stack's addresses. network is "tcp", "tcp4"
// or "tcp6".
func (s *Stack) Listen(network, address string) (*Listener, error) {
	at, err := parseAddr(network, address)
	if err != nil {
		return nil, fmt.Errorf("stack: listen %s %s: %w", network, address, err)
	}
	l := &Listener{stack: s, only6: network == "tcp6"}
	fail := func(err error) (*Listener, error) {
		return nil, &net.OpError{Op: "listen", Net: network, Addr: net.TCPAddrFromAddrPort(at), Err: err}
	}
	if s.Closed() {
		return fail(ErrClosed)
	}
	proto := ipv6.ProtocolNumber
	if network == "tcp4" || at.Addr().Is4() {
		proto = ipv4.ProtocolNumber
	}
	ep, terr := s.ns.NewEndpoint(tcp.ProtocolNumber, proto, &l.wq)
	if terr != nil {
		return fail(netError(terr))
	}
	l.ep = ep.(*tcp.Endpoint)
	// As package net does: a listener may start while connections of an
	// earlier one, or moved ones, still use its port.
	l.ep.SocketOptions().SetReuseAddress(true)
	l.ep.SocketOptions().SetV6Only(l.only6)
	full := tcpip.FullAddress{Port: at.Port()}
	if at.Addr().IsValid() && !at.Addr().IsUnspecified() {
		full.Addr = toAddress(at.Addr())
	}
	if terr = l.ep.Bind(full); terr == nil {
		terr = l.ep.Listen(backlog)
	}
	if terr != nil {
		l.ep.Close()
		return fail(netError(terr))
	}
	bound, terr := l.ep.GetLocalAddress()
	if terr != nil {
		l.ep.Close()
		return fail(netError(terr))
	}
	host := at.Addr()
	if !host.IsValid() {
		host = netip.IPv6Unspecified()
		if proto == ipv4.ProtocolNumber {
			host = netip.IPv4Unspecified()
		}
	}
	l.addr = netip.AddrPortFrom(host, bound.Port)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		l.ep.Close()
		return fail(ErrClosed)
	}
	s.listeners = append(slices.Clone(s.listeners), l)
	return l, nil
}

// parseAddr reads a literal address: no name is looked up, since the answer
// would come from the host's network rather than the Stack's.
func parseAddr(network, address string) (netip.AddrPort, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return netip.AddrPort{}, err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("port %q: want a number from 0 to 65535", port)
	}
	var a netip.Addr
	if host != "" {
		if a, err = netip.ParseAddr(host); err != nil {
			return netip.AddrPort{}, fmt.Errorf("host %q: want an IPv6 or IPv4 address", host)
		}
		a = a.Unmap()
	}
	switch {
	case network != "tcp" && network != "tcp4" && network != "tcp6":
		return netip.AddrPort{}, fmt.Errorf("network %q: want tcp, tcp4 or tcp6", network)
	case a.Is4() && network == "tcp6", a.Is6() && network == "tcp4":
		return netip.AddrPort{}, fmt.Errorf("address %s does not fit network %s", a, network)
	}
	return netip.AddrPortFrom(a, uint16(n)), nil
}

// Accept implements [net.Listener].
func (l *Listener) Accept() (net.Conn, error) {
	c, err := l.AcceptConn()
	if err != nil {
		return nil, err
	}
	return c, nil
}

// AcceptConn is Accept with the connection's own type.
func (l *Listener) AcceptConn() (*Conn, error) {
	c, err := l.tryAccept()
	if err == errAgain {
		entry, ch := waiter.NewChannelEntry(waiter.ReadableEvents)
		l.wq.EventRegister(&entry)
		defer l.wq.EventUnregister(&entry)
		for {
			if c, err = l.tryAccept(); err != errAgain {
				break
			}
			<-ch
		}
	}
	if err != nil {
		return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: err}
	}
	return c, nil
}

var errAgain = errors.New("try again")

// accepted is called between Accept of netstack and Conn: for tests.
var accepted = func() {}

func (l *Listener) tryAccept() (*Conn, error) {
	if l.end.passed.Load() {
		return nil, os.ErrDeadlineExceeded
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, net.ErrClosed
	}
	if len(l.ready) > 0 {
		c := l.ready[0]
		l.ready[0] = nil
		l.ready = l.ready[1:]
		c.waiting.Store(nil)
		return c, nil
	}
	l.stack.listing.RLock()
	defer l.stack.listing.RUnlock()
	ep, wq, terr := l.ep.Accept(nil)
	switch terr.(type) {
	case nil:
		accepted()
		return l.stack.newConn(ep.(*tcp.Endpoint), wq), nil
	case *tcpip.ErrWouldBlock:
		return nil, errAgain
	}
	return nil, netError(terr)
}

// SetDeadline makes Accept fail with [os.ErrDeadlineExceeded] once t has
// passed; the zero time waits for ever.
func (l *Listener) SetDeadline(t time.Time) error {
	l.end.set(t, func() { l.wq.Notify(waiter.ReadableEvents) })
	return nil
}

// Close implements [net.Listener]. Connections that nobody has accepted are
// reset.
func (l *Listener) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return &net.OpError{Op: "close", Net: "tcp", Addr: l.Addr(), Err: net.ErrClosed}
	}
	l.closed = true
	ready := l.ready
	l.ready = nil
	l.mu.Unlock()
	l.stack.mu.Lock()
	l.stack.listeners = slices.DeleteFunc(slices.Clone(l.stack.listeners), func(o *Listener) bool { return o == l })
	l.stack.mu.Unlock()
	l.ep.Close()
	for _, c := range ready {
		c.ep.Abort()
	}
	l.wq.Notify(anyEvent)
	return nil
}

// Addr implements [net.Listener].
func (l *Listener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.addr) }

// Dial connects to address, "host:port" with a literal host. network is "tcp",
// "tcp4" or "tcp6".
func (s *Stack) Dial(network, address string) (*Conn, error) {
	return s.DialContext(context.Background(), network, address)
}

// DialContext is Dial that gives up when ctx ends.
func (s *Stack) DialContext(ctx context.Context, network, address string) (*Conn, error) {
	d, err := s.dial(network, address)
	if err != nil {
		return nil, err
	}
	entry, done := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	d.c.wq.EventRegister(&entry)
	defer d.c.wq.EventUnregister(&entry)
	err = ctx.Err()
	if err == nil {
		err = d.connect()
	}
	if err == errAgain {
		select {
		case <-done:
			err = netError(d.c.ep.LastError())
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = os.ErrDeadlineExceeded
	}
	if err != nil {
		return nil, d.fail(err)
	}
	return d.c, nil
}

// covers tells whether the listener would accept a connection to local.
func (l *Listener) covers(local netip.AddrPort) bool {
	if l.addr.Port() != local.Port() {
		return false
	}
	a := l.addr.Addr()
	switch {
	case !a.IsUnspecified():
		return a == local.Addr()
	case a.Is4():
		return local.Addr().Is4()
	}
	return local.Addr().Is6() || !l.only6
}
