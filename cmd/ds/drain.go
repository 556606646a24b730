package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/daemon/plan"
)

// pace are the flags of what moves many clients.
type pace struct {
	rate        float64
	concurrency int
	weights     map[string]int
}

func (p *pace) flags(c *cobra.Command) {
	c.Flags().Float64Var(&p.rate, "rate", 0, "`handoffs` that begin in a second (default no limit)")
	c.Flags().IntVar(&p.concurrency, "concurrency", plan.DefaultWidth, "`handoffs` at the same time, at most 1024")
	c.Flags().StringToIntVar(&p.weights, "weight", nil, "a node's share, relative to the others' 1: `NODE=N`,…")
}

func drainCommand() *cobra.Command {
	var a asker
	var p pace
	var to []string
	var undo bool
	c := &cobra.Command{
		Use:   "drain NODE",
		Short: "Hand all clients of a node to the others, before an upgrade, say",
		Long: `Hand all clients of a node to the others, before an upgrade, say. It may be another
node than this one.

The others get so many that they have equally many afterwards, as far as that goes,
or by their weights. From then on the node refuses clients that others hand to it,
and applications elsewhere do not find it among the nodes to hand off to, until ds
undrain NODE or until its daemon is started anew.

A client whose handoff fails is served where it was. That is told, and tried again
a few times; the exit status is 1 if clients are left. Interrupt it whenever you
like: what has moved has moved, and the same command goes on with the rest.

New clients begin at the contact, drained or not: if NODE is the contact let another
one take over first (ds contact takeover, there).`,
		Example: `  ds drain a
  ds drain a --rate 200 --to b,c --weight b=2
  ds drain a --json | jq -r '.failures[]? | .client + " " + .error'
  ds drain a --undo              the same as ds undrain a`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeNode,
		RunE: func(c *cobra.Command, args []string) error {
			if undo {
				return undrain(c, &a, args[0])
			}
			return drain(c, &a, args[0], to, &p)
		},
	}
	a.flags(c, true)
	p.flags(c)
	c.Flags().StringSliceVar(&to, "to", nil, "`nodes` that clients go to (default all that take clients)")
	c.Flags().BoolVar(&undo, "undo", false, "take the node back into service")
	return c
}

func undrainCommand() *cobra.Command {
	var a asker
	c := &cobra.Command{
		Use:               "undrain NODE",
		Short:             "Take a node back into service that was drained",
		Long:              "Take a node back into service that was drained: it takes clients again. Those that\nit had stay where they are; ds rebalance evens the nodes out.",
		Example:           "  ds undrain a && ds rebalance",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeNode,
		RunE:              func(c *cobra.Command, args []string) error { return undrain(c, &a, args[0]) },
	}
	a.flags(c, true)
	return c
}

func undrain(c *cobra.Command, a *asker, node string) error {
	client := a.client()
	defer client.Close()
	dsa, err := a.dsa(c.Context(), client)
	if err != nil {
		return err
	}
	return client.Undrain(c.Context(), dsa, node)
}

func drain(c *cobra.Command, a *asker, node string, to []string, p *pace) error {
	client := a.client()
	defer client.Close()
	dsa, err := a.dsa(c.Context(), client)
	if err != nil {
		return err
	}
	nodes, err := client.Nodes(c.Context(), dsa)
	if err != nil {
		return err
	}
	if len(p.weights) > 0 && len(to) == 0 { // weights name targets: so name all of them
		for _, n := range nodes {
			if n.Node != node {
				to = append(to, n.Node)
			}
		}
	}
	r := api.MoveRequest{Rate: p.rate, Concurrency: p.concurrency}
	for _, name := range to {
		r.To = append(r.To, api.MoveTarget{Node: name, Weight: p.weights[name]})
	}
	for name := range p.weights {
		if !slices.Contains(to, name) {
			return fmt.Errorf("--weight %s: clients do not go to that node", name)
		}
	}
	if slices.ContainsFunc(nodes, func(n api.NodeInfo) bool { return n.Node == node && n.Contact }) {
		fmt.Fprintf(c.ErrOrStderr(), "ds: %s is the contact, where new clients begin; to end that, run ds contact takeover on another node\n", node)
	}
	m := newMover(c, a.json, []string{node})
	err = m.run(func(ctx context.Context) error { return m.follow(client.Drain(ctx, dsa, node, r)) })
	if err != nil && !m.begun {
		return err
	}
	if err != nil {
		return goOn(c, err, fmt.Sprintf("%s is being drained: run it again to go on, or ds undrain %s", node, node))
	}
	if !a.json {
		fmt.Fprintf(c.OutOrStdout(), "%s is drained: %s; ds undrain %s takes it back into service\n", node, m.summary(), node)
	}
	return nil
}

// goOn adds to why something has not come to its end how it goes on. Of an interruption
// nothing else is told.
func goOn(c *cobra.Command, err error, how string) error {
	if c.Context().Err() != nil {
		fmt.Fprintf(c.ErrOrStderr(), "ds: %s\n", how)
		return err
	}
	return fmt.Errorf("%w; %s", err, how)
}

