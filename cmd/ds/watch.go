package main

import (
	"context"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/distributed-servers/ds/daemon/api"
)

func watchCommand() *cobra.Command {
	var a asker
	var since uint64
	var client string
	c := &cobra.Command{
		Use:   "watch",
		Short: "Show what happens at the daemon, as it happens",
		Long: `Show what happens at the daemon, as it happens, until it is interrupted.

Events have numbers; with --since, those after one are shown first, as far as
they are remembered. Events that were missed are counted. The exit status is
that of a failure only if the daemon ends.`,
		Example: "  ds watch\n  ds watch --client 2001:db8:9::1 --since 0\n  ds watch --json | jq -c 'select(.kind == \"handed-off\")'",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			o := api.WatchOptions{Since: api.FromNow}
			if c.Flags().Changed("since") {
				o.Since = since
			}
			var err error
			if a.server != "" {
				if o.Server, err = parseAddr("--server", a.server); err != nil {
					return err
				}
			}
			if client != "" {
				if o.Client, err = parseAddr("--client", client); err != nil {
					return err
				}
			}
			return watch(c, &a, o)
		},
	}
	a.flags(c, true)
	c.Flags().Uint64Var(&since, "since", 0, "show events after this `number` first")
	c.Flags().StringVar(&client, "client", "", "show events about the client with this `address` only")
	c.RegisterFlagCompletionFunc("client", func(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return a.complete(c, a.listClients)
	})
	return c
}

func watch(c *cobra.Command, a *asker, o api.WatchOptions) error {
	client := a.client()
	defer client.Close()
	// Without padding across lines: who watches wants each at once.
	w := tabwriter.NewWriter(c.OutOrStdout(), 14, 0, 2, ' ', 0)
	for e, err := range client.Watch(c.Context(), o) {
		switch {
		case c.Context().Err() == context.Canceled:
			return nil
		case err != nil:
			return err
		case a.json:
			err = writeJSON(c.OutOrStdout(), e)
		default:
			eventRow(w, e, true)
			err = w.Flush()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// eventRow prints an event, with what it is about unless that is known.
func eventRow(w *tabwriter.Writer, e api.Event, whole bool) {
	text := e.Detail
	if e.Missed > 0 {
		text = fmt.Sprintf("%d events", e.Missed)
	}
	fmt.Fprintf(w, "%s\t%s\t", e.Time.Local().Format("15:04:05.000000"), e.Kind)
	switch {
	case !whole:
	case e.Client.IsValid():
		fmt.Fprintf(w, "%s\t", e.Client)
	case e.Server.IsValid():
		fmt.Fprintf(w, "%s\t", e.Server)
	default:
		fmt.Fprint(w, "\t")
	}
	epoch := ""
	if e.Epoch > 0 {
		epoch = fmt.Sprintf("epoch %d", e.Epoch)
	}
	fmt.Fprintf(w, "%s\t%s\t%s\n", e.Node, epoch, text)
}
