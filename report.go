package ds

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Stage is a part of a handoff, as the picture of the package's documentation
// shows them.
type Stage string

// The stages, in their order.
const (
	StagePrepare  Stage = "prepare"
	StageDrain    Stage = "drain"
	StageFreeze   Stage = "freeze"
	StageExport   Stage = "export"
	StageTransfer Stage = "transfer" // to the target, which goes live, and back
	StageRelease  Stage = "release"
)

// StageTime is how long a stage took.
type StageTime struct {
	Stage    Stage
	Duration time.Duration
}

// Report tells of a handoff that succeeded.
type Report struct {
	Client   netip.Addr
	From, To string

	// Optimised: the target's Binding Update was ready. Otherwise the client is
	// relayed, at least at first.
	Optimised bool

	Connections int // those closed or not yet accepted among them
	Snapshot    int // octets
	State       int // octets of application state

	Stages []StageTime

	// Gap is the time from the freeze until word came that the target is live:
	// the most that the client can have seen, beside what the network's delay
	// adds.
	Gap time.Duration
}

// Mode is "optimised" or "relayed".
func (r *Report) Mode() string {
	if r.Optimised {
		return "optimised"
	}
	return "relayed"
}

// String is the report in one line.
func (r *Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s from %s to %s, %s: %d connections, %d + %d octets, gap %v (",
		r.Client, r.From, r.To, r.Mode(), r.Connections, r.Snapshot, r.State, r.Gap.Round(time.Microsecond))
	for i, s := range r.Stages {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%s %v", s.Stage, s.Duration.Round(time.Microsecond))
	}
	b.WriteByte(')')
	return b.String()
}
