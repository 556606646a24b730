package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/distributed-servers/ds/internal/probe"
)

// The modes of a run.
const (
	Auto       = "auto" // Namespaces where that can be had, else Memory
	Namespaces = "namespaces"
	Memory     = "memory"
)

// DefaultHandoffs is how many handoffs a demo has.
const DefaultHandoffs = 60

// Options say what to run. The zero value is the default, in memory.
type Options struct {
	Mode     string `json:"mode"`     // default Auto
	Size     int64  `json:"size"`     // octets each way of each client; default: what takes Duration
	Handoffs int    `json:"handoffs"` // of both clients together; default DefaultHandoffs

	// Duration is how long the transfers are to take, about, if there is no
	// Size. Default 10 s.
	Duration time.Duration `json:"duration"`

	// Programs is the directory of dsco and of this program, App the name and
	// the arguments of this one with which it runs [App], and Inside the
	// arguments with which it runs [Inside]. Namespaces need all of them.
	Programs string   `json:"programs"`
	App      []string `json:"app"`
	Inside   []string `json:"-"`

	// Say, if not nil, is told why a mode is not possible.
	Say func(string) `json:"-"`

	// Progress, if not nil, is called about ten times a second.
	Progress func(Progress) `json:"-"`
}

// Check tells what is wrong with the options, and whether a mode that was asked
// for is possible.
func (o Options) Check() error {
	if err := o.setDefaults(); err != nil {
		return err
	}
	if o.Mode == Namespaces {
		return possible(&o)
	}
	return nil
}

func (o *Options) setDefaults() error {
	if o.Mode == "" {
		o.Mode = Auto
	}
	if !slices.Contains([]string{Auto, Namespaces, Memory}, o.Mode) {
		return fmt.Errorf("demo: mode %q: want %s, %s or %s", o.Mode, Auto, Namespaces, Memory)
	}
	if o.Handoffs == 0 {
		o.Handoffs = DefaultHandoffs
	}
	if o.Duration == 0 {
		o.Duration = 10 * time.Second
	}
	if o.Handoffs < clients || o.Size < 0 || o.Duration < 0 {
		return fmt.Errorf("demo: %d handoffs, %d octets, %v: want %d handoffs or more, and neither size nor duration below 0", o.Handoffs, o.Size, o.Duration, clients)
	}
	if least := o.leastSize(); o.Size > 0 && o.Size < least {
		return fmt.Errorf("demo: %d octets are too few for %d handoffs: use %d or more, or fewer handoffs", o.Size, o.Handoffs, least)
	}
	if o.Say == nil {
		o.Say = func(string) {}
	}
	if o.Progress == nil {
		o.Progress = func(Progress) {}
	}
	return nil
}

// clients is how many there are: one whose route is optimised, one relayed.
const clients = 2

// minStep is the least octets between two handoffs, each way.
const minStep = 4 << 10

// share is how many of the handoffs are a client's, from 0.
func (o *Options) share(client int) int { return (o.Handoffs + clients - 1 - client) / clients }

// leastSize is the least size for so many handoffs.
func (o *Options) leastSize() int64 { return int64(o.share(0)+1) * minStep }

// Progress is how far a run is.
type Progress struct {
	Mode     string  `json:"mode"`
	Seconds  float64 `json:"seconds"`
	Handoffs int     `json:"handoffs"`
	Of       int     `json:"of"`
	Bytes    int64   `json:"bytes"` // of both clients, both ways
	Total    int64   `json:"total"` // 0: not known yet
}

// timeLimit bounds a run.
const timeLimit = 50 * time.Second

// Run runs the demo. An error means that it could not be carried through; how
// it went is for [Result.Err] to say.
func Run(ctx context.Context, o Options) (*Result, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeLimit, fmt.Errorf("demo: not done after %v; use a smaller --size, or fewer --handoffs", timeLimit))
	defer cancel()
	res, err := run(ctx, &o)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause
	}
	return res, err
}

func run(ctx context.Context, o *Options) (*Result, error) {
	auto, why := o.Mode == Auto, "asked for"
	if o.Mode != Memory {
		err := possible(o)
		var res *Result
		if err == nil {
			if auto {
				why = "this machine has network namespaces, TUN, Netfilter queues and ip6tables"
			}
			o.Mode = Namespaces
			res, err = runNamespaces(ctx, o)
		}
		if !auto || !errors.As(err, new(impossible)) {
			return because(res, why), err
		}
		why = strings.TrimPrefix(err.Error(), "demo: ")
		o.Say(why)
	}
	o.Mode = Memory
	res, err := runMemory(ctx, o)
	return because(res, why), err
}

func because(r *Result, why string) *Result {
	if r != nil {
		r.Why = why
	}
	return r
}

// impossible says why there are no namespaces with a distributed server in them.
type impossible struct{ why string }

func (i impossible) Error() string { return "demo: no daemons in namespaces: " + i.why }

// possible tells whether this machine can have them.
func possible(o *Options) error {
	if o.Programs == "" || len(o.App) == 0 || len(o.Inside) == 0 {
		return impossible{"Options.Programs, App and Inside are not set"}
	}
	if _, err := os.Stat(filepath.Join(o.Programs, "dsco")); err != nil {
		return impossible{"there is no dsco beside ds in " + o.Programs + "; make build makes both"}
	}
	for _, name := range []probe.Name{probe.NetNS, probe.TUN, probe.NFQueue, probe.Program("ip6tables")} {
		if r := probe.Check(name); !r.OK {
			return impossible{r.String()}
		}
	}
	return nil
}
