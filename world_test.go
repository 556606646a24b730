package ds_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/distributed-servers/ds"
	"github.com/distributed-servers/ds/dstest"
)

const port = 7

var client1 = netip.MustParseAddr("2001:db8:1::1")

// world is a cluster whose nodes all run the service of these tests: a stream
// each way, of which the server knows by heart how far it is.
type world struct {
	t       *testing.T
	cluster *dstest.Cluster
	nodes   map[string]*node
}

// node is a program that serves.
type node struct {
	*ds.Node
	name     string
	t        *testing.T
	sessions sync.Map // net.Conn → *session
	arrived  atomic.Int64
	padding  int // octets behind a session's state
	quit     sync.WaitGroup
}

// session is the application's part of a connection: how many octets it has
// read, which is how many it has written.
type session struct{ at int64 }

func newWorld(t *testing.T, prepare func(*dstest.Cluster), names ...string) *world {
	t.Helper()
	w := &world{t: t, cluster: dstest.New(names...), nodes: make(map[string]*node)}
	if prepare != nil {
		prepare(w.cluster)
	}
	t.Cleanup(func() {
		for _, n := range w.nodes {
			n.stop()
		}
		w.cluster.Close()
	})
	for _, name := range names {
		w.start(name)
	}
	return w
}

// start runs a program at a node.
func (w *world) start(name string) *node {
	w.t.Helper()
	n, err := w.program(name)
	if err != nil {
		w.t.Fatal(err)
	}
	w.nodes[name] = n
	return n
}

// program runs one.
func (w *world) program(name string) (*node, error) {
	n := &node{Node: w.cluster.Node(name), name: name, t: w.t}
	n.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	n.State = n.state
	n.Patience = time.Minute // a busy machine is no fault
	hl, err := n.ListenHandoff()
	if err != nil {
		return nil, err
	}
	l, err := n.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		return nil, errors.Join(err, n.Close())
	}
	n.quit.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			n.serve(c, new(session))
		}
	})
	n.quit.Go(func() {
		for {
			in, err := hl.Accept()
			if err != nil {
				return
			}
			n.arrived.Add(1)
			for i, c := range in.Conns {
				if len(in.State[i]) != 8+n.padding {
					n.t.Errorf("%s: a connection with %d octets of state", name, len(in.State[i]))
					continue
				}
				n.serve(c, &session{int64(binary.BigEndian.Uint64(in.State[i]))})
			}
		}
	})
	return n, nil
}

func (n *node) stop() {
	n.Close()
	n.quit.Wait()
}

// serve runs a session.
func (n *node) serve(c net.Conn, s *session) {
	n.sessions.Store(c, s)
	n.quit.Go(func() {
		defer n.sessions.Delete(c)
		defer c.Close()
		b := make([]byte, 16<<10)
		for {
			k, err := c.Read(b)
			if err := verify(b[:k], s.at); err != nil {
				n.t.Errorf("%s: %s: %v", n.name, c.RemoteAddr(), err)
				return
			}
			if _, err := c.Write(b[:k]); err != nil {
				return
			}
			s.at += int64(k)
			if err != nil {
				return
			}
		}
	})
}

// state is called while serve waits in Read.
func (n *node) state(c net.Conn) ([]byte, error) {
	s, ok := n.sessions.Load(c)
	if !ok {
		return nil, errors.New("no session")
	}
	return append(binary.BigEndian.AppendUint64(nil, uint64(s.(*session).at)), make([]byte, n.padding)...), nil
}

// serving tells whether there are sessions.
func (n *node) serving() (some bool) {
	n.sessions.Range(func(_, _ any) bool { some = true; return false })
	return some
}

func (n *node) handoff(client netip.Addr, to string) (*ds.Report, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return n.Handoff(ctx, client, to, n.state)
}

// stream is a client's connection on which both directions are kept busy.
type stream struct {
	net.Conn
	in, out atomic.Int64
	done    chan error
	end     atomic.Bool
	anew    bool          // there was one before, which may have ended
	failed  atomic.Bool   // one of the two directions, before the end
	came    chan struct{} // something came back
}

