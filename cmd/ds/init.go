package main

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/distributed-servers/ds/daemon/config"
	"github.com/distributed-servers/ds/daemon/identity"
)

// made is what ds init and ds join have made.
type made struct {
	Node      string   `json:"node"`
	Cluster   string   `json:"cluster"`
	Address   string   `json:"address"`
	Config    string   `json:"config"`
	Identity  string   `json:"identity"`
	Keys      []string `json:"keys"`
	HomeAgent string   `json:"home_agent,omitempty"` // file with its configuration
	Members   []string `json:"members"`
	ticket
}

// ticket is a token for whom it is handed to.
type ticket struct {
	Token   string    `json:"token,omitempty"`
	Expires time.Time `json:"expires,omitzero"`
	Uses    int       `json:"uses,omitzero"`
}

func initCommand() *cobra.Command {
	var p place
	var n nodeFlags
	var server, homeAgent, key string
	var spi uint32
	var users []string
	var port uint16
	c := &cobra.Command{
		Use:   "init",
		Short: "Make a cluster, of which this machine is the first node",
		Long: `Make a cluster, of which this machine is the first node: the authority that signs
certificates, key and certificate of this node, and a configuration for dsco. It
prints the command by which another machine joins.

The authority's key stays here, readable for the daemon's user only: whoever has
it can make nodes. Keep a copy of the directory in a safe place. Nothing that is
there already is replaced without --force.

The key that secures registrations at the home agent (RFC 4285) is made too, unless
there is one: it and a configuration go to the home agent's machine.`,
		Example: `  ds init --server 2001:db8:1::80/64 --home-agent 2001:db8:1::1
  ds init --name a --address 2001:db8:5::a --server 2001:db8:1::80/64 \
      --home-agent 2001:db8:1::1 --home-agent-key ./server.key --app-user www`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			dsa, err := netip.ParsePrefix(server)
			if err != nil {
				return fmt.Errorf("--server: %q is not an address with the length of its home prefix, such as 2001:db8:1::80/64", server)
			}
			agent, err := parseAddr("--home-agent", homeAgent)
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
			mine, ok := careOf[dsa.Addr()]
			if !ok {
				mine, ok = careOf[netip.IPv6Unspecified()]
			}
			if !ok {
				mine = identity.CareOf(address, dsa.Addr(), n.name)
			}
			secret, err := homeKey(key)
			if err != nil {
				return err
			}
			dir := filepath.Dir(p.config)
			keyFile, agentFile := filepath.Join(dir, "server.key"), filepath.Join(dir, "home-agent.toml")
			if err := p.open(keyFile, agentFile); err != nil {
				return err
			}
			cfg := &config.Config{
				Node: &config.Node{Name: n.name, Address: address, Interface: n.iface, ControlPort: port, State: p.state, Cluster: p.cluster()},
				Servers: []config.Server{{
					Address: dsa, HomeAgent: agent, SPI: spi, KeyFile: "server.key", Contact: n.name, Users: users,
				}},
			}
			cfg.SetDefaults()
			r := &identity.Roster{Nodes: map[string]identity.Member{n.name: {Address: address, Port: port, CareOf: map[netip.Addr]netip.Addr{dsa.Addr(): mine}}}}
			if _, err := cfg.With(r); err != nil { // before anything is written
				return err
			}
			r, err = identity.Create(p.cluster(), n.name, r.Nodes[n.name], p.force)
			if err != nil {
				return err
			}
			home, err := config.Format(&config.Config{HomeAgent: &config.HomeAgent{
				Address: agent, Prefixes: []netip.Prefix{dsa.Masked()}, Homes: []config.Home{{Address: dsa.Addr(), SPI: spi, KeyFile: "server.key"}},
			}})
			if err != nil {
				return err
			}
			if err := p.write(keyFile, secret); err != nil {
				return err
			}
			if err := p.write(agentFile, home); err != nil {
				return err
			}
			if err := p.finish(cfg); err != nil {
				return err
			}
			t, err := newTicket(p.cluster(), identity.TokenOptions{})
			if err != nil {
				return err
			}
			m := made{
				Node: n.name, Cluster: r.Cluster, Address: address.String(), Config: p.config, Identity: p.cluster(),
				Keys: []string{keyFile}, HomeAgent: agentFile, Members: []string{n.name}, ticket: *t,
			}
			if p.json {
				return writeJSON(c.OutOrStdout(), m)
			}
			return initText(c.OutOrStdout(), &m, agent)
		},
	}
	p.flags(c)
	n.flags(c)
	c.Flags().StringVar(&server, "server", "", "`address` of the distributed server, with the length of its home prefix (required)")
	c.Flags().StringVar(&homeAgent, "home-agent", "", "`address` of the home agent (required)")
	c.Flags().StringVar(&key, "home-agent-key", "", "`file` with the key that the home agent has already, in hexadecimal (default: a new key)")
	c.Flags().Uint32Var(&spi, "spi", 256, "`number` of that key, the same at the home agent")
	c.Flags().StringSliceVar(&users, "app-user", []string{"root"}, "`user` that may attach an application")
	c.Flags().Uint16Var(&port, "control-port", 7846, "TCP `port` where daemons accept each other's connections, the same on all nodes")
	c.MarkFlagRequired("server")
	c.MarkFlagRequired("home-agent")
	c.MarkFlagFilename("home-agent-key")
	return c
}

