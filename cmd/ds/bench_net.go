package main

import (
	"fmt"
	"io"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/distributed-servers/ds/internal/netbench"
)

func benchNetCommand() *cobra.Command {
	var asJSON bool
	o := netbench.Options{Worker: []string{"bench", netWorkerCommand}}
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
client and server on one processor. idle_kb_per_conn is resident memory.`,
		Example: "  ds bench net\n  ds bench net --json --rows bulk_up,bulk_down --rounds 15",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			p := newProgress(os.Stderr)
			if p.live {
				o.Progress = p.show
			}
			res, err := netbench.Run(c.Context(), o)
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
	c.Flags().StringSliceVar(&o.Rows, "rows", nil, "measure these alone (default all)")
	c.Flags().StringVar(&o.Profile, "profile", "", "write a CPU profile of the server to this `file`")
	return c
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
