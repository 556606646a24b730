package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/distributed-servers/ds/internal/demo"
	"github.com/distributed-servers/ds/internal/tour"
)

const (
	insideCommand = "demo-inside"
	nodeCommand   = "demo-node"
)

func demoCommand() *cobra.Command {
	var asJSON bool
	o := demo.Options{InsideArgs: []string{"demo", insideCommand}, NodeArgs: []string{"demo", nodeCommand}}
	size := octets(demo.DefaultSize)
	var mobile mobileDemo
	c := &cobra.Command{
		Use:   "demo",
		Short: "Hand live connections over between servers, and verify every octet",
		Long: `Hand live connections over between servers, and verify every octet. In two parts:

Mobile IPv6. A home agent, a contact node and two more nodes look like one server
to two clients. One of them speaks Mobile IPv6 and is told with a Binding Update
where its packets are to go; the other does not and is relayed by the contact
node. Both are handed from node to node at the same time, in the middle of a
download and an upload. Netstacks and protocol machines are the real ones, the
network and its time are simulated, so that the same seed gives the same packets.

Connections. A client downloads and uploads over HTTP, while both connections
move to and fro between two servers in the middle of the bodies. Where the system
allows it, the servers are two processes on one TUN and the client is this
machine's kernel, all in a network namespace that goes away at the end; elsewhere
they are netstacks in memory. The table says which, and why.

The exit status is 1 if an octet is wrong, a connection was reset, or there were
fewer handoffs than asked for.`,
		Example: `  ds demo
  ds demo --size 1GiB --handoffs 200
  ds demo --mode memory --ipv4 --json
  ds demo --pcap demo.pcapng      # demo-client-1.pcapng, demo-node-1.pcapng, ... for Wireshark
  ds demo --ladder docs/handoff   # docs/handoff.txt, docs/handoff.svg`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if o.Handoffs < 1 || size < 1 {
				return fmt.Errorf("--size %s --handoffs %d: want 1 or more", size, o.Handoffs)
			}
			o.Size = int64(size)
			p := newProgress(os.Stderr)
			o.Progress = func(x demo.Progress) {
				p.show(fmt.Sprintf("%4.1f s  %s mode  %d of %d handoffs  %s of %s", x.Seconds, x.Mode, x.Handoffs, x.Of, octets(x.Bytes), octets(x.Total)))
			}
			p.show("Mobile IPv6, simulated")
			toured, err := mobile.run(c.Context())
			p.clear()
			if err != nil {
				return err
			}
			if !asJSON {
				if err := tourTable(c.OutOrStdout(), toured); err != nil {
					return err
				}
			}
			res, err := demo.Run(c.Context(), o)
			p.clear()
			if err != nil {
				return errors.Join(err, toured.Err())
			}
			if asJSON {
				err = writeJSON(c.OutOrStdout(), struct {
					*demo.Result
					Mobile *tour.Result `json:"mobile_ipv6"`
				}{res, toured})
			} else {
				err = demoTable(c.OutOrStdout(), res)
			}
			return errors.Join(err, res.Err(), toured.Err())
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	c.Flags().Var(&size, "size", "octets each way, such as 64MiB or 1GiB")
	c.Flags().IntVar(&o.Handoffs, "handoffs", demo.DefaultHandoffs, "how often everything moves")
	c.Flags().BoolVar(&o.IPv4, "ipv4", false, "use IPv4 instead of IPv6")
	c.Flags().StringVar(&o.Mode, "mode", demo.Auto, "process, memory, or auto: what the machine allows")
	mobile.flags(c)
	c.AddCommand(&cobra.Command{
		Use:    insideCommand,
		Short:  "Run the demo in this network namespace (started by demo)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return demo.Inside(c.Context(), os.Stdin, os.Stdout)
		},
	}, &cobra.Command{
		Use:    nodeCommand,
		Short:  "Be one of the servers (started by demo)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE:   func(*cobra.Command, []string) error { return demo.Node() },
	})
	return c
}

func demoTable(w io.Writer, r *demo.Result) error {
	verdict := "correct"
	if !r.Checked || r.Wrong != 0 {
		verdict = "WRONG"
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "CONNECTIONS\t%s: %s\n", r.Mode, r.Why)
	fmt.Fprintf(t, "handoffs\t%d of %d, over IPv%d\n", r.Handoffs, r.Asked, r.IP)
	fmt.Fprintf(t, "gap\t%.2f ms p50\t%.2f ms p99\tthe client's longest silence around a handoff\n", r.Gap.P50, r.Gap.P99)
	fmt.Fprintf(t, "otherwise\t%.2f ms p50\t%.2f ms p99\tthe same half-way between two handoffs\n", r.Otherwise.P50, r.Otherwise.P99)
	fmt.Fprintf(t, "handoff\t%.2f ms p50\t%.2f ms p99\tfrom the donor's stop to the target's start\n", r.Handoff.P50, r.Handoff.P99)
	fmt.Fprintf(t, "snapshot\t%s p50\t%s p99\twhat travels: connections and sessions\n", octets(r.Snapshot.P50), octets(r.Snapshot.P99))
	fmt.Fprintf(t, "octets\t%s in %.1f s\t%d wrong\tboth ways\n", octets(r.Bytes), r.Seconds, r.Wrong)
	fmt.Fprintf(t, "CRC-32C\t%s\t%s\n", verdict, r.Checksum)
	fmt.Fprintf(t, "resets\t%d\n", r.Resets)
	return t.Flush()
}

// octets is a size that is written and read with a unit.
type octets int64

var units = []struct {
	name string
	size octets
}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1}, {"", 1}}

func (o octets) String() string {
	for _, u := range units {
		switch {
		case o >= 10*u.size && u.size > 1, o >= u.size && o%u.size == 0:
			return strconv.FormatInt(int64(o/u.size), 10) + u.name
		case o >= u.size && u.size > 1:
			return strconv.FormatFloat(float64(o)/float64(u.size), 'f', 1, 64) + u.name
		}
	}
	return strconv.FormatInt(int64(o), 10) + "B"
}

// Set and Type implement pflag.Value.
func (o *octets) Set(s string) error {
	for _, u := range units {
		number, ok := strings.CutSuffix(s, u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(number), 10, 64)
		if err != nil || n < 0 || n > 1<<50/int64(u.size) {
			break
		}
		*o = octets(n) * u.size
		return nil
	}
	return fmt.Errorf("%q is no size: want a whole number and B, KiB, MiB or GiB", s)
}

func (o *octets) Type() string { return "size" }
