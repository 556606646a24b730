package cluster

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"syscall"
	"time"

	"github.com/distributed-servers/ds/internal/demo/pattern"
	"github.com/distributed-servers/ds/internal/lab"
	"github.com/distributed-servers/ds/migrate"
	"github.com/distributed-servers/ds/stack"
)

// Transfer is what a client asks for: octets both ways at the same time, each
// of which says where it belongs.
type Transfer struct {
	Down, Up int64

	// Chunk octets come down at a time, with a pause of Every between them; 0:
	// as fast as they can.
	Chunk int
	Every time.Duration
}

// The client's first octets are the transfer.
const headerLen = 32

func (t Transfer) header() []byte {
	b := binary.BigEndian.AppendUint64(nil, uint64(t.Down))
	b = binary.BigEndian.AppendUint64(b, uint64(t.Up))
	b = binary.BigEndian.AppendUint64(b, uint64(t.Chunk))
	return binary.BigEndian.AppendUint64(b, uint64(t.Every))
}

func (t *Transfer) parse(b []byte) {
	t.Down = int64(binary.BigEndian.Uint64(b))
	t.Up = int64(binary.BigEndian.Uint64(b[8:]))
	t.Chunk = int(binary.BigEndian.Uint64(b[16:]))
	t.Every = time.Duration(binary.BigEndian.Uint64(b[24:]))
}

// serverSession is the service's side of a transfer. It is what moves along with a
// connection; nothing of it is on a goroutine's stack.
type serverSession struct {
	Transfer
	header []byte
	sent   int64
	due    time.Duration // when the next chunk is
	got    pattern.Checker
	ended  bool // the client's stream has
	shut   bool // ours has
	closed bool // the connection is
}

func newServerSession() *serverSession { return new(serverSession) }

// run goes on until the transfer is over or the connection has moved.
func (s *serverSession) run(p *lab.Proc, c *stack.Conn) error {
	for {
		var err error
		again := func() bool {
			var any bool
			any, err = s.step(p.Now(), c)
			return any || err != nil
		}
		if wait := s.due - p.Now(); len(s.header) == headerLen && s.sent < s.Down && wait > 0 {
			p.WaitFor(wait, again)
		} else {
			p.Wait(again)
		}
		switch {
		case errors.Is(err, migrate.ErrMoved):
			return nil
		case err != nil:
			return fmt.Errorf("after %d octets down and %d up: %w", s.sent, s.got.Offset, err)
		case s.closed:
			if s.got.Wrong > 0 || s.got.Offset != s.Up {
				return fmt.Errorf("%d of %d octets arrived, %d of them wrong", s.got.Offset, s.Up, s.got.Wrong)
			}
			return nil
		}
	}
}

// step does what can be done without waiting.
func (s *serverSession) step(now time.Duration, c *stack.Conn) (any bool, err error) {
	var b [16 << 10]byte
	if !s.ended {
		r := b[:]
		if missing := headerLen - len(s.header); missing > 0 {
			r = b[:missing]
		}
		n, err := c.TryRead(r)
		switch {
		case err == io.EOF:
			s.ended, any = true, true
			if len(s.header) < headerLen {
				return true, errors.New("the client's stream ends in its header")
			}
		case err != nil && !errors.Is(err, syscall.EAGAIN):
			return any, err
		case n > 0 && len(s.header) < headerLen:
			s.header = append(s.header, r[:n]...)
			if len(s.header) == headerLen {
				s.parse(s.header)
			}
			any = true
		case n > 0:
			s.got.Write(r[:n])
			any = true
		}
	}
	if len(s.header) < headerLen {
		return any, nil
	}
	if s.sent < s.Down && now >= s.due {
		size := int64(len(b))
		if s.Chunk > 0 {
			size = min(size, int64(s.Chunk))
		}
		w := b[:min(size, s.Down-s.sent)]
		pattern.Fill(w, s.sent)
		n, err := c.TryWrite(w)
		if err != nil && !errors.Is(err, syscall.EAGAIN) {
			return any, err
		}
		if n > 0 {
			s.sent += int64(n)
			s.due = now + s.Every
			any = true
		}
	}
	if s.sent < s.Down || s.closed || s.shut && !s.ended {
		return any, nil
	}
	// What follows would wait while the connection is being moved.
	if _, err := c.TryWrite(nil); err != nil {
		if errors.Is(err, syscall.EAGAIN) {
			return any, nil
		}
		return any, err
	}
	if !s.shut {
		s.shut = true
		return true, c.CloseWrite()
	}
	s.closed = true
	return true, c.Close()
}

