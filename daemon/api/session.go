package api

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/distributed-servers/ds/internal/framing"
	"github.com/distributed-servers/ds/internal/killpoint"
	"github.com/distributed-servers/ds/internal/nowait"
)

// A Session is one end of what an attached application and its daemon say to each
// other on the connection that the attach call leaves them. It lasts as long as
// the application is attached.
//
//	application                        daemon
//	───────────────────────────────────────────────────────────────────────
//	Hello        ─────────────────────────────► Welcome, with the descriptors
//	Owned, Gone  ──────────────────────────────
//	             ◄───────────────────────────── Config, Bound, Unbound, Nobodys
//
//	handoff, as donor
//	             ◄───────────────────────────── Asked (by an operator)
//	Prepare      ─────────────────────────────► Prepared
//	Transfer     ─────────────────────────────► Done
//	Late         ──────────────────────────────  (until Done)
//	Settled      ──────────────────────────────  (to Done)
//	Abort        ──────────────────────────────
//	Answered     ──────────────────────────────  (to Asked)
//
//	handoff, as target
//	             ◄───────────────────────────── Expect
//	Expected     ──────────────────────────────
//	             ◄───────────────────────────── Offer, Late
//	             ◄───────────────────────────── Activate
//	Activated    ──────────────────────────────  (once it has taken the offer's word)
//	             ◄───────────────────────────── Forget
//
// Messages about the same handoff carry its ID, which the donor's application
// chooses for Prepare, Transfer, Abort, their answers and the Late that it sends, and
// the daemon for all others. A Late of the daemon has none once the handoff is over.
//
// Send may be called from any goroutine, Receive from one at a time.
type Session struct {
	conn *net.UnixConn
	end  end
	r    *bufio.Reader
	in   *descriptors // of the application's end

	heard bool // a message, so that the deadline for the first is over

	mu      sync.Mutex
	sent    bool // something, whatever it was
	err     error
	queue   net.Buffers // waits for the goroutine that writes
	queued  int         // octets of queue, and of what is being written
	writing bool        // there is that goroutine
	most    int         // of queued
}

// end is one of the two ends of a session.
type end uint8

const (
	application end = iota + 1
	daemon
	either = application | daemon // in rules
)

func (e end) String() string {
	if e == daemon {
		return "daemon"
	}
	return "application"
}

// The other end does not read if so many octets wait, or nothing goes out for
// so long.
const (
	maxQueued  = 2 * MaxMessage
	writeStall = 30 * time.Second
)

// ErrSlow ends a session whose other end does not read.
var ErrSlow = errors.New("api: session: the other end does not read")

// NewSession returns the daemon's end of a session on conn, which it owns from
// then on. What r has read of conn already, if it is not nil, comes first. If
// conn has a deadline for reading, that is one for the first message.
func NewSession(conn *net.UnixConn, r *bufio.Reader) *Session { return newSession(conn, r, daemon) }

func newSession(conn *net.UnixConn, r *bufio.Reader, e end) *Session {
	s := &Session{conn: conn, end: e, most: maxQueued}
	var from io.Reader = conn
	if e == application {
		s.in = &descriptors{conn: conn}
		from = s.in
	}
	if r != nil && r.Buffered() > 0 {
		ahead, _ := r.Peek(r.Buffered())
		from = io.MultiReader(bytes.NewReader(bytes.Clone(ahead)), from)
	}
	s.r = bufio.NewReaderSize(from, 64<<10)
	return s
}

// Receive waits for a message. The error is io.EOF when the other end has
// closed the session, and [net.ErrClosed] when this one has. A message that
// makes no sense, or that is not the other end's to send, is [ErrMessage], and
// ends the session.
func (s *Session) Receive() (*Message, error) {
	m := new(Message)
	if err := s.ReceiveTo(m); err != nil {
		return nil, err
	}
	return m, nil
}

// ReceiveTo is Receive into m, whatever that was before.
func (s *Session) ReceiveTo(m *Message) error {
	err := m.read(s.r)
	switch {
	case err == nil && rules[m.Kind].from&(either-s.end) == 0:
		err = fmt.Errorf("%w: %s from the %s", ErrMessage, m.Kind, either-s.end)
	case err == nil:
		if !s.heard {
			s.heard = true
			err = s.conn.SetReadDeadline(time.Time{})
		}
		if err == nil {
			killpoint.Here("session received", m.Kind)
			return nil
		}
	case errors.Is(err, syscall.ECONNRESET): // closed without having read everything
		err = io.EOF
	}
	return s.fail(err)
}

// Ready tells whether another message has come whole, so that Receive does not wait.
// Who calls Receive may call it.
func (s *Session) Ready() bool { return framing.Ready(s.r) }

