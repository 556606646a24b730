package ds_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/distributed-servers/ds"
	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/dstest"
)

// handoffs is how many a client goes through.
var handoffs = 300

// Streams both ways go on, to the octet, while their client is handed back and
// forth; the application's state travels along.
func TestStreams(t *testing.T) {
	for _, mode := range []string{"relayed", "optimised"} {
		t.Run(mode, func(t *testing.T) {
			w := newWorld(t, func(c *dstest.Cluster) { c.Optimise = mode == "optimised" }, "a", "b", "c")
			var streams []*stream
			for range 3 {
				s := w.dial(client1)
				s.ping(t) // it is accepted: it has a state
				streams = append(streams, s.run())
			}
			at := "a"
			for i := range handoffs {
				to := []string{"b", "c", "a"}[i%3]
				r, err := w.nodes[at].handoff(client1, to)
				if err != nil {
					t.Fatal(err)
				}
				if r.From != at || r.To != to || r.Connections != len(streams) || r.Mode() != mode || r.State != 8*len(streams) {
					t.Fatalf("report: %s", r)
				}
				var stages []ds.Stage
				var took time.Duration
				for _, s := range r.Stages {
					stages, took = append(stages, s.Stage), took+s.Duration
					if s.Duration < 0 {
						t.Fatalf("report: %s", r)
					}
				}
				if r.Client != client1 || r.Snapshot <= 0 || r.Gap <= 0 || r.Gap > took || !slices.Equal(stages, []ds.Stage{
					ds.StagePrepare, ds.StageDrain, ds.StageFreeze, ds.StageExport, ds.StageTransfer, ds.StageRelease,
				}) {
					t.Fatalf("report: %s", r)
				}
				if i == handoffs-1 {
					t.Log(r)
				}
				at = to
			}
			for _, s := range streams {
				s.finish(t)
			}
			w.noFaults()
		})
	}
}

// What the client sends while its connections are on their way is there when they
// go live: with a refusal it is at the donor instead.
func TestLate(t *testing.T) {
	for _, refuse := range []bool{false, true} {
		t.Run(fmt.Sprintf("refused %t", refuse), func(t *testing.T) {
			var s *stream
			sent, late := make(chan error, 1), make(chan struct{}, 100)
			w := newWorld(t, func(c *dstest.Cluster) {
				c.Intercept = func(node string, m *api.Message) error {
					if node == "b" && m.Kind == api.Offer && s != nil {
						b := make([]byte, 1000)
						pattern(b, s.out.Load())
						_, err := s.Write(b)
						s.out.Add(1000)
						sent <- err
						if err == nil {
							<-late // not before it is on its way to the target
						}
						if refuse {
							m.Snapshot = []byte("nonsense")
						}
						s = nil
					}
					return nil
				}
				c.Between = func(from, to, kind string) error {
					if from == "a" && kind == "late" {
						late <- struct{}{}
					}
					return nil
				}
			}, "a", "b")
			stream := w.dial(client1)
			stream.ping(t)
			s = stream
			owner, other := "b", "a"
			_, err := w.nodes["a"].handoff(client1, "b")
			if refuse {
				owner, other = "a", "b"
			}
			if (err != nil) != refuse {
				t.Fatal(err)
			}
			if err := <-sent; err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 1000)
			if _, err := io.ReadFull(stream, b); err != nil {
				t.Fatal(err)
			}
			if err := verify(b, stream.in.Load()); err != nil {
				t.Fatal(err)
			}
			stream.in.Add(1000)
			w.awaitHandoff(client1, owner, other)
			stream.ping(t)
			w.noFaults()
		})
	}
}

// A handler that writes and never reads moves too, between two writes, even while its
// client reads nothing.
func TestMoveInWrite(t *testing.T) {
	c := dstest.New("a", "b")
	defer c.Close()
	var offsets sync.Map // net.Conn to *int64
	write := func(conn net.Conn, at int64) {
		defer conn.Close()
		offsets.Store(conn, &at)
		b := make([]byte, 10_000)
		for {
			pattern(b, at)
			n, err := conn.Write(b)
			if err != nil {
				return
			}
			at += int64(n)
		}
	}
	state := func(conn net.Conn) ([]byte, error) {
		at, ok := offsets.Load(conn)
		if !ok {
			return nil, errors.New("unknown connection")
		}
		return binary.BigEndian.AppendUint64(nil, uint64(*at.(*int64))), nil
	}
	nodes := map[string]*ds.Node{"a": c.Node("a"), "b": c.Node("b")}
	for _, n := range nodes {
		defer n.Close()
		n.MoveInWrite = true
		n.Patience = time.Minute // a busy machine is no fault
		hl, err := n.ListenHandoff()
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for in, err := hl.Accept(); err == nil; in, err = hl.Accept() {
				go write(in.Conns[0], int64(binary.BigEndian.Uint64(in.State[0])))
			}
		}()
	}
	l, err := nodes["a"].Listen("tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		if conn, err := l.Accept(); err == nil {
			conn.(interface{ SetWriteBuffer(int) error }).SetWriteBuffer(64 << 10) // small snapshots
			write(conn, 0)
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	conn, err := c.Client(client1).Dial(ctx, c.Address(80))
	if err != nil {
		t.Fatal(err)
	}
	reads, read := make(chan struct{}), make(chan int64, 1)
	go func() {
		<-reads
		b := make([]byte, 32<<10)
		at := int64(0)
		for {
			n, err := conn.Read(b)
			if err != nil {
				read <- at
				return
			}
			if err := verify(b[:n], at); err != nil {
				t.Error(err)
			}
			at += int64(n)
		}
	}()
	if err := c.AwaitOwner(ctx, client1, "a"); err != nil {
		t.Fatal(err)
	}
	for i := range handoffs {
		from, to := []string{"a", "b"}[i%2], []string{"b", "a"}[i%2]
		if _, err := nodes[from].Handoff(ctx, client1, to, state); err != nil {
			t.Fatal(err)
		}
		if i == handoffs/2 {
			close(reads)
		}
	}
	conn.Close()
	if n := <-read; n == 0 {
		t.Error("nothing was read")
	}
	if f := c.Faults(); len(f) != 0 {
		t.Error(f)
	}
}
