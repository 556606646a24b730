package stack

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	gstack "gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// ErrMoved is returned by calls on a connection that now lives on another node
// or in another process. It is also a [net.ErrClosed].
var ErrMoved error = movedError{}

type movedError struct{}

func (movedError) Error() string        { return "connection has moved to another node" }
func (movedError) Is(target error) bool { return target == net.ErrClosed }

// maxWrite is how many octets Write gives the endpoint at a time, so that the
// endpoint's lock is not held for long.
const maxWrite = 256 << 10

// MaxWhole is how many octets, at most, a Write takes all at once or not at all, if
// they are no more than half of the send buffer.
const MaxWhole = buffer.MaxChunkSize // what netstack copies at a time

// payload is what a Write has left.
type payload struct {
	bytes.Reader
	whole bool // as much as MaxWhole says
}

var errNoRoom = errors.New("no room for all")

// Read implements [io.Reader]: it is asked for as much as there is room for, up to
// MaxWhole.
func (p *payload) Read(b []byte) (int, error) {
	if p.whole && 0 < len(b) && len(b) < p.Len() {
		return 0, errNoRoom
	}
	return p.Reader.Read(b)
}

// anyEvent wakes every waiting call.
const anyEvent = waiter.ReadableEvents | waiter.WritableEvents | waiter.EventHUp | waiter.EventErr

// Conn is a TCP connection that ends in a [Stack]. It implements [net.Conn]
// and the methods of [net.TCPConn] that apply.
type Conn struct {
	stack *Stack
	ep    *tcp.Endpoint // set once, before the Conn is shared
	wq    *waiter.Queue
	queue waiter.Queue // what wq points to unless netstack made its own
	tuple Tuple

	gate gate

	readMu   sync.Mutex // serialises Read
	reader   tcpip.SliceWriter
	readWait wait
	readEnd  deadline

	writeMu   sync.Mutex // serialises Write
	writer    payload
	writeWait wait
	writeEnd  deadline

	waiting atomic.Pointer[Listener] // that it was Delivered to
	rest    atomic.Pointer[rest]     // asked for, nil: none; changed under gate.mu
	pins    atomic.Int32             // changed under gate.mu, to 0 exclusively
	pinned  atomic.Bool              // ever

	hup        waiter.Entry // tells forget when the endpoint has ended
	prev, next *Conn        // other connections of the client, under Stack.mu
	listed     bool         // under Stack.mu
}

// gate admits calls to the endpoint, under its read lock.
type gate struct {
	mu    sync.RWMutex
	state gateState
}

type gateState uint8

const (
	gateSuspended  gateState = 1 << iota // calls wait
	gateNoWrite                          // writing calls wait
	gateClosed                           // the application has closed
	gateCloseDue                         // and the endpoint does not know yet
	gateMoved                            // the connection lives elsewhere
	gateNoRead                           // reads rest, see Conn.Rest
	gateNoNewWrite                       // and writes that have taken nothing yet
)

// enter admits a call if nothing in barred is set; then the caller must leave.
// Otherwise the call must fail with err or, if that is nil, wait.
func (g *gate) enter(barred gateState) (ok bool, err error) {
	g.mu.RLock()
	s := g.state
	if s&(barred|gateClosed|gateMoved) == 0 {
		return true, nil
	}
	g.mu.RUnlock()
	switch {
	case s&gateMoved != 0:
		return false, ErrMoved
	case s&gateClosed != 0:
		return false, net.ErrClosed
	}
	return false, nil
}

func (g *gate) leave() { g.mu.RUnlock() }

// wait is what a blocked call waits on: everything that could end the wait
// (the endpoint, a deadline, the gate) notifies the waiter queue.
type wait struct {
	entry waiter.Entry
	ch    chan struct{}
}

