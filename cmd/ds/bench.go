package main

import (
	"fmt"
	"io"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/distributed-servers/ds/internal/bedbench"
	"github.com/distributed-servers/ds/internal/bench"
	"github.com/distributed-servers/ds/internal/netbench"
)

const (
	workerCommand    = "tcp-repair-worker"
	netWorkerCommand = "net-worker"
)

func benchCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "bench",
		Short: "Measure this machine",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(benchMigrateCommand(), benchNetCommand(), benchHandoffCommand(),
		benchBedCommand(bedCommand, "bench net", bedbench.Run), benchBedCommand(bedEvaluateCommand, "bench handoff", bedbench.Evaluate), benchBedServiceCommand(), benchLocalCommand(), &cobra.Command{
			Use:    netWorkerCommand,
			Short:  "One of the processes of bench net (started by it)",
			Hidden: true,
			Args:   cobra.ExactArgs(1),
			RunE: func(c *cobra.Command, args []string) error {
				return netbench.Worker(c.Context(), args[0], os.Stdin, os.Stdout)
			},
		}, &cobra.Command{
			Use:    workerCommand,
			Short:  "Move connections of the kernel (started by bench migrate)",
			Hidden: true,
			Args:   cobra.NoArgs,
			RunE: func(c *cobra.Command, _ []string) error {
				return bench.Worker(c.Context(), os.Stdin, os.Stdout)
			},
		})
	return c
}

func benchMigrateCommand() *cobra.Command {
	var asJSON bool
	o := bench.Options{Worker: []string{"bench", workerCommand}}
	c := &cobra.Command{
		Use:   "migrate",
		Short: "Time moves of live connections, next to the kernel's TCP_REPAIR",
		Long: `Time moves of live connections, next to the kernel's TCP_REPAIR.

One connection moves to and fro between two nodes in memory, while nothing is on
the network: idle, with 64 KiB that the client has not acknowledged, and with
64 KiB that the application has not read. A time is that of one whole move:
freeze, export, import, discard, activate. The kernel moves a connection with
the same octets in its queues in the same run, by turns with ours; a ratio above
1 means that ours is faster. Then many connections move at once on one
processor, and a transfer both ways is timed with and without moves in it.

The pace is the time of a computation that is always the same, repeated between
the moves. Who shares the processor or its caches, another virtual machine say,
makes both longer: figures of two runs compare as far as their paces do.

All octets are verified; the exit status is 1 if one is wrong.`,
		Example: "  ds bench migrate\n  ds bench migrate --json --moves 2000",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if o.Moves < 1 {
				return fmt.Errorf("--moves %d: want 1 or more", o.Moves)
			}
			p := newProgress(os.Stderr)
			if p.live {
				o.Progress = p.show
			}
			res, err := bench.Run(c.Context(), o)
			p.clear()
			if err != nil {
				return err
			}
			if res.Kernel != "" {
				fmt.Fprintln(os.Stderr, "ds: no comparison with TCP_REPAIR:", res.Kernel)
			}
			if asJSON {
				return writeJSON(c.OutOrStdout(), res)
			}
			return benchTable(c.OutOrStdout(), res)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	c.Flags().IntVar(&o.Moves, "moves", bench.DefaultMoves, "moves of each row")
	return c
}

func benchTable(w io.Writer, res *bench.Result) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "µs\tp50\tp99\tfreeze\texport\timport\tdiscard\tactivate\toctets\tallocs\tTCP_REPAIR p50\tratio\t")
	for _, r := range res.Rows {
		s := r.Stages
		fmt.Fprintf(t, "%s\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\t%d\t%.1f\t%s\t%s\t\n",
			r.Name, r.P50, r.P99, s.Freeze, s.Export, s.Import, s.Discard, s.Activate, r.Bytes, r.Allocs,
			orDash(r.KernelP50, "%.1f"), orDash(r.Ratio, "%.2f"))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	const mib = 1 << 20
	b, x := res.Batch, res.Traffic
	fmt.Fprintf(w, "\nbatch    %.0f imports a second on one core, of %d connections\n", res.BatchImportsPerS, b.Connections)
	fmt.Fprintf(w, "heap     %.1f MiB before, %.1f while both sides have all, %.1f after: %.0f %% returned\n",
		float64(b.HeapBefore)/mib, float64(b.HeapPeak)/mib, float64(b.HeapAfter)/mib, 100*b.Returned())
	fmt.Fprintf(w, "traffic  %.0f Mbit/s with %d moves, %.0f without: ratio %.3f\n", x.Moving, x.Moves, x.Resting, res.TrafficRatio)
	p := res.Pace
	_, err := fmt.Fprintf(w, "pace     %.0f µs at best, %.0f p50, %.0f p90, for what is always the same\n", p.Best, p.P50, p.P90)
	return err
}

func orDash(v *float64, format string) string {
	if v == nil {
		return "–"
	}
	return fmt.Sprintf(format, *v)
}
