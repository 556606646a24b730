package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/distributed-servers/ds/internal/bedbench"
	"github.com/distributed-servers/ds/internal/evaluation"
	"github.com/distributed-servers/ds/internal/version"
)

func benchHandoffCommand() *cobra.Command {
	var asJSON bool
	var svg, markdown string
	var o bedbench.Options
	c := &cobra.Command{
		Use:   "handoff",
		Short: "Measure handoffs, next to the report of 2009",
		Long: `Measure handoffs, next to the report of 2009.

A whole distributed server in network namespaces, dsco in all its roles, three nodes
and clients with the kernel's TCP, repeats figures 4 and 5 of the report: how long a
client waits (gap_local_ms, gap_lan_ro_ms, gap_lan_relay_ms), and what a handoff costs
the donor and the target (cpu_donate_us, cpu_receive_us), all processes of a node
together, and how many there can be (handoffs_per_s), of route optimised clients and of
relayed ones (with relayed in the name). Then, what it did not measure:
a client with 1000 connections, a node with 10 000 clients that is drained, and the
gap against queued data, connections, delay and loss.

It takes some minutes on a machine that does nothing else. With --markdown it writes
docs/evaluation.md, and plots into the directory evaluation beside it.`,
		Example: `  ds bench handoff
  ds bench handoff --json --svg plots.svg
  ds bench handoff --parts cost,drain
  ds bench handoff --markdown docs/evaluation.md`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			p := newProgress(os.Stderr)
			res, err := runHandoff(c.Context(), o, p.show)
			p.clear()
			if err != nil {
				return err
			}
			res.Command = "ds bench handoff"
			if markdown != "" {
				name := markdown
				if filepath.IsAbs(name) { // the rest says nothing to others
					name = filepath.Base(name)
				}
				res.Command += " --markdown " + filepath.ToSlash(name)
			}
			if o.Quick {
				res.Command += " --quick"
			}
			res.Version = version.String()
			if err := res.Check(); err != nil {
				return err
			}
			if svg != "" {
				if err := os.WriteFile(svg, res.Sheet(), 0o644); err != nil {
					return err
				}
			}
			if markdown != "" {
				if err := writeEvaluation(res, markdown); err != nil {
					return err
				}
			}
			if asJSON {
				return writeJSON(c.OutOrStdout(), res)
			}
			return handoffTable(c.OutOrStdout(), res)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	c.Flags().StringVar(&svg, "svg", "", "write the plots to this `file`")
	c.Flags().StringVar(&markdown, "markdown", "", "write docs/evaluation.md, with its plots beside it, to this `file`")
	c.Flags().BoolVar(&o.Quick, "quick", false, "a little of everything, to see that it works: the figures mean nothing")
	c.Flags().StringSliceVar(&o.Parts, "parts", nil, "measure these alone: `"+strings.Join(bedbench.Parts, ",")+"`")
	return c
}

// runHandoff measures; without namespaces it says so of each row.
func runHandoff(ctx context.Context, o bedbench.Options, progress func(string)) (*evaluation.Result, error) {
	res, why, err := runBed[evaluation.Result](ctx, bedEvaluateCommand, o, progress)
	if err != nil {
		return nil, err
	}
	if why != "" {
		res = &evaluation.Result{Machine: bedbench.Machine(), Missing: []evaluation.Missing{{Name: "*", Why: why}}}
	}
	return res, nil
}

// writeEvaluation writes the document, and its plots.
func writeEvaluation(res *evaluation.Result, file string) error {
	plots := strings.TrimSuffix(file, filepath.Ext(file))
	if err := os.MkdirAll(plots, 0o755); err != nil {
		return err
	}
	for name, b := range res.Plots() {
		if err := os.WriteFile(filepath.Join(plots, name), b, 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(file, res.Markdown(filepath.Base(plots)), 0o644)
}

func handoffTable(w io.Writer, res *evaluation.Result) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "\tp50\tp99\t\t2009 old\t2009 new\t")
	for _, r := range res.Rows {
		fmt.Fprintf(t, "%s\t%.4g\t%.4g\t%s\t%s\t%s\t\n", r.Name, r.P50, r.P99, cmp.Or(r.Unit, "–"), orDash(r.Before, "%.4g"), orDash(r.Then, "%.4g"))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, m := range res.Missing {
		fmt.Fprintf(w, "without %s: %s\n", strings.Replace(m.Name, "*", "any row", 1), m.Why)
	}
	for _, n := range res.Notes {
		if _, err := fmt.Fprintln(w, n); err != nil {
			return err
		}
	}
	return nil
}