// mover shows what comes of moves, of one node or of several at once.
type mover struct {
	c     *cobra.Command
	json  bool
	show  *progress
	begin time.Time

	mu    sync.Mutex
	begun bool                        // something was heard of a move
	of    map[string]api.MoveProgress // by node
}

func newMover(c *cobra.Command, asJSON bool, nodes []string) *mover {
	m := &mover{c: c, json: asJSON, show: newProgress(os.Stderr), begin: time.Now(), of: make(map[string]api.MoveProgress)}
	for _, n := range nodes {
		m.of[n] = api.MoveProgress{Node: n}
	}
	return m
}

// run runs moves at the same time, and says how far they have come if they do not
// come to their end.
func (m *mover) run(moves ...func(ctx context.Context) error) error {
	errs := make([]error, len(moves))
	var wg sync.WaitGroup
	for i, f := range moves {
		wg.Go(func() { errs[i] = f(m.c.Context()) })
	}
	wg.Wait()
	m.show.clear()
	err := errors.Join(errs...)
	if err != nil && m.begun {
		fmt.Fprintf(m.c.ErrOrStderr(), "ds: %s\n", m.summary())
	}
	return err
}

// follow takes the progress of one.
func (m *mover) follow(stream func(func(api.MoveProgress, error) bool)) (err error) {
	for p, e := range stream {
		if e != nil {
			return e
		}
		if e := m.add(p); e != nil {
			return e
		}
		if p.Error != "" {
			err = errors.New(p.Error)
		}
	}
	return err
}

func (m *mover) add(p api.MoveProgress) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.begun = true
	m.of[p.Node] = p
	if m.json {
		return writeJSON(m.c.OutOrStdout(), p)
	}
	for _, f := range p.Failures {
		again := "it is tried again"
		if f.GivenUp {
			again = "given up"
		}
		m.show.clear()
		fmt.Fprintf(m.c.ErrOrStderr(), "ds: %s stays at %s: %s (to %s; %s)\n", f.Client, p.Node, f.Error, f.To, again)
	}
	m.show.show(m.line())
	return nil
}

// total adds up.
func (m *mover) total() (t api.MoveProgress, to map[string]int) {
	to = make(map[string]int)
	for _, p := range m.of {
		t.Moved += p.Moved
		t.Moving += p.Moving
		t.Left += p.Left
		t.Stuck += p.Stuck
		t.Failed += p.Failed
		t.Rate += p.Rate
		t.ETA = max(t.ETA, p.ETA)
		for _, x := range p.To {
			to[x.Node] += x.Clients
		}
	}
	return t, to
}

func (m *mover) line() string {
	t, _ := m.total()
	s := fmt.Sprintf("%s: %d of %d gone, %d going, %.0f/s", strings.Join(slices.Sorted(maps.Keys(m.of)), ", "), t.Moved, t.Moved+t.Left+t.Stuck, t.Moving, t.Rate)
	if t.ETA > 0 {
		s += fmt.Sprintf(", %s left", time.Duration(t.ETA).Round(100*time.Millisecond))
	}
	if t.Failed > 0 {
		s += fmt.Sprintf(", failed handoffs: %d", t.Failed)
	}
	return s
}

func (m *mover) summary() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	t, to := m.total()
	s := fmt.Sprintf("clients that have gone: %d", t.Moved)
	for i, name := range slices.Sorted(maps.Keys(to)) {
		s += fmt.Sprintf("%s%d to %s", map[bool]string{true: ", ", false: " ("}[i > 0], to[name], name)
	}
	if len(to) > 0 {
		s += ")"
	}
	if n := t.Left + t.Stuck; n > 0 {
		s += fmt.Sprintf(", left: %d", n)
	}
	if t.Failed > 0 {
		s += fmt.Sprintf(", failed handoffs: %d", t.Failed)
	}
	return s + fmt.Sprintf(", in %s", time.Since(m.begin).Round(time.Millisecond))
}

// nodesOf are the nodes as a plan sees them.
func nodesOf(ctx context.Context, client *api.Client, dsa netip.Addr, weights map[string]int) (all []plan.Node, err error) {
	nodes, err := client.Nodes(ctx, dsa)
	if err != nil {
		return nil, err
	}
	for name, w := range weights {
		if !slices.ContainsFunc(nodes, func(n api.NodeInfo) bool { return n.Node == name }) {
			return nil, fmt.Errorf("--weight %s: there is no such node", name)
		}
		if w < 1 || w > plan.MaxWeight {
			return nil, fmt.Errorf("--weight %s=%d: want 1 to %d", name, w, plan.MaxWeight)
		}
	}
	for _, n := range nodes {
		there := (n.Local || n.Connected) && n.Attached && !n.Draining
		all = append(all, plan.Node{Name: n.Node, Clients: n.Clients, Weight: max(1, weights[n.Node]), Takes: there && n.AcceptsHandoffs, Gives: there})
	}
	return all, nil
}
