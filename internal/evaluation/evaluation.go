// Package evaluation is what `ds bench handoff` has to say: rows as JSON, as a
// table, as plots, and as docs/evaluation.md, which repeats figures 4 and 5 of the
// report of 2009 and goes on where it ended. What is measured here comes in as
// rows; internal/bedbench measures.
package evaluation

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// Row is one figure: the median and the 99th percentile of its samples. Of a rate
// P99 is what 99 of 100 samples reach.
type Row struct {
	Name string  `json:"name"`
	P50  float64 `json:"p50"`
	P99  float64 `json:"p99"`
	Unit string  `json:"unit"`

	// Then is the figure of the report of 2009 for its new system; null: it has
	// none. Before is that of the system which it replaced.
	Then   *float64 `json:"then"`
	Before *float64 `json:"before,omitempty"`

	Samples int `json:"samples"`

	// Of a point of a curve: which one, of which kind of client, and where.
	Curve  string   `json:"curve,omitempty"`
	Client string   `json:"client,omitempty"`
	X      *float64 `json:"x,omitempty"`
}

// Missing is a row that could not be measured. "curve" and a name are all points of
// one, "*" is everything.
type Missing struct {
	Name string `json:"name"`
	Why  string `json:"why"`
}

// Machine is where it was measured, and how busy that was.
type Machine struct {
	Processors int        `json:"processors"`
	Model      string     `json:"model,omitempty"`
	Kernel     string     `json:"kernel"`
	Go         string     `json:"go"`
	Before     [3]float64 `json:"load_before"` // of 1, 5 and 15 minutes
	After      [3]float64 `json:"load_after"`
}

// Result is an evaluation.
type Result struct {
	Rows    []Row     `json:"rows"`
	Missing []Missing `json:"missing,omitempty"`
	Notes   []string  `json:"notes,omitempty"`
	Command string    `json:"command,omitempty"`
	Version string    `json:"version,omitempty"`
	Machine Machine   `json:"machine"`
}

// Names of the rows that every evaluation has, or says why not.
var Names = []string{
	"gap_local_ms", "gap_lan_ro_ms", "gap_lan_relay_ms", "cpu_donate_us", "cpu_receive_us",
	"handoffs_per_s", "cpu_donate_relayed_us", "cpu_receive_relayed_us", "handoffs_relayed_per_s", "client_1000_conns_ms", "drain_10000_clients_s", "drain_bulk_kept",
}

// A Curve is a row for each of its points.
type Curve struct {
	Name  string
	Title string
	X     string // what its axis is
	Unit  string // of the points, in the names of rows
	Log   bool   // the axis is logarithmic

	Points []float64
	Quick  []float64 // enough to see that it works
	About  string    // for the document
}

// Curves are all there are. Their times are in milliseconds.
var Curves = []Curve{
	{
		Name: "queued", Title: "Gap against queued data", X: "unsent data at the donor (KiB)", Unit: "KiB",
		Points: []float64{0, 64, 256, 1024, 2048, 4096}, Quick: []float64{0, 256},
		About: `The client has a second connection, from which it does not read: what the
application has written to it waits at the donor, and moves along.`,
	},
	{
		Name: "connections", Title: "Gap against the number of connections", X: "connections of the client", Unit: "conns", Log: true,
		Points: []float64{1, 10, 30, 100, 300, 1000}, Quick: []float64{1, 10},
		About: `All of them move at once, or none. One of them asks, the others are idle.`,
	},
	{
		Name: "delay", Title: "Gap against the delay between client and servers", X: "one-way delay (ms)", Unit: "ms",
		Points: []float64{0, 5, 10, 20, 50, 100}, Quick: []float64{0, 5},
		About: `The client asks each millisecond and does not wait for answers, so packets of
both nodes are on the way at any time, and without a handoff they come a millisecond
apart.`,
	},
	{
		Name: "loss", Title: "Gap against loss", X: "lost packets (%), each way", Unit: "pct",
		Points: []float64{0, 0.1, 0.5, 1, 2, 5}, Quick: []float64{0, 1},
		About: `As before, with 5 ms one-way delay. A lost packet is repeated after a round trip
or after a timeout, handoff or not, which is what most of the 99th percentiles show.`,
	},
}

// Clients are the kinds of clients, as they are in rows and in plots.
var Clients = map[string]string{"ro": "route optimised", "relay": "relayed"}

// Add adds a row with its quantiles. higher says that a sample is better if it is
// greater.
func (r *Result) Add(row Row, samples []float64, higher bool) {
	s := slices.Sorted(slices.Values(samples))
	row.Samples = len(s)
	row.P50, row.P99 = quantile(s, 0.5), quantile(s, 0.99)
	if higher {
		row.P99 = quantile(s, 0.01)
	}
	r.Rows = append(r.Rows, row)
}

// quantile is of sorted samples, the greater of two neighbours.
func quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return math.NaN()
	}
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

// Point is the row of a point of a curve, without its figures.
func (c *Curve) Point(client string, x float64) Row {
	return Row{Name: fmt.Sprintf("gap_%s_%s_%g%s_ms", client, c.Name, x, c.Unit), Unit: "ms", Curve: c.Name, Client: client, X: &x}
}

// Row finds a row.
func (r *Result) Row(name string) (Row, bool) {
	i := slices.IndexFunc(r.Rows, func(row Row) bool { return row.Name == name })
	if i < 0 {
		return Row{}, false
	}
	return r.Rows[i], true
}

// Has tells whether there is a row of a name, or of "curve" and a name any point.
func (r *Result) Has(name string) bool {
	if curve, ok := strings.CutPrefix(name, "curve "); ok {
		return slices.ContainsFunc(r.Rows, func(row Row) bool { return row.Curve == curve })
	}
	_, ok := r.Row(name)
	return ok
}

// missing is why there is no row, "" if nobody says.
func (r *Result) missing(name string) string {
	for _, m := range r.Missing {
		if m.Name == name || m.Name == "*" {
			return m.Why
		}
	}
	return ""
}

// Check tells what is wrong with a result: a row that is neither there nor said to
// be missing, one that is there twice, a figure that is none.
func (r *Result) Check() error {
	var wrong []string
	for _, name := range Names {
		if !r.Has(name) && r.missing(name) == "" {
			wrong = append(wrong, "no row "+name)
		}
	}
	for _, c := range Curves {
		if name := "curve " + c.Name; !r.Has(name) && r.missing(name) == "" {
			wrong = append(wrong, "no "+name)
		}
	}
	names := make(map[string]bool)
	for _, row := range r.Rows {
		if names[row.Name] {
			wrong = append(wrong, "two rows "+row.Name)
		}
		names[row.Name] = true
		for _, v := range []float64{row.P50, row.P99} {
			if math.IsNaN(v) || math.IsInf(v, 0) || v < 0 {
				wrong = append(wrong, fmt.Sprintf("%s is %g", row.Name, v))
			}
		}
	}
	if len(wrong) > 0 {
		return fmt.Errorf("evaluation: %s", strings.Join(wrong, ", "))
	}
	return nil
}

// points are those of a curve and a kind of client, in order.
func (r *Result) points(curve, client string) (rows []Row) {
	for _, row := range r.Rows {
		if row.Curve == curve && row.Client == client && row.X != nil {
			rows = append(rows, row)
		}
	}
	slices.SortFunc(rows, func(a, b Row) int {
		switch {
		case *a.X < *b.X:
			return -1
		case *a.X > *b.X:
			return 1
		}
		return 0
	})
	return rows
}
