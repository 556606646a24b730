package peer

import (
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"sync"
	"time"
)

// link is one connection.
type link struct {
	conn *tls.Conn
	max  int
	up   bool // the reader's
	wake chan struct{}

	mu     sync.Mutex
	queue  []byte
	closed bool
	err    error
}

func newLink(conn *tls.Conn, maxBacklog int) *link {
	return &link{conn: conn, max: maxBacklog, wake: make(chan struct{}, 1)}
}

func (l *link) send(frame []byte) error {
	l.mu.Lock()
	switch {
	case l.closed:
		l.mu.Unlock()
		return ErrNotConnected
	case len(l.queue)+len(frame)+4 > l.max:
		l.mu.Unlock()
		l.fail(fmt.Errorf("more than %d octets wait for it", l.max))
		return ErrNotConnected
	}
	l.queue = binary.BigEndian.AppendUint32(l.queue, uint32(len(frame)))
	l.queue = append(l.queue, frame...)
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return nil
}

// write sends what is queued, and an empty frame at once and whenever there has
// been nothing for a third of the timeout.
func (l *link) write(timeout time.Duration) {
	idle := time.NewTimer(0)
	defer idle.Stop()
	var out []byte
	for {
		select {
		case <-l.wake:
		case <-idle.C:
		}
		l.mu.Lock()
		out, l.queue = l.queue, out[:0]
		closed := l.closed
		l.mu.Unlock()
		if closed {
			return
		}
		if len(out) == 0 {
			out = append(out, 0, 0, 0, 0)
		}
		for rest := out; len(rest) > 0; {
			n := min(len(rest), 1<<20)
			l.conn.SetWriteDeadline(time.Now().Add(timeout))
			if _, err := l.conn.Write(rest[:n]); err != nil {
				l.fail(err)
				return
			}
			rest = rest[n:]
		}
		if cap(out) > 1<<20 {
			out = nil
		}
		idle.Reset(timeout / 3)
	}
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
	l.conn.NetConn().Close() // not TLS's: it would wait for a writer
	select {
	case l.wake <- struct{}{}:
	default:
	}
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

// readFrame reads a frame. Memory grows with what has arrived, not with what the
// length says.
func readFrame(r io.Reader, max int) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint32(head[:]))
	if n > max {
		return nil, fmt.Errorf("peer: a frame of %d octets, more than %d", n, max)
	}
	const step = 1 << 20
	b := make([]byte, 0, min(n, step))
	for len(b) < n {
		k := min(n-len(b), step)
		b = append(b, make([]byte, k)...)
		if _, err := io.ReadFull(r, b[len(b)-k:]); err != nil {
			return nil, err
		}
	}
	return b, nil
}
