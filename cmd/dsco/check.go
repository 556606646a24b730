package main

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/spf13/cobra"

	"github.com/distributed-servers/ds/daemon/config"
	"github.com/distributed-servers/ds/daemon/filter"
	"github.com/distributed-servers/ds/daemon/host"
	"github.com/distributed-servers/ds/daemon/server"
)

func checkCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check FILE",
		Short: "Tell what is wrong with a configuration",
		Long: `Tell what is wrong with a configuration, with line, cause and cure of each mistake.

The files that it mentions are read too, and the users looked up. The exit
status is 0 if nothing is wrong, else 78. docs/dsco.toml is a complete example.`,
		Example: "  dsco check /etc/dsco/dsco.toml && systemctl reload dsco-node",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cfg, err := config.Load(args[0])
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "%s: nothing is wrong; for %s\n", args[0], strings.Join(rolesOf(cfg), ", "))
			return err
		},
	}
}

// rolesOf says what a configuration is for.
func rolesOf(cfg *config.Config) []string {
	var roles []string
	if n := cfg.Node; n != nil {
		s := "node " + n.Name + " of"
		for i, server := range cfg.Servers {
			if i > 0 {
				s += " and"
			}
			s += " " + server.Address.Addr().String()
		}
		roles = append(roles, s)
	}
	if h := cfg.HomeAgent; h != nil {
		roles = append(roles, fmt.Sprintf("home agent of %d addresses", len(h.Homes)))
	}
	if cfg.Correspondent != nil {
		roles = append(roles, "correspondent")
	}
	return roles
}

func cleanupCommand() *cobra.Command {
	var path string
	c := &cobra.Command{
		Use:   "cleanup",
		Short: "Undo what a daemon that was killed has left on this host",
		Long: `Undo what a daemon that was killed has left on this host: packet filter rules,
routes, addresses, neighbour proxy entries, sysctls, and its socket.

The next start does that too. It is an error if the daemon still runs. Without a
configuration in the default place, it looks where the defaults of all roles are.`,
		Example: "  dsco cleanup --config /etc/dsco/dsco.toml",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := config.Read(path)
			if errors.Is(err, fs.ErrNotExist) && !c.Flags().Changed("config") {
				cfg, err = &config.Config{Node: new(config.Node), HomeAgent: new(config.HomeAgent), Correspondent: new(config.Correspondent)}, nil
				cfg.SetDefaults()
			}
			if err != nil {
				return err
			}
			for _, k := range kinds {
				if k.present(cfg) {
					t := k.traces(cfg)
					err = errors.Join(err, server.Cleanup(t.socket), filter.Cleanup(t.queue), host.Cleanup(t.state))
				}
			}
			return err
		},
	}
	configFlag(c, &path)
	return c
}
