package main

import (
	"fmt"
	"maps"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/distributed-servers/ds/daemon/identity"
)

func caCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "ca",
		Short: "See and rotate the authority of the cluster",
		Long: `See and rotate the authority of the cluster, which signs the nodes' certificates.

Nodes renew their certificates by themselves; nothing has to be done for that.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(caShowCommand(), caRotateCommand(), caRetireCommand())
	return c
}

// caSeen is what is shown of a cluster's authority.
type caSeen struct {
	Cluster     string     `json:"cluster"`
	Serial      uint64     `json:"serial"`
	Authority   string     `json:"authority"`
	Authorities []caCert   `json:"authorities"`
	Nodes       []caMember `json:"nodes"`
}

type caCert struct {
	Fingerprint string    `json:"fingerprint"`
	Name        string    `json:"name"`
	Expires     time.Time `json:"expires"`
	Signs       bool      `json:"signs"`
}

type caMember struct {
	Node    string `json:"node"`
	Address string `json:"address"`
	Issuer  string `json:"issuer"`
}

func seen(r *identity.Roster) (*caSeen, error) {
	s := &caSeen{Cluster: r.Cluster, Serial: r.Serial, Authority: r.Authority}
	certs, err := r.Certificates()
	if err != nil {
		return nil, err
	}
	for i, c := range certs {
		s.Authorities = append(s.Authorities, caCert{identity.Short(c.Raw), c.Subject.CommonName, c.NotAfter, i == 0})
	}
	for _, name := range slices.Sorted(maps.Keys(r.Nodes)) {
		s.Nodes = append(s.Nodes, caMember{name, r.Nodes[name].Address.String(), r.Nodes[name].Issuer})
	}
	return s, nil
}

// caFlags are those of the commands about the authority.
type caFlags struct {
	config string
	json   bool
}

func (f *caFlags) flags(c *cobra.Command) {
	c.Flags().StringVar(&f.config, "config", "/etc/dsco/dsco.toml", "`file` with the configuration of this node")
	c.Flags().BoolVar(&f.json, "json", false, "print JSON")
	c.MarkFlagFilename("config", "toml")
}

// run does something with the directory of the cluster, and prints the list.
func (f *caFlags) run(c *cobra.Command, do func(dir string) (*identity.Roster, error)) error {
	dir, err := clusterDir(f.config)
	if err != nil {
		return err
	}
	r, err := do(dir)
	if err != nil {
		return err
	}
	s, err := seen(r)
	if err != nil {
		return err
	}
	if f.json {
		return writeJSON(c.OutOrStdout(), s)
	}
	w := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "cluster %s, list of members %d, authority at %s\n\n", s.Cluster, s.Serial, s.Authority)
	row(w, "AUTHORITY", "NAME", "EXPIRES", "SIGNS")
	for _, a := range s.Authorities {
		row(w, a.Fingerprint, a.Name, a.Expires.Format(time.DateOnly), yesNo(a.Signs))
	}
	fmt.Fprintln(w)
	row(w, "NODE", "ADDRESS", "CERTIFICATE BY")
	for _, n := range s.Nodes {
		row(w, n.Node, n.Address, n.Issuer)
	}
	return w.Flush()
}

func caShowCommand() *cobra.Command {
	var f caFlags
	c := &cobra.Command{
		Use:     "show",
		Short:   "Show the authorities that are believed, and who has a certificate of which",
		Example: "  ds ca show\n  ds ca show --json | jq '.nodes[].issuer'",
		Args:    cobra.NoArgs,
		RunE:    func(c *cobra.Command, _ []string) error { return f.run(c, identity.ReadRoster) },
	}
	f.flags(c)
	return c
}

func caRotateCommand() *cobra.Command {
	var f caFlags
	c := &cobra.Command{
		Use:   "rotate",
		Short: "Make a new authority; both are believed until ds ca retire",
		Long: `Make a new authority. Both are believed from then on, and the nodes get certificates
of the new one by themselves, within seconds, or when they are back. Connections
stay. ds ca show tells who has one; then ds ca retire ends it.

It runs where ds init was run.`,
		Example: "  ds ca rotate\n  ds ca show      # all nodes have a certificate of the new one?\n  ds ca retire",
		Args:    cobra.NoArgs,
		RunE:    func(c *cobra.Command, _ []string) error { return f.run(c, identity.Rotate) },
	}
	f.flags(c)
	return c
}

func caRetireCommand() *cobra.Command {
	var f caFlags
	var force bool
	c := &cobra.Command{
		Use:   "retire",
		Short: "Believe the old authority no more",
		Long: `Believe the old authority no more, after ds ca rotate. It is refused while a node has
no certificate of the new one: with --force such nodes are left out, and have to join
again (ds token --replace NODE there, ds join --force on the node).

It runs where ds init was run.`,
		Example: "  ds ca retire",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return f.run(c, func(dir string) (*identity.Roster, error) { return identity.Retire(dir, force) })
		},
	}
	f.flags(c)
	c.Flags().BoolVar(&force, "force", false, "leave out nodes that have no certificate of the new one")
	return c
}
