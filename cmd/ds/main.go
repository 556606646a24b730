// Command ds asks a daemon about distributed servers and has it change them. It
// tells what a machine can do for them, measures how fast connections move on it,
// and shows them moving.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/distributed-servers/ds/internal/cli"
	"github.com/distributed-servers/ds/internal/probe"
)

func main() {
	probe.Main()
	os.Exit(run())
}

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second one ends the process at once
	err := command().ExecuteContext(ctx)
	switch {
	case err == nil:
		return 0
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "ds: interrupted")
		return 130
	case !errors.Is(err, errSaid):
		fmt.Fprintln(os.Stderr, "ds:", err)
	}
	return 1
}

// errSaid is a failure that the output already tells.
var errSaid = errors.New("failed")

func command() *cobra.Command {
	c := &cobra.Command{
		Use:   "ds",
		Short: "Distributed Servers: one address, many nodes, connections that move",
		Long: `Distributed Servers: one address, many nodes, connections that move.

A client keeps its TCP connections while they move from one server to another;
it needs no change and notices nothing.`,
		Example: `  ds check                      what this machine can do
  ds demo                       hand live HTTP transfers round, and verify every octet
  ds bench migrate              how long a connection takes to move
  ds status                     the daemon, its distributed servers and its peers
  ds clients                    who is served, and where
  ds handoff 2001:db8:9::1 b    hand a client off
  ds drain a                    hand all clients of a node to the others
  ds contact takeover           make this node the contact
  ds init --help                make a cluster; ds join has another machine join it
  source <(ds completion bash)  complete commands, nodes and clients`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	const ask, cluster, machine = "ask", "cluster", "machine"
	c.AddGroup(&cobra.Group{ID: cluster, Title: "A cluster:"}, &cobra.Group{ID: ask, Title: "The daemon on this machine:"}, &cobra.Group{ID: machine, Title: "This machine:"})
	for group, commands := range map[string][]*cobra.Command{
		ask:     {statusCommand(), nodesCommand(), clientsCommand(), traceCommand(), handoffCommand(), drainCommand(), undrainCommand(), rebalanceCommand(), bindingCommand(), contactCommand(), watchCommand()},
		cluster: {initCommand(), joinCommand(), tokenCommand(), removeCommand(), caCommand()},
		machine: {checkCommand(), benchCommand(), demoCommand()},
	} {
		for _, sub := range commands {
			sub.GroupID = group
			c.AddCommand(sub)
		}
	}
	c.AddCommand(cli.Version(), cli.Docs("1"))
	return c
}
