package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/distributed-servers/ds/internal/bedbench"
	"github.com/distributed-servers/ds/internal/netbench"
)

func benchNetCommand() *cobra.Command {
	var asJSON bool
	o := netbench.Options{Worker: []string{"bench", netWorkerCommand}}
	var bed bedbench.Options
	c := &cobra.Command{
		Use:   "net",
		Short: "Measure steady traffic through a TUN, next to the kernel's TCP",
		Long: `Measure steady traffic through a TUN, next to the kernel's TCP.

A client with the kernel's TCP, in a network namespace of its own, speaks to a
server in another: by turns to a service on a TUN, and to one of the server's
kernel, on the same path and in the same run. Values are medians; a ratio above
1 means that ours is better.

Rows: bulk_up and bulk_down are one stream to the server and from it, _4 are
four. In ro_ rows the service is a server node with the client bound: packets
have type 2 routing headers and Home Address options. rr64_per_s is 64 octets
there and back, conn_per_s connect, 64 octets there and back, close: both with
client and server on one processor. idle_kb_per_conn is resident memory.

The last rows have a whole distributed server: dsco in all its roles, three nodes,
clients. relay_bulk is one stream by way of home agent and contact to another node,
the slower of both directions. lan_gap is how long a client waits between an answer
of one node and the next node's, route optimised; lan_gap_relay by way of the
contact. The report of 2009 has 620 ms there (18.4 in the system before).`,
		Example: "  ds bench net\n  ds bench net --json --rows bulk_up,bulk_down --rounds 15",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			p := newProgress(os.Stderr)
			if p.live {
				o.Progress = p.show
			}
			res, err := runNet(c.Context(), o, bed, p)
			p.clear()
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(c.OutOrStdout(), res)
			}
			return benchNetTable(c.OutOrStdout(), res)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	c.Flags().IntVar(&o.Rounds, "rounds", netbench.DefaultRounds, "samples of each row and side")
	c.Flags().DurationVar(&o.Duration, "duration", netbench.DefaultDuration, "how long a sample takes")
	c.Flags().IntVar(&o.Idle, "idle", netbench.DefaultIdle, "idle connections")
	c.Flags().IntVar(&bed.Handoffs, "handoffs", 1000, "handoffs of each lan_gap row")
	c.Flags().StringSliceVar(&o.Rows, "rows", nil, "measure these alone (default all)")
	c.Flags().StringVar(&o.Profile, "profile", "", "write a CPU profile of the server to this `file`")
	return c
}

// runNet measures the rows that are asked for: those of one stack on a TUN, and
// those that take a whole distributed server.
func runNet(ctx context.Context, o netbench.Options, bed bedbench.Options, p *progress) (*netbench.Result, error) {
	all := len(o.Rows) == 0
	for _, name := range o.Rows {
		if slices.Contains(bedbench.Names, name) {
			bed.Rows = append(bed.Rows, name)
		}
	}
	o.Rows = slices.DeleteFunc(slices.Clone(o.Rows), func(name string) bool { return slices.Contains(bedbench.Names, name) })
	res := new(netbench.Result)
	if all || len(o.Rows) > 0 {
		var err error
		if res, err = netbench.Run(ctx, o); err != nil {
			return nil, err
		}
	}
	if all || len(bed.Rows) > 0 {
		bed.Rounds, bed.Duration = o.Rounds, o.Duration
		more, why, err := runBed[bedbench.Result](ctx, bedCommand, bed, o.Progress)
		switch {
		case err != nil:
			return nil, err
		case why != "":
			res.Notes = append(res.Notes, "without rows of a whole distributed server: "+why)
		default:
			for _, r := range more.Rows {
				res.Rows = append(res.Rows, netbench.Row(r))
			}
			res.Notes = append(res.Notes, more.Notes...)
		}
	}
	return res, nil
}

func benchNetTable(w io.Writer, res *netbench.Result) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "\tvalue\tkernel\tratio\t\t")
	for _, r := range res.Rows {
		fmt.Fprintf(t, "%s\t%.4g\t%s\t%s\t%s\t\n", r.Name, r.Value, orDash(r.Kernel, "%.4g"), orDash(r.Ratio, "%.2f"), r.Unit)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, n := range res.Notes {
		if _, err := fmt.Fprintln(w, n); err != nil {
			return err
		}
	}
	return nil
}
