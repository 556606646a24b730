package main

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/distributed-servers/ds/daemon/api"
)

// asker asks a daemon: what the commands that do have in common.
type asker struct {
	socket string
	server string
	json   bool
}

// flags adds the flags of a command; withServer: it is about one distributed
// server.
func (a *asker) flags(c *cobra.Command, withServer bool) {
	c.Flags().StringVar(&a.socket, "socket", api.NodeSocket, "`path` of the daemon's socket")
	c.Flags().BoolVar(&a.json, "json", false, "print JSON, as the API has it (docs/api.md)")
	if withServer {
		c.Flags().StringVar(&a.server, "server", "", "`address` of the distributed server, if the node has several")
		c.RegisterFlagCompletionFunc("server", a.completeServer)
	}
}

func (a *asker) client() *api.Client { return &api.Client{Socket: a.socket} }

// dsa is the distributed server that is meant.
func (a *asker) dsa(ctx context.Context, client *api.Client) (netip.Addr, error) {
	if a.server != "" {
		return parseAddr("--server", a.server)
	}
	servers, err := client.Servers(ctx)
	switch {
	case err != nil:
		return netip.Addr{}, err
	case len(servers) == 0:
		return netip.Addr{}, fmt.Errorf("this node has no distributed server; add one to the configuration of dsco")
	case len(servers) > 1:
		var names []string
		for _, s := range servers {
			names = append(names, s.Address.String())
		}
		return netip.Addr{}, fmt.Errorf("this node has several distributed servers; say which with --server: %s", strings.Join(names, ", "))
	}
	return servers[0].Address, nil
}

func parseAddr(what, s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return a, fmt.Errorf("%s: %q is not an address", what, s)
	}
	return a, nil
}

// ask makes a call about one distributed server, and prints the answer as JSON
// or as a table.
func ask[T any](c *cobra.Command, a *asker, call func(ctx context.Context, client *api.Client, dsa netip.Addr) (T, error), table func(*tabwriter.Writer, T)) error {
	client := a.client()
	defer client.Close()
	dsa, err := a.dsa(c.Context(), client)
	if err != nil {
		return err
	}
	v, err := call(c.Context(), client, dsa)
	if err != nil {
		return err
	}
	return a.print(c, v, func(w *tabwriter.Writer) { table(w, v) })
}

func (a *asker) print(c *cobra.Command, v any, table func(*tabwriter.Writer)) error {
	if a.json {
		return writeJSON(c.OutOrStdout(), v)
	}
	w := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
	table(w)
	return w.Flush()
}

// row prints the cells of a row; – for what there is not.
func row(w *tabwriter.Writer, cells ...any) {
	for i, cell := range cells {
		if i > 0 {
			fmt.Fprint(w, "\t")
		}
		s := fmt.Sprint(cell)
		if a, ok := cell.(netip.Addr); s == "" || ok && !a.IsValid() {
			s = "–"
		}
		fmt.Fprint(w, s)
	}
	fmt.Fprintln(w)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// age is how long ago something was; until, how long it lasts. Both are empty
// for no time.
func age(t time.Time) string { return span(time.Since(t), t) }

func until(t time.Time) string { return span(time.Until(t), t) }

func span(d time.Duration, t time.Time) string {
	switch {
	case t.IsZero():
		return ""
	case d < 0:
		return "0s"
	case d >= 48*time.Hour:
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	case d >= time.Hour:
		return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
	case d >= 10*time.Second:
		return d.Round(time.Second).String()
	}
	return d.Round(100 * time.Millisecond).String()
}

// number is empty for 0.
func number[T int | uint64 | uint16](n T) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}

// Completion is short of patience: a shell waits for it. Tests are not.
var completionTimeout = time.Second

func (a *asker) complete(c *cobra.Command, list func(ctx context.Context, client *api.Client) ([]string, error)) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(c.Context(), completionTimeout)
	defer cancel()
	client := a.client()
	defer client.Close()
	names, err := list(ctx, client)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func (a *asker) completeServer(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.complete(c, func(ctx context.Context, client *api.Client) (names []string, err error) {
		servers, err := client.Servers(ctx)
		for _, s := range servers {
			names = append(names, s.Address.String())
		}
		return names, err
	})
}

// completeClientAndNode completes a client, and after it, if withNode, a node.
func (a *asker) completeClientAndNode(withNode bool) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		switch {
		case len(args) == 0:
			return a.complete(c, a.listClients)
		case len(args) == 1 && withNode:
			return a.complete(c, a.listNodes)
		}
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
}

func (a *asker) completeNode(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.complete(c, a.listNodes)
}

func (a *asker) listClients(ctx context.Context, client *api.Client) (names []string, err error) {
	dsa, err := a.dsa(ctx, client)
	if err != nil {
		return nil, err
	}
	clients, err := client.Clients(ctx, dsa)
	for _, i := range clients {
		names = append(names, cobra.CompletionWithDesc(i.Client.String(), "at "+i.Owner))
	}
	return names, err
}

func (a *asker) listNodes(ctx context.Context, client *api.Client) (names []string, err error) {
	dsa, err := a.dsa(ctx, client)
	if err != nil {
		return nil, err
	}
	nodes, err := client.Nodes(ctx, dsa)
	for _, n := range nodes {
		names = append(names, n.Node)
	}
	return names, err
}
