package ladder

import (
	"strings"
	"unicode/utf8"
)

// Width is how many columns the text of a diagram has at most. What is longer
// is cut.
const Width = 100

const (
	timeWidth = 11 // time, after two columns for the marked interval
	minLane   = 9  // columns of a host
	maxLane   = 14
	minLabel  = 24 // columns that the names of hosts leave to labels
)

// Text renders the diagram with box-drawing characters, at most [Width]
// columns. The title is the first line.
func (d *Diagram) Text() string {
	rows := d.rows()
	longest := 0
	for i := range rows {
		longest = max(longest, utf8.RuneCountInString(rows[i].Label))
	}
	// Labels stand at the right. Hosts take what these leave, or what their
	// names need.
	lane := minLane
	if n := len(d.Hosts); n > 0 {
		room := Width - 2 - timeWidth
		name := 0
		for _, h := range d.Hosts {
			name = max(name, utf8.RuneCountInString(h)+1)
		}
		lane = max((room-longest)/n, min(name, (room-minLabel)/n))
		lane = min(max(lane, minLane), maxLane)
	}
	var b strings.Builder
	line := func(parts ...string) {
		s := strings.Join(parts, "")
		if n := utf8.RuneCountInString(s); n > Width {
			s = string([]rune(s)[:Width-1]) + "…"
		}
		b.WriteString(strings.TrimRight(s, " ") + "\n")
	}
	if d.Title != "" {
		line(d.Title)
		line()
	}
	names := ""
	for _, h := range d.Hosts {
		names += center(h, lane)
	}
	line("  ", right("ms", timeWidth), names)
	line("  ", right("", timeWidth), d.lifelines(lane, nil))
	for i := range rows {
		r := &rows[i]
		bar := "  "
		switch {
		case r.kind == markBegins:
			bar = "┏━"
		case r.kind == markEnds:
			bar = "┗━"
		case r.marked:
			bar = "┃ "
		}
		line(bar, right(d.time(r), timeWidth), d.lifelines(lane, r), r.Label)
	}
	return b.String()
}

// strokes are the characters of an arrow.
type strokes struct{ line, cross, start, left rune }

var (
	dataStrokes   = strokes{'─', '┼', '├', '┤'}
	signalStrokes = strokes{'━', '┿', '┝', '┥'}
	tunnelStrokes = strokes{'═', '╪', '╞', '╡'}
	errorStrokes  = strokes{'╌', '┼', '├', '┤'}
)

// lifelines draws the hosts' columns, and the arrow of r across them.
func (d *Diagram) lifelines(lane int, r *row) string {
	out := []rune(strings.Repeat(" ", lane*len(d.Hosts)))
	at := func(host int) int { return host*lane + (lane-1)/2 }
	for h := range d.Hosts {
		out[at(h)] = '│'
		if r != nil && r.marked && d.Hosts[h] == d.Mark.Host {
			out[at(h)] = '╎'
		}
	}
	switch {
	case r == nil:
	case r.kind != isEvent:
		if r.from >= 0 {
			out[at(r.from)] = '┿'
		}
	case r.from == r.to:
		out[at(r.from)] = '●'
	default:
		s := dataStrokes
		switch {
		case r.Tunnel:
			s = tunnelStrokes
		case r.Kind == Signal:
			s = signalStrokes
		case r.Kind == Error:
			s = errorStrokes
		}
		from, to := at(r.from), at(r.to)
		for i := min(from, to) + 1; i < max(from, to); i++ {
			if out[i] == ' ' {
				out[i] = s.line
			} else {
				out[i] = s.cross
			}
		}
		head := to - 1 // beside the host's line
		out[from] = s.start
		if to < from {
			head, out[from] = to+1, s.left
			out[head] = '◄'
		} else {
			out[head] = '►'
		}
		if r.Lost {
			out[head] = '✗'
		}
	}
	return string(out)
}

func center(s string, width int) string {
	n := utf8.RuneCountInString(s)
	if n >= width {
		s, n = string([]rune(s)[:width-2])+"…", width-1
	}
	before := (width-1)/2 - (n-1)/2
	if before < 0 {
		before = 0
	}
	return strings.Repeat(" ", before) + s + strings.Repeat(" ", width-n-before)
}

func right(s string, width int) string {
	// One column is left free behind it.
	return strings.Repeat(" ", max(0, width-1-utf8.RuneCountInString(s))) + s + " "
}