func (w *wait) begin(q *waiter.Queue, mask waiter.EventMask) {
	if w.ch == nil {
		w.entry, w.ch = waiter.NewChannelEntry(mask)
	}
	select {
	case <-w.ch: // left over
	default:
	}
	q.EventRegister(&w.entry)
}

func (w *wait) end(q *waiter.Queue) { q.EventUnregister(&w.entry) }

// deadline is one direction's deadline. The zero value is none.
type deadline struct {
	passed atomic.Bool
	mu     sync.Mutex
	timer  *time.Timer
}

// set arranges for passed to become true at t and for wake to be called then.
func (d *deadline) set(t time.Time, wake func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	if t.IsZero() {
		d.passed.Store(false)
		return
	}
	left := time.Until(t)
	if left <= 0 {
		d.passed.Store(true)
		wake()
		return
	}
	d.passed.Store(false)
	var timer *time.Timer
	timer = time.AfterFunc(left, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.timer == timer { // else it fired while being replaced
			d.passed.Store(true)
			wake()
		}
	})
	d.timer = timer
}

// call runs op on the endpoint as soon as the gate lets it, again and again
// while it would block, until the deadline passes. Callers hold the mutex that
// guards w.
func (c *Conn) call(w *wait, d *deadline, mask waiter.EventMask, barred gateState, op func() tcpip.Error) error {
	waiting := false
	for {
		if d.passed.Load() && !c.resting(barred) {
			return os.ErrDeadlineExceeded
		}
		ok, err := c.gate.enter(barred)
		if err != nil {
			return err
		}
		if ok {
			err := op()
			c.gate.leave()
			if _, again := err.(*tcpip.ErrWouldBlock); !again {
				return netError(err)
			}
		} else if c.resting(barred) {
			c.atRest()
		}
		if waiting {
			<-w.ch
			continue
		}
		// Try once more after registering: no event is replayed.
		w.begin(c.wq, mask)
		defer w.end(c.wq)
		waiting = true
	}
}

// Read implements [net.Conn].
func (c *Conn) Read(b []byte) (n int, err error) {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	if len(b) == 0 {
		return 0, nil
	}
	c.reader = b
	err = c.call(&c.readWait, &c.readEnd, readMask, gateSuspended|gateNoRead, c.readOnce)
	n = len(b) - len(c.reader)
	c.reader = nil
	if err != nil && err != io.EOF {
		err = c.opError("read", err)
	}
	return n, err
}

const readMask = waiter.ReadableEvents | waiter.EventErr | waiter.EventHUp

func (c *Conn) readOnce() tcpip.Error {
	// Most calls find nothing, and wait. To look into the endpoint for that, and to keep its
	// result of half a KiB, takes more stack than a goroutine has at first.
	if c.ep.Readiness(readMask)&readMask == 0 {
		return &tcpip.ErrWouldBlock{}
	}
	room := len(c.reader)
	_, err := c.ep.Read(&c.reader, tcpip.ReadOptions{})
	if err == nil {
		c.ep.ModerateRecvBuf(room - len(c.reader))
	}
	return err
}

// Write implements [net.Conn]. When it fails, n octets are in the send buffer
// all the same; if the connection has moved, they have moved with it.
//
// Up to [MaxWhole] octets are taken all or none, so that a Write that waits for room
// has taken nothing: see [Conn.Rest].
func (c *Conn) Write(b []byte) (n int, err error) {
	makeRoom()
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	for first := true; first || n < len(b); first = false {
		chunk := b[n:min(len(b), n+maxWrite)]
		c.writer.Reset(chunk)
		c.writer.whole = len(b) <= MaxWhole
		barred := gateSuspended | gateNoWrite
		if n == 0 {
			barred |= gateNoNewWrite
		}
		err = c.call(&c.writeWait, &c.writeEnd, waiter.WritableEvents|waiter.EventErr|waiter.EventHUp, barred, c.writeOnce)
		n += len(chunk) - c.writer.Len()
		if err != nil {
			err = c.opError("write", err)
			break
		}
	}
	c.writer.Reset(nil)
	return n, err
}

