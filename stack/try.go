package stack

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// The calls of this file never wait, but for Await: for programs that are driven
// by events, such as simulations, and for those that want nothing to wait while
// they hold a lock. Where the others would wait, they fail with
// [syscall.EAGAIN]. Deadlines do not concern them.

// TryRead is [Conn.Read] that does not wait.
func (c *Conn) TryRead(b []byte) (n int, err error) {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	if len(b) == 0 {
		return 0, nil
	}
	c.reader = b
	err = c.try(gateSuspended|gateNoRead, c.readOnce)
	n = len(b) - len(c.reader)
	c.reader = nil
	if err != nil && err != io.EOF {
		err = c.opError("read", err)
	}
	return n, err
}

// TryWrite is [Conn.Write] that does not wait: it may take less than all of b,
// without an error.
func (c *Conn) TryWrite(b []byte) (n int, err error) {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	b = b[:min(len(b), maxWrite)]
	c.writer.Reset(b)
	c.writer.whole = false
	err = c.try(gateSuspended|gateNoWrite|gateNoNewWrite, c.writeOnce)
	n = len(b) - c.writer.Len()
	c.writer.Reset(nil)
	if err != nil {
		err = c.opError("write", err)
	}
	return n, err
}

func (c *Conn) try(barred gateState, op func() tcpip.Error) error {
	ok, err := c.gate.enter(barred)
	if err != nil {
		return err
	}
	if !ok {
		if c.resting(barred) {
			c.atRest()
		}
		return syscall.EAGAIN
	}
	defer c.gate.leave()
	switch err := op(); err.(type) {
	case *tcpip.ErrWouldBlock:
		return syscall.EAGAIN
	default:
		return netError(err)
	}
}

// Event is what [Conn.Await] waits for.
type Event waiter.EventMask

// What Await waits for beside the connection's end.
const (
	Readable = Event(waiter.ReadableEvents) // TryRead has something to say
	Writable = Event(waiter.WritableEvents) // TryWrite has
	Ended    = Event(0)                     // nothing
)

// Await waits until one of the events has come, or the connection has ended. It
// fails when the deadline passes, that of Write for Writable and of Read
// otherwise, and when the connection is closed or moves. A connection is at rest
// in it as in Read and Write. It does not wait for calls of Read and Write to
// return, nor they for it.
func (c *Conn) Await(e Event) error {
	d, barred, what := &c.readEnd, gateSuspended|gateNoRead, "read"
	if e == Writable {
		d, barred, what = &c.writeEnd, gateSuspended|gateNoWrite|gateNoNewWrite, "write"
	}
	mask := waiter.EventMask(e) | waiter.EventErr | waiter.EventHUp
	wake := mask
	if e == Ended {
		wake |= waiter.ReadableEvents // by which deadlines tell
	}
	var w wait
	err := c.call(&w, d, wake, barred, func() tcpip.Error {
		if c.ep.Readiness(mask)&mask == 0 {
			return &tcpip.ErrWouldBlock{}
		}
		return nil
	})
	if err != nil {
		err = c.opError(what, err)
	}
	return err
}

// TryAccept is [Listener.AcceptConn] that does not wait.
func (l *Listener) TryAccept() (*Conn, error) {
	c, err := l.tryAccept()
	if err == errAgain {
		err = syscall.EAGAIN
	}
	if err != nil {
		return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: err}
	}
	return c, nil
}

// TryDial is [Stack.Dial] that does not wait for the handshake: until it is
// over, TryRead and TryWrite fail with [syscall.EAGAIN].
func (s *Stack) TryDial(network, address string) (*Conn, error) {
	d, err := s.dial(network, address)
	if err != nil {
		return nil, err
	}
	if err := d.connect(); err != nil && err != errAgain {
		return nil, d.fail(err)
	}
	return d.c, nil
}

// dialing is a connection that is being set up.
type dialing struct {
	c       *Conn
	network string
	to      tcpip.FullAddress
	toAddr  net.Addr
}

func (s *Stack) dial(network, address string) (*dialing, error) {
	to, err := parseAddr(network, address)
	if err == nil && (!to.Addr().IsValid() || to.Port() == 0) {
		err = errors.New("want an address and a port")
	}
	if err != nil {
		return nil, fmt.Errorf("stack: dial %s %s: %w", network, address, err)
	}
	d := &dialing{
		c:       &Conn{stack: s},
		network: network,
		to:      tcpip.FullAddress{Addr: toAddress(to.Addr()), Port: to.Port()},
		toAddr:  net.TCPAddrFromAddrPort(to),
	}
	d.c.wq = &d.c.queue
	if s.Closed() {
		return nil, d.opError(ErrClosed)
	}
	ep, terr := s.ns.NewEndpoint(tcp.ProtocolNumber, protocolOf(to.Addr()), d.c.wq)
	if terr != nil {
		return nil, d.opError(netError(terr))
	}
	d.c.ep = ep.(*tcp.Endpoint)
	return d, nil
}

// connect begins the handshake, as a rule with errAgain.
func (d *dialing) connect() error {
	d.c.stack.listing.RLock()
	defer d.c.stack.listing.RUnlock()
	terr := d.c.ep.Connect(d.to)
	if _, started := terr.(*tcpip.ErrConnectStarted); !started {
		return netError(terr)
	}
	// From here on the client's connections include this one, so that
	// whoever would move them knows of the handshake.
	id := d.c.ep.Info()
	d.c.tuple = TupleOf(transportID(id))
	d.c.stack.list(d.c)
	return errAgain
}

// fail gives the connection up.
func (d *dialing) fail(err error) error {
	d.c.ep.Close()
	d.c.stack.unlist(d.c)
	if err == syscall.ECONNRESET { // a reset in SYN_SENT: RFC 9293 §3.10.7.3
		err = syscall.ECONNREFUSED
	}
	return d.opError(err)
}

func (d *dialing) opError(err error) error {
	return &net.OpError{Op: "dial", Net: d.network, Addr: d.toAddr, Err: err}
}
