// Package bench measures how fast live connections move, and compares that
// with what the kernel itself offers for it, TCP_REPAIR.
//
// # Method
//
// A client and two nodes, each a netstack, share a network in memory:
//
//	client ── lab ──┬── node 0
//	                └── node 1
//
// A row moves one connection to and fro between the nodes. A sample is the
// wall time of one whole move, Freeze + Export + Import + Discard + Activate,
// on a thread that is pinned to a processor. Meanwhile nothing is on the
// network: the client does not read, and what it sends has no route.
//
// Samples come in chunks, each with a fresh connection, and chunks of ours
// alternate with chunks of the kernel's, so that a busy machine disturbs both
// alike; before each, something that is always the same is timed. After each chunk real octets, to the end of both streams, prove that
// nothing was lost or doubled. The time of each stage and the number of
// allocations come from further moves, so that measuring them costs the
// samples nothing.
//
// In transfers the donor discards when what the network had for it has arrived,
// as word of the new route would tell it that comes the same way; waiting for
// that counts.
package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Defaults of [Options].
const (
	DefaultMoves        = 20000
	DefaultConnections  = 10000
	DefaultRounds       = 7
	DefaultOctets       = 64 << 20
	DefaultPairs        = 5
	DefaultTrafficMoves = 200
)

// Options say how much to measure. The zero value is the default.
type Options struct {
	Moves        int   // in each row; default DefaultMoves
	Connections  int   // in the batch; default DefaultConnections
	Rounds       int   // of the batch; default DefaultRounds
	Octets       int64 // of a transfer, each way; default DefaultOctets
	Pairs        int   // of transfers, with and without moves; default DefaultPairs
	TrafficMoves int   // in a transfer; default DefaultTrafficMoves

	// Worker are the arguments with which this program runs [Worker]. Nil
	// means no comparison with the kernel.
	Worker []string

	// Progress, if not nil, is told what is being measured.
	Progress func(what string)
}

func (o *Options) setDefaults() error {
	for _, n := range []struct {
		name string
		p    *int
		def  int
	}{
		{"moves", &o.Moves, DefaultMoves},
		{"connections", &o.Connections, DefaultConnections},
		{"rounds", &o.Rounds, DefaultRounds},
		{"pairs", &o.Pairs, DefaultPairs},
		{"moves during a transfer", &o.TrafficMoves, DefaultTrafficMoves},
	} {
		if *n.p < 0 {
			return fmt.Errorf("bench: %d %s: want 1 or more", *n.p, n.name)
		}
		if *n.p == 0 {
			*n.p = n.def
		}
	}
	if o.Octets == 0 {
		o.Octets = DefaultOctets
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	return nil
}

// Result is what was measured.
type Result struct {
	Rows []Row `json:"rows"`

	// Pace is the machine's meanwhile.
	Pace Pace `json:"pace_us"`

	// BatchImportsPerS is how many connections one core imports and activates
	// in a second, when many move at once.
	BatchImportsPerS float64 `json:"batch_imports_per_s"`
	Batch            Batch   `json:"batch"`

	// TrafficRatio is the throughput of a transfer both ways with moves
	// divided by that without.
	TrafficRatio float64 `json:"traffic_ratio"`
	Traffic      Traffic `json:"traffic"`

	// Kernel says why there is no comparison with TCP_REPAIR; empty if there
	// is one.
	Kernel string `json:"tcp_repair_missing,omitempty"`
}

// Row is about one connection. Times are in microseconds of one whole move.
type Row struct {
	Name   string  `json:"name"`
	P50    float64 `json:"p50_us"`
	P99    float64 `json:"p99_us"`
	Bytes  int     `json:"bytes"`  // of the snapshot
	Allocs float64 `json:"allocs"` // per move
	Stages Stages  `json:"stages_p50_us"`

	// Of TCP_REPAIR with the same octets in its queues, nil if it is not to be
	// had, and how many times as fast as it we are.
	KernelP50 *float64 `json:"tcp_repair_p50_us"`
	KernelP99 *float64 `json:"tcp_repair_p99_us"`
	Ratio     *float64 `json:"ratio"`
}

// Stages are the medians of the parts of a move, in microseconds. Their sum
// exceeds the whole by what reading the clock in between costs.
type Stages struct {
	Freeze   float64 `json:"freeze"`
	Export   float64 `json:"export"`
	Import   float64 `json:"import"`
	Discard  float64 `json:"discard"`
	Activate float64 `json:"activate"`
}

// Batch is what else is known of the batch: the live heap, in octets.
type Batch struct {
	Connections int    `json:"connections"`
	HeapBefore  uint64 `json:"heap_before"` // before the first move
	HeapPeak    uint64 `json:"heap_peak"`   // both sides have all connections
	HeapAfter   uint64 `json:"heap_after"`  // after the last move
}

// Returned is the part of the heap's growth during a batch that is given back
// after it: 1 is all.
func (b Batch) Returned() float64 {
	if b.HeapPeak <= b.HeapBefore {
		return 1
	}
	return (float64(b.HeapPeak) - float64(b.HeapAfter)) / (float64(b.HeapPeak) - float64(b.HeapBefore))
}

// Traffic is what else is known of the transfers: the medians of both
// directions' throughput together, in megabits per second.
type Traffic struct {
	Moves   int     `json:"moves"`
	Resting float64 `json:"without_moves_mbps"`
	Moving  float64 `json:"with_moves_mbps"`
}

// Run measures everything. It fails when a connection does, or an octet.
func Run(ctx context.Context, o Options) (*Result, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	k, missing := startKernel(ctx, o.Worker)
	defer k.close()
	res := &Result{Kernel: missing}
	pacer := newPacer()
	for _, name := range []string{"idle", "unsent64k", "unread64k"} {
		row, err := measureRow(ctx, &o, name, k, pacer)
		if err != nil {
			return nil, fmt.Errorf("bench: %s: %w", name, err)
		}
		res.Rows = append(res.Rows, *row)
	}
	res.Pace = pacer.pace()
	if err := measureBatch(ctx, &o, res); err != nil {
		return nil, fmt.Errorf("bench: batch: %w", err)
	}
	if err := measureTraffic(ctx, &o, res); err != nil {
		return nil, fmt.Errorf("bench: traffic: %w", err)
	}
	return res, nil
}

var errLost = errors.New("octets were lost, doubled or changed")

// quantile returns the value below which the part q of the samples lies; it
// sorts them.
func quantile(samples []time.Duration, q float64) time.Duration {
	if len(samples) == 0 {
		return 0
	}
	slices.Sort(samples)
	return samples[int(q*float64(len(samples)-1)+0.5)]
}

// micros is d in microseconds, to the nanosecond.
func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }
