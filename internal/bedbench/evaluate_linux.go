package bedbench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/internal/evaluation"
	"github.com/distributed-servers/ds/internal/impair"
	"github.com/distributed-servers/ds/internal/netns/topology"
	"github.com/distributed-servers/ds/internal/testbed"
)

// The hosts of clients: of the first the kernel is helped to be a correspondent,
// the second does without.
const (
	mobile = iota
	plain
)

// figures of the report of 2009: of the system that it replaced, and of its own.
var reported = map[string][2]float64{
	"gap_local_ms":     {9.4, 13.4},
	"gap_lan_ro_ms":    {18.4, 620},
	"gap_lan_relay_ms": {18.4, 620},
	"cpu_donate_us":    {0, 264e3},
	"cpu_receive_us":   {0, 384e3},
	"handoffs_per_s":   {0, 2.6},
}

// evaluator measures what an evaluation has.
type evaluator struct {
	*bench
	result *evaluation.Result
	sizes  sizes
}

// sizes are how many there are of everything.
type sizes struct {
	handoffs int           // of each gap
	point    int           // of each point of a curve
	crowd    int           // clients that are handed off at once
	passes   int           // so often
	drained  int           // clients of the node that is drained
	within   time.Duration // it is to take no longer than that
	bulk     time.Duration // of its rate without a drain
}

var (
	wholeSizes = sizes{handoffs: 1000, point: 100, crowd: 1000, passes: 20, drained: 10000, within: 10 * time.Second, bulk: 5 * time.Second}
	quickSizes = sizes{handoffs: 6, point: 3, crowd: 40, passes: 2, drained: 60, within: 500 * time.Millisecond, bulk: 200 * time.Millisecond}
)

// Evaluate measures what `ds bench handoff` has to say, in a process whose network is
// its own (internal/netns).
func Evaluate(ctx context.Context, o Options) (*evaluation.Result, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	e := &evaluator{result: new(evaluation.Result), sizes: wholeSizes}
	if o.Quick {
		e.sizes = quickSizes
	}
	e.result.Machine = Machine()
	e.result.Machine.Before = load()
	e.bench = &bench{Options: o, result: new(Result)}
	for _, part := range []struct {
		name string
		rows []string
		do   func(context.Context) error
	}{
		{"local", []string{"gap_local_ms"}, e.local},
		{"gaps", []string{"gap_lan_ro_ms", "gap_lan_relay_ms", "client_1000_conns_ms", "curve queued", "curve connections"}, e.inBed(2, 1, impair.Settings{}, e.gaps)},
		{"cost", []string{"cpu_donate_us", "cpu_receive_us", "handoffs_per_s"}, e.inBed(costHosts, costHosts, impair.Settings{}, func(ctx context.Context) error {
			return e.cost(ctx, api.Optimised, "")
		})},
		{"cost", []string{"cpu_donate_relayed_us", "cpu_receive_relayed_us", "handoffs_relayed_per_s"}, e.inBed(1, 0, impair.Settings{}, func(ctx context.Context) error {
			return e.cost(ctx, api.Relayed, "_relayed")
		})},
		{"links", []string{"curve delay", "curve loss"}, e.inBed(2, 1, impair.Settings{Delay: time.Millisecond}, e.links)},
		{"drain", []string{"drain_10000_clients_s", "drain_bulk_kept"}, e.inBed(2, 1, impair.Settings{}, e.drain)},
	} {
		if len(o.Parts) > 0 && !slices.Contains(o.Parts, part.name) {
			e.miss("it was not asked for", part.rows...)
			continue
		}
		err := part.do(ctx)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err != nil { // what was measured before is worth having
			o.Progress(fmt.Sprintf("%s: %v", part.name, err))
			why, _, _ := strings.Cut(err.Error(), "\n")
			e.miss("it failed: "+why, part.rows...)
			e.result.Notes = append(e.result.Notes, fmt.Sprintf("part %s failed: %s", part.name, why))
		}
	}
	e.result.Machine.After = load()
	return e.result, nil
}

// miss says why there are no rows, of those that there are not.
func (e *evaluator) miss(why string, names ...string) {
	for _, name := range names {
		if !e.result.Has(name) {
			e.result.Missing = append(e.result.Missing, evaluation.Missing{Name: name, Why: why})
		}
	}
}

