package netbench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/distributed-servers/ds/internal/kernelro"
	"github.com/distributed-servers/ds/internal/netns"
)

// measure takes the samples of all rows.
func measure(ctx context.Context, o *Options) (*Result, error) {
	res := &Result{}
	for _, pinned := range []bool{false, true} {
		var some []row
		for _, r := range rows {
			if r.pinned == pinned && (len(o.Rows) == 0 || slices.Contains(o.Rows, r.name)) {
				some = append(some, r)
			}
		}
		if len(some) == 0 {
			continue
		}
		if err := res.measure(ctx, o, some, pinned); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(res.Rows, func(a, b Row) int {
		names := Names()
		return slices.Index(names, a.Name) - slices.Index(names, b.Name)
	})
	return res, nil
}

// measure takes those of a pair of processes.
func (res *Result) measure(ctx context.Context, o *Options, some []row, pinned bool) error {
	p, err := startPair(ctx, o, pinned)
	if err != nil {
		return err
	}
	defer p.stop()
	if err := p.profile(o.Profile); err != nil {
		return err
	}
	var bound *kernelro.Kernel
	var unbound error // why there are no bound rows
	for _, r := range some {
		if r.service == serviceBound && bound == nil && unbound == nil {
			if bound, unbound = bindKernel(); unbound != nil {
				res.Notes = append(res.Notes, fmt.Sprintf("no ro_ rows: %v", unbound))
			} else {
				defer bound.Close()
				res.Notes = append(res.Notes, "ro_ rows: the client's part is played by BPF programs on its interface, outside of any process")
			}
		}
		if r.service == serviceBound && bound == nil {
			continue
		}
		row, err := p.samples(ctx, o, r)
		if err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
		res.Rows = append(res.Rows, row)
	}
	return nil
}

// bindKernel makes the client's kernel a correspondent with a binding.
func bindKernel() (_ *kernelro.Kernel, err error) {
	k, err := kernelro.New(1)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, k.Close())
		}
	}()
	link, err := netlink.LinkByName(clientEnd)
	if err != nil {
		return nil, err
	}
	i, err := kernelro.InterfaceOf(link)
	if err != nil {
		return nil, err
	}
	if err := k.Bind(clientAddr, boundHome, kernelro.Binding{CareOf: boundCareOf, MTU: link.Attrs().MTU, Until: math.MaxInt64}); err != nil {
		return nil, err
	}
	return k, errors.Join(k.AttachOut(i), k.AttachIn(i, 0))
}

// samples takes those of a row, ours and the kernel's by turns.
func (p *pair) samples(ctx context.Context, o *Options, r row) (Row, error) {
	if r.do.Kind == kindIdle {
		o.Progress(fmt.Sprintf("%s: %d connections", r.name, o.Idle))
		return p.idle(r, o.Idle)
	}
	var ours, kernel []float64
	for i := range o.Rounds {
		o.Progress(fmt.Sprintf("%s: %d of %d", r.name, i, o.Rounds))
		for _, s := range []struct {
			service service
			values  *[]float64
		}{{serviceKernel, &kernel}, {r.service, &ours}} {
			if ctx.Err() != nil {
				return Row{}, context.Cause(ctx)
			}
			a, err := p.client.ask(command{Do: "job", Service: s.service, Job: r.do, Duration: o.Duration})
			if err != nil {
				return Row{}, err
			}
			*s.values = append(*s.values, a.Value)
		}
	}
	return r.result(ours, kernel), nil
}

// idle measures the memory of n connections on each side. The kernel's come
// first: of those that are gone it keeps the memory for others.
func (p *pair) idle(r row, n int) (Row, error) {
	job := job{kindIdle, n}
	before, err := slabs()
	if err != nil {
		return Row{}, err
	}
	if _, err := p.client.ask(command{Do: "job", Service: serviceKernel, Job: job}); err != nil {
		return Row{}, err
	}
	after, err := slabs()
	if err != nil {
		return Row{}, err
	}
	kernel := (after - before) / 2 / float64(n)

	start, err := p.server.ask(command{Do: "memory"})
	if err != nil {
		return Row{}, err
	}
	if _, err := p.client.ask(command{Do: "job", Service: r.service, Job: job}); err != nil {
		return Row{}, err
	}
	end, err := p.server.ask(command{Do: "memory", Job: job, Service: r.service})
	if err != nil {
		return Row{}, err
	}
	return r.result([]float64{(end.Value - start.Value) / float64(n)}, []float64{kernel}), nil
}

// slabs is the memory of the kernel's objects, in kB of 1000 octets.
func slabs() (float64, error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "Slab:" {
			kib, err := strconv.ParseFloat(f[1], 64)
			return kib * 1024 / 1000, err
		}
	}
	return 0, errors.New("netbench: /proc/meminfo has no Slab")
}

// pair is a client and a server with a network between them.
type pair struct {
	client, server *process
	profiled       bool
}

func startPair(ctx context.Context, o *Options, pinned bool) (p *pair, err error) {
	p = new(pair)
	defer func() {
		if err != nil {
			p.stop()
		}
	}()
	self, err := os.Executable()
	if err != nil {
		return p, err
	}
	server := netns.Reexec(ctx, nil, o.args(roleServer)...)
	client := exec.CommandContext(ctx, self, o.args(roleClient)...)
	onProcessors(pinned, func() {
		if p.server, err = start(ctx, server); err == nil {
			p.client, err = start(ctx, client)
		}
	})
	if err != nil {
		return p, err
	}
	if err := connect(server.Process.Pid); err != nil {
		return p, err
	}
	if _, err := p.server.ask(command{Do: "serve"}); err != nil {
		return p, err
	}
	return p, routeAll()
}

// profile begins a profile of the server, which stop ends.
func (p *pair) profile(file string) error {
	if file == "" {
		return nil
	}
	p.profiled = true
	_, err := p.server.ask(command{Do: "profile", Profile: file})
	return err
}

// stop ends both, and their network.
func (p *pair) stop() {
	if p.profiled {
		p.server.ask(command{Do: "profile"})
	}
	for _, x := range []*process{p.client, p.server} {
		if x != nil {
			x.stop()
		}
	}
	disconnect()
}
