package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/distributed-servers/ds/internal/demo"
	"github.com/distributed-servers/ds/internal/tour"
)

const (
	insideCommand = "inside"
	appCommand    = "app"
)

func demoCommand() *cobra.Command {
	var asJSON bool
	var o demo.Options
	var size octets
	var mobile mobileDemo
	c := &cobra.Command{
		Use:   "demo",
		Short: "Hand live connections over among servers, and verify every octet",
		Long: `Hand live connections over among servers, and verify every octet. In two parts:

Mobile IPv6. A home agent, a contact node and two more nodes look like one server
to two clients. One of them speaks Mobile IPv6 and is told with a Binding Update
where its packets are to go; the other does not and is relayed by the contact
node. Both are handed from node to node at the same time, in the middle of a
download and an upload. Netstacks and protocol machines are the real ones, the
network and its time are simulated, so that the same seed gives the same packets.

Connections. Two clients, one route-optimised and one relayed again, download and
upload over HTTP, while they are handed round three nodes in the middle of the
bodies. Where the system allows it, home agent, nodes and the optimised client run
dsco, each in a network namespace of its own, and the clients have the kernel's
TCP; all of that goes away at the end. Elsewhere nodes and clients are netstacks in
memory. The table says which, and why.

The exit status is 1 if an octet is wrong, a connection was reset, or there were
fewer handoffs than asked for.`,
		Example: `  ds demo
  ds demo --size 1GiB --handoffs 200
  ds demo --mode memory --json
  ds demo --pcap demo.pcapng      # demo-client-1.pcapng, demo-node-1.pcapng, ... for Wireshark
  ds demo --ladder docs/handoff   # docs/handoff.txt, docs/handoff.svg`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := demoProgram(&o); err != nil {
				return err
			}
			o.Size = int64(size)
			if err := o.Check(); err != nil {
				return err
			}
			p := newProgress(os.Stderr)
			o.Say = func(s string) {
				p.clear()
				fmt.Fprintln(os.Stderr, "ds demo:", s)
			}
			o.Progress = func(x demo.Progress) { p.show(demoProgress(x)) }
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
	c.Flags().Var(&size, "size", "octets each way of each client, such as 64MiB or 1GiB (default what takes 10 s here)")
	c.Flags().IntVar(&o.Handoffs, "handoffs", demo.DefaultHandoffs, "of both clients together")
	c.Flags().StringVar(&o.Mode, "mode", demo.Auto, "namespaces, memory, or auto: what the machine allows")
	mobile.flags(c)
	c.AddCommand(demoInsideCommand(), demoAppCommand())
	return c
}

func demoInsideCommand() *cobra.Command {
	return &cobra.Command{
		Use:    insideCommand,
		Short:  "Run the demo in this network namespace (started by demo)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return demo.Inside(c.Context(), os.Stdin, os.Stdout)
		},
	}
}

func demoAppCommand() *cobra.Command {
	var socket, addr string
	c := &cobra.Command{
		Use:    appCommand,
		Short:  "The application on a node (started by demo)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			a, err := netip.ParseAddr(addr)
			if err != nil {
				return err
			}
			return demo.App(c.Context(), socket, a, os.Stdout)
		},
	}
	c.Flags().StringVar(&socket, "socket", "", "the daemon's `path`")
	c.Flags().StringVar(&addr, "addr", "", "the distributed server `address`")
	return c
}

// demoProgram tells the demo which programs to run.
func demoProgram(o *demo.Options) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	o.Programs = filepath.Dir(exe)
	o.App = []string{filepath.Base(exe), "demo", appCommand}
	o.Inside = []string{"demo", insideCommand}
	if o.Handoffs == 0 { // not the default, which the flag has
		return errors.New("--handoffs 0: want 2 or more")
	}
	return nil
}

func demoProgress(x demo.Progress) string {
	line := fmt.Sprintf("%4.1f s  %s mode  ", x.Seconds, x.Mode)
	if x.Total == 0 {
		return line + "before the first handoff"
	}
	return line + fmt.Sprintf("%d of %d handoffs  %s of %s", x.Handoffs, x.Of, octets(x.Bytes), octets(x.Total))
}

func demoTable(w io.Writer, r *demo.Result) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name, unit string, value func(c *demo.Client) string, more ...string) {
		fmt.Fprint(t, name)
		for _, c := range r.Clients {
			fmt.Fprint(t, "\t", value(c))
		}
		fmt.Fprint(t, "\t", unit)
		for _, m := range more {
			fmt.Fprint(t, "\t", m)
		}
		fmt.Fprintln(t)
	}
	ms := func(q demo.Quantiles) string { return fmt.Sprintf("%.2f / %.2f", q.P50, q.P99) }
	const unit = "ms p50 / p99"
	fmt.Fprintf(w, "CONNECTIONS  %s: %s\n\n", r.Mode, r.Why)
	row("", "", func(c *demo.Client) string { return c.Name }, "2009", "before that")
	row("", "", func(c *demo.Client) string { return c.Want })
	row("handoffs", "", func(c *demo.Client) string {
		return fmt.Sprintf("%d of %d, %d of them optimised", c.Handoffs, c.Asked, c.Optimised)
	})
	row("client's longest silence", unit, func(c *demo.Client) string { return ms(c.Gap) + fmt.Sprintf(" (of %d)", c.Seen) },
		fmt.Sprint(tour.Report2009), fmt.Sprint(tour.Before2009))
	row("while nothing moves", unit, func(c *demo.Client) string { return ms(c.Otherwise) })
	row("frozen", unit, func(c *demo.Client) string { return ms(c.Frozen) })
	for i, s := range stages(r) {
		row("stage "+s, unit, func(c *demo.Client) string {
			if i >= len(c.Stages) {
				return ""
			}
			return ms(c.Stages[i].Took)
		})
	}
	row("carried", "p50 / p99", func(c *demo.Client) string {
		return octets(c.Carried.P50).String() + " / " + octets(c.Carried.P99).String()
	})
	for _, b := range []struct {
		name string
		of   func(c *demo.Client) *demo.Body
	}{{"download", func(c *demo.Client) *demo.Body { return &c.Down }}, {"upload", func(c *demo.Client) *demo.Body { return &c.Up }}} {
		row(b.name, "", func(c *demo.Client) string {
			x := b.of(c)
			verdict := "SHA-256 right"
			if !x.Checked {
				verdict = "SHA-256 WRONG"
			}
			return fmt.Sprintf("%s, %d wrong, %s", octets(x.Bytes), x.Wrong, verdict)
		})
	}
	row("resets", "", func(c *demo.Client) string { return strconv.Itoa(c.Resets) })
	if err := t.Flush(); err != nil {
		return err
	}
	verdict := "correct"
	if r.Err() != nil {
		verdict = "WRONG"
	}
	_, err := fmt.Fprintf(w, "\n%s: %d handoffs, %s in %.1f s, %d octets wrong, %d resets\n",
		verdict, r.Handoffs, octets(r.Bytes), r.Seconds, r.Wrong, r.Resets)
	return err
}

// stages are the names of a handoff's stages, in order.
func stages(r *demo.Result) (names []string) {
	for _, s := range r.Clients[0].Stages {
		names = append(names, s.Stage)
	}
	return names
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
