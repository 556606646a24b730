package main

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/distributed-servers/ds/daemon/api"
)

func statusCommand() *cobra.Command {
	var a asker
	c := &cobra.Command{
		Use:   "status",
		Short: "Show what the daemon on this machine is, and how it is doing",
		Long: `Show what the daemon on this machine is, and how it is doing.

Of a node: its distributed servers and the daemons of the other nodes. Of a home
agent: its home addresses. Of a correspondent: its bindings, and how many packets
went by way of them. Counters that are 0 are shown with --json only.`,
		Example: "  ds status\n  ds status --json | jq .counters\n  ds status --socket " + api.HomeAgentSocket,
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			client := a.client()
			defer client.Close()
			st, err := client.Status(c.Context())
			if err != nil {
				return err
			}
			return a.print(c, st, func(w *tabwriter.Writer) { statusTable(w, st) })
		},
	}
	a.flags(c, false)
	return c
}

func statusTable(w *tabwriter.Writer, st *api.Status) {
	name := string(st.Role)
	if st.Node != "" {
		name += " " + st.Node
	}
	fmt.Fprintf(w, "%s, version %s, process %d, since %s\n", name, st.Version, st.PID, age(st.Started))
	if len(st.Servers) > 0 {
		fmt.Fprintln(w)
		row(w, "SERVER", "CARE-OF", "CONTACT", "EPOCH", "REGISTERED", "APPLICATION", "INTERFACE", "CLIENTS", "OPTIMISED", "RELAYED")
		for _, s := range st.Servers {
			contact := s.Contact.Node
			if s.Local {
				contact += " (this)"
			}
			row(w, s.Address, s.CareOf, contact, s.Contact.Epoch, until(s.Registered), application(s.Application), s.TUN, s.Clients, s.Optimised, number(s.Relayed))
		}
	}
	if len(st.Peers) > 0 {
		fmt.Fprintln(w)
		row(w, "PEER", "ADDRESS", "CONNECTED", "SINCE", "CAUSE")
		for _, p := range st.Peers {
			row(w, p.Node, p.Address, yesNo(p.Connected), age(p.Since), p.Error)
		}
	}
	if len(st.Homes) > 0 {
		fmt.Fprintln(w)
		row(w, "HOME", "CARE-OF", "SEQUENCE", "EXPIRES")
		for _, h := range st.Homes {
			row(w, h.Address, h.CareOf, number(h.Sequence), until(h.Expires))
		}
	}
	if len(st.Bindings) > 0 {
		fmt.Fprintln(w)
		row(w, "HOME", "CARE-OF", "SEQUENCE", "EXPIRES")
		for _, b := range st.Bindings {
			row(w, b.Home, b.CareOf, b.Sequence, until(b.Expires))
		}
	}
	counted(w, "COUNTED", st.Counters)
	for _, s := range st.Servers {
		counted(w, "COUNTED FOR "+s.Address.String(), s.Counters)
	}
}

// counted shows counters that are not 0.
func counted(w *tabwriter.Writer, title string, counters map[string]uint64) {
	for _, name := range slices.Sorted(maps.Keys(counters)) {
		if counters[name] == 0 {
			continue
		}
		if title != "" {
			fmt.Fprintln(w)
			row(w, title, "")
			title = ""
		}
		row(w, name, counters[name])
	}
}

func application(a *api.Application) string {
	if a == nil {
		return "none"
	}
	return fmt.Sprintf("%s (%d)", a.Program, a.PID)
}

func nodesCommand() *cobra.Command {
	var a asker
	c := &cobra.Command{
		Use:     "nodes",
		Short:   "Show the nodes of a distributed server",
		Example: "  ds nodes\n  ds nodes --json | jq -r '.[] | select(.connected | not).node'",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return ask(c, &a, func(ctx context.Context, client *api.Client, dsa netip.Addr) ([]api.NodeInfo, error) {
				return client.Nodes(ctx, dsa)
			}, nodesTable)
		},
	}
	a.flags(c, true)
	return c
}

func nodesTable(w *tabwriter.Writer, nodes []api.NodeInfo) {
	row(w, "NODE", "CARE-OF", "DAEMON", "CONNECTED", "APPLICATION", "TAKES CLIENTS", "CLIENTS", "ROLE")
	for _, n := range nodes {
		var roles []string
		for _, r := range []struct {
			is   bool
			name string
		}{{n.Contact, "contact"}, {n.Local, "this"}, {n.Draining, "draining"}} {
			if r.is {
				roles = append(roles, r.name)
			}
		}
		row(w, n.Node, n.CareOf, n.Address, yesNo(n.Connected || n.Local), yesNo(n.Attached), yesNo(n.AcceptsHandoffs && !n.Draining), n.Clients, strings.Join(roles, ", "))
	}
}
