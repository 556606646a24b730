package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/distributed-servers/ds/daemon/config"
	"github.com/distributed-servers/ds/daemon/identity"
)

// joinTimeout is how long the authority may take.
const joinTimeout = 30 * time.Second

func joinCommand() *cobra.Command {
	var p place
	var n nodeFlags
	c := &cobra.Command{
		Use:   "join TOKEN",
		Short: "Make this machine a node of a cluster",
		Long: `Make this machine a node of a cluster, with a token from ds init or ds token there.

A key is made here and stays here; the authority, which is known by its hash in the
token, signs a certificate for it. It tells which distributed servers there are, and
a configuration for dsco is written. The other nodes learn of this one by
themselves. Nothing that is there already is replaced without --force.

With - the token is read from standard input, where nobody sees it.`,
		Example: `  ds join dsjoin1.IAENuAAFAAA…
  ds join - --name b --address 2001:db8:5::b <token
  systemctl enable --now dsco-node`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			token, err := readToken(c, args[0])
			if err != nil {
				return err
			}
			address, err := n.local()
			if err != nil {
				return err
			}
			careOf, err := n.careOfs()
			if err != nil {
				return err
			}
			if err := p.open(); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(c.Context(), joinTimeout)
			defer cancel()
			j, err := identity.Join(ctx, identity.JoinConfig{
				Token: token, Dir: p.cluster(), Force: p.force, Name: n.name, Address: address, Port: token.Address.Port(), CareOf: careOf,
			})
			if err != nil {
				return err
			}
			m := made{
				Node: n.name, Cluster: j.Roster.Cluster, Address: address.String(), Config: p.config, Identity: p.cluster(),
				Members: slices.Sorted(maps.Keys(j.Roster.Nodes)),
			}
			cfg, err := p.joined(&n, address, token, j, &m)
			if err == nil {
				err = p.finish(cfg)
			}
			if err != nil {
				return err
			}
			if p.json {
				return writeJSON(c.OutOrStdout(), m)
			}
			return joinText(c.OutOrStdout(), &m)
		},
	}
	p.flags(c)
	n.flags(c)
	return c
}

func readToken(c *cobra.Command, arg string) (*identity.Token, error) {
	if arg == "-" {
		b, err := io.ReadAll(io.LimitReader(c.InOrStdin(), 4096))
		if err != nil {
			return nil, err
		}
		arg = strings.TrimSpace(string(b))
		arg = strings.TrimPrefix(arg, "ds join ")
	}
	return identity.ParseToken(arg)
}

// joined writes the keys that are shared, and returns the configuration.
func (p *place) joined(n *nodeFlags, address netip.Addr, t *identity.Token, j *identity.Joined, m *made) (*config.Config, error) {
	cfg := &config.Config{Node: &config.Node{
		Name: n.name, Address: address, Interface: n.iface, ControlPort: t.Address.Port(), State: p.state, Cluster: p.cluster(),
	}}
	for i, s := range j.Servers {
		server := config.Server{
			Address: s.Address, HomeAgent: s.HomeAgent, SPI: s.SPI, Contact: s.Contact, Users: s.Users, UserGroups: s.UserGroups,
			MTU: s.MTU, DirectReturn: s.DirectReturn, Tunnel: s.Tunnel,
		}
		if d, err := time.ParseDuration(s.Idle); err == nil {
			server.IdleTimeout = config.Duration(d)
		}
		if len(s.Key) > 0 {
			server.KeyFile = "server.key"
			if i > 0 {
				server.KeyFile = fmt.Sprintf("server-%d.key", i+1)
			}
			file := filepath.Join(filepath.Dir(p.config), server.KeyFile)
			if err := p.write(file, append(s.Key, '\n')); err != nil {
				return nil, err
			}
			m.Keys = append(m.Keys, file)
		}
		cfg.Servers = append(cfg.Servers, server)
	}
	cfg.SetDefaults()
	return cfg, nil
}

func joinText(w io.Writer, m *made) error {
	fmt.Fprintf(w, "This machine is node %s of cluster %s, with %s.\n\n  %s  configuration\n", m.Node, m.Cluster, strings.Join(m.Members, ", "), m.Config)
	for _, key := range m.Keys {
		fmt.Fprintf(w, "  %s  secret, the same on all nodes and at the home agent\n", key)
	}
	_, err := fmt.Fprintf(w, "  %s  identity of this node\n\nStart it:\n\n  systemctl enable --now dsco-node\n", m.Identity)
	return err
}
