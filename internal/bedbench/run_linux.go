package bedbench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/internal/testbed"
)

// Run measures, in a process whose network is its own (internal/netns).
func Run(ctx context.Context, o Options) (_ *Result, err error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	bed, err := testbed.New(testbed.Setup{Programs: o.Programs, App: append([]string{"ds"}, o.App...), Clients: 2})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, bed.Close()) }()
	o.Progress("starting home agent, daemons and applications")
	starting, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := bed.Start(starting, 0); err != nil {
		return nil, err
	}
	b := &bench{Options: o, bed: bed, server: bed.Servers[0], result: new(Result)}
	for _, name := range o.Rows {
		switch name {
		case "lan_gap":
			err = b.gap(ctx, name, bed.Clients[0], api.Optimised, 620)
		case "lan_gap_relay":
			err = b.gap(ctx, name, bed.Clients[1], api.Relayed, 620)
		case "relay_bulk":
			err = b.slower(ctx, name, bed.Clients[1])
		}
		if err != nil {
			return nil, fmt.Errorf("bedbench: %s: %w\n%s", name, err, bed.Logs())
		}
	}
	return b.result, nil
}

type bench struct {
	Options
	bed      *testbed.Bed
	server   *testbed.Server
	result   *Result
	networks int // of crowds so far
}

func (b *bench) target() string {
	return netip.AddrPortFrom(b.server.Addr.Addr(), port).String()
}

// gap adds the rows of clients' gaps.
func (b *bench) gap(ctx context.Context, name string, host *testbed.Client, mode api.Mode, then float64) error {
	c, err := b.gather(ctx, mode, turns(b.Handoffs), host)
	if err != nil {
		return err
	}
	defer c.close()
	m, err := c.gaps(ctx, name, mode, b.Handoffs, 1, oneByOne)
	if err != nil {
		return err
	}
	slices.Sort(m.gaps)
	slices.Sort(m.same)
	b.add(Row{Name: name + "_ms_p50", Value: quantile(m.gaps, 0.5), Then: &then, Unit: "ms"})
	b.add(Row{Name: name + "_ms_p99", Value: quantile(m.gaps, 0.99), Then: &then, Unit: "ms"})
	b.note("%s: %d handoffs of %d clients by turns; without one, answers are %.3f ms apart (p50; p99 %.3f)",
		name, b.Handoffs, len(c.clients), quantile(m.same, 0.5), quantile(m.same, 0.99))
	return nil
}

// turns is how many clients it takes for handoffs one after the other without a
// pause.
func turns(handoffs int) int { return min(takeTurns, (handoffs+2)/3) }

func (b *bench) add(r Row) { b.result.Rows = append(b.result.Rows, r) }

func (b *bench) note(format string, args ...any) {
	if n := fmt.Sprintf(format, args...); !slices.Contains(b.result.Notes, n) {
		b.result.Notes = append(b.result.Notes, n)
	}
}

// slower measures both directions, and adds the slower one under the name itself.
func (b *bench) slower(ctx context.Context, name string, c *testbed.Client) error {
	if err := b.bulk(ctx, name+"_up", c, wantUp); err != nil {
		return err
	}
	if err := b.bulk(ctx, name+"_down", c, wantDown); err != nil {
		return err
	}
	rows := b.result.Rows[len(b.result.Rows)-2:]
	r := slices.MinFunc(rows, func(x, y Row) int { return cmp.Compare(*x.Ratio, *y.Ratio) })
	r.Name = name
	b.add(r)
	return nil
}

// bulk measures data that goes by way of the contact, next to the kernel's on the
// path to the same node.
func (b *bench) bulk(ctx context.Context, name string, c *testbed.Client, want byte) error {
	// A connection keeps the client where it is.
	conn, err := c.Dial("tcp", b.target())
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.Write([]byte{wantEcho}); err != nil {
		return err
	}
	if err := b.bed.Mode(ctx, b.server, c, api.Relayed); err != nil {
		return err
	}
	node := b.bed.Nodes[1]
	if from, _, err := b.bed.Find(ctx, b.server, c); err != nil {
		return err
	} else if from != node {
		if _, err := from.API.Handoff(ctx, b.server.Addr.Addr(), c.Addr, node.Name()); err != nil {
			return err
		}
	}
	conn.Close()
	kernel, err := node.Listen("tcp", net.JoinHostPort(node.Addr.String(), strconv.Itoa(port)))
	if err != nil {
		return err
	}
	defer kernel.Close()
	go serveKernel(kernel)
	var ours, theirs []float64
	for i := range b.Rounds {
		b.Progress(fmt.Sprintf("%s: round %d of %d", name, i+1, b.Rounds))
		for _, s := range []struct {
			to      string
			samples *[]float64
		}{{kernel.Addr().String(), &theirs}, {b.target(), &ours}} {
			rate, err := transfer(ctx, c, s.to, want, b.Duration)
			if err != nil {
				return err
			}
			*s.samples = append(*s.samples, rate)
		}
	}
	slices.Sort(ours)
	slices.Sort(theirs)
	v, k := quantile(ours, 0.5), quantile(theirs, 0.5)
	ratio := v / k
	b.add(Row{Name: name, Value: v, Kernel: &k, Ratio: &ratio, Unit: "Gbit/s"})
	return nil
}

// serveKernel is the service on the kernel's TCP.
func serveKernel(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			new(service).serve(c, new(session))
		}()
	}
}

// transfer is how many Gbit/s go over a connection.
func transfer(ctx context.Context, c *testbed.Client, to string, want byte, d time.Duration) (float64, error) {
	conn, err := c.Dial("tcp", to)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if _, err := conn.Write([]byte{want}); err != nil {
		return 0, err
	}
	buf := make([]byte, 256<<10)
	move := conn.Read
	if want == wantUp {
		move = conn.Write
	}
	// The first part is for the windows to open.
	var octets int64
	begin := time.Now()
	measured := begin.Add(d / 4)
	end := begin.Add(d)
	conn.SetDeadline(end.Add(10 * time.Second))
	for {
		n, err := move(buf)
		if err != nil {
			return 0, err
		}
		now := time.Now()
		if now.After(measured) {
			octets += int64(n)
		}
		if now.After(end) {
			return float64(octets) * 8 / 1e9 / now.Sub(measured).Seconds(), nil
		}
	}
}
