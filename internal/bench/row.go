package bench

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"time"

	"github.com/distributed-servers/ds/internal/tcprepair"
	"github.com/distributed-servers/ds/migrate"
	"github.com/distributed-servers/ds/stack"
)

const (
	queued   = 64 << 10 // octets of the rows that have some
	perChunk = 250      // samples: some milliseconds, in which a busy machine changes little
	warmUp   = 50       // moves before the first sample of a chunk
	// stagesPart and allocsPart are what part of the samples' number of
	// further moves tell the stages and the allocations.
	stagesPart = 10
	allocsPart = 10
)

// mover moves one connection to and fro.
type mover struct {
	w    *world
	conn *stack.Conn
	at   int
	snap []byte
}

// mark is a stage's time.
type marks [6]time.Time

// move moves the connection to the other node, and notes when each stage
// begins and ends unless m is nil.
func (v *mover) move(m *marks) error {
	mark := func(i int) {
		if m != nil {
			m[i] = time.Now()
		}
	}
	mark(0)
	d := migrate.NewDonor(v.conn)
	if err := d.Freeze(); err != nil {
		return err
	}
	mark(1)
	var err error
	if v.snap, err = d.Export(v.snap[:0]); err != nil {
		return err
	}
	mark(2)
	t, err := migrate.Import(v.w.nodes[1-v.at], v.snap)
	if err != nil {
		return err
	}
	mark(3)
	late, err := d.Discard(nil, 0)
	if err != nil {
		return err
	}
	mark(4)
	conns, err := t.Activate(late...)
	if err != nil {
		return err
	}
	mark(5)
	v.conn, v.at = conns[0], 1-v.at
	return nil
}

// samples are those of a row.
type samples struct {
	pacer  *pacer
	whole  []time.Duration
	stages [5][]time.Duration
	kernel []time.Duration
	bytes  int
	allocs float64 // sum over chunks
	chunks float64
}

func measureRow(ctx context.Context, o *Options, name string, k *kernel, p *pacer) (*Row, error) {
	var c tcprepair.Contents
	switch name {
	case "unsent64k":
		c.Unsent = queued
	case "unread64k":
		c.Unread = queued
	}
	s := samples{pacer: p}
	for done := 0; done < o.Moves; {
		n := min(perChunk, o.Moves-done)
		o.Progress(fmt.Sprintf("%s: %d of %d moves", name, done, o.Moves))
		if err := s.ours(ctx, n, c); err != nil {
			return nil, err
		}
		if k != nil {
			took, err := k.bench(n, c)
			if err != nil {
				return nil, err
			}
			s.kernel = append(s.kernel, took...)
		}
		done += n
	}
	stage := func(i int) float64 { return micros(quantile(s.stages[i], 0.5)) }
	row := &Row{
		Name: name, Bytes: s.bytes,
		P50: micros(quantile(s.whole, 0.5)), P99: micros(quantile(s.whole, 0.99)),
		Allocs: math.Round(s.allocs/s.chunks*10) / 10,
		Stages: Stages{stage(0), stage(1), stage(2), stage(3), stage(4)},
	}
	if len(s.kernel) > 0 {
		p50, p99 := micros(quantile(s.kernel, 0.5)), micros(quantile(s.kernel, 0.99))
		ratio := math.Round(p50/row.P50*100) / 100
		row.KernelP50, row.KernelP99, row.Ratio = &p50, &p99, &ratio
	}
	return row, nil
}

// ours moves a new connection n times.
func (s *samples) ours(ctx context.Context, n int, c tcprepair.Contents) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	w, err := newWorld()
	if err != nil {
		return err
	}
	defer w.close()
	client, server, err := w.connect(ctx)
	if err != nil {
		return err
	}
	v := &mover{w: w, conn: server}
	up, down := &stream{name: "client to node"}, &stream{name: "node to client"}
	if err := prepare(ctx, w, client, server, up, down, c); err != nil {
		return err
	}
	if err := s.measure(v, n); err != nil {
		return err
	}
	if err := w.wake(v.at); err != nil {
		return err
	}
	return finish(client, v.conn, up, down)
}

// prepare brings the connection to where its moves are to be measured.
func prepare(ctx context.Context, w *world, client, server *stack.Conn, up, down *stream, c tcprepair.Contents) error {
	// Round-trip samples and a window past slow start's first steps.
	for range 10 {
		if err := up.send(client, 1000); err != nil {
			return err
		}
		if err := up.expect(server); err != nil {
			return err
		}
		if err := down.send(server, 1000); err != nil {
			return err
		}
		if err := down.expect(client); err != nil {
			return err
		}
	}
	if err := up.send(client, int64(c.Unread)); err != nil {
		return err
	}
	for _, conn := range []*stack.Conn{client, server} {
		if err := acknowledged(ctx, conn); err != nil {
			return err
		}
	}
	if err := w.silence(); err != nil {
		return err
	}
	return down.send(server, int64(c.Unsent)) // into the send buffer, and no further than the client's link
}

func (s *samples) measure(v *mover, n int) error {
	release := pin()
	defer release()
	for range warmUp {
		if err := v.move(nil); err != nil {
			return err
		}
	}
	s.pacer.measure()
	for range n {
		start := time.Now()
		if err := v.move(nil); err != nil {
			return err
		}
		s.whole = append(s.whole, time.Since(start))
	}
	for range n/stagesPart + 1 {
		var m marks
		if err := v.move(&m); err != nil {
			return err
		}
		for i := range s.stages {
			s.stages[i] = append(s.stages[i], m[i+1].Sub(m[i]))
		}
	}
	count := n/allocsPart + 1
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range count {
		if err := v.move(nil); err != nil {
			return err
		}
	}
	runtime.ReadMemStats(&after)
	s.allocs += float64(after.Mallocs-before.Mallocs) / float64(count)
	s.chunks++
	s.bytes = len(v.snap)
	return nil
}
