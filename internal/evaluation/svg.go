package evaluation

import (
	"fmt"
	"html"
	"maps"
	"math"
	"slices"
	"strings"
)

// Measures of a plot, in pixels.
const (
	plotWidth, plotHeight = 720, 400
	left, right           = 64, 24
	top, bottom           = 56, 96
)

const plotStyle = `
    .bg { fill: #ffffff }
    text { font: 12px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; fill: #1f2328 }
    .title { font-size: 15px; font-weight: bold }
    .grid { stroke: #d1d9e0; stroke-width: 1 }
    .axis { stroke: #59636e; stroke-width: 1 }
    .p50, .p99 { fill: none; stroke-width: 2 }
    .p99 { stroke-dasharray: 6 4 }
    .ro { stroke: #0969da } .ro.dot { fill: #0969da }
    .relay { stroke: #bc4c00 } .relay.dot { fill: #bc4c00 }
    @media (prefers-color-scheme: dark) {
      .bg { fill: #0d1117 }
      text { fill: #e6edf3 }
      .grid { stroke: #30363d } .axis { stroke: #9198a1 }
      .ro { stroke: #58a6ff } .ro.dot { fill: #58a6ff }
      .relay { stroke: #f0883e } .relay.dot { fill: #f0883e }
    }
`

// Plot draws a curve: medians as lines, 99th percentiles dashed. It is a picture
// that needs nothing else, and follows the reader's choice of light or dark. It is
// nil if there are no points.
func (r *Result) Plot(c *Curve) []byte {
	var xs []float64
	least, most := math.Inf(1), 0.0
	lines := make(map[string][]Row)
	for client := range Clients {
		rows := r.points(c.Name, client)
		if len(rows) == 0 {
			continue
		}
		lines[client] = rows
		for _, row := range rows {
			xs = append(xs, *row.X)
			least, most = min(least, row.P50, row.P99), max(most, row.P50, row.P99)
		}
	}
	if len(xs) == 0 {
		return nil
	}
	slices.Sort(xs)
	xs = slices.Compact(xs)
	p := plot{xs: xs, log: c.Log}
	p.least, p.most = decades(least, most)
	p.put(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" role="img">`, plotWidth, plotHeight, plotWidth, plotHeight)
	p.put(`<title>%s</title>`, html.EscapeString(c.Title))
	p.put(`<style>%s</style>`, plotStyle)
	p.put(`<rect class="bg" width="%d" height="%d"/>`, plotWidth, plotHeight)
	p.put(`<text class="title" x="%d" y="30">%s</text>`, left, html.EscapeString(c.Title))
	p.axes(c.X)
	for i, client := range slices.Sorted(maps.Keys(lines)) {
		p.line(client, "p50", lines[client], func(row Row) float64 { return row.P50 })
		p.line(client, "p99", lines[client], func(row Row) float64 { return row.P99 })
		x, y := left+i*320, plotHeight-22
		p.put(`<path class="p50 %s" d="M%d %d h28"/><text x="%d" y="%d">%s, p50</text>`, client, x, y-4, x+34, y, Clients[client])
		p.put(`<path class="p99 %s" d="M%d %d h28"/><text x="%d" y="%d">p99</text>`, client, x+196, y-4, x+230, y)
	}
	p.put(`</svg>`)
	return []byte(p.b.String())
}

// Sheet is all plots in one picture, one below the other.
func (r *Result) Sheet() []byte {
	var inner strings.Builder
	y := 0
	for i := range Curves {
		if b := r.Plot(&Curves[i]); b != nil {
			inner.WriteString(strings.Replace(string(b), "<svg ", fmt.Sprintf(`<svg y="%d" `, y), 1))
			y += plotHeight
		}
	}
	return fmt.Appendf(nil, "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\">\n%s</svg>\n", plotWidth, max(y, 1), inner.String())
}

// decades are powers of ten below and above all values.
func decades(least, most float64) (first, last int) {
	const smallest = 1e-3 // a microsecond
	least, most = max(least, smallest), max(most, smallest)
	first = int(math.Floor(math.Log10(least)))
	return first, max(first+1, int(math.Ceil(math.Log10(most))))
}

type plot struct {
	b           strings.Builder
	xs          []float64
	log         bool
	least, most int // of y, which is logarithmic: powers of ten
}

func (p *plot) put(format string, args ...any) {
	fmt.Fprintf(&p.b, format+"\n", args...)
}

func (p *plot) x(v float64) float64 {
	scale := func(v float64) float64 { return v }
	if p.log {
		scale = func(v float64) float64 { return math.Log(max(v, 1)) }
	}
	first, last := scale(p.xs[0]), scale(p.xs[len(p.xs)-1])
	if last == first {
		return left
	}
	return left + (scale(v)-first)/(last-first)*(plotWidth-left-right)
}

func (p *plot) y(v float64) float64 {
	v = max(math.Log10(max(v, 1e-9)), float64(p.least))
	return plotHeight - bottom - (v-float64(p.least))/float64(p.most-p.least)*(plotHeight-top-bottom)
}

func (p *plot) axes(xLabel string) {
	for i := p.least; i <= p.most; i++ {
		v := math.Pow10(i)
		p.put(`<path class="grid" d="M%d %.1f H%d"/><text x="%d" y="%.1f" text-anchor="end">%g</text>`, left, p.y(v), plotWidth-right, left-8, p.y(v)+4, v)
	}
	p.put(`<text x="%d" y="%d" text-anchor="end">ms</text>`, left-8, top-12)
	before := math.Inf(-1)
	for _, v := range p.xs {
		x := p.x(v)
		p.put(`<path class="axis" d="M%.1f %d v6"/>`, x, plotHeight-bottom)
		if x-before < 34 {
			continue // no room for what it is
		}
		before = x
		p.put(`<text x="%.1f" y="%d" text-anchor="middle">%g</text>`, x, plotHeight-bottom+20, v)
	}
	p.put(`<path class="axis" d="M%d %d H%d"/>`, left, plotHeight-bottom, plotWidth-right)
	p.put(`<text x="%d" y="%d" text-anchor="middle">%s</text>`, (left+plotWidth-right)/2, plotHeight-bottom+42, html.EscapeString(xLabel))
}

func (p *plot) line(client, class string, rows []Row, value func(Row) float64) {
	var d strings.Builder
	for i, row := range rows {
		fmt.Fprintf(&d, "%s%.1f %.1f", map[bool]string{true: "M", false: " L"}[i == 0], p.x(*row.X), p.y(value(row)))
	}
	p.put(`<path class="%s %s" d="%s"/>`, class, client, d.String())
	for _, row := range rows {
		p.put(`<circle class="%s dot" cx="%.1f" cy="%.1f" r="3"/>`, client, p.x(*row.X), p.y(value(row)))
	}
}