func (c *Conn) writeOnce() tcpip.Error {
	if c.writer.Len() == 0 {
		return nil
	}
	// With less room than that, netstack says when half of the buffer is free.
	c.writer.whole = c.writer.whole && int64(c.writer.Len()) <= c.ep.SocketOptions().GetSendBufferSize()/2
	// Atomic keeps the endpoint locked while the octets are copied, which
	// saves netstack an allocation and a second pass of checks.
	_, err := c.ep.Write(&c.writer, tcpip.WriteOptions{Atomic: true})
	if _, none := err.(*tcpip.ErrBadBuffer); none {
		return &tcpip.ErrWouldBlock{} // errNoRoom
	}
	return err
}

// Close implements [net.Conn]. While the connection is being moved, Close
// takes effect if the move fails; if it succeeds, closing is up to the
// application there.
func (c *Conn) Close() error {
	c.gate.mu.Lock()
	s := c.gate.state
	if s&gateMoved == 0 {
		c.gate.state |= gateClosed
	}
	if s&(gateMoved|gateClosed) == 0 && s&gateSuspended != 0 {
		c.gate.state |= gateCloseDue
	}
	c.gate.mu.Unlock()
	switch {
	case s&gateMoved != 0:
		return c.opError("close", ErrMoved)
	case s&gateClosed != 0:
		return c.opError("close", net.ErrClosed)
	case s&gateSuspended == 0:
		c.ep.Close()
	}
	c.atRest()
	c.readEnd.set(time.Time{}, nil)
	c.writeEnd.set(time.Time{}, nil)
	c.wq.Notify(anyEvent)
	return nil
}

// CloseWrite ends this side's stream with a FIN behind what was written. It
// waits, up to the write deadline, while the connection is being moved.
func (c *Conn) CloseWrite() error { return c.shutdown(tcpip.ShutdownWrite) }

// CloseRead makes reads return [io.EOF] once what has arrived is read.
func (c *Conn) CloseRead() error { return c.shutdown(tcpip.ShutdownRead) }

func (c *Conn) shutdown(how tcpip.ShutdownFlags) error {
	return c.control("close", func() tcpip.Error { return c.ep.Shutdown(how) })
}

func (c *Conn) set(op func() tcpip.Error) error { return c.control("set", op) }

// control is call for what never blocks in the endpoint, such as socket
// options. Only while the connection is being moved does it wait, and only then
// does the write deadline count.
func (c *Conn) control(what string, op func() tcpip.Error) error {
	var w wait
	waiting := false
	for {
		ok, err := c.gate.enter(gateSuspended)
		switch {
		case ok:
			err = netError(op())
			c.gate.leave()
			if err != nil {
				err = c.opError(what, err)
			}
			return err
		case err == nil && c.writeEnd.passed.Load():
			err = os.ErrDeadlineExceeded
		}
		if err != nil {
			return c.opError(what, err)
		}
		if waiting {
			<-w.ch
			continue
		}
		w.begin(c.wq, anyEvent)
		defer w.end(c.wq)
		waiting = true
	}
}

// SetNoDelay turns Nagle's algorithm (RFC 9293 §3.7.4) off, which is the
// default, or on.
func (c *Conn) SetNoDelay(noDelay bool) error {
	return c.set(func() tcpip.Error { c.ep.SocketOptions().SetDelayOption(!noDelay); return nil })
}

// SetKeepAlive turns keepalive probes (RFC 9293 §3.8.4) on or off, the default.
func (c *Conn) SetKeepAlive(on bool) error {
	return c.set(func() tcpip.Error { c.ep.SocketOptions().SetKeepAlive(on); return nil })
}

// SetKeepAlivePeriod sets both the idle time before the first keepalive probe
// and the interval between probes.
func (c *Conn) SetKeepAlivePeriod(d time.Duration) error {
	return c.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: d, Interval: d, Count: -1})
}

