package main

import (
	"context"
	"fmt"
	"net/netip"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/distributed-servers/ds/daemon/api"
)

func contactCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "contact",
		Short: "See and change which node is the contact",
		Long: `See and change which node is the contact: the one that the home agent sends to,
where new clients arrive, and by which those without a binding are relayed.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(contactShowCommand(), contactTakeoverCommand(), contactSetCommand())
	return c
}

func contactShowCommand() *cobra.Command {
	var a asker
	c := &cobra.Command{
		Use:     "show",
		Short:   "Show which node is the contact, as this one knows it",
		Example: "  ds contact show",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return ask(c, &a, showContact, contactTable)
		},
	}
	a.flags(c, true)
	return c
}

func showContact(ctx context.Context, client *api.Client, dsa netip.Addr) (*api.Contact, error) {
	servers, err := client.Servers(ctx)
	if err != nil {
		return nil, err
	}
	for _, s := range servers {
		if s.Address == dsa {
			return &s.Contact, nil
		}
	}
	return nil, api.Errorf(api.ErrNotFound, "ds status shows those that it has", "this node has no distributed server %s", dsa)
}

func contactTakeoverCommand() *cobra.Command {
	var a asker
	var force bool
	c := &cobra.Command{
		Use:   "takeover",
		Short: "Make this node the contact",
		Long: `Make this node the contact: it registers with the home agent, tells all nodes, and
takes over the relaying of clients. Those with a binding notice nothing, others
wait for less than a second.

If the contact so far does not answer, it takes --force. Should it still be
there, the home agent and the other nodes listen to the newer contact.`,
		Example: "  ds contact takeover\n  ds contact takeover --force   # the contact has died",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return ask(c, &a, func(ctx context.Context, client *api.Client, dsa netip.Addr) (*api.Contact, error) {
				return client.TakeOver(ctx, dsa, force)
			}, contactTable)
		},
	}
	a.flags(c, true)
	c.Flags().BoolVar(&force, "force", false, "do without the consent of the contact so far")
	return c
}

func contactSetCommand() *cobra.Command {
	var a asker
	c := &cobra.Command{
		Use:   "set NODE",
		Short: "Tell this node, and no other, which one is the contact",
		Long: `Tell this node, and no other, which one is the contact. Usually the contact tells
all nodes itself: this is for when it cannot.`,
		Example:           "  ds contact set b",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeNode,
		RunE: func(c *cobra.Command, args []string) error {
			return ask(c, &a, func(ctx context.Context, client *api.Client, dsa netip.Addr) (*api.Contact, error) {
				return client.SetContact(ctx, dsa, args[0])
			}, contactTable)
		},
	}
	a.flags(c, true)
	return c
}

func contactTable(w *tabwriter.Writer, v *api.Contact) {
	row(w, "server", v.Server)
	row(w, "contact", v.Node)
	if v.Address.IsValid() {
		row(w, "address", v.Address)
	}
	row(w, "epoch", v.Epoch)
	if v.Previous != "" {
		row(w, "before", v.Previous)
	}
	if len(v.Told) > 0 {
		fmt.Fprintln(w)
		row(w, "NODE", "ANSWER")
		for _, t := range v.Told {
			answer := t.Error
			if answer == "" {
				answer = "knows"
			}
			row(w, t.Node, answer)
		}
	}
}
