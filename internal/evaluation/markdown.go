package evaluation

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
)

// what the rows are, for people.
var about = map[string]string{
	"gap_local_ms":           "process to process on one machine",
	"gap_lan_ro_ms":          "node to node, the client route optimised",
	"gap_lan_relay_ms":       "node to node, the client relayed by the contact",
	"cpu_donate_us":          "to donate a client with one connection",
	"cpu_receive_us":         "to receive it",
	"handoffs_per_s":         "clients handed off in a second, from one node to another",
	"cpu_donate_relayed_us":  "to donate a relayed client",
	"cpu_receive_relayed_us": "to receive it",
	"handoffs_relayed_per_s": "relayed clients handed off in a second",
	"client_1000_conns_ms":   "gap of a client with 1000 connections, which move at once",
	"drain_10000_clients_s":  "to empty a node of 10 000 clients",
	"drain_bulk_kept":        "of another client's throughput, meanwhile",
}

// aims are those of the project, and whether less is better.
var aims = map[string]struct {
	p50, p99 float64 // 0: none
	more     bool
}{
	"gap_local_ms":           {0.3, 1, false},
	"gap_lan_ro_ms":          {1, 3, false},
	"gap_lan_relay_ms":       {1, 0, false},
	"handoffs_per_s":         {5000, 0, true},
	"handoffs_relayed_per_s": {5000, 0, true},
	"client_1000_conns_ms":   {60, 0, false},
	"drain_10000_clients_s":  {10, 0, false},
	"drain_bulk_kept":        {0.8, 0, true},
}

// Markdown is the document. plots is the directory of the pictures, as seen from
// it.
func (r *Result) Markdown(plots string) []byte {
	d := new(document)
	d.put(`# Evaluation

<!-- Written by %s: do not edit. -->

What handoffs cost, measured with the real programs on one machine, beside the
report of 2009: its figures 4 and 5 are repeated, and then what it did not measure.
"Old" is the system that the one of the report replaced, "new" that of the report;
both ran on machines of that time, connected by a real network.

    %s

measured it, which also wrote this page: %s.
`, "`ds bench handoff --markdown`", r.Command, r.machine())
	d.put("%s", `
Hosts are network namespaces on one machine, and links are pairs of interfaces, or
go through this program where they have delay or loss. All programs are the real
ones: dsco as home agent, as node and as correspondent, an application that answers, both
with the timer slack that systemd's units give them ([operate.md](operate.md)), and clients
with the kernel's TCP. The programs of a node have processors of their own, as a machine's
have, and so has each of the two processes of a handoff within a machine: of two processors
the donor has one, the target the other. All else shares them,
and what the kernel does for the hosts of clients, and for the router, counts as done by the
program that has sent to them.
`)
	d.put("%s", `
## What the client sees (figure 4)

A client asks and is answered, 64 octets each, one after the other. The gap is the
time from the last packet of the donor to the first of the target, as the capture on
the client's interface has them, stamped by the kernel. Without a handoff it is what
an exchange takes.
`)
	d.table(r, "ms", "gap_local_ms", "gap_lan_ro_ms", "gap_lan_relay_ms")
	d.put("%s", `
## What it costs (figure 5)

Processor time of a node, its dsco and its application together, everything
included: TLS between the nodes, Mobile IPv6, the messages between application and
daemon. Many clients are handed from one node to another, as `+"`ds drain --concurrency 256`"+`
does it; each has one idle connection. They are route optimised, by dsco as
correspondent on eight hosts, which wants the same processors; or relayed, and then
their hosts do nothing. A sample is one such move, divided by its clients. The report's
figures are for one connection at a time.
`)
	d.table(r, "µs", "cpu_donate_us", "cpu_receive_us", "cpu_donate_relayed_us", "cpu_receive_relayed_us")
	d.table(r, "per second", "handoffs_per_s", "handoffs_relayed_per_s")
	d.put("%s", `
## Many

`+"`drain_10000_clients_s`"+` is `+"`ds drain`"+` of a node with 10 000 clients, relayed, with a
connection each, to the two other nodes; `+"`drain_bulk_kept`"+` is which part of its rate
a download of another client, from one of these, keeps meanwhile.
`)
	d.table(r, "", "client_1000_conns_ms", "drain_10000_clients_s", "drain_bulk_kept")
	for i := range Curves {
		d.curve(r, &Curves[i], plots)
	}
	if len(r.Notes) > 0 {
		d.put("\n## Notes\n\n")
		for _, n := range r.Notes {
			d.put("- %s\n", n)
		}
	}
	return []byte(d.b.String())
}

