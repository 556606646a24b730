package demo

import (
	"errors"
	"fmt"
	"slices"
)

// Result is how a run went.
type Result struct {
	Mode     string `json:"mode"`
	Why      string `json:"why"` // this mode
	Handoffs int    `json:"handoffs"`
	Asked    int    `json:"handoffs_asked"`

	Bytes  int64 `json:"bytes"`       // that arrived, both ways
	Wrong  int64 `json:"bytes_wrong"` // lost, doubled or changed
	Resets int   `json:"resets"`

	// Gap is that of all clients, see [Client].
	Gap     Quantiles `json:"gap_ms"`
	Seconds float64   `json:"seconds"` // of the transfers

	Clients []*Client `json:"clients"`

	// Problems are packets that should not have been, such as one from a node
	// to another node's client.
	Problems []string `json:"problems,omitempty"`
}

// Client is what one client has seen.
type Client struct {
	Name string `json:"name"`
	Want string `json:"redirect"` // how its packets were to come: "optimised" or "relayed"

	Handoffs  int `json:"handoffs"`
	Asked     int `json:"handoffs_asked"`
	Optimised int `json:"handoffs_optimised"` // of Handoffs; the others were relayed

	Down   Body `json:"down"`
	Up     Body `json:"up"`
	Resets int  `json:"resets"`

	// Gap is what the client sees: for each handoff, the longest time between
	// two arrivals of data that overlaps it. Only those count in which the client
	// was reading all the time; Seen is how many.
	Gap  Quantiles `json:"gap_ms"`
	Seen int       `json:"gaps_seen"`
	// Otherwise is the same for times as long in which nothing moves: what the
	// machine's scheduling alone does.
	Otherwise Quantiles `json:"otherwise_ms"`

	Stages []Stage   `json:"stages"`
	Frozen Quantiles `json:"frozen_ms"` // from the freeze until the target was live
	// Carried is what travels in one handoff, in octets: connections, and what
	// the application knows of them.
	Carried Quantiles `json:"carried_bytes"`

	gaps []float64
}

// Stage is how long a part of the handoffs took; see ds.Report.
type Stage struct {
	Stage string    `json:"stage"`
	Took  Quantiles `json:"ms"`
}

// Body is about a download or an upload.
type Body struct {
	Bytes   int64  `json:"bytes"`       // that arrived
	Wrong   int64  `json:"bytes_wrong"` // lost, doubled or changed
	SHA256  string `json:"sha256"`
	Checked bool   `json:"sha256_ok"` // that of what was sent
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

// sum adds up what the clients have seen.
func (r *Result) sum() {
	var gaps []float64
	for _, c := range r.Clients {
		r.Handoffs += c.Handoffs
		r.Bytes += c.Down.Bytes + c.Up.Bytes
		r.Wrong += c.Down.Wrong + c.Up.Wrong
		r.Resets += c.Resets
		gaps = append(gaps, c.gaps...)
	}
	r.Gap = quantiles(gaps)
}

// Err is nil if all went well: as many handoffs as asked, each client's packets
// redirected as they were to be, no octet wrong, no reset.
func (r *Result) Err() error {
	var errs []error
	if r.Handoffs < r.Asked {
		errs = append(errs, fmt.Errorf("demo: %d handoffs instead of %d", r.Handoffs, r.Asked))
	}
	checked := true
	for _, c := range r.Clients {
		checked = checked && c.Down.Checked && c.Up.Checked
		if want := c.Want == "optimised"; want != (c.Optimised > 0) {
			errs = append(errs, fmt.Errorf("demo: %s was to be %s, and %d of %d handoffs were optimised", c.Name, c.Want, c.Optimised, c.Handoffs))
		}
	}
	if r.Wrong != 0 || !checked {
		errs = append(errs, fmt.Errorf("demo: %d octets were lost, doubled or changed; checksums right: %t", r.Wrong, checked))
	}
	if r.Resets != 0 {
		errs = append(errs, fmt.Errorf("demo: %d resets", r.Resets))
	}
	if len(r.Problems) > 0 {
		errs = append(errs, fmt.Errorf("demo: %s", r.Problems[0]))
	}
	return errors.Join(errs...)
}
