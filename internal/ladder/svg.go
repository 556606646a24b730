package ladder

import (
	"encoding/xml"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// Measures of the SVG, in pixels. The font is of fixed width, so that the
// length of a label is known without measuring it.
const (
	charWidth  = 7.25 // of 12 pixels of a monospaced font: 0.6 em, and a bit
	marginLeft = 96   // for the time
	margin     = 24
	laneWidth  = 190
	headHeight = 64
	titleSpace = 34
	rowHeight  = 30
	markHeight = 22
	footHeight = 46
)

// SVG renders the diagram as a picture that needs nothing else: no script, no
// font, no other file. It follows the reader's choice of light or dark.
func (d *Diagram) SVG() []byte {
	s := svg{Diagram: d, list: d.rows(), lane: laneWidth}
	longest := utf8.RuneCountInString(d.Title)
	for _, r := range s.list {
		longest = max(longest, utf8.RuneCountInString(r.Label))
	}
	for _, h := range d.Hosts {
		s.lane = max(s.lane, textWidth(h)+margin)
	}
	s.width = marginLeft + s.lane*float64(len(d.Hosts)) + margin
	// What is longer than all columns still fits.
	s.width = max(s.width, marginLeft+charWidth*float64(longest)+2*margin, legendWidth+marginLeft+margin)
	s.top = headHeight
	if d.Title != "" {
		s.top += titleSpace
	}
	y := s.top
	for _, r := range s.list {
		h := float64(rowHeight)
		if r.kind != isEvent {
			h = markHeight
		}
		s.y = append(s.y, y+h*2/3)
		y += h
	}
	s.bottom = y + 10
	s.height = s.bottom + footHeight
	s.draw()
	return []byte(s.b.String())
}

type svg struct {
	*Diagram
	b    strings.Builder
	list []row
	y    []float64 // where each row's arrow is

	lane, width, height float64
	top, bottom         float64 // of the lifelines
}

const style = `
    .bg { fill: #ffffff }
    text { font: 12px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; fill: #1f2328 }
    .title { font-size: 15px; font-weight: bold }
    .host { font-weight: bold; text-anchor: middle }
    .box { fill: #f6f8fa; stroke: #8c959f }
    .life { stroke: #afb8c1; stroke-width: 1 }
    .time { fill: #59636e; text-anchor: end }
    .halo { stroke: #ffffff; stroke-width: 5px; stroke-linejoin: round; fill: none }
    .line { fill: none; stroke-width: 1.6 }
    .inside { fill: none; stroke: #ffffff; stroke-width: 1.6 }
    .data.line { stroke: #0969da } .data.head { fill: #0969da }
    .signal.line { stroke: #1a7f37 } .signal.head { fill: #1a7f37 }
    .error.line { stroke: #cf222e; stroke-dasharray: 5 3 } .error.head { fill: #cf222e }
    .note.head { fill: #8250df }
    .tunnel.line { stroke-width: 5; stroke-dasharray: none }
    .lost { stroke: #cf222e; stroke-width: 2.2; fill: none }
    .mark { fill: #fff4c6 } .marked .halo, .marked .inside { stroke: #fff4c6 }
    .edge { stroke: #9a6700; stroke-width: 1.4; stroke-dasharray: 2 3 }
    .marked-host { stroke: #bf8700; stroke-width: 5 }
    .gap { fill: #7d4e00; font-weight: bold }
    @media (prefers-color-scheme: dark) {
      .bg { fill: #0d1117 }
      text { fill: #e6edf3 }
      .box { fill: #161b22; stroke: #6e7681 }
      .life { stroke: #484f58 }
      .time { fill: #9198a1 }
      .halo { stroke: #0d1117 }
      .inside { stroke: #0d1117 }
      .data.line { stroke: #58a6ff } .data.head { fill: #58a6ff }
      .signal.line { stroke: #3fb950 } .signal.head { fill: #3fb950 }
      .error.line { stroke: #ff7b72 } .error.head { fill: #ff7b72 }
      .note.head { fill: #d2a8ff }
      .lost { stroke: #ff7b72 }
      .mark { fill: #392c11 } .marked .halo, .marked .inside { stroke: #392c11 }
      .edge { stroke: #d29922 }
      .marked-host { stroke: #bb8009 }
      .gap { fill: #e3b341 }
    }
`

func (s *svg) draw() {
	s.put(`<svg xmlns="http://www.w3.org/2000/svg" width="%.0f" height="%.0f" viewBox="0 0 %.0f %.0f" role="img">`,
		s.width, s.height, s.width, s.height)
	title := s.Title
	if title == "" {
		title = "Ladder diagram"
	}
	s.put(`<title>%s</title>`, escape(title))
	s.put(`<style>%s</style>`, style)
	s.put(`<rect class="bg" width="%.0f" height="%.0f"/>`, s.width, s.height)
	if s.Title != "" {
		s.put(`<text class="title" x="%d" y="32">%s</text>`, margin, escape(s.Title))
	}
	s.band()
	s.put(`<text class="time" x="%d" y="%.1f">ms</text>`, marginLeft-16, s.top-26)
	for h, name := range s.Hosts {
		x, w := s.x(h), textWidth(name)+20
		s.put(`<line class="life" x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f"/>`, x, s.top-18, x, s.bottom)
		s.put(`<rect class="box" x="%.1f" y="%.1f" width="%.1f" height="24" rx="5"/>`, x-w/2, s.top-42, w)
		s.put(`<text class="host" x="%.1f" y="%.1f">%s</text>`, x, s.top-26, escape(name))
	}
	for i := range s.list {
		r := &s.list[i]
		s.put(`<text class="time" x="%d" y="%.1f">%s</text>`, marginLeft-16, s.y[i]+4, s.time(r))
		if r.marked {
			s.put(`<g class="marked">`)
		}
		switch {
		case r.kind != isEvent:
			s.put(`<line class="edge" x1="%d" y1="%.1f" x2="%.1f" y2="%.1f"/>`, marginLeft, s.y[i], s.width-margin, s.y[i])
			s.label("gap", r.Label, marginLeft+textWidth(r.Label)/2+4, s.y[i]+4)
		case r.from == r.to:
			s.put(`<circle class="note head" cx="%.1f" cy="%.1f" r="5"/>`, s.x(r.from), s.y[i])
			s.label("", r.Label, s.x(r.from)+12+textWidth(r.Label)/2, s.y[i]+4)
		default:
			s.arrow(r, s.y[i])
		}
		if r.marked {
			s.put(`</g>`)
		}
	}
	s.legend()
	s.put(`</svg>`)
}

// band colours the marked interval, and the line of its host.
func (s *svg) band() {
	var from, to float64
	for i := range s.list {
		switch s.list[i].kind {
		case markBegins:
			from = s.y[i]
		case markEnds:
			to = s.y[i]
		}
	}
	if to > from {
		s.put(`<rect class="mark" x="%d" y="%.1f" width="%.1f" height="%.1f"/>`, marginLeft, from, s.width-marginLeft-margin, to-from)
		if h := slices.Index(s.Hosts, s.Mark.Host); h >= 0 {
			s.put(`<line class="marked-host" x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f"/>`, s.x(h), from, s.x(h), to)
		}
	}
}

func (s *svg) arrow(r *row, y float64) {
	from, to := s.x(r.from), s.x(r.to)
	s.label("", r.Label, (from+to)/2, y-7)
	if r.Lost {
		// It ends before it is there.
		x := to - (to-from)/8
		s.put(`<path class="%s line" d="M%.1f %.1fH%.1f"/>`, class(r), from, y, x)
		s.put(`<path class="lost" d="M%.1f %.1fl10 10m0 -10l-10 10"/>`, x-5, y-5)
		return
	}
	s.line(class(r), r.Tunnel, from, to, y)
}

// line draws an arrow; that of a tunnel is a pipe.
func (s *svg) line(class string, tunnel bool, from, to, y float64) {
	tip := 9.0
	if to < from {
		tip = -tip
	}
	if tunnel {
		s.put(`<path class="%s line tunnel" d="M%.1f %.1fH%.1f"/>`, class, from, y, to-tip)
		s.put(`<path class="inside" d="M%.1f %.1fH%.1f"/>`, from, y, to-tip)
	} else {
		s.put(`<path class="%s line" d="M%.1f %.1fH%.1f"/>`, class, from, y, to-tip)
	}
	s.put(`<path class="%s head" d="M%.1f %.1fl%.1f -5v10z"/>`, class, to, y, -tip)
}

// label writes text around x, but inside of the picture. What is behind it is
// covered by a seam in the background's colour.
func (s *svg) label(class, text string, x, y float64) {
	half := textWidth(text) / 2
	x = max(marginLeft+half, min(x, s.width-margin-half)) - half
	t := escape(text)
	s.put(`<text class="halo" x="%.1f" y="%.1f" aria-hidden="true">%s</text>`, x, y, t)
	s.put(`<text class="%s" x="%.1f" y="%.1f">%s</text>`, class, x, y, t)
}

const legendWidth = 500

func (s *svg) legend() {
	y := s.height - 16.0
	x := float64(marginLeft)
	for _, l := range []struct {
		class, name string
		tunnel      bool
	}{{"data", "data", false}, {"signal", "Mobile IPv6", false}, {"error", "error", false}, {"data", "in a tunnel", true}} {
		s.line(l.class, l.tunnel, x, x+34, y)
		s.put(`<text x="%.1f" y="%.1f">%s</text>`, x+42, y+4, l.name)
		x += 42 + textWidth(l.name) + 26
	}
}

func (s *svg) x(host int) float64 { return marginLeft + s.lane*(float64(host)+0.5) }

func (s *svg) put(format string, args ...any) { fmt.Fprintf(&s.b, format+"\n", args...) }

func class(r *row) string {
	switch r.Kind {
	case Signal:
		return "signal"
	case Error:
		return "error"
	case Note:
		return "note"
	}
	return "data"
}

func textWidth(s string) float64 { return charWidth * float64(utf8.RuneCountInString(s)) }

func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a Builder takes everything
	return b.String()
}