// SetKeepAliveConfig sets keepalive probing. In line with [net.TCPConn], a
// zero time or count means the default (15 s, 15 s, 9), a negative one no
// change.
func (c *Conn) SetKeepAliveConfig(cfg net.KeepAliveConfig) error {
	const defTime, defCount = 15 * time.Second, 9
	orTime := func(d time.Duration) time.Duration {
		if d == 0 {
			return defTime
		}
		return d
	}
	return c.set(func() tcpip.Error {
		if d := orTime(cfg.Idle); d > 0 {
			o := tcpip.KeepaliveIdleOption(d)
			if err := c.ep.SetSockOpt(&o); err != nil {
				return err
			}
		}
		if d := orTime(cfg.Interval); d > 0 {
			o := tcpip.KeepaliveIntervalOption(d)
			if err := c.ep.SetSockOpt(&o); err != nil {
				return err
			}
		}
		n := cfg.Count
		if n == 0 {
			n = defCount
		}
		if n > 0 {
			if err := c.ep.SetSockOptInt(tcpip.KeepaliveCountOption, n); err != nil {
				return err
			}
		}
		c.ep.SocketOptions().SetKeepAlive(cfg.Enable)
		return nil
	})
}

// SetUserTimeout bounds how long sent octets may stay unacknowledged before
// the connection is given up (RFC 5482); 0 means the stack's default.
func (c *Conn) SetUserTimeout(d time.Duration) error {
	return c.set(func() tcpip.Error { o := tcpip.TCPUserTimeoutOption(d); return c.ep.SetSockOpt(&o) })
}

// SetLinger says what Close does with unsent octets, as for [net.TCPConn].
func (c *Conn) SetLinger(sec int) error {
	return c.set(func() tcpip.Error {
		c.ep.SocketOptions().SetLinger(tcpip.LingerOption{Enabled: sec >= 0, Timeout: time.Duration(max(sec, 0)) * time.Second})
		return nil
	})
}

// SetReadBuffer fixes the receive buffer's size in octets, at most
// Config.MaxBuffer, and ends its auto-tuning.
func (c *Conn) SetReadBuffer(octets int) error {
	return c.set(func() tcpip.Error {
		c.ep.SocketOptions().SetReceiveBufferSize(int64(min(octets, c.stack.maxBuffer)), true)
		return nil
	})
}

// SetWriteBuffer fixes the send buffer's size in octets, at most
// Config.MaxBuffer, and ends its auto-tuning.
func (c *Conn) SetWriteBuffer(octets int) error {
	return c.set(func() tcpip.Error {
		c.ep.SocketOptions().SetSendBufferSize(int64(min(octets, c.stack.maxBuffer)), true)
		return nil
	})
}

// SetDeadline implements [net.Conn]. Deadlines run on the system's clock, also
// while the connection is being moved; they do not move.
func (c *Conn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

// SetReadDeadline implements [net.Conn].
func (c *Conn) SetReadDeadline(t time.Time) error {
	return c.setDeadline(&c.readEnd, t, waiter.ReadableEvents)
}

// SetWriteDeadline implements [net.Conn].
func (c *Conn) SetWriteDeadline(t time.Time) error {
	return c.setDeadline(&c.writeEnd, t, waiter.WritableEvents)
}

func (c *Conn) setDeadline(d *deadline, t time.Time, mask waiter.EventMask) error {
	c.gate.mu.RLock()
	s := c.gate.state
	c.gate.mu.RUnlock()
	switch {
	case s&gateMoved != 0:
		return c.opError("set", ErrMoved)
	case s&gateClosed != 0:
		return c.opError("set", net.ErrClosed)
	}
	d.set(t, func() { c.wq.Notify(mask) })
	return nil
}

// LocalAddr implements [net.Conn].
func (c *Conn) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(c.tuple.Local) }