// inBed does something in a network of its own, with so many hosts for clients, the
// first of which are correspondents: what one measurement leaves behind does not
// disturb the next.
func (e *evaluator) inBed(clients, optimised int, links impair.Settings, do func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) (err error) {
		o := e.Options
		bed, err := testbed.New(testbed.Setup{Programs: o.Programs, App: append([]string{"ds"}, o.App...), Clients: clients, Links: links, Apart: true})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, bed.Close()) }()
		o.Progress("starting home agent, daemons and applications")
		starting, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		var who []int
		for i := range optimised {
			who = append(who, i)
		}
		if err := bed.Start(starting, who...); err != nil {
			return err
		}
		e.bench = &bench{Options: o, bed: bed, server: bed.Servers[0], result: new(Result)}
		err = do(ctx)
		e.result.Notes = append(e.result.Notes, e.bench.result.Notes...)
		if err != nil {
			return fmt.Errorf("%w\n%s", err, bed.Logs())
		}
		return nil
	}
}

// row adds one, with what the report of 2009 has.
func (e *evaluator) row(name, unit string, samples []float64, higher bool) {
	row := evaluation.Row{Name: name, Unit: unit}
	if then, ok := reported[name]; ok {
		row.Then = &then[1]
		if then[0] > 0 {
			row.Before = &then[0]
		}
	}
	e.result.Add(row, samples, higher)
}

// kind is one of clients.
type kind struct {
	name string // in rows
	host int
	mode api.Mode
}

var kinds = []kind{{"ro", mobile, api.Optimised}, {"relay", plain, api.Relayed}}

// few is how many take turns where each has much.
const few = 8

// gaps are those without delay or loss.
func (e *evaluator) gaps(ctx context.Context) error {
	for _, k := range kinds {
		if err := e.gapsOf(ctx, k); err != nil {
			return err
		}
	}
	if e.Quick {
		e.miss("it takes too long for --quick", "client_1000_conns_ms")
	}
	return nil
}

func (e *evaluator) gapsOf(ctx context.Context, k kind) error {
	queued, connections := e.points(curve("queued")), e.points(curve("connections"))
	n := min(turns(e.sizes.point), few) // in each point of a curve
	all, err := e.gather(ctx, k.mode, turns(e.sizes.handoffs)+n+n*len(queued), e.bed.Clients[k.host])
	if err != nil {
		return err
	}
	defer all.close()
	row := "gap_lan_" + k.name + "_ms"
	m, err := e.crowdGaps(ctx, all.part(turns(e.sizes.handoffs)), row, k.mode, e.sizes.handoffs)
	if err != nil {
		return err
	}
	e.row(row, "ms", m.gaps, false)
	slices.Sort(m.same)
	slices.Sort(m.took)
	e.note("%s: without a handoff, answers are %.2f ms apart (p50; p99 %.2f); a handoff takes %.1f ms (p50; p99 %.1f), preparations included",
		row, quantile(m.same, 0.5), quantile(m.same, 0.99), quantile(m.took, 0.5), quantile(m.took, 0.99))
	for _, x := range queued {
		point := curve("queued").Point(k.name, x)
		c := all.part(n)
		if x > 0 {
			if err := c.queue(ctx, int(x)<<10); err != nil {
				return err
			}
		}
		m, err := e.crowdGaps(ctx, c, point.Name, k.mode, e.sizes.point)
		if err != nil {
			return err
		}
		e.result.Add(point, m.gaps, false)
	}
	c := all.part(n)
	defer c.close()
	have := 1
	for _, x := range connections {
		if err := c.connect(ctx, int(x)-have); err != nil {
			return err
		}
		have = int(x)
		point := curve("connections").Point(k.name, x)
		m, err := c.gaps(ctx, point.Name, k.mode, e.sizes.point, 1, oneByOne)
		if err != nil {
			return err
		}
		e.result.Add(point, m.gaps, false)
		if k.mode == api.Optimised && have == 1000 {
			e.row("client_1000_conns_ms", "ms", m.gaps, false)
		}
	}
	return nil
}

// crowdGaps are the gaps of a crowd that is not needed any more afterwards.
func (e *evaluator) crowdGaps(ctx context.Context, c *crowd, name string, mode api.Mode, handoffs int) (*measured, error) {
	defer c.close()
	return c.gaps(ctx, name, mode, handoffs, 1, oneByOne)
}

// A correspondent takes so many Binding Updates a second from one network, twice as
// many at once (mobility/correspondent's Limits). That many clients have hosts of their
// own elsewhere; here some have one together.
const (
	correspondentUpdates = 100
	costHosts            = 8
)

// pipelined is how many handoffs there are at the same time when it matters how many
// there can be in a second.
const pipelined = 256

