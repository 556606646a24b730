// Package netbench measures what steady traffic through this module's data path
// costs, and compares it with the kernel's own TCP on the same path.
//
// # Method
//
//	client                          server
//	kernel TCP ── veth ── veth ─┬── kernel TCP                     "kernel"
//	                            └── TUN, netstack in the process   "value"
//
// Client and server are processes in network namespaces of their own. The
// client's TCP is always the kernel's. The server's process has both services,
// and each sample of ours is taken next to one of the kernel's, with the same
// program on both sides, so that a busy machine disturbs both alike. Values are
// medians of the samples; a ratio is that of the medians, above 1 where ours is
// better.
//
// In the rows whose names begin with ro_ the service is a server node with the
// client bound: type 2 routing headers come in, Home Address options go out. The
// client's part as a correspondent two BPF programs on its interface play
// (internal/kernelro), so no correspondent's user space is in the measured path;
// it needs privilege outside of user namespaces, and is left out without.
//
// In the rows that name a rate of transactions, both processes are pinned to one
// processor: unpinned, a single stream has two modes, with the kernel too.
//
// The idle connections are accepted and kept, and nobody reads from them: their
// memory is what the server's process grows by, resident, after a collection.
// The kernel's is what its slabs grow by, halved, since both ends are in it.
package netbench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Defaults of [Options].
const (
	DefaultRounds   = 7
	DefaultDuration = time.Second
	DefaultIdle     = 10000
)

// Options say what to measure. The zero value, with Worker, is the default.
type Options struct {
	// Worker are the arguments with which this program runs [Worker] with the
	// role that is appended to them. Required.
	Worker []string

	// Rounds is how many samples a row has of each side; default
	// [DefaultRounds].
	Rounds int

	// Duration is how long a sample takes; default [DefaultDuration].
	Duration time.Duration

	// Idle is how many idle connections there are; default [DefaultIdle].
	Idle int

	// Rows are the names of those to measure; default all.
	Rows []string

	// Profile, if not empty, is a file for a CPU profile of the server while
	// it serves ours.
	Profile string

	// Progress, if not nil, is told what is being measured.
	Progress func(what string) `json:"-"`
}

func (o *Options) setDefaults() error {
	if o.Rounds == 0 {
		o.Rounds = DefaultRounds
	}
	if o.Duration == 0 {
		o.Duration = DefaultDuration
	}
	if o.Idle == 0 {
		o.Idle = DefaultIdle
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	switch {
	case o.Worker == nil:
		return errors.New("netbench: Options.Worker is nil; name the arguments that start a worker")
	case o.Rounds < 1:
		return fmt.Errorf("netbench: %d rounds: want 1 or more", o.Rounds)
	case o.Duration < 10*time.Millisecond:
		return fmt.Errorf("netbench: samples of %v: want 10ms or more", o.Duration)
	case o.Idle < 1 || o.Idle > maxIdle:
		return fmt.Errorf("netbench: %d idle connections: want 1 to %d", o.Idle, maxIdle)
	}
	for _, name := range o.Rows {
		if !slices.ContainsFunc(rows, func(r row) bool { return r.name == name }) {
			return fmt.Errorf("netbench: no row %q; there are %s", name, Names())
		}
	}
	return nil
}

// maxIdle leaves ports of the client for the other rows.
const maxIdle = 20000

// Result is what was measured.
type Result struct {
	Rows []Row `json:"rows"`

	// Notes say what the numbers are to be read with, and what is missing.
	Notes []string `json:"notes,omitempty"`
}

// Row is one figure, beside the kernel's.
type Row struct {
	Name   string   `json:"name"`
	Value  float64  `json:"value"`
	Kernel *float64 `json:"kernel"`         // null: the kernel has no such thing
	Ratio  *float64 `json:"ratio"`          // above 1 where Value is better
	Then   *float64 `json:"then,omitempty"` // in the report of 2009
	Unit   string   `json:"unit"`
}

// row is how one is measured.
type row struct {
	name    string
	unit    string
	do      job
	service service // of ours; the kernel's is always serviceKernel
	pinned  bool    // both sides on one processor
	less    bool    // is better
}

// service names what a client speaks to.
type service string

const (
	serviceKernel service = "kernel"
	servicePlain  service = "plain"
	serviceBound  service = "bound" // with route optimisation
)

// job is what a client does in a sample.
type job struct {
	Kind    kind
	Streams int
}

type kind string

const (
	kindUp      kind = "up"      // the client sends as fast as it can
	kindDown    kind = "down"    // the server does
	kindEcho    kind = "echo"    // 64 octets there and back, one after the other
	kindConnect kind = "connect" // connect, 64 octets there and back, close
	kindIdle    kind = "idle"    // connections that do nothing
)

var rows = []row{
	{name: "bulk_up", unit: "Gbit/s", do: job{kindUp, 1}, service: servicePlain},
	{name: "bulk_down", unit: "Gbit/s", do: job{kindDown, 1}, service: servicePlain},
	{name: "bulk_up_4", unit: "Gbit/s", do: job{kindUp, 4}, service: servicePlain},
	{name: "bulk_down_4", unit: "Gbit/s", do: job{kindDown, 4}, service: servicePlain},
	{name: "ro_bulk_up", unit: "Gbit/s", do: job{kindUp, 1}, service: serviceBound},
	{name: "ro_bulk_down", unit: "Gbit/s", do: job{kindDown, 1}, service: serviceBound},
	{name: "rr64_per_s", unit: "1/s", do: job{kindEcho, 1}, service: servicePlain, pinned: true},
	{name: "conn_per_s", unit: "1/s", do: job{kindConnect, 1}, service: servicePlain, pinned: true},
	{name: "idle_kb_per_conn", unit: "kB", do: job{kindIdle, 1}, service: servicePlain, less: true},
}

// Names returns the names of the rows.
func Names() (names []string) {
	for _, r := range rows {
		names = append(names, r.name)
	}
	return names
}

// result makes a row of its samples.
func (r row) result(ours, kernel []float64) Row {
	v, k := median(ours), median(kernel)
	ratio := v / k
	if r.less {
		ratio = k / v
	}
	return Row{Name: r.name, Value: v, Kernel: &k, Ratio: &ratio, Unit: r.unit}
}

// median sorts the samples.
func median(samples []float64) float64 {
	if len(samples) == 0 {
		return 0
	}
	slices.Sort(samples)
	return samples[len(samples)/2]
}

// Run measures everything, in namespaces of its own.
func Run(ctx context.Context, o Options) (*Result, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	return run(ctx, &o)
}
