package homeagent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/daemon/config"
	"github.com/distributed-servers/ds/daemon/filter"
	"github.com/distributed-servers/ds/daemon/host"
	"github.com/distributed-servers/ds/daemon/rawip"
	"github.com/distributed-servers/ds/daemon/server"
	"github.com/distributed-servers/ds/mobility/homeagent"
	"github.com/distributed-servers/ds/mobility/wire"
	"github.com/distributed-servers/ds/tun"
)

// Role is a running home agent.
type Role struct {
	server.Unsupported // calls of the API that are a node's

	cfg    config.HomeAgent
	log    *slog.Logger
	events server.Events

	// start is 0 on the machine's clock, which does not jump.
	start time.Time

	host   *host.Host
	dev    *tun.TUN
	routes *routes
	kernel *kernel // nil: it forwards nothing itself
	tunnel *rawip.Tunnel
	sender *rawip.Sender
	link   *link // nil: the prefixes are routed to this host
	filter *filter.Filter
	api    *server.Server

	mu      sync.Mutex // of all below
	machine *homeagent.HomeAgent
	timer   *time.Timer
	due     time.Duration // what it is set to; negative: it is not
	ended   bool
	homes   map[netip.Addr]home
	counts  counts
}

// home is what is known of a home address outside of the machine.
type home struct {
	careOf netip.Addr // zero: no binding
	until  time.Time
}

// counts are of registrations, and of packets to home addresses.
type counts struct{ registrations, refusals, packets, undelivered uint64 }

// New starts a home agent: when it returns, packets are taken, and [Role.Run]
// handles them. After an error nothing is left behind.
func New(cfg config.HomeAgent, log *slog.Logger) (_ *Role, err error) {
	r := &Role{
		Unsupported: server.Unsupported{Role: api.RoleHomeAgent},
		cfg:         withDefaults(cfg),
		log:         log,
		start:       time.Now(),
		due:         -1,
		homes:       make(map[netip.Addr]home),
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("homeagent: start: %w", err), r.Close())
		}
	}()
	keys, err := credentials(cfg.Homes)
	if err != nil {
		return nil, err
	}
	for a := range keys {
		r.homes[a] = home{}
	}
	// All that may be missing is told before anything is changed.
	if err := host.Require(host.IPv6, host.NetAdmin, host.NetRaw, host.TUN, filter.Usable(r.cfg.Queue)); err != nil {
		return nil, err
	}
	r.host, err = host.Open(host.Config{State: r.cfg.State, Protocol: host.ProtocolHomeAgent, Logger: log})
	if err != nil {
		return nil, err
	}
	if r.sender, err = rawip.NewSender(); err != nil {
		return nil, err
	}
	if r.tunnel, err = rawip.Listen(r.cfg.Address); err != nil {
		return nil, err
	}
	mcfg := machineConfig(&r.cfg, keys, r.start)
	if r.cfg.Interface != "" {
		if r.link, err = newLink(r.cfg.Interface); err != nil {
			return nil, err
		}
		mcfg.Link = r.link.neighbors.Link()
	}
	if r.machine, err = homeagent.New(mcfg); err != nil {
		return nil, err
	}
	// Longer packets are told by the kernel: they would be by the machine.
	mtu := max(r.cfg.TunnelMTU-wire.TunnelLen, wire.MinMTU)
	if r.dev, err = tun.Open(tun.Config{Name: "dsha%d", MTU: mtu, Offload: true, Alias: "dsco home-agent"}); err != nil {
		return nil, err
	}
	if r.routes, err = newRoutes(r.dev.Name(), &r.cfg); err != nil {
		return nil, err
	}
	if err := r.host.Forward(); err != nil {
		return nil, err
	}
	if *r.cfg.KernelTunnels {
		r.kernel, err = newKernel(r.dev.Name(), r.routes.index, &r.cfg, r.host)
		if err != nil { // slower, no worse
			r.log.Info("tunnels go through this process: the kernel does not forward them", "cause", err)
		}
	}
	r.timer = time.AfterFunc(time.Hour, r.tick)
	r.filter, err = filter.Open(filter.Config{
		Queue:   r.cfg.Queue,
		Rules:   filter.HomeAgentRules(r.cfg.Address, r.cfg.Prefixes),
		Handler: r.queued,
		Logger:  log,
	})
	if err != nil {
		return nil, err
	}
	r.api, err = server.New(server.Config{
		Socket: r.cfg.Socket, Group: r.cfg.Group, Backend: r, Events: &r.events, Logger: log,
	})
	if err != nil {
		return nil, err
	}
	return r, nil
}