// outstanding is how many octets are on their way at most: snapshots should
// have something to carry, but not fill 8 MiB of buffers.
const outstanding = 64 << 10

func (w *world) dial(client netip.Addr) *stream {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := w.cluster.Client(client).Dial(ctx, w.cluster.Address(port))
	if err != nil {
		w.t.Fatal(err)
	}
	return newStream(c)
}

func newStream(c net.Conn) *stream {
	return &stream{Conn: c, done: make(chan error, 2), came: make(chan struct{}, 1)}
}

// run sends and receives until finish.
func (s *stream) run() *stream {
	go func() {
		b := make([]byte, 8<<10)
		var err error
		for err == nil && !s.end.Load() {
			pattern(b, s.out.Load())
			var n int
			n, err = s.Write(b)
			s.out.Add(int64(n))
			for err == nil && s.out.Load()-s.in.Load() > outstanding {
				if _, ok := <-s.came; !ok {
					err = errors.New("the other direction has ended")
				}
			}
		}
		if err == nil {
			err = s.Conn.(interface{ CloseWrite() error }).CloseWrite()
		}
		s.failed.CompareAndSwap(false, err != nil)
		s.done <- err
	}()
	go func() {
		b := make([]byte, 32<<10)
		for {
			n, err := s.Read(b)
			if err == nil {
				err = verify(b[:n], s.in.Load())
			}
			s.in.Add(int64(n))
			select {
			case s.came <- struct{}{}:
			default:
			}
			if err != nil {
				close(s.came)
				if err == io.EOF {
					err = nil
				}
				s.failed.CompareAndSwap(false, err != nil)
				s.done <- err
				return
			}
		}
	}()
	return s
}

// finish ends the stream and checks that everything has come back.
func (s *stream) finish(t *testing.T) {
	t.Helper()
	s.end.Store(true)
	for range 2 {
		select {
		case err := <-s.done:
			if err != nil {
				t.Errorf("%s: %v", s.LocalAddr(), err)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("%s: hangs at %d octets out, %d in", s.LocalAddr(), s.out.Load(), s.in.Load())
		}
	}
	if in, out := s.in.Load(), s.out.Load(); in != out {
		t.Errorf("%s: %d octets sent, %d came back", s.LocalAddr(), out, in)
	}
	s.Close()
}

// abandon resets a stream that may have nobody at its other end any more.
func (s *stream) abandon() {
	s.end.Store(true)
	reset(s)
	for range 2 {
		<-s.done
	}
}

// ping sends some octets and waits for them to come back.
func (s *stream) ping(t *testing.T) {
	t.Helper()
	const n = 1000
	s.SetDeadline(time.Now().Add(20 * time.Second))
	b := make([]byte, n)
	pattern(b, s.out.Load())
	if _, err := s.Write(b); err != nil {
		t.Fatalf("%s: %v", s.LocalAddr(), err)
	}
	s.out.Add(n)
	if _, err := io.ReadFull(s, b); err != nil {
		t.Fatalf("%s: %v", s.LocalAddr(), err)
	}
	if err := verify(b, s.in.Load()); err != nil {
		t.Fatalf("%s: %v", s.LocalAddr(), err)
	}
	s.in.Add(n)
	s.SetDeadline(time.Time{})
}

func (w *world) noFaults() {
	w.t.Helper()
	for _, f := range w.cluster.Faults() {
		w.t.Error(f)
	}
}

// pattern is an endless stream whose octets tell where they belong.
func pattern(b []byte, offset int64) {
	for i := range b {
		o := uint64(offset + int64(i))
		b[i] = byte((o>>3 + 1) * 0x9E3779B97F4A7C15 >> (8 * (o & 7)))
	}
}

func verify(b []byte, offset int64) error {
	want := make([]byte, len(b))
	pattern(want, offset)
	for i := range b {
		if b[i] != want[i] {
			return fmt.Errorf("octet %d is %#x: want %#x", offset+int64(i), b[i], want[i])
		}
	}
	return nil
}
