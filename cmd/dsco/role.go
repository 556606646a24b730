package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"

	"github.com/distributed-servers/ds/daemon"
	"github.com/distributed-servers/ds/daemon/config"
	"github.com/distributed-servers/ds/daemon/correspondent"
	"github.com/distributed-servers/ds/daemon/homeagent"
)

// role is a daemon of one of the roles.
type role interface {
	// Run calls ready when everything is up, and returns when the context has
	// ended or something has failed. What it has changed it has undone then.
	Run(ctx context.Context, ready func()) error

	// Reload takes over what may change meanwhile. Anything else is an error
	// that says what takes a restart; then nothing has changed.
	Reload(cfg *config.Config) error
}

// kind is one of the roles.
type kind struct {
	name    string
	table   string // of the configuration
	short   string
	long    string
	present func(*config.Config) bool
	traces  func(*config.Config) traces
	start   func(*config.Config, *slog.Logger) (role, error)
}

// traces are where to look for what a daemon that was killed has left.
type traces struct {
	socket, state string
	queue         uint16
}

var kinds = []kind{
	{
		name: "node", table: "[node]", short: "Be a node of distributed servers",
		long: `Be a node of distributed servers.

Applications on this host attach to it (package ds), and their clients are
handed off to other nodes. It needs CAP_NET_ADMIN and CAP_NET_RAW.`,
		present: func(c *config.Config) bool { return c.Node != nil },
		traces:  func(c *config.Config) traces { return traces{c.Node.Socket, c.Node.State, c.Node.Queue} },
		start: func(c *config.Config, log *slog.Logger) (role, error) {
			n, err := daemon.NewNode(c, log)
			if err != nil {
				return nil, err
			}
			return nodeRole{n}, nil
		},
	},
	{
		name: "home-agent", table: "[home_agent]", short: "Be the home agent of distributed servers",
		long: `Be the home agent of distributed servers (RFC 6275).

Packets from clients that have no binding come to it first; it sends them to the
node that is the contact. It needs CAP_NET_ADMIN and CAP_NET_RAW.`,
		present: func(c *config.Config) bool { return c.HomeAgent != nil },
		traces: func(c *config.Config) traces {
			return traces{c.HomeAgent.Socket, c.HomeAgent.State, c.HomeAgent.Queue}
		},
		start: func(c *config.Config, log *slog.Logger) (role, error) {
			r, err := homeagent.New(*c.HomeAgent, log)
			if err != nil {
				return nil, err
			}
			return homeAgentRole{r}, nil
		},
	},
	{
		name: "correspondent", table: "[correspondent]", short: "Make this client one that knows Mobile IPv6",
		long: `Make this client one that knows Mobile IPv6 (a correspondent node of RFC 6275).

Packets to and from distributed servers then take the direct way, for all
programs on this host, as they are. It needs CAP_NET_ADMIN and CAP_NET_RAW.`,
		present: func(c *config.Config) bool { return c.Correspondent != nil },
		traces: func(c *config.Config) traces {
			return traces{c.Correspondent.Socket, c.Correspondent.State, c.Correspondent.Queue}
		},
		start: func(c *config.Config, log *slog.Logger) (role, error) {
			r, err := correspondent.New(*c.Correspondent, log)
			if err != nil {
				return nil, err
			}
			return &fixedRole{r.Run, c, func(c *config.Config) any { return c.Correspondent }, "[correspondent]"}, nil
		},
	},
}

type nodeRole struct{ *daemon.Node }

func (r nodeRole) Run(ctx context.Context, ready func()) error {
	r.Node.Ready = ready
	return r.Node.Run(ctx)
}

// homeAgentRole is up once it has been made.
type homeAgentRole struct{ *homeagent.Role }

func (r homeAgentRole) Run(ctx context.Context, ready func()) error {
	ready()
	return r.Role.Run(ctx)
}

func (r homeAgentRole) Reload(cfg *config.Config) error {
	if cfg.HomeAgent == nil {
		return errors.New("reload: the table [home_agent] is gone; stop this daemon instead")
	}
	return r.Role.Reload(*cfg.HomeAgent)
}

// fixedRole is one of which nothing changes while it runs, and which is up once
// it has been made.
type fixedRole struct {
	run   func(context.Context) error
	cfg   *config.Config
	part  func(*config.Config) any // what of the configuration it uses
	table string
}

func (r *fixedRole) Run(ctx context.Context, ready func()) error {
	ready()
	return r.run(ctx)
}

func (r *fixedRole) Reload(cfg *config.Config) error {
	if !reflect.DeepEqual(r.part(cfg), r.part(r.cfg)) {
		return fmt.Errorf("reload: the table %s has changed, which takes a restart", r.table)
	}
	return nil
}

// load reads the configuration, which must have the table of the role.
func (k *kind) load(path string) (*config.Config, error) {
	cfg, err := config.Load(path)
	if err != nil {
		return nil, err
	}
	if !k.present(cfg) {
		return nil, config.Problems{{File: path, What: "no table " + k.table, Cure: fmt.Sprintf("add it, or start the role that the file is for: dsco %s", others(cfg))}}
	}
	return cfg, nil
}

// others are the roles that a configuration is for.
func others(cfg *config.Config) string {
	for _, k := range kinds {
		if k.present(cfg) {
			return k.name
		}
	}
	return "--help"
}
