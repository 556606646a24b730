package httpmove

import (
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"github.com/distributed-servers/ds/stack"
)

// transport is what conn needs of a connection: what [stack.Conn] has.
type transport interface {
	net.Conn
	TryRead([]byte) (int, error)
	TryWrite([]byte) (int, error)
	Await(stack.Event) error
	Pin() error
	Unpin()
	CloseWrite() error
	SetLinger(sec int) error
}

// conn is a connection, as net/http sees it.
type conn struct {
	transport
	server *Server

	mu     sync.Mutex
	in     input
	out    output
	pinned bool
	save   func() ([]byte, error) // of the handler that keeps a checkpoint
	saved  *[]byte                // from the node before, until the handler has it
	closed bool

	resumes bool // the handler is to ask for saved, and has not
	hijack  bool // the handler is to hijack, and has not

	writing sync.Mutex // serialises Write, so that what is sent is in order
}

var (
	errFraming = errors.New("net/http reads on behind the end of a request")
	errChanged = errors.New("the response is another one than the client has begun to get from the node before")
	errResume  = errors.New("the handler does not go on from its checkpoint on the node before: it must call Checkpoint before it writes, and hijack if it had hijacked")
)

// next is what a call is to do before it goes on.
type next uint8

const (
	again    next = iota
	pinFirst      // then again
	readable
	ended
)

// Read implements [net.Conn], for net/http and for who has hijacked it.
func (c *conn) Read(b []byte) (int, error) {
	for len(b) > 0 {
		n, next, err := c.read(b)
		if n > 0 || err != nil {
			return n, err
		}
		switch next {
		case pinFirst:
			err = c.pinToRead()
		case readable:
			err = c.await()
		case ended:
			// Only abortPendingRead (in net/http) or the end gets us out of here.
			if err = c.transport.Await(stack.Ended); err == nil {
				err = io.EOF
			}
		}
		if err != nil {
			return 0, err
		}
	}
	return 0, nil
}

// read takes what can be had without waiting.
func (c *conn) read(b []byte) (int, next, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	in := &c.in
	switch in.phase {
	case inHead, inChunks:
		if len(in.unread) > 0 {
			break
		}
		fallthrough
	case inGap:
		if in.phase == inGap && len(b) > 1 { // no background read: it lacks something
			return 0, 0, errFraming
		}
		if in.phase == inGap && len(in.unread) > 0 {
			return 0, ended, nil // as far as net/http looks ahead, too
		}
		var buf [4096]byte
		n, err := c.transport.TryRead(buf[:])
		in.unread = append(in.unread, buf[:n]...)
		return 0, wanting(err), fatal(err)
	case inBody, inRaw:
		p := in.room(b)
		if n := in.refill(p); n > 0 {
			return n, again, nil
		}
		n, err := c.transport.TryRead(p)
		in.took(p[:n])
		return n, wanting(err), fatal(err)
	}
	n, must := in.hand(b, c.pinned)
	if must {
		return 0, pinFirst, nil
	}
	return n, again, nil
}

func wanting(err error) next {
	if errors.Is(err, syscall.EAGAIN) {
		return readable
	}
	return again
}

func fatal(err error) error {
	if errors.Is(err, syscall.EAGAIN) {
		return nil
	}
	return err
}

// await waits until there is something to read. A handler with a checkpoint is
// at rest meanwhile: all that it was given it has dealt with, since bufio and
// net/http come here only when they have nothing left for it.
func (c *conn) await() error {
	rests := c.restsHere()
	if rests {
		c.unpin()
	}
	err := c.transport.Await(stack.Readable)
	if rests {
		if perr := c.pinToRead(); perr != nil {
			return perr
		}
	}
	return err
}

func (c *conn) restsHere() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pinned && c.save != nil && (c.in.phase == inRaw || c.in.phase == inBody && c.out.between())
}

// pin keeps the connection here. It waits for a handoff that is under way.
func (c *conn) pin() error {
	if err := c.transport.Pin(); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pinned = true
	return nil
}

