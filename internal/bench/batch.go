package bench

import (
	"context"
	"fmt"
	"runtime"
	"time"

	"github.com/distributed-servers/ds/migrate"
	"github.com/distributed-servers/ds/stack"
)

// measureBatch moves many connections at once, on one processor.
func measureBatch(ctx context.Context, o *Options, res *Result) error {
	o.Progress(fmt.Sprintf("batch: %d connections", o.Connections))
	w, err := newWorld()
	if err != nil {
		return err
	}
	defer w.close()
	b := &batch{w: w, clients: make([]*stack.Conn, o.Connections), conns: make([]*stack.Conn, o.Connections)}
	for i := range b.conns {
		if b.clients[i], b.conns[i], err = w.connect(ctx); err != nil {
			return err
		}
	}
	if err := b.echo(); err != nil { // ends the handshakes' last business, too
		return err
	}
	b.donors = make([]*migrate.Donor, o.Connections)
	b.targets = make([]*migrate.Target, o.Connections)
	b.offsets = make([]int, o.Connections+1)

	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	var took []time.Duration
	for round := range o.Rounds + 1 { // the first one is not counted: memory grows
		if err := ctx.Err(); err != nil {
			return err
		}
		o.Progress(fmt.Sprintf("batch: round %d of %d", round, o.Rounds))
		if err := w.silence(); err != nil {
			return err
		}
		if round == 1 {
			res.Batch.HeapBefore = heap()
		}
		d, peak, err := b.round(round == o.Rounds)
		if err != nil {
			return err
		}
		if round > 0 {
			took = append(took, d)
		}
		if round == o.Rounds {
			res.Batch.HeapPeak, res.Batch.HeapAfter = peak, heap()
		}
		if err := w.wake(b.at); err != nil {
			return err
		}
	}
	res.Batch.Connections = o.Connections
	res.BatchImportsPerS = float64(int(float64(o.Connections) / quantile(took, 0.5).Seconds()))
	return b.echo()
}

type batch struct {
	w       *world
	at      int
	clients []*stack.Conn
	conns   []*stack.Conn
	donors  []*migrate.Donor
	targets []*migrate.Target
	snaps   []byte // one after the other
	offsets []int  // where each begins
}

// round moves all connections to the other node. It returns how long the
// imports and activations took and, if wanted, the heap in between.
func (b *batch) round(wantPeak bool) (took time.Duration, peak uint64, err error) {
	b.snaps = b.snaps[:0]
	for i, c := range b.conns {
		b.donors[i] = migrate.NewDonor(c)
		if err := b.donors[i].Freeze(); err != nil {
			return 0, 0, err
		}
		b.offsets[i] = len(b.snaps)
		if b.snaps, err = b.donors[i].Export(b.snaps); err != nil {
			return 0, 0, err
		}
	}
	b.offsets[len(b.conns)] = len(b.snaps)
	to := b.w.nodes[1-b.at]
	runtime.GC()

	start := time.Now()
	for i := range b.conns {
		if b.targets[i], err = migrate.Import(to, b.snaps[b.offsets[i]:b.offsets[i+1]]); err != nil {
			return 0, 0, err
		}
	}
	took = time.Since(start)
	if wantPeak {
		peak = heap()
	}
	for _, d := range b.donors { // nobody sends: there are no late packets
		if _, err := d.Discard(nil, 0); err != nil {
			return 0, 0, err
		}
	}
	start = time.Now()
	for i, t := range b.targets {
		conns, err := t.Activate()
		if err != nil {
			return 0, 0, err
		}
		b.conns[i] = conns[0]
	}
	took += time.Since(start)
	b.at = 1 - b.at
	clear(b.donors)
	clear(b.targets)
	return took, peak, nil
}

// echo sends an octet each way on each connection, and reads no other.
func (b *batch) echo() error {
	var p [2]byte
	deadline := time.Now().Add(patience)
	for i := range b.conns {
		for _, way := range [][2]*stack.Conn{{b.clients[i], b.conns[i]}, {b.conns[i], b.clients[i]}} {
			from, to := way[0], way[1]
			if err := to.SetReadDeadline(deadline); err != nil {
				return err
			}
			if _, err := from.Write([]byte{byte(i)}); err != nil {
				return err
			}
			if n, err := to.Read(p[:]); err != nil || n != 1 || p[0] != byte(i) {
				return fmt.Errorf("connection %d: read %x (%v): %w", i, p[:n], err, errLost)
			}
			if err := to.SetReadDeadline(time.Time{}); err != nil {
				return err
			}
		}
	}
	return nil
}

// heap is the size of the live heap.
func heap() uint64 {
	runtime.GC()
	runtime.GC() // what pools held
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
