package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/daemon/config"
	"github.com/distributed-servers/ds/daemon/identity"
)

func removeCommand() *cobra.Command {
	var f caFlags
	var force bool
	c := &cobra.Command{
		Use:   "remove NODE",
		Short: "Take a node out of the cluster for good",
		Long: `Take a node out of the cluster for good. It is in no list any more, the others do not
connect to it, and refuse it and its certificate, within seconds, or when they are back.
If it runs still, its log says so.

Drain it first (ds drain NODE), and if it is the contact let another node take over. A
node that has clients, or is not connected, so that nobody knows, takes --force: the
others forget what it has, and connections of its clients end; a handoff to it of which
nobody knows the end counts as having come about.

What NODE knows it still knows. If somebody else may have its disk, give home agent and
nodes another key, and rotate the authority (ds ca rotate) before a node gets its name
again.

It runs where ds init was run, while dsco runs there.`,
		Example: "  ds drain c && ds remove c\n  ds remove c --force      # c is broken",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return f.run(c, func(dir string) (*identity.Roster, error) { return remove(c.Context(), dir, f.config, args[0], force) })
		},
	}
	f.flags(c)
	c.Flags().BoolVar(&force, "force", false, "although it has clients, or nobody knows whether it has")
	return c
}

func remove(ctx context.Context, dir, path, name string, force bool) (*identity.Roster, error) {
	cfg, err := config.Read(path)
	if err != nil {
		return nil, err
	}
	return identity.Remove(dir, name, func(r *identity.Roster) error {
		with, err := cfg.With(r)
		if err != nil {
			return err
		}
		if _, listed := with.Node.Peers[name]; listed {
			return fmt.Errorf("%s has it in [node.peers], too: remove it there first", path)
		}
		return mayRemove(ctx, &api.Client{Socket: cfg.Node.Socket}, name, force)
	})
}

// mayRemove tells why a node is not to be removed now.
func mayRemove(ctx context.Context, client *api.Client, name string, force bool) error {
	defer client.Close()
	servers, err := client.Servers(ctx)
	if err != nil && !force {
		return fmt.Errorf("%w; --force does without", err)
	}
	for _, s := range servers {
		nodes, err := client.Nodes(ctx, s.Address)
		if err != nil {
			return err
		}
		for _, n := range nodes {
			switch {
			case n.Node != name:
			case n.Contact:
				return fmt.Errorf("it is the contact of %s; let another node take over first (ds contact takeover, there)", s.Address)
			case force:
			case !n.Connected:
				return errors.New("it is not connected, and may have clients; if it is gone for good: --force")
			case n.Clients > 0:
				return fmt.Errorf("it has clients of %s: %d; drain it first (ds drain %s), or --force", s.Address, n.Clients, name)
			}
		}
	}
	return nil
}