// cost hands many clients from one node to the other and back.
func (e *evaluator) cost(ctx context.Context, mode api.Mode, suffix string) error {
	hosts := e.bed.Clients
	c, err := e.gather(ctx, mode, e.sizes.crowd, hosts...)
	if err != nil {
		return err
	}
	defer c.close()
	from, to := e.bed.Nodes[1], e.bed.Nodes[2]
	if err := c.settle(ctx, from); err != nil {
		return err
	}
	pause := betweenHandoffs
	if mode == api.Optimised {
		pause = max(pause, time.Duration(len(c.clients)/len(hosts))*time.Second/correspondentUpdates)
	}
	var donate, receive, rate []float64
	for range e.sizes.passes {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		processes := []*topology.Process{from.Daemon, from.Apps[0], to.Daemon, to.Apps[0]}
		before, err := processorTimes(processes...)
		if err != nil {
			return err
		}
		p, took, err := e.move(ctx, from, api.MoveRequest{Concurrency: pipelined, To: []api.MoveTarget{{Node: to.Name(), Clients: len(c.clients)}}}, false)
		if err != nil {
			return err
		}
		after, err := processorTimes(processes...)
		if err != nil {
			return err
		}
		if p.Moved != len(c.clients) {
			return fmt.Errorf("of %d clients %d have moved from %s to %s: %+v", len(c.clients), p.Moved, from.Name(), to.Name(), p)
		}
		n := float64(p.Moved)
		donate = append(donate, float64(after[0]-before[0]+after[1]-before[1])/1e3/n)
		receive = append(receive, float64(after[2]-before[2]+after[3]-before[3])/1e3/n)
		rate = append(rate, n/took.Seconds())
		from, to = to, from
	}
	for _, cl := range c.clients { // everyone is served
		if _, err := cl.exchange(); err != nil {
			return err
		}
	}
	e.row("cpu_donate"+suffix+"_us", "µs", donate, false)
	e.row("cpu_receive"+suffix+"_us", "µs", receive, false)
	e.row("handoffs"+suffix+"_per_s", "1/s", rate, true)
	e.note("cpu_donate%s_us, cpu_receive%[1]s_us, handoffs%[1]s_per_s: %d moves of %d clients, %d at the same time", suffix, e.sizes.passes, len(c.clients), pipelined)
	if mode == api.Optimised {
		e.note("cpu_receive%s_us: clients come back to a node that still has a care-of keygen token of theirs; the first move, with a care-of test each, takes %.0f µs", suffix, receive[0])
	}
	return nil
}

// curve is the one with a name.
func curve(name string) *evaluation.Curve {
	i := slices.IndexFunc(evaluation.Curves, func(c evaluation.Curve) bool { return c.Name == name })
	return &evaluation.Curves[i]
}

func (e *evaluator) points(c *evaluation.Curve) []float64 {
	if e.Quick {
		return c.Quick
	}
	return c.Points
}

// links has clients far away, or behind links that lose packets.
func (e *evaluator) links(ctx context.Context) error {
	for _, k := range kinds {
		for _, name := range []string{"delay", "loss"} {
			curve := curve(name)
			for _, x := range e.points(curve) {
				s := impair.Settings{Delay: time.Duration(x * float64(time.Millisecond))}
				if name == "loss" {
					s = impair.Settings{Delay: 5 * time.Millisecond, Loss: x / 100}
				}
				if err := e.link(ctx, k, curve.Point(k.name, x), s); err != nil {
					return err
				}
			}
		}
		if err := e.bed.Clients[k.host].Link.Impair(impair.Settings{}, impair.Settings{}); err != nil {
			return err
		}
	}
	return nil
}

// link is one point of the curves: clients that are behind such a link from the
// beginning. TCP would take a delay that grows while it is connected for loss.
func (e *evaluator) link(ctx context.Context, k kind, row evaluation.Row, s impair.Settings) error {
	host := e.bed.Clients[k.host]
	if err := host.Link.Impair(s, s); err != nil {
		return err
	}
	c, err := e.gather(ctx, k.mode, max(3, turns(e.sizes.point)), host)
	if err != nil {
		return err
	}
	defer c.close()
	together := 1
	if s.Delay >= 5*time.Millisecond {
		together = 4 // they wait most of the time
	}
	if s.Delay >= 50*time.Millisecond {
		together = 8
	}
	m, err := c.gaps(ctx, row.Name, k.mode, e.sizes.point, together, steadily(s.Delay))
	if err != nil {
		return err
	}
	e.result.Add(row, m.gaps, false)
	slices.Sort(m.same)
	e.note("%s: without a handoff, packets are %.2f ms apart (p50)", row.Name, quantile(m.same, 0.5))
	return nil
}
