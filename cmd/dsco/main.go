// Command dsco is the daemon of Distributed Servers: of a server node, of a home
// agent, or of a client that knows Mobile IPv6.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/distributed-servers/ds/daemon/config"
	"github.com/distributed-servers/ds/internal/cli"
)

func main() { os.Exit(run(os.Args[1:])) }

// Exit statuses. systemd does not start a daemon again whose configuration is
// wrong (packaging/).
const (
	exitFailed = 1
	exitConfig = 78 // EX_CONFIG of sysexits.h
)

// gcPercent is GOGC, unless the environment has one. A daemon's heap is small, some ten
// megabytes, so that what handoffs leave behind would have it collected many times a
// second.
const gcPercent = 400

func run(args []string) int {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second one ends the process at once
	c := command()
	c.SetArgs(args)
	err := c.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	var problems config.Problems
	if errors.As(err, &problems) {
		fmt.Fprintln(os.Stderr, problems)
		return exitConfig
	}
	fmt.Fprintln(os.Stderr, "dsco:", err)
	return exitFailed
}

func command() *cobra.Command {
	c := &cobra.Command{
		Use:   "dsco",
		Short: "The daemon of Distributed Servers",
		Long: `The daemon of Distributed Servers: one address, many nodes, connections that move.

It is started for one role, and stopped with SIGTERM; SIGHUP makes it read its
configuration again. What it has changed on the host it undoes when it ends.`,
		Example: `  dsco check /etc/dsco/dsco.toml
  dsco node --config /etc/dsco/dsco.toml
  dsco cleanup`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	c.CompletionOptions.HiddenDefaultCmd = true
	for _, k := range kinds {
		c.AddCommand(roleCommand(k))
	}
	c.AddCommand(checkCommand(), cleanupCommand(), cli.Version(), cli.Docs("8"))
	return c
}

// defaultConfig is where the configuration is, unless told otherwise.
const defaultConfig = "/etc/dsco/dsco.toml"

func configFlag(c *cobra.Command, path *string) {
	c.Flags().StringVar(path, "config", defaultConfig, "file with the configuration")
	c.MarkFlagFilename("config", "toml")
}
