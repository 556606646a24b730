// Package demo hands live HTTP transfers over between two servers, again and
// again, and lets an ordinary client check every octet.
//
// # Theory of operation
//
// A client downloads and uploads at the same time. Its two connections are
// served by one of two nodes; at equal steps of the transfer everything that
// node has moves to the other one, in the middle of both bodies. There are two
// modes with the same node in them. Processes, where the system allows it:
//
//	network namespace
//	┌──────────────────────────────────────────────────────────────┐
//	│  net/http client ── kernel TCP ── TUN ──┬── process A ─┐     │
//	│        (starts and watches the nodes)   └── process B ─┴ UNIX│
//	└──────────────────────────────────────────────────── socket ──┘
//
// Both processes have a descriptor of the same TUN, passed to them over a UNIX
// socket; only the owner of the connections reads from it. In memory,
// elsewhere:
//
//	net/http client ── netstack ── lab ──┬── node A ─┐
//	                                     └── node B ─┴ pipe
//
// # One handoff
//
//	donor                                     target
//	─────                                     ──────
//	drain: send buffers run empty
//	stop the sessions, stop reading packets
//	freeze, export
//	offer: snapshots + sessions ───────────►  import
//	                            ◄───────────  ready, or refused: the donor goes on
//	       ── point of no return ──
//	discard
//	commit: late packets ──────────────────►  activate, start the sessions,
//	                                          read packets
//
// The service is a state machine whose whole state is a few numbers and at
// most a request's head ([session]), which travels as opaque application state
// next to the snapshot.
package demo

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/distributed-servers/ds/internal/probe"
)

// The modes of a run.
const (
	Auto    = "auto" // Process where that can be had, else Memory
	Process = "process"
	Memory  = "memory"
)

// Defaults of [Options].
const (
	DefaultSize     = 256 << 20
	DefaultHandoffs = 48
)

// Options say what to run. The zero value is the default.
type Options struct {
	Mode     string `json:"mode"`     // default Auto
	Size     int64  `json:"size"`     // octets each way; default DefaultSize
	Handoffs int    `json:"handoffs"` // default DefaultHandoffs
	IPv4     bool   `json:"ipv4"`     // instead of IPv6

	// InsideArgs and NodeArgs are the arguments with which this program runs
	// [Inside] and [Node]. Process mode needs both.
	InsideArgs []string `json:"-"`
	NodeArgs   []string `json:"node_args"`

	// Progress, if not nil, is called about ten times a second.
	Progress func(Progress) `json:"-"`
}

func (o *Options) setDefaults() error {
	if o.Mode == "" {
		o.Mode = Auto
	}
	if !slices.Contains([]string{Auto, Process, Memory}, o.Mode) {
		return fmt.Errorf("demo: mode %q: want %s, %s or %s", o.Mode, Auto, Process, Memory)
	}
	if o.Size == 0 {
		o.Size = DefaultSize
	}
	if o.Handoffs == 0 {
		o.Handoffs = DefaultHandoffs
	}
	if o.Handoffs < 0 || o.Size < 0 {
		return fmt.Errorf("demo: %d octets, %d handoffs: want 1 or more", o.Size, o.Handoffs)
	}
	if least := int64(o.Handoffs+1) * minStep; o.Size < least {
		return fmt.Errorf("demo: %d octets are too few for %d handoffs: use %d or more, or fewer handoffs", o.Size, o.Handoffs, least)
	}
	if o.Progress == nil {
		o.Progress = func(Progress) {}
	}
	return nil
}

// minStep is the least octets between two handoffs, each way.
const minStep = 4 << 10

// addrs are the client's address and the service's.
func (o *Options) addrs() (client, service netip.Addr) {
	if o.IPv4 {
		return netip.AddrFrom4([4]byte{192, 0, 2, 10}), netip.AddrFrom4([4]byte{198, 51, 100, 1}) // RFC 5737
	}
	return netip.MustParseAddr("fd00:1::1"), netip.MustParseAddr("fd00:2::1") // RFC 4193
}

// servicePort is where the nodes listen.
const servicePort = 80

// Progress is how far a run is.
type Progress struct {
	Mode     string  `json:"mode"`
	Seconds  float64 `json:"seconds"`
	Handoffs int     `json:"handoffs"`
	Of       int     `json:"of"`
	Bytes    int64   `json:"bytes"` // both ways
	Total    int64   `json:"total"`
}

// Result is how a run went.
type Result struct {
	Mode     string `json:"mode"`
	Why      string `json:"why"` // this mode
	IP       int    `json:"ip"`  // version
	Handoffs int    `json:"handoffs"`
	Asked    int    `json:"handoffs_asked"`

	Bytes    int64  `json:"bytes"`       // that arrived, both ways
	Wrong    int64  `json:"bytes_wrong"` // lost, doubled or changed
	Resets   int    `json:"resets"`
	Checksum string `json:"checksum"` // CRC-32C of each body
	Checked  bool   `json:"checksum_ok"`

	// Gap is what the client sees: for each handoff, the longest time between
	// two arrivals of data that overlaps it.
	Gap Quantiles `json:"gap_ms"`
	// Otherwise is the same for times as long in which nothing moves: what the
	// machine's scheduling alone does.
	Otherwise Quantiles `json:"otherwise_ms"`
	// Handoff is the time from the donor's stop to the target's start.
	Handoff Quantiles `json:"handoff_ms"`
	// Snapshot is how much travels in one handoff, in octets.
	Snapshot Quantiles `json:"snapshot_bytes"`
	Seconds  float64   `json:"seconds"`
}

// Quantiles of a measurement.
type Quantiles struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
}

func quantiles(v []float64) Quantiles {
	if len(v) == 0 {
		return Quantiles{}
	}
	slices.Sort(v)
	at := func(q float64) float64 { return v[int(q*float64(len(v)-1)+0.5)] }
	return Quantiles{at(0.5), at(0.99)}
}

// Err is nil if all went well: as many handoffs as asked, no octet wrong, no
// reset.
func (r *Result) Err() error {
	var errs []error
	if r.Handoffs < r.Asked {
		errs = append(errs, fmt.Errorf("demo: %d handoffs instead of %d", r.Handoffs, r.Asked))
	}
	if r.Wrong != 0 || !r.Checked {
		errs = append(errs, fmt.Errorf("demo: %d octets were lost, doubled or changed", r.Wrong))
	}
	if r.Resets != 0 {
		errs = append(errs, fmt.Errorf("demo: %d resets", r.Resets))
	}
	return errors.Join(errs...)
}

// timeLimit bounds a run.
const timeLimit = 55 * time.Second

// Run runs the demo. An error means that it could not be carried through; how
// it went is for [Result.Err] to say.
func Run(ctx context.Context, o Options) (*Result, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeLimit, fmt.Errorf("demo: not done after %v; use a smaller --size", timeLimit))
	defer cancel()
	why := "asked for"
	if o.Mode == Auto {
		o.Mode, why = choose()
	}
	run := runMemory
	if o.Mode == Process {
		run = runProcess
	}
	res, err := run(ctx, &o)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return nil, err
	}
	res.Mode, res.Why, res.Asked, res.IP = o.Mode, why, o.Handoffs, 6
	if o.IPv4 {
		res.IP = 4
	}
	return res, nil
}

// choose picks the mode, and says why.
func choose() (mode, why string) {
	for _, name := range []probe.Name{probe.NetNS, probe.TUN} {
		if r := probe.Check(name); !r.OK {
			return Memory, "no processes on a TUN: " + r.String()
		}
	}
	return Process, "this machine has network namespaces and TUN"
}
