package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/daemon/plan"
)

func rebalanceCommand() *cobra.Command {
	var a asker
	var p pace
	var dry bool
	c := &cobra.Command{
		Use:   "rebalance",
		Short: "Even the nodes out: hand clients from those that have many to those that have few",
		Long: `Even the nodes out: hand clients from those that have many to those that have few,
as few as that takes. A node with --weight 2 gets twice as many as one without.
Nodes that are drained, or without application, are left alone.

With --dry-run the plan is shown and nothing is done. Otherwise it is as with ds
drain: a client whose handoff fails is served where it was, and another one goes;
interrupt it whenever you like.`,
		Example: "  ds rebalance --dry-run\n  ds rebalance --rate 50 --weight c=2\n  ds rebalance --dry-run --json | jq .moves",
		Args:    cobra.NoArgs,
		RunE:    func(c *cobra.Command, _ []string) error { return rebalance(c, &a, &p, dry) },
	}
	a.flags(c, true)
	p.flags(c)
	c.Flags().BoolVar(&dry, "dry-run", false, "show the plan, and do nothing")
	return c
}

// balance is a plan, as it is shown.
type balance struct {
	Nodes []balanceNode `json:"nodes"`
	Moves []balanceMove `json:"moves"`
}

type balanceNode struct {
	Node    string `json:"node"`
	Weight  int    `json:"weight"`
	Clients int    `json:"clients"`
	After   int    `json:"after"`
	Note    string `json:"note,omitempty"`
}

type balanceMove struct {
	From    string `json:"from"`
	To      string `json:"to"`
	Clients int    `json:"clients"`
}

func newBalance(nodes []plan.Node, moves []plan.Move) *balance {
	b := &balance{Moves: []balanceMove{}}
	for _, n := range nodes {
		v := balanceNode{Node: n.Name, Weight: n.Weight, Clients: n.Clients, After: n.Clients}
		switch {
		case !n.Gives:
			v.Note = "left alone: drained, not connected, or without application"
		case !n.Takes:
			v.Note = "its application takes no clients"
		}
		for _, m := range moves {
			switch n.Name {
			case m.From:
				v.After -= m.Clients
			case m.To:
				v.After += m.Clients
			}
		}
		b.Nodes = append(b.Nodes, v)
	}
	for _, m := range moves {
		b.Moves = append(b.Moves, balanceMove(m))
	}
	return b
}

func (b *balance) table(w *tabwriter.Writer) {
	row(w, "NODE", "WEIGHT", "CLIENTS", "AFTER", "NOTE")
	for _, n := range b.Nodes {
		row(w, n.Node, n.Weight, n.Clients, n.After, n.Note)
	}
	fmt.Fprintln(w)
	if len(b.Moves) == 0 {
		fmt.Fprintln(w, "nothing to move")
		return
	}
	row(w, "FROM", "TO", "CLIENTS")
	for _, m := range b.Moves {
		row(w, m.From, m.To, m.Clients)
	}
}

func rebalance(c *cobra.Command, a *asker, p *pace, dry bool) error {
	client := a.client()
	defer client.Close()
	dsa, err := a.dsa(c.Context(), client)
	if err != nil {
		return err
	}
	nodes, err := nodesOf(c.Context(), client, dsa, p.weights)
	if err != nil {
		return err
	}
	moves := plan.Even(nodes)
	if b := newBalance(nodes, moves); dry || len(moves) == 0 {
		return a.print(c, b, b.table)
	}
	requests := make(map[string]*api.MoveRequest)
	for _, m := range moves {
		r := requests[m.From]
		if r == nil {
			r = &api.MoveRequest{Concurrency: p.concurrency}
			requests[m.From] = r
		}
		r.To = append(r.To, api.MoveTarget{Node: m.To, Clients: m.Clients})
	}
	from := slices.Sorted(maps.Keys(requests))
	show := newMover(c, a.json, from)
	var all []func(context.Context) error
	for _, node := range from {
		requests[node].Rate = p.rate / float64(len(from))
		all = append(all, func(ctx context.Context) error {
			if err := show.follow(client.Move(ctx, dsa, node, *requests[node])); err != nil {
				return fmt.Errorf("from %s: %w", node, err)
			}
			return nil
		})
	}
	if err := show.run(all...); err != nil && !show.begun {
		return err
	} else if err != nil {
		return goOn(c, err, "run it again to go on")
	}
	if !a.json {
		fmt.Fprintf(c.OutOrStdout(), "rebalanced: %s\n", show.summary())
	}
	return nil
}
