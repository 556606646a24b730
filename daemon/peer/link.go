package peer

import (
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/distributed-servers/ds/internal/nowait"
)

// link is one connection.
type link struct {
	conn    *tls.Conn
	out     *outbox // below conn
	max     int
	timeout time.Duration
	up      bool // the reader's
	wake    chan struct{}

	// order is held by whoever writes to conn, so that frames go out in the order
	// in which they were queued. It comes before mu.
	order sync.Mutex
	short []byte    // order's: frames with their lengths
	last  time.Time // order's: when sendNow has sent one

	mu     sync.Mutex
	queue  []byte
	closed bool
	err    error
}

func newLink(conn *tls.Conn, maxBacklog int, timeout time.Duration) *link {
	return &link{conn: conn, out: conn.NetConn().(*outbox), max: maxBacklog, timeout: timeout, wake: make(chan struct{}, 1)}
}

// A frame of up to maxShort octets is encrypted and written by its sender, if nobody
// else is writing: that is one goroutine less to be woken in the middle of a handoff.
// But not if one has been for less than the time of a burst: of many frames the other
// goroutine makes one record, and one system call.
const (
	maxShort = 64 << 10
	burst    = 200 * time.Microsecond
)

func (l *link) send(frames [][]byte) error {
	size := 0
	for _, f := range frames {
		size += 4 + len(f)
	}
	if size <= maxShort && l.order.TryLock() {
		sent, err := l.sendNow(frames)
		l.order.Unlock()
		switch {
		case err != nil:
			return err
		case sent:
			l.mu.Lock()
			waiting := len(l.queue) > 0 // since, behind this one
			l.mu.Unlock()
			if waiting {
				l.wakeWriter()
			}
			return nil
		}
	}
	l.mu.Lock()
	switch {
	case l.closed:
		l.mu.Unlock()
		return ErrNotConnected
	case len(l.queue)+size > l.max:
		l.mu.Unlock()
		l.fail(fmt.Errorf("more than %d octets wait for it", l.max))
		return ErrNotConnected
	}
	l.queue = appendFrames(l.queue, frames)
	l.mu.Unlock()
	l.wakeWriter()
	return nil
}

func (l *link) wakeWriter() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// appendFrames appends frames with their lengths.
func appendFrames(b []byte, frames [][]byte) []byte {
	for _, f := range frames {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(f))), f...)
	}
	return b
}

// sendNow sends frames without waiting, unless there is something to wait for.
// order is held.
func (l *link) sendNow(frames [][]byte) (sent bool, err error) {
	l.mu.Lock()
	closed, queued := l.closed, len(l.queue) > 0
	l.mu.Unlock()
	switch {
	case closed:
		return false, ErrNotConnected
	case queued || l.out.waiting() || time.Since(l.last) < burst:
		return false, nil
	}
	l.last = time.Now()
	l.short = appendFrames(l.short[:0], frames)
	l.conn.SetWriteDeadline(time.Now().Add(l.timeout))
	l.out.patient(false)
	_, err = l.conn.Write(l.short)
	l.out.patient(true)
	if err != nil {
		l.fail(err)
		return false, ErrNotConnected
	}
	if l.out.waiting() {
		l.wakeWriter()
	}
	return true, nil
}

// write sends what is queued, and an empty frame at once and whenever there has
// been nothing for a third of the timeout.
func (l *link) write() {
	idle := time.NewTimer(0)
	defer idle.Stop()
	var out []byte
	for {
		select {
		case <-l.wake:
		case <-idle.C:
		}
		l.order.Lock()
		l.mu.Lock()
		out, l.queue = l.queue, out[:0]
		closed := l.closed
		l.mu.Unlock()
		if !closed {
			if len(out) == 0 {
				out = append(out, 0, 0, 0, 0)
			}
			closed = !l.writeAll(out)
		}
		l.order.Unlock()
		if closed {
			return
		}
		if cap(out) > 1<<20 {
			out = nil
		}
		idle.Reset(l.timeout / 3)
	}
}

// writeAll writes octets, as long as some go out now and then. order is held.
func (l *link) writeAll(b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), 1<<20)
		l.conn.SetWriteDeadline(time.Now().Add(l.timeout))
		if _, err := l.conn.Write(b[:n]); err != nil {
			l.fail(err)
			return false
		}
		b = b[n:]
	}
	return true
}

// fail ends the connection; the first reason counts.
func (l *link) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.closed, l.err = true, err
	l.queue = nil
	l.out.Close() // not TLS's: it would wait for a writer
	l.wakeWriter()
}

// outbox is the connection below TLS. Write, when it is not patient, keeps what does
// not go out at once, and never waits.
type outbox struct {
	net.Conn

	mu        sync.Mutex
	impatient bool
	kept      []byte
}

func (o *outbox) patient(yes bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.impatient = !yes
}

// waiting tells whether something is kept.
func (o *outbox) waiting() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.kept) > 0
}

func (o *outbox) Write(b []byte) (n int, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case !o.impatient && len(o.kept) == 0:
		return o.Conn.Write(b)
	case !o.impatient:
		if _, err := o.Conn.Write(o.kept); err != nil {
			return 0, err
		}
		o.kept = nil
		return o.Conn.Write(b)
	case len(o.kept) == 0:
		if n, err = nowait.Write(o.Conn.(*net.TCPConn), b); err != nil {
			return n, err
		}
	}
	o.kept = append(o.kept, b[n:]...)
	return len(b), nil
}

// patient is a connection that fails when nothing has come for a time, however
// long the whole takes.
type patient struct {
	conn    *tls.Conn
	timeout time.Duration
}

func (p *patient) Read(b []byte) (int, error) {
	p.conn.SetReadDeadline(time.Now().Add(p.timeout))
	return p.conn.Read(b)
}

// maxBurst is how many frames a handler gets at once.
const maxBurst = 256
