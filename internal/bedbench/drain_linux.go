package bedbench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/distributed-servers/ds/daemon/api"
)

// drain empties the contact, on which the clients are, while another client's data
// flows from another node: at first as fast as it goes, then as slowly as it may.
func (e *evaluator) drain(ctx context.Context) error {
	// Beside the clients' sockets there are captures, sessions and programs.
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur < uint64(e.sizes.drained)+500 {
		e.miss(fmt.Sprintf("a process may have %d open files, fewer than it takes: raise the limit (ulimit -Hn) to %d", limit.Cur, e.sizes.drained+500),
			"drain_10000_clients_s", "drain_bulk_kept")
		return nil
	}
	flow, err := e.download(ctx)
	if err != nil {
		return err
	}
	defer flow.conn.Close()
	c, err := e.gather(ctx, api.Relayed, e.sizes.drained, e.bed.Clients[plain])
	if err != nil {
		return err
	}
	defer c.close()
	contact := e.bed.Nodes[0]
	fast, keptFast, err := e.drainOnce(ctx, c, flow, 0)
	if err != nil {
		return err
	}
	if err := c.settle(ctx, contact); err != nil {
		return err
	}
	// With a little to spare.
	took, kept, err := e.drainOnce(ctx, c, flow, float64(e.sizes.drained)/(0.9*e.sizes.within.Seconds()))
	if err != nil {
		return err
	}
	e.row("drain_10000_clients_s", "s", []float64{took.Seconds()}, false)
	e.row("drain_bulk_kept", "", []float64{kept}, true)
	e.note("drain: %d clients at a rate that empties the node in time; without a rate it takes %.1f s, and the download keeps %.2f of its throughput",
		e.sizes.drained, fast.Seconds(), keptFast)
	return nil
}

func (e *evaluator) drainOnce(ctx context.Context, c *crowd, flow *flow, rate float64) (took time.Duration, kept float64, err error) {
	contact := e.bed.Nodes[0]
	before, err := flow.rate(ctx, func() error { return sleep(ctx, e.sizes.bulk) })
	if err != nil {
		return 0, 0, err
	}
	var p api.MoveProgress
	during, err := flow.rate(ctx, func() (err error) {
		p, took, err = e.move(ctx, contact, api.MoveRequest{Rate: rate}, true)
		return err
	})
	if err != nil {
		return 0, 0, err
	}
	after, err := flow.rate(ctx, func() error { return sleep(ctx, e.sizes.bulk) })
	if err != nil {
		return 0, 0, err
	}
	if p.Moved < len(c.clients) {
		return 0, 0, fmt.Errorf("%d of %d clients have gone", p.Moved, len(c.clients))
	}
	for _, cl := range c.clients { // everyone is served
		if _, err := cl.exchange(); err != nil {
			return 0, 0, err
		}
	}
	return took, during / ((before + after) / 2), contact.API.Undrain(ctx, e.server.Addr.Addr(), contact.Name())
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// flow is a download without end.
type flow struct {
	conn   net.Conn
	octets atomic.Int64
	ended  chan error
}

// download begins one, of the route optimised client, from the node after the contact: of
// two processors it has the other.
func (e *evaluator) download(ctx context.Context) (*flow, error) {
	client, node := e.bed.Clients[mobile], e.bed.Nodes[1]
	conn, err := client.Dial("tcp", e.target())
	if err != nil {
		return nil, err
	}
	// At rest, as long as it wants nothing.
	if err := e.bed.Mode(ctx, e.server, client, api.Optimised); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	if _, err := e.bed.Nodes[0].API.Handoff(ctx, e.server.Addr.Addr(), client.Addr, node.Name()); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	if _, err := conn.Write([]byte{wantDown}); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	f := &flow{conn: conn, ended: make(chan error, 1)}
	go func() {
		buf := make([]byte, 256<<10)
		for {
			n, err := io.ReadAtLeast(conn, buf, 1)
			f.octets.Add(int64(n))
			if err != nil {
				f.ended <- err
				return
			}
		}
	}()
	return f, nil
}

// rate is how many octets a second came while something was done.
func (f *flow) rate(ctx context.Context, do func() error) (float64, error) {
	begin, octets := time.Now(), f.octets.Load()
	if err := do(); err != nil {
		return 0, err
	}
	select {
	case err := <-f.ended:
		return 0, fmt.Errorf("the download has ended: %w", err)
	default:
	}
	return float64(f.octets.Load()-octets) / time.Since(begin).Seconds(), nil
}
