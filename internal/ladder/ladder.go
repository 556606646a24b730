// Package ladder shows what hosts sent to each other: a capture file that
// Wireshark reads ([Pcapng]), and a ladder diagram as text and as SVG
// ([Diagram]).
//
// Each host is a column, time goes down, one row is one packet, or a run of
// similar ones. The rows are ordered by time but evenly spaced: in a handoff
// some microseconds are worth as much room as the 50 ms before them.
package ladder

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"time"
)

// Event is a packet, or something that happened at one host.
type Event struct {
	At    time.Duration // when it was sent
	From  string
	To    string // the same as From: nothing is sent
	Label string
	Kind  Kind

	Tunnel bool // it travels in a tunnel
	Lost   bool // it did not arrive

	// Class says what the packet is like. Data of one class, without anything
	// else between but other data, is folded into one row; "": never.
	Class string
}

// Kind is what an event is about; it decides how it is drawn.
type Kind uint8

// Kinds of event.
const (
	Data   Kind = iota // of the application
	Signal             // of Mobile IPv6
	Error              // ICMPv6 errors, resets, Binding Errors
	Note               // no packet: a stage of a handoff, for instance
)

// Interval is a piece of time that is marked.
type Interval struct {
	From, To time.Duration
	Host     string // whose column is marked; "": none
	Label    string // for instance "client-visible gap"
}

// Diagram is a ladder diagram.
type Diagram struct {
	Title  string
	Hosts  []string // the columns, from left to right; events of others are left out
	Events []Event  // in any order

	// From and To limit the events to those of one time window, both ends
	// included. To 0 is no limit.
	From, To time.Duration

	// Origin is the instant that is shown as 0.
	Origin time.Duration

	// Mark is marked, if its To is after its From.
	Mark Interval
}

// row is a line of the diagram: an event, or one end of the marked interval.
type row struct {
	Event
	from, to int // columns
	kind     rowKind
	marked   bool // within the interval, its ends included
	count    int  // packets folded into it
}

type rowKind uint8

const (
	isEvent rowKind = iota
	markBegins
	markEnds
)

// rows puts events and marks in order and folds runs.
func (d *Diagram) rows() []row {
	var rows []row
	for _, e := range d.Events {
		from, to := slices.Index(d.Hosts, e.From), slices.Index(d.Hosts, e.To)
		if from < 0 || to < 0 || e.At < d.From || d.To != 0 && e.At > d.To {
			continue
		}
		rows = append(rows, row{Event: e, from: from, to: to, count: 1})
	}
	if m := d.Mark; m.To > m.From {
		host := slices.Index(d.Hosts, m.Host)
		rows = append(rows,
			row{Event: Event{At: m.From, Label: m.Label + " begins"}, from: host, to: host, kind: markBegins},
			row{Event: Event{At: m.To, Label: fmt.Sprintf("%s: %s ms", m.Label, ms(m.To-m.From))}, from: host, to: host, kind: markEnds})
	}
	// Marks come after events of the same time: an interval begins and ends
	// with a packet.
	slices.SortStableFunc(rows, func(a, b row) int { return cmp.Compare(a.At, b.At) })
	rows = fold(rows)
	in := false
	for i := range rows {
		in = in || rows[i].kind == markBegins
		rows[i].marked = in
		in = in && rows[i].kind != markEnds
	}
	return rows
}

// fold makes one row, at the time of the first, of data packets of the same
// class and way. Both ways of a connection usually take turns, so a run is all
// data up to the next row that is something else.
func fold(rows []row) []row {
	type run struct {
		class        string
		from, to     int
		tunnel, lost bool
	}
	var out []row
	runs := make(map[run]int) // where in out
	for _, r := range rows {
		if r.kind != isEvent || r.Kind != Data || r.Class == "" {
			clear(runs)
			out = append(out, r)
			continue
		}
		k := run{r.Class, r.from, r.to, r.Tunnel, r.Lost}
		if i, ok := runs[k]; ok {
			out[i].count++
			continue
		}
		runs[k] = len(out)
		out = append(out, r)
	}
	for i := range out {
		if r := &out[i]; r.count > 1 {
			r.Label = fmt.Sprintf("%s × %d", r.Class, r.count)
		}
	}
	return out
}

// time is the row's time as it is shown.
func (d *Diagram) time(r *row) string { return ms(r.At - d.Origin) }

// ms writes milliseconds, to the microsecond.
func ms(t time.Duration) string {
	return strconv.FormatFloat(float64(t.Round(time.Microsecond))/float64(time.Millisecond), 'f', 3, 64)
}
