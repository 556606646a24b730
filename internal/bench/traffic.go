package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/distributed-servers/ds/internal/demo/pattern"
	"github.com/distributed-servers/ds/migrate"
	"github.com/distributed-servers/ds/stack"
)

// measureTraffic compares transfers with and without moves. Each pair has a
// ratio of its own, of two transfers that follow each other; the median counts.
func measureTraffic(ctx context.Context, o *Options, res *Result) error {
	var resting, moving, ratios []float64
	mbps := func(d time.Duration) float64 { return float64(2*8*o.Octets) / d.Seconds() / 1e6 }
	for i := range o.Pairs {
		o.Progress(fmt.Sprintf("traffic: pair %d of %d", i+1, o.Pairs))
		moves := [2]int{0, o.TrafficMoves}
		if i%2 == 1 { // neither is always the first
			moves[0], moves[1] = moves[1], moves[0]
		}
		var rate [2]float64 // without, with
		for _, n := range moves {
			took, err := transfer(ctx, o.Octets, n)
			if err != nil {
				return fmt.Errorf("transfer with %d moves: %w", n, err)
			}
			rate[min(n, 1)] = mbps(took)
		}
		resting, moving = append(resting, rate[0]), append(moving, rate[1])
		ratios = append(ratios, rate[1]/rate[0])
	}
	res.Traffic = Traffic{Moves: o.TrafficMoves, Resting: math.Round(median(resting)), Moving: math.Round(median(moving))}
	res.TrafficRatio = math.Round(median(ratios)*1000) / 1000
	return nil
}

func median(v []float64) float64 {
	slices.Sort(v)
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// place is where the service's end of the connection is.
type place struct {
	mu    sync.Mutex
	moved sync.Cond
	conn  *stack.Conn
	err   error // there will be no other place
}

// after returns the place that follows old, which may be nil.
func (p *place) after(old *stack.Conn) (*stack.Conn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.conn == old && p.err == nil {
		p.moved.Wait()
	}
	return p.conn, p.err
}

func (p *place) set(c *stack.Conn, err error) {
	p.mu.Lock()
	p.conn, p.err = c, err
	p.mu.Unlock()
	p.moved.Broadcast()
}

// follow calls op on the connection, again where it has moved to each time it
// has moved, until op succeeds or fails.
func (p *place) follow(op func(*stack.Conn) error) error {
	var c *stack.Conn
	for {
		var err error
		if c, err = p.after(c); err != nil {
			return err
		}
		if err = op(c); !errors.Is(err, stack.ErrMoved) {
			return err
		}
	}
}

// transfer sends octets both ways on one connection, moves it so many times
// meanwhile, and returns how long all that took.
func transfer(ctx context.Context, octets int64, moves int) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*patience)
	defer cancel()
	w, err := newWorld()
	if err != nil {
		return 0, err
	}
	defer w.close()
	stop := context.AfterFunc(ctx, w.close) // ends every call below
	defer stop()
	client, server, err := w.connect(ctx)
	if err != nil {
		return 0, err
	}
	at := &place{conn: server}
	at.moved.L = &at.mu

	var wg sync.WaitGroup
	errs := make([]error, 5)
	run := func(i int, name string, f func() error) {
		wg.Go(func() {
			if err := f(); err != nil {
				errs[i] = fmt.Errorf("%s: %w", name, err)
				cancel()
			}
		})
	}
	up, down := stream{name: "client to node"}, stream{name: "node to client"}
	up.src.Offset, down.src.Offset = octets, octets // what expectEnd compares with
	reached := make(chan struct{}, moves)
	start := time.Now()
	run(0, "client writes", func() error {
		if _, err := io.CopyBuffer(client, struct{ io.Reader }{&pattern.Reader{End: octets}}, make([]byte, 64<<10)); err != nil {
			return err
		}
		return client.CloseWrite()
	})
	run(1, "client reads", func() error { return down.expectEnd(client) })
	run(2, "node writes", func() error {
		b := make([]byte, 64<<10)
		var offset int64
		return at.follow(func(c *stack.Conn) error {
			for offset < octets {
				p := b[:min(int64(len(b)), octets-offset)]
				pattern.Fill(p, offset)
				n, err := c.Write(p)
				offset += int64(n)
				if err != nil {
					return err
				}
			}
			return c.CloseWrite()
		})
	})
	run(3, "node reads", func() error {
		b := make([]byte, 64<<10)
		due := 1
		return at.follow(func(c *stack.Conn) error {
			for {
				n, err := c.Read(b)
				up.dst.Write(b[:n])
				for due <= moves && up.dst.Offset >= int64(due)*octets/int64(moves+1) {
					reached <- struct{}{}
					due++
				}
				if err == io.EOF {
					return up.verdict(nil)
				}
				if err != nil {
					return err
				}
			}
		})
	})
	run(4, "move", func() (err error) {
		v := &mover{w: w, conn: server}
		defer func() {
			if err != nil {
				at.set(nil, err)
			}
		}()
		for range moves {
			select {
			case <-reached:
			case <-ctx.Done():
				return ctx.Err()
			}
			if err := v.moveBusy(ctx); err != nil {
				return err
			}
			at.set(v.conn, nil)
		}
		return nil
	})
	wg.Wait()
	took := time.Since(start)
	return took, errors.Join(errs...)
}

// moveBusy is move while packets are on their way. What had left for the old
// node when the route changed arrives there first, since the word that it has
// changed comes behind; otherwise the new one would see these packets after
// later ones, as no network in order shows them.
func (v *mover) moveBusy(ctx context.Context) error {
	to := v.w.nodes[1-v.at]
	d := migrate.NewDonor(v.conn)
	if err := d.Freeze(); err != nil {
		return err
	}
	var err error
	if v.snap, err = d.Export(v.snap[:0]); err != nil {
		return err
	}
	t, err := migrate.Import(to, v.snap)
	if err != nil {
		return err
	}
	v.w.route(1 - v.at)
	if err := v.w.settle(ctx, v.at); err != nil {
		return err
	}
	late, err := d.Discard(to.Inject, time.Minute)
	if err != nil {
		return err
	}
	conns, err := t.Activate(late...)
	if err != nil {
		return err
	}
	v.conn, v.at = conns[0], 1-v.at
	return nil
}
