package main

import (
	"context"
	"fmt"
	"net/netip"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/distributed-servers/ds/daemon/api"
)

func clientsCommand() *cobra.Command {
	var a asker
	c := &cobra.Command{
		Use:   "clients",
		Short: "Show the clients of a distributed server",
		Long: `Show the clients of a distributed server: those of this node, and at the contact
also those of the other nodes.`,
		Example: "  ds clients\n  ds clients --json | jq 'group_by(.owner)[] | {owner: .[0].owner, clients: length}'",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return ask(c, &a, func(ctx context.Context, client *api.Client, dsa netip.Addr) ([]api.ClientInfo, error) {
				return client.Clients(ctx, dsa)
			}, clientsTable)
		},
	}
	a.flags(c, true)
	return c
}

func clientsTable(w *tabwriter.Writer, clients []api.ClientInfo) {
	row(w, "CLIENT", "OWNER", "EPOCH", "MODE", "STATE", "CONNECTIONS", "SINCE")
	for _, i := range clients {
		row(w, i.Client, i.Owner, i.Epoch, i.Mode, state(i), number(i.Connections), age(i.Since))
	}
}

func state(i api.ClientInfo) string {
	switch {
	case i.Handoff == "":
		return i.State
	case i.State == "":
		return "handoff: " + i.Handoff
	}
	return i.State + ", handoff: " + i.Handoff
}

func traceCommand() *cobra.Command {
	var a asker
	c := &cobra.Command{
		Use:   "trace CLIENT",
		Short: "Show all that is known about a client",
		Long: `Show all that is known about a client: its owner, how its packets come there, its
binding, and what has happened lately.`,
		Example:           "  ds trace 2001:db8:9::1",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeClientAndNode(false),
		RunE: func(c *cobra.Command, args []string) error {
			peer, err := parseAddr("CLIENT", args[0])
			if err != nil {
				return err
			}
			return ask(c, &a, func(ctx context.Context, client *api.Client, dsa netip.Addr) (*api.ClientInfo, error) {
				return client.Client(ctx, dsa, peer)
			}, traceTable)
		},
	}
	a.flags(c, true)
	return c
}

func traceTable(w *tabwriter.Writer, i *api.ClientInfo) {
	owner := i.Owner
	if i.Local {
		owner += " (this)"
	}
	row(w, "client", i.Client)
	row(w, "server", i.Server)
	row(w, "owner", fmt.Sprintf("%s, epoch %d", owner, i.Epoch))
	row(w, "since", age(i.Since))
	row(w, "mode", i.Mode)
	row(w, "state", state(*i))
	row(w, "connections", number(i.Connections))
	if b := i.Binding; b != nil {
		row(w, "binding", fmt.Sprintf("at %s, sequence %d", b.CareOf, b.Sequence))
		row(w, "expires", until(b.Expires))
		row(w, "home token", tokenAge(b.HomeTokenAge))
		row(w, "care-of token", tokenAge(b.CareOfTokenAge))
	}
	if len(i.History) > 0 {
		fmt.Fprintln(w)
		for _, e := range i.History {
			eventRow(w, e, false)
		}
	}
}

func tokenAge(s *api.Seconds) string {
	if s == nil {
		return "none"
	}
	return "of " + time.Duration(*s).Round(100*time.Millisecond).String()
}

func handoffCommand() *cobra.Command {
	var a asker
	c := &cobra.Command{
		Use:   "handoff CLIENT NODE",
		Short: "Hand a client off to another node",
		Long: `Hand a client off to another node, with all of its connections.

It is asked of the node that owns the client, whose application hands it off and
says how that went. Until the point of no return whatever fails leaves the
client where it is.`,
		Example:           "  ds handoff 2001:db8:9::1 b\n  ds clients --json | jq -r '.[] | select(.local).client' | xargs -I{} ds handoff {} b",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: a.completeClientAndNode(true),
		RunE: func(c *cobra.Command, args []string) error {
			peer, err := parseAddr("CLIENT", args[0])
			if err != nil {
				return err
			}
			return ask(c, &a, func(ctx context.Context, client *api.Client, dsa netip.Addr) (*api.Handoff, error) {
				return client.Handoff(ctx, dsa, peer, args[1])
			}, handoffLine)
		},
	}
	a.flags(c, true)
	return c
}

func handoffLine(w *tabwriter.Writer, h *api.Handoff) {
	fmt.Fprintf(w, "%s went from %s to %s in %s: connections: %d, %s\n",
		h.Client, h.From, h.To, time.Duration(h.Took).Round(time.Microsecond), h.Connections, h.Mode)
}

func bindingCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "binding",
		Short: "Begin or end route optimisation with a client",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(
		bindingChange("start CLIENT", "Begin route optimisation with a client",
			"Begin route optimisation with a client of this node. How it goes, ds trace and ds watch\nshow. A node does this by itself with each new client.", (*api.Client).Optimise),
		bindingChange("delete CLIENT", "Delete a client's binding: its packets are relayed from then on",
			"Delete a client's binding: its packets are relayed from then on. Connections go on.", (*api.Client).DeleteBinding),
	)
	return c
}

func bindingChange(use, short, long string, call func(*api.Client, context.Context, netip.Addr, netip.Addr) error) *cobra.Command {
	var a asker
	c := &cobra.Command{
		Use: use, Short: short, Long: long,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeClientAndNode(false),
	}
	c.Example = "  ds binding " + c.Name() + " 2001:db8:9::1"
	c.RunE = func(c *cobra.Command, args []string) error {
		peer, err := parseAddr("CLIENT", args[0])
		if err != nil {
			return err
		}
		client := a.client()
		defer client.Close()
		dsa, err := a.dsa(c.Context(), client)
		if err != nil {
			return err
		}
		return call(client, c.Context(), dsa, peer)
	}
	a.flags(c, true)
	return c
}