// pinToRead is pin, and fails as TCP's Read would: net/http answers other errors.
func (c *conn) pinToRead() error {
	err := c.pin()
	if err != nil {
		err = &net.OpError{Op: "read", Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
	}
	return err
}

func (c *conn) unpin() {
	c.mu.Lock()
	was := c.pinned
	c.pinned = false
	c.mu.Unlock()
	if was {
		c.transport.Unpin()
	}
}

// Write implements [net.Conn].
func (c *conn) Write(b []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	c.mu.Lock()
	raw := c.in.phase == inRaw
	p, err := b, error(nil)
	switch {
	case c.resumes || c.hijack:
		err = errResume
	case !raw:
		p, err = c.out.produce(b)
	}
	must := c.out.large && !c.pinned
	c.mu.Unlock()
	if err == nil && must {
		err = c.pin()
	}
	if err != nil {
		c.abort(err)
		return 0, err
	}
	for len(p) > 0 {
		n, err := c.send(p)
		if errors.Is(err, syscall.EAGAIN) {
			err = c.transport.Await(stack.Writable)
		}
		p = p[n:]
		if err != nil {
			return max(len(b)-len(p), 0), err
		}
	}
	return len(b), nil
}

func (c *conn) send(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, err := c.transport.TryWrite(p)
	if c.in.phase != inRaw {
		c.out.took(p[:n])
	}
	return n, err
}

// abort ends a connection whose client must not go on believing in it.
func (c *conn) abort(err error) {
	if errors.Is(err, net.ErrClosed) { // or moved
		return
	}
	c.server.logf("httpmove: %s: reset: %v", c.RemoteAddr(), err)
	c.reset()
}

func (c *conn) reset() {
	c.transport.SetLinger(0)
	c.Close()
}

// Close implements [net.Conn].
func (c *conn) Close() error {
	c.mu.Lock()
	before, owes := c.closed, c.out.owes()
	c.closed = true
	c.mu.Unlock()
	if owes && !before {
		c.transport.SetLinger(0) // the client must not take it for the end
	}
	err := c.transport.Close()
	if !before {
		c.server.forget(c)
	}
	return err
}

// state is told by net/http. The request before is answered, and its octets are
// with TCP, when a connection becomes idle.
func (c *conn) state(s http.ConnState) {
	switch s {
	case http.StateIdle:
		c.mu.Lock()
		err := c.in.next()
		if err == nil {
			err = c.out.next()
		}
		c.save = nil
		c.mu.Unlock()
		if err != nil {
			c.abort(err)
		}
		c.unpin()
	case http.StateHijacked:
		c.mu.Lock()
		c.in.phase, c.hijack = inRaw, false
		c.out = output{}
		c.mu.Unlock()
	}
}

// begin is called with each request, before its handler. A body begins behind
// what a handler had of it elsewhere.
func (c *conn) begin(r *http.Request) error {
	c.mu.Lock()
	skip, err := c.in.skip, c.in.begin(r.ContentLength)
	c.mu.Unlock()
	if err == nil && skip > 0 {
		_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, io.LimitReader(r.Body, skip), make([]byte, min(skip, 1<<20)))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.resumes = c.saved != nil
	return err
}

// end is called when the handler has returned.
func (c *conn) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.in.phase != inRaw {
		c.save = nil
	}
}

// mayRepeat lets the connection move in the middle of the response, if request and
// response allow it.
func (c *conn) mayRepeat() bool {
	c.mu.Lock()
	ok := c.in.whole() && c.save == nil && c.saved == nil && !c.out.large
	c.mu.Unlock()
	if ok {
		c.unpin()
	}
	return ok
}

// ahead is how many octets the client has of the body that belongs to a header,
// and that need not be produced again. None of it is yet.
func (c *conn) ahead(h http.Header) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	head, n := c.out.ahead()
	if n == 0 || !represents(head, h) {
		return 0
	}
	c.out.blind = true
	return n
}

// checkpoint takes a handler's function, and gives it what it had saved.
func (c *conn) checkpoint(save func() ([]byte, error)) (saved []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.saved != nil {
		saved = *c.saved
	}
	if !c.in.large {
		c.save = save
	}
	c.saved, c.resumes = nil, false
	return saved
}

// snapshot is what the target begins with. The connection stands still.
func (c *conn) snapshot() (*record, error) {
	c.mu.Lock()
	r := &record{Version: version, Hijacked: c.hijack}
	c.in.describe(r, c.save != nil)
	c.out.describe(r)
	save := c.save
	if c.saved != nil {
		r.checkpoint(*c.saved)
	}
	c.mu.Unlock()
	if save != nil {
		b, err := save()
		if err != nil {
			return nil, err
		}
		r.checkpoint(b)
	}
	return r, nil
}

// restore begins with what snapshot has said on the node before.
func (c *conn) restore(r *record) {
	c.in.unread = append(r.Request, r.Unread...)
	c.in.skip = r.Skip
	c.out.prior, c.out.sent, c.out.sum = r.Response, r.Sent, r.Sum
	if r.Kept {
		saved := append([]byte{}, r.Saved...) // not nil
		c.saved, c.hijack = &saved, r.Hijacked
	}
}

// idle waits for the first octets of a connection that came between two
// requests, as net/http would for one that it has served: for its idle time.
func (c *conn) idle(d time.Duration) error {
	if d > 0 {
		c.SetReadDeadline(time.Now().Add(d))
		defer c.SetReadDeadline(time.Time{})
	}
	return c.transport.Await(stack.Readable)
}