// homeKey is the content of a key file: that of another one, or a new key.
func homeKey(file string) ([]byte, error) {
	var key []byte
	if file != "" {
		var err error
		if key, err = config.ReadKey(file); err != nil {
			return nil, fmt.Errorf("--home-agent-key: %w", err)
		}
	} else {
		key = make([]byte, 32)
		rand.Read(key) // never fails
	}
	return append(hex.AppendEncode(nil, key), '\n'), nil
}

func initText(w io.Writer, m *made, agent netip.Addr) error {
	_, err := fmt.Fprintf(w, `Node %s is the first of cluster %s, and has its authority.

  %s  configuration
  %s  secret, the same on all nodes and at the home agent
  %s  configuration for the home agent, %s
  %s  identity of this node, and the authority's key

Copy the key and the home agent's configuration to the home agent's machine, and
start it there. Then, here:

  systemctl enable --now dsco-node

On another machine, until %s and once:

  ds join %s

ds token makes another one.
`, m.Node, m.Cluster, m.Config, m.Keys[0], m.HomeAgent, agent, m.Identity, m.Expires.Format(time.DateTime), m.Token)
	return err
}

func newTicket(dir string, o identity.TokenOptions) (*ticket, error) {
	t, err := identity.NewToken(dir, o)
	if err != nil {
		return nil, err
	}
	return &ticket{t.String(), t.Expires, max(1, o.Uses)}, nil
}

func tokenCommand() *cobra.Command {
	var path string
	var o identity.TokenOptions
	var asJSON bool
	c := &cobra.Command{
		Use:   "token",
		Short: "Let another machine join the cluster",
		Long: `Let another machine join the cluster: print the command for it. It has a token in
it, which is good once and for an hour unless told otherwise. Whoever has the token
can become a node; nobody but the authority can read it back.

It runs where ds init was run. dsco has to run there when the machine joins.`,
		Example: `  ds token
  ds token --uses 10 --for 24h
  ds token --replace b      # node b has lost its key, or its certificate has expired`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			dir, err := clusterDir(path)
			if err != nil {
				return err
			}
			t, err := newTicket(dir, o)
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(c.OutOrStdout(), t)
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "ds join %s\n", t.Token)
			if err == nil {
				_, err = fmt.Fprintf(c.ErrOrStderr(), "good until %s, for %d\n", t.Expires.Format(time.DateTime), t.Uses)
			}
			return err
		},
	}
	c.Flags().StringVar(&path, "config", "/etc/dsco/dsco.toml", "`file` with the configuration of this node")
	c.Flags().DurationVar(&o.Lifetime, "for", time.Hour, "`time` for which it is good, up to 720h")
	c.Flags().IntVar(&o.Uses, "uses", 1, "`number` of machines that may join with it")
	c.Flags().StringVar(&o.Replace, "replace", "", "`node` that may join again with it, and nobody else")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.MarkFlagFilename("config", "toml")
	return c
}

// clusterDir is the directory of the identity that a configuration names.
func clusterDir(path string) (string, error) {
	cfg, err := config.Read(path)
	if err != nil {
		return "", err
	}
	if cfg.Node == nil || cfg.Node.Cluster == "" {
		return "", fmt.Errorf("%s: node.cluster is not set: the certificates of this node are an operator's; ds init makes a cluster that looks after them", path)
	}
	if _, err := os.Stat(cfg.Node.Cluster); err != nil {
		return "", err
	}
	return cfg.Node.Cluster, nil
}