// RemoteAddr implements [net.Conn].
func (c *Conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.tuple.Remote) }

// Tuple names the connection.
func (c *Conn) Tuple() Tuple { return c.tuple }

// Stack is where the connection ends.
func (c *Conn) Stack() *Stack { return c.stack }

func (c *Conn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}

// netError turns netstack's error into what package net would return.
func netError(err tcpip.Error) error {
	switch err.(type) {
	case nil:
		return nil
	case *tcpip.ErrClosedForReceive:
		return io.EOF
	case *tcpip.ErrClosedForSend:
		return syscall.EPIPE
	case *tcpip.ErrConnectionReset:
		return syscall.ECONNRESET
	case *tcpip.ErrConnectionRefused:
		return syscall.ECONNREFUSED
	case *tcpip.ErrConnectionAborted, *tcpip.ErrAborted:
		return syscall.ECONNABORTED
	case *tcpip.ErrTimeout:
		return syscall.ETIMEDOUT
	case *tcpip.ErrHostUnreachable:
		return syscall.EHOSTUNREACH
	case *tcpip.ErrNetworkUnreachable:
		return syscall.ENETUNREACH
	case *tcpip.ErrNotConnected:
		return syscall.ENOTCONN
	case *tcpip.ErrPortInUse:
		return syscall.EADDRINUSE
	case *tcpip.ErrBadLocalAddress:
		return syscall.EADDRNOTAVAIL
	}
	return errors.New(err.String())
}

// newConn wraps an endpoint that netstack made, and lists it: a client has begun a
// connection here.
func (s *Stack) newConn(ep *tcp.Endpoint, wq *waiter.Queue) *Conn {
	info := ep.Info().(*gstack.TransportEndpointInfo)
	c := &Conn{stack: s, ep: ep, wq: wq, tuple: TupleOf(info.ID)}
	s.list(c)
	s.link.filter.returned(c.tuple.Remote.Addr())
	return c
}

// TupleOf translates netstack's name of a connection.
func TupleOf(id gstack.TransportEndpointID) Tuple {
	return Tuple{
		Local:  netip.AddrPortFrom(fromAddress(id.LocalAddress), id.LocalPort),
		Remote: netip.AddrPortFrom(fromAddress(id.RemoteAddress), id.RemotePort),
	}
}

// list enters c among its client's connections until its endpoint ends, which
// can be long after the application has closed it.
func (s *Stack) list(c *Conn) {
	s.mu.Lock()
	head := s.clients[c.tuple.Remote.Addr()]
	c.next = head
	if head != nil {
		head.prev = c
	} else if s.present != nil {
		s.present(c.tuple.Remote.Addr(), true)
	}
	s.clients[c.tuple.Remote.Addr()] = c
	c.listed = true
	s.mu.Unlock()
	c.hup.Init(c, waiter.EventHUp)
	c.wq.EventRegister(&c.hup)
	c.NotifyEvent(waiter.EventHUp) // it may have ended before
}

// NotifyEvent implements [waiter.EventListener] for the entry c.hup. It runs
// under the endpoint's lock.
func (c *Conn) NotifyEvent(waiter.EventMask) {
	switch c.ep.EndpointState() {
	case tcp.StateClose, tcp.StateError:
		c.stack.unlist(c)
	}
}

func (s *Stack) unlist(c *Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !c.listed {
		return
	}
	c.listed = false
	if c.next != nil {
		c.next.prev = c.prev
	}
	switch {
	case c.prev != nil:
		c.prev.next = c.next
	case c.next != nil:
		s.clients[c.tuple.Remote.Addr()] = c.next
	default:
		delete(s.clients, c.tuple.Remote.Addr())
		if s.present != nil {
			s.present(c.tuple.Remote.Addr(), false)
		}
	}
	c.prev, c.next = nil, nil
}