// Plots are the pictures, by name of their files.
func (r *Result) Plots() map[string][]byte {
	all := make(map[string][]byte)
	for i := range Curves {
		if b := r.Plot(&Curves[i]); b != nil {
			all[Curves[i].Name+".svg"] = b
		}
	}
	return all
}

func (r *Result) machine() string {
	m := r.Machine
	model := ""
	if m.Model != "" {
		model = " (" + m.Model + ")"
	}
	return fmt.Sprintf("%d processors%s, Linux %s, %s, ds %s; load %.1f before and %.1f after", m.Processors, model, m.Kernel, m.Go, r.Version, m.Before[0], m.After[0])
}

type document struct{ b strings.Builder }

func (d *document) put(format string, args ...any) { fmt.Fprintf(&d.b, format, args...) }

func figure(v float64) string {
	switch {
	case v >= 1000:
		return fmt.Sprintf("%.0f", v)
	case v >= 100:
		return fmt.Sprintf("%.4g", v)
	}
	return fmt.Sprintf("%.3g", v)
}

func orDash(v *float64) string {
	if v == nil {
		return "–"
	}
	return figure(*v)
}

// table has rows with what 2009 had, and the aim.
func (d *document) table(r *Result, unit string, names ...string) {
	if unit != "" {
		unit = " " + unit
	}
	d.put("\n| row |%s | p50 | p99 | 2009 old | 2009 new | aim | samples |\n|---|---|---:|---:|---:|---:|---|---:|\n", unit)
	var why []string
	for _, name := range names {
		row, ok := r.Row(name)
		if !ok {
			d.put("| `%s` | %s | – | – | – | – | – | 0 |\n", name, about[name])
			why = append(why, fmt.Sprintf("`%s` was not measured: %s.", name, r.missing(name)))
			continue
		}
		aim := "–"
		if a, ok := aims[name]; ok {
			sign := "≤"
			if a.more {
				sign = "≥"
			}
			aim = fmt.Sprintf("%s %g", sign, a.p50)
			if a.p99 > 0 {
				aim += fmt.Sprintf(", %s %g", sign, a.p99)
			}
		}
		d.put("| `%s` | %s | %s | %s | %s | %s | %s | %d |\n", name, about[name], figure(row.P50), figure(row.P99), orDash(row.Before), orDash(row.Then), aim, row.Samples)
	}
	for _, w := range why {
		d.put("\n%s\n", w)
	}
}

func (d *document) curve(r *Result, c *Curve, plots string) {
	d.put("\n## %s\n\n%s\n", c.Title, c.About)
	if w := r.missing("curve " + c.Name); w != "" {
		d.put("\nNot measured: %s.\n", w)
		return
	}
	d.put("\n![%s](%s)\n", c.Title, path.Join(plots, c.Name+".svg"))
	xs := make(map[float64]bool)
	var clients []string
	for _, client := range slices.Sorted(maps.Keys(Clients)) {
		rows := r.points(c.Name, client)
		for _, row := range rows {
			xs[*row.X] = true
		}
		if len(rows) > 0 {
			clients = append(clients, client)
		}
	}
	d.put("\n| %s |", c.X)
	for _, client := range clients {
		d.put(" %s, p50 ms | p99 ms |", Clients[client])
	}
	d.put("\n|---:|%s\n", strings.Repeat("---:|---:|", len(clients)))
	for _, x := range slices.Sorted(maps.Keys(xs)) {
		d.put("| %g |", x)
		for _, client := range clients {
			if row, ok := r.Row(c.Point(client, x).Name); ok {
				d.put(" %s | %s |", figure(row.P50), figure(row.P99))
			} else {
				d.put(" – | – |")
			}
		}
		d.put("\n")
	}
}