// Run is [New] and [Role.Run].
func Run(ctx context.Context, cfg config.HomeAgent, log *slog.Logger) error {
	r, err := New(cfg, log)
	if err != nil {
		return err
	}
	return r.Run(ctx)
}

// Defaults of package config.
const (
	defaultQueue         = 7847
	defaultRefreshAdvice = 12 * time.Second
	defaultTunnelMTU     = 1500
	defaultState         = "/var/lib/dsco/home-agent"
)

func withDefaults(cfg config.HomeAgent) config.HomeAgent {
	if cfg.Queue == 0 {
		cfg.Queue = defaultQueue
	}
	if cfg.RefreshAdvice == 0 {
		cfg.RefreshAdvice = config.Duration(defaultRefreshAdvice)
	}
	if cfg.TunnelMTU == 0 {
		cfg.TunnelMTU = defaultTunnelMTU
	}
	if cfg.State == "" {
		cfg.State = defaultState
	}
	if cfg.Socket == "" {
		cfg.Socket = api.HomeAgentSocket
	}
	if cfg.KernelTunnels == nil {
		cfg.KernelTunnels = new(true)
	}
	return cfg
}

func credentials(homes []config.Home) (map[netip.Addr]homeagent.Credential, error) {
	keys := make(map[netip.Addr]homeagent.Credential, len(homes))
	for _, h := range homes {
		key, err := config.ReadKey(h.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("key of %v: %w", h.Address, err)
		}
		keys[h.Address] = homeagent.Credential{SPI: h.SPI, Key: key}
	}
	return keys, nil
}

func machineConfig(cfg *config.HomeAgent, keys map[netip.Addr]homeagent.Credential, start time.Time) homeagent.Config {
	m := homeagent.Config{
		Addr:          cfg.Address,
		Keys:          keys,
		Epoch:         start,
		Rand:          rand.Reader,
		RefreshAdvice: time.Duration(cfg.RefreshAdvice),
		TunnelMTU:     cfg.TunnelMTU,

		MinPrefixInterval:      time.Duration(cfg.MinPrefixInterval),
		MaxPrefixInterval:      time.Duration(cfg.MaxPrefixInterval),
		NoPrefixAdvertisements: cfg.PrefixAdvertisements != nil && !*cfg.PrefixAdvertisements,
	}
	for _, p := range cfg.Prefixes {
		m.Prefixes = append(m.Prefixes, homeagent.Prefix{Prefix: p})
	}
	return m
}

// Run handles packets until the context ends, which is no error, or something is
// lost that the role cannot do without. It closes the role.
func (r *Role) Run(ctx context.Context) error {
	r.step(homeagent.Tick{}, r.send) // and the timer is set
	loops := []func() error{r.readTUN, r.readTunnel, r.api.Serve}
	if r.link != nil {
		loops = append(loops, r.readLink)
	}
	failed := make(chan error, len(loops))
	var running sync.WaitGroup
	for _, loop := range loops {
		running.Go(func() { failed <- loop() })
	}
	r.events.Publish(api.Event{Kind: api.EventStarted})
	r.log.Info("home agent runs", "address", r.cfg.Address, "prefixes", r.cfg.Prefixes,
		"homes", len(r.cfg.Homes), "interface", r.cfg.Interface, "tun", r.dev.Name())

	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
		err = fmt.Errorf("homeagent: run: %w", err)
	}
	r.events.Publish(api.Event{Kind: api.EventStopping})
	err = errors.Join(err, r.Close())
	running.Wait()
	r.log.Info("home agent has ended")
	return err
}

// Close ends the role and undoes what New has done to the host. Run does it.
func (r *Role) Close() error {
	var errs []error
	end := func(part io.Closer, there bool) {
		if there {
			errs = append(errs, part.Close())
		}
	}
	end(r.api, r.api != nil)
	end(r.filter, r.filter != nil) // ahead of what handles packets, so that none is lost
	r.mu.Lock()
	r.ended = true
	if r.timer != nil {
		r.timer.Stop()
	}
	r.mu.Unlock()
	end(r.kernel, r.kernel != nil)
	end(r.tunnel, r.tunnel != nil)
	end(r.link, r.link != nil)
	end(r.routes, r.routes != nil)
	end(r.dev, r.dev != nil)
	end(r.sender, r.sender != nil)
	end(r.host, r.host != nil)
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("homeagent: close: %w", err)
	}
	return nil
}