// Download is the client's side of a transfer.
type Download struct {
	Transfer
	Conn *stack.Conn
	Err  error
	Done bool

	// Arrivals are when octets came, and how many had come then.
	Arrivals []Arrival

	header []byte
	sent   int64
	got    pattern.Checker
}

// Arrival is of octets at a client.
type Arrival struct {
	At    time.Duration
	Total int64
}

// Start connects and makes a transfer.
func (c *Client) Start(t Transfer) *Download {
	d := &Download{Transfer: t, header: t.header()}
	c.Host.Go("download", func(p *lab.Proc) {
		d.Err = d.run(p, c.Stack)
		d.Done = true
	})
	return d
}

func (d *Download) run(p *lab.Proc, s *stack.Stack) (err error) {
	if d.Conn, err = s.TryDial("tcp", netip.AddrPortFrom(Home, Port).String()); err != nil {
		return err
	}
	ended, shut := false, false
	var b [16 << 10]byte
	for !ended || !shut {
		p.Wait(func() bool {
			any := false
			n, e := d.Conn.TryRead(b[:])
			switch {
			case e == io.EOF:
				any = !ended
				ended = true
			case e != nil && !errors.Is(e, syscall.EAGAIN):
				err = e
			case n > 0:
				d.got.Write(b[:n])
				d.Arrivals = append(d.Arrivals, Arrival{p.Now(), d.got.Offset})
				any = true
			}
			if err != nil || shut {
				return any || err != nil
			}
			w := d.header
			if len(w) == 0 {
				w = b[:min(int64(len(b)), d.Up-d.sent)]
				pattern.Fill(w, d.sent)
			}
			if len(w) == 0 {
				shut = true
				err = d.Conn.CloseWrite()
				return true
			}
			n, e = d.Conn.TryWrite(w)
			if e != nil && !errors.Is(e, syscall.EAGAIN) {
				err = e
				return true
			}
			if len(d.header) > 0 {
				d.header = d.header[n:]
			} else {
				d.sent += int64(n)
			}
			return any || n > 0
		})
		if err != nil {
			return fmt.Errorf("after %d octets down and %d up: %w", d.got.Offset, d.sent, err)
		}
	}
	if d.got.Wrong > 0 || d.got.Offset != d.Down {
		return fmt.Errorf("%d of %d octets arrived, %d of them wrong", d.got.Offset, d.Down, d.got.Wrong)
	}
	return d.Conn.Close()
}

// Wrong is how many octets that came down were not those that belong there.
func (d *Download) Wrong() int64 { return d.got.Wrong }

// Gap is the longest time without octets that begins within an interval.
func (d *Download) Gap(from, to time.Duration) (gap, at time.Duration) {
	for i := 1; i < len(d.Arrivals); i++ {
		if begin := d.Arrivals[i-1].At; begin >= from && begin <= to {
			if g := d.Arrivals[i].At - begin; g > gap {
				gap, at = g, begin
			}
		}
	}
	return gap, at
}

// Around returns when octets came last before an instant, and first since.
func (d *Download) Around(at time.Duration) (last, next time.Duration) {
	for _, a := range d.Arrivals {
		if a.At >= at {
			return last, a.At
		}
		last = a.At
	}
	return last, at
}
