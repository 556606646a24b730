package migrate_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/distributed-servers/ds/migrate"
	"github.com/distributed-servers/ds/stack"
)

// session is an application on the service's side whose connection moves under
// it: when a call says ErrMoved it goes on with the connection's successor,
// where it was.
type session struct {
	mu   sync.Mutex
	cond sync.Cond
	conn *stack.Conn
	err  error // no successor will come
}

func newSession(c *stack.Conn) *session {
	s := &session{conn: c}
	s.cond.L = &s.mu
	return s
}

// current is the connection as of now.
func (s *session) current() *stack.Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conn
}

// moved is what a mover calls.
func (s *session) moved(c *stack.Conn, err error) {
	s.mu.Lock()
	s.conn, s.err = c, err
	s.mu.Unlock()
	s.cond.Broadcast()
}

// after waits for the successor of old.
func (s *session) after(old *stack.Conn) (*stack.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.conn == old && s.err == nil {
		s.cond.Wait()
	}
	return s.conn, s.err
}

// follow runs op, which reports how far it got, on one connection after the
// other until it is done.
func (s *session) follow(op func(c *stack.Conn) error) error {
	c := s.current()
	for {
		err := op(c)
		if !errors.Is(err, stack.ErrMoved) {
			return err
		}
		if !errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("%w is not net.ErrClosed", err)
		}
		if c, err = s.after(c); err != nil {
			return err
		}
	}
}

func (s *session) Read(b []byte) (n int, err error) {
	err = s.follow(func(c *stack.Conn) (err error) { n, err = c.Read(b); return err })
	return n, err
}

func (s *session) Write(b []byte) (n int, err error) {
	err = s.follow(func(c *stack.Conn) error {
		m, err := c.Write(b[n:])
		n += m
		return err
	})
	return n, err
}

func (s *session) CloseWrite() error { return s.follow((*stack.Conn).CloseWrite) }

// progress lets movers go by what was transferred instead of by time.
type progress struct {
	octets atomic.Int64
	step   chan struct{} // has room for one
}

func newProgress() *progress { return &progress{step: make(chan struct{}, 1)} }

func (p *progress) add(n int) {
	p.octets.Add(int64(n))
	select {
	case p.step <- struct{}{}:
	default:
	}
}

// counted reports what passes to a progress.
type counted struct {
	io.ReadWriter
	p *progress
}

func (c counted) Read(b []byte) (int, error) {
	n, err := c.ReadWriter.Read(b)
	c.p.add(n)
	return n, err
}

// peer is the client's end of a connection.
type peer interface {
	io.ReadWriter
	CloseWrite() error
}

// transfer is a stream of size octets each way between a client and a session,
// ended by each side with a FIN, everything checked, while the session's
// connection moves to and fro.
type transfer struct {
	w      *world
	peer   peer
	server *session
	size   int64
	rand   *rand.Rand
	every  int64 // octets between moves, about
	drain  bool  // drain before each tenth move
	stay   bool  // somebody else moves the connection
	// moveTo moves the connection; nil: to the other node.
	moveTo func(d *migrate.Donor) ([]*stack.Conn, error)
}

func newTransfer(w *world, c, s *stack.Conn, size, every int64) *transfer {
	return &transfer{w: w, peer: c, server: newSession(s), size: size, every: every,
		rand: rand.New(rand.NewPCG(w.seed, 7))}
}

// run returns how often the connection moved.
func (x *transfer) run() (moves int, err error) {
	p := newProgress()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	errs := make(chan error, 5)
	go func() { errs <- wrap("client sends", errors.Join(send(x.peer, 0, x.size), x.peer.CloseWrite())) }()
	go func() { errs <- wrap("service sends", errors.Join(send(x.server, 0, x.size), x.server.CloseWrite())) }()
	go func() { errs <- wrap("client receives", receiveAll(counted{x.peer, p}, x.size)) }()
	go func() { errs <- wrap("service receives", receiveAll(counted{x.server, p}, x.size)) }()
	moved := make(chan error, 1)
	go func() {
		err := x.move(ctx, p, &moves)
		if err != nil {
			errs <- err // the streams will not end
		}
		moved <- err
	}()
	for range 4 {
		if err = <-errs; err != nil {
			break
		}
	}
	cancel()
	<-moved
	return moves, err
}

// move moves the connection each time some octets have arrived, until ctx ends
// or the connection does.
func (x *transfer) move(ctx context.Context, p *progress, moves *int) error {
	if x.stay {
		return nil
	}
	next := int64(0)
	for ctx.Err() == nil {
		if p.octets.Load() < next {
			select {
			case <-p.step:
			case <-ctx.Done():
			}
			continue
		}
		next = p.octets.Load() + x.rand.Int64N(2*x.every)
		d := migrate.NewDonor(x.server.current())
		if x.drain && *moves%10 == 9 {
			dctx, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
			err := d.Drain(dctx)
			cancel()
			if errors.Is(err, migrate.ErrEnded) {
				return nil
			}
			if err != nil && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) {
				return fmt.Errorf("drain: %w", err)
			}
		}
		move := x.moveTo
		if move == nil {
			move = x.w.moveDonor
		}
		conns, err := move(d)
		switch {
		case errors.Is(err, migrate.ErrEnded):
			return nil
		case err != nil:
			x.server.moved(nil, err)
			return fmt.Errorf("move %d: %w", *moves, err)
		}
		x.server.moved(conns[0], nil)
		*moves++
	}
	return nil
}

func wrap(what string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// receiveAll reads exactly size octets of the pattern and then the end.
func receiveAll(r io.Reader, size int64) error {
	if err := receive(r, 0, size); err != nil {
		return err
	}
	var b [1]byte
	if n, err := r.Read(b[:]); n != 0 || err != io.EOF {
		return fmt.Errorf("after %d octets: got %d more, %v: want the end", size, n, err)
	}
	return nil
}

// bulk transfers size octets each way on a new connection with moves.
func (w *world) bulk(size int64, every int64, drain bool) int {
	w.t.Helper()
	c, s := w.connect(w.service)
	x := newTransfer(w, c, s, size, every)
	x.drain = drain
	moves, err := x.run()
	if err != nil {
		w.t.Fatalf("seed %d, after %d moves: %v", w.seed, moves, err)
	}
	w.t.Logf("%d octets each way, %d moves, %d packets", size, moves, w.watch.count())
	w.watch.check(w.t)
	return moves
}
