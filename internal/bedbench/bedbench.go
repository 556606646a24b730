package bedbench

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Options say what to measure.
type Options struct {
	// Programs is the directory of dsco and ds. Required.
	Programs string

	// App are the arguments with which ds is the application ([Serve]). Required.
	App []string `json:"-"`

	// Local are the arguments with which ds is a worker ([LocalServe]); its number
	// follows. Evaluate requires it.
	Local []string `json:"-"`

	// Handoffs is how many there are of each kind; default 1000.
	Handoffs int

	// Rounds and Duration are those of the samples of data rates; default 7 and
	// 1 s.
	Rounds   int
	Duration time.Duration

	// Quick is for tests of what is measured, not of figures: little of everything.
	Quick bool

	// Rows are the names of those that Run measures; default all.
	Rows []string

	// Parts are those that Evaluate has; default all.
	Parts []string

	// Progress, if not nil, is told what is being measured.
	Progress func(what string) `json:"-"`
}

// Parts of an evaluation.
var Parts = []string{"local", "gaps", "cost", "links", "drain"}

// Names of what can be measured.
var Names = []string{"relay_bulk", "lan_gap", "lan_gap_relay"}

func (o *Options) setDefaults() error {
	o.Handoffs = cmp.Or(o.Handoffs, 1000)
	o.Rounds = cmp.Or(o.Rounds, 7)
	o.Duration = cmp.Or(o.Duration, time.Second)
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	if len(o.Rows) == 0 {
		o.Rows = Names
	}
	switch {
	case o.Programs == "" || len(o.App) == 0:
		return errors.New("bedbench: Options.Programs and Options.App are required")
	case o.Handoffs < 1 || o.Rounds < 1 || o.Duration < 10*time.Millisecond:
		return fmt.Errorf("bedbench: %d handoffs, %d rounds of %v: too few", o.Handoffs, o.Rounds, o.Duration)
	}
	for _, r := range o.Rows {
		if !slices.Contains(Names, r) {
			return fmt.Errorf("bedbench: no row %q; there are %v", r, Names)
		}
	}
	for _, p := range o.Parts {
		if !slices.Contains(Parts, p) {
			return fmt.Errorf("bedbench: no part %q; there are %v", p, Parts)
		}
	}
	return nil
}

// Row is one figure.
type Row struct {
	Name   string   `json:"name"`
	Value  float64  `json:"value"`
	Kernel *float64 `json:"kernel"`         // null: the kernel has no such thing
	Ratio  *float64 `json:"ratio"`          // above 1 where Value is better
	Then   *float64 `json:"then,omitempty"` // in the report of 2009
	Unit   string   `json:"unit"`
}

// Result is what was measured.
type Result struct {
	Rows  []Row    `json:"rows"`
	Notes []string `json:"notes,omitempty"`
}

// quantile is of sorted samples.
func quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}