// buffers are what messages were written in, for those to come: of no more than maxReused
// octets, which are copied where the other end does not take them at once.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

const maxReused = 64 << 10

// Send sends messages, together, and never waits: what the other end does not take
// at once is kept, in order. It fails if the session has ended, and if a message
// lacks something: that one is left out, and the session goes on.
func (s *Session) Send(all ...*Message) error {
	buf := buffers.Get().(*[]byte)
	frames := (*buf)[:0]
	var wrong error
	for _, m := range all {
		killpoint.Here("session send", m.Kind)
		var err error
		if frames, err = s.frame(frames, m); err != nil {
			wrong = errors.Join(wrong, err)
		}
	}
	if len(frames) > 0 {
		if err := s.send(frames); err != nil {
			return err
		}
	}
	if cap(frames) <= maxReused {
		*buf = frames
		buffers.Put(buf)
	}
	for _, m := range all {
		killpoint.Here("session sent", m.Kind)
	}
	return wrong
}

// SendFiles sends a message with descriptors, which stay the caller's. Only the
// first message of a session can have some.
func (s *Session) SendFiles(m *Message, files ...*os.File) error {
	frame, err := s.frame(nil, m)
	if err != nil {
		return err
	}
	return s.send(frame, files...)
}

func (s *Session) frame(b []byte, m *Message) ([]byte, error) {
	if rules[min(m.Kind, kinds-1)].from&s.end == 0 {
		return b, fmt.Errorf("%w: %s is not for the %s to send", ErrMessage, m.Kind, s.end)
	}
	return AppendMessage(b, m)
}

// send sends frames, with descriptors if there are any.
func (s *Session) send(frame []byte, files ...*os.File) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	if len(files) > 0 {
		if s.sent || len(files) > maxFiles {
			return fmt.Errorf("api: session: %d descriptors: at most %d go with the first message, and none later", len(files), maxFiles)
		}
		n, err := writeFiles(s.conn, frame, files)
		if err != nil {
			return s.failLocked(fmt.Errorf("api: session: %w", err))
		}
		frame = frame[n:]
	}
	s.sent = true
	if !s.writing {
		// Most messages go out here, without another goroutine.
		n, err := nowait.Write(s.conn, frame)
		if err != nil {
			return s.failLocked(fmt.Errorf("api: session: %w", err))
		}
		frame = frame[n:]
	}
	if len(frame) == 0 {
		return nil
	}
	if err := s.keepLocked(frame); err != nil {
		return err
	}
	if !s.writing {
		s.writing = true
		go s.write()
	}
	return nil
}

// keepLocked keeps a frame until the other end takes it.
func (s *Session) keepLocked(frame []byte) error {
	if s.queued+len(frame) > s.most {
		return s.failLocked(ErrSlow)
	}
	if cap(frame) <= maxReused {
		frame = bytes.Clone(frame)
	}
	s.queue = append(s.queue, frame)
	s.queued += len(frame)
	return nil
}

// write writes what is queued, many messages in one system call, until nothing
// is.
func (s *Session) write() {
	for {
		s.mu.Lock()
		batch := s.queue
		s.queue = nil
		if s.err != nil || len(batch) == 0 {
			s.writing = false
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		n, err := s.writeBatch(batch)
		s.mu.Lock()
		s.queued -= n
		if err != nil {
			s.failLocked(err)
		}
		s.mu.Unlock()
	}
}

// writeBatch writes everything, as long as some of it goes out now and then.
func (s *Session) writeBatch(batch net.Buffers) (written int, err error) {
	for len(batch) > 0 && err == nil {
		if err = s.conn.SetWriteDeadline(time.Now().Add(writeStall)); err != nil {
			break
		}
		var n int64
		n, err = batch.WriteTo(s.conn)
		written += int(n)
		switch {
		case !errors.Is(err, os.ErrDeadlineExceeded):
		case n > 0:
			err = nil // slow, but it reads
		default:
			err = ErrSlow
		}
	}
	if err == nil {
		err = s.conn.SetWriteDeadline(time.Time{})
	}
	return written, err
}

// Used tells whether this end has sent something.
func (s *Session) Used() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent
}

// Close ends the session at once. What has not been written yet is lost.
func (s *Session) Close() error {
	s.fail(net.ErrClosed)
	return nil
}

// fail ends the session, and returns why it has ended: the first reason counts.
func (s *Session) fail(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failLocked(err)
}

func (s *Session) failLocked(err error) error {
	if s.err == nil {
		s.err = err
		s.queue = nil
		s.conn.Close()
		if s.in != nil {
			s.in.close()
		}
	}
	return s.err
}
