package demo

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/distributed-servers/ds"
)

// nodes are the server nodes' names; clients come to the first.
var nodes = [...]string{"a", "b", "c"}

// world is a distributed server with clients.
type world struct {
	address  string // of the service: host and port
	hosts    []*host
	problems func() []string
}

// host is where a client runs.
type host struct {
	name     string
	redirect string // "optimised" or "relayed"
	dial     func(ctx context.Context, network, address string) (net.Conn, error)

	// ready waits until its packets come as redirect says, while it has
	// connections.
	ready func(context.Context) error

	// handoff hands it from one node to another.
	handoff func(ctx context.Context, from, to int) (*move, error)

	// resets is how many of its connections were reset so far, by either side.
	resets func() (int, error)
}

// move is a handoff that was done. Times are of monotonic.
type move struct {
	ds.Report
	Frozen int64 // when the client's connections stood still
	Live   int64 // when the donor heard that the target is live
}

// handoff hands a client off from a node that package movable serves on.
func handoff(ctx context.Context, node *ds.Node, client netip.Addr, to string) (*move, error) {
	begin := monotonic()
	r, err := node.Handoff(ctx, client, to, node.State)
	if err != nil {
		return nil, err
	}
	m := &move{Report: *r, Frozen: begin}
	for _, s := range r.Stages {
		if s.Stage == ds.StageFreeze {
			break
		}
		m.Frozen += int64(s.Duration)
	}
	m.Live = m.Frozen + int64(r.Gap)
	return m, nil
}

// measure derives from moves and arrivals, both in order of time, what the client
// has seen.
func (c *Client) measure(moves []*move, arrivals arrivals) {
	const ms = 1e6
	var otherwise, frozen, carried []float64
	stages := make(map[ds.Stage][]float64)
	for i, m := range moves {
		took := m.Live - m.Frozen
		frozen = append(frozen, float64(took)/ms)
		carried = append(carried, float64(m.Snapshot+m.State))
		if m.Optimised {
			c.Optimised++
		}
		for _, s := range m.Stages {
			stages[s.Stage] = append(stages[s.Stage], float64(s.Duration)/ms)
		}
		if gap, ok := arrivals.silence(m.Frozen, m.Live+int64(after)); ok {
			c.gaps = append(c.gaps, float64(gap)/ms)
		}
		if i+1 == len(moves) {
			break
		}
		// As long a time, half-way to the next handoff.
		middle := m.Live + (moves[i+1].Frozen-m.Live-took-int64(after))/2
		if gap, ok := arrivals.silence(middle, middle+took+int64(after)); ok && middle > m.Live+int64(after) {
			otherwise = append(otherwise, float64(gap)/ms)
		}
	}
	c.Handoffs, c.Seen = len(moves), len(c.gaps)
	c.Gap, c.Otherwise, c.Frozen, c.Carried = quantiles(c.gaps), quantiles(otherwise), quantiles(frozen), quantiles(carried)
	if len(moves) > 0 {
		for _, s := range moves[0].Stages { // all of them, in order
			c.Stages = append(c.Stages, Stage{string(s.Stage), quantiles(stages[s.Stage])})
		}
	}
}

// after is how long after a handoff's end a gap may begin and still count as
// its doing: a packet lost then would show as silence.
const after = time.Millisecond

// run has the clients of a world transfer and be handed off.
func (w *world) run(ctx context.Context, o *Options) (*Result, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	res := &Result{Mode: o.Mode, Asked: o.Handoffs}
	var all []*client
	for i, h := range w.hosts {
		c := newClient(h, w.address, o.share(i))
		defer c.http.CloseIdleConnections()
		all = append(all, c)
	}
	each := func(f func(*client) error) error { return parallel(all, cancel, f) }
	begin := time.Now()
	defer tick(o, begin, all)()
	if err := each(func(c *client) error { return c.warmUp(ctx, o) }); err != nil {
		return nil, err
	}
	begin = time.Now()
	err := each(func(c *client) error { return c.transfer(ctx) })
	res.Seconds = time.Since(begin).Seconds()
	for _, c := range all {
		r, e := c.result()
		if e != nil {
			return nil, e
		}
		res.Clients = append(res.Clients, r)
	}
	res.sum()
	res.Problems = w.problems()
	// What the other end of a reset, or of an octet that is missing, says about
	// it, the result tells better.
	if err != nil && res.Resets == 0 {
		return nil, err
	}
	return res, nil
}

// parallel calls f for each client, and returns the first error when all have
// ended, to which the first one moves the others.
func parallel(all []*client, cancel context.CancelCauseFunc, f func(*client) error) (first error) {
	errs := make(chan error)
	for _, c := range all {
		go func() { errs <- f(c) }()
	}
	for range all {
		if err := <-errs; err != nil && first == nil {
			first = fmt.Errorf("demo: %w", err)
			cancel(first)
		}
	}
	return first
}

// tick reports progress until the returned function is called.
func tick(o *Options, begin time.Time, all []*client) (stop func()) {
	t := time.NewTicker(100 * time.Millisecond)
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-t.C:
				p := Progress{Mode: o.Mode, Seconds: time.Since(begin).Seconds(), Of: o.Handoffs}
				for _, c := range all {
					c.addProgress(&p)
				}
				o.Progress(p)
			case <-end:
				return
			}
		}
	}()
	return func() { t.Stop(); close(end); <-ended }
}
