package correspondent

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
	"github.com/distributed-servers/ds/mobility/correspondent"
	"github.com/distributed-servers/ds/tun"
)

// Role is a running correspondent.
type Role struct {
	server.Unsupported // calls of the API that are a node's

	cfg    config.Correspondent
	log    *slog.Logger
	events server.Events
	start  time.Time // 0 on the machine's clock, which does not jump

	host   *host.Host
	locals *locals
	dev    *tun.TUN
	routes *routes
	sender *rawip.Sender
	filter *filter.Filter
	api    *server.Server

	mu      sync.Mutex // of all below
	machine *correspondent.Correspondent
	timer   *time.Timer
	due     time.Duration // what it is set to; negative: it is not
	ended   bool
	counts  counts
}

// counts are of packets, and of changes of bindings.
type counts struct{ out, in, undelivered, bindings uint64 }

// New starts a correspondent: when it returns, packets are taken, and [Role.Run]
// handles them. After an error nothing is left behind.
func New(cfg config.Correspondent, log *slog.Logger) (_ *Role, err error) {
	r := &Role{
		Unsupported: server.Unsupported{Role: api.RoleCorrespondent},
		cfg:         withDefaults(cfg),
		log:         log,
		start:       time.Now(),
		due:         -1,
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("correspondent: start: %w", err), r.Close())
		}
	}()
	// All that may be missing is told before anything is changed.
	if err := host.Require(host.IPv6, host.NetAdmin, host.NetRaw, host.TUN, filter.Usable(r.cfg.Queue)); err != nil {
		return nil, err
	}
	// What is made here goes with the TUN, so there is nothing to be recorded; but
	// only one daemon may have the state directory.
	r.host, err = host.Open(host.Config{State: r.cfg.State, Protocol: host.ProtocolCorrespondent, Logger: log})
	if err != nil {
		return nil, err
	}
	r.machine, err = correspondent.New(correspondent.Config{
		Local:       func(a netip.Addr) bool { return r.locals.has(a) },
		Rand:        rand.Reader,
		MaxBindings: r.cfg.MaxBindings,
		Permit:      permit(r.cfg.Permit),
		Used: func(local, home netip.Addr) (time.Duration, bool) {
			return r.routes.kernel.used(local, home, r.start)
		},
	})
	if err != nil {
		return nil, err
	}
	if r.sender, err = rawip.NewSender(); err != nil {
		return nil, err
	}
	if err := r.sender.BySource(); err != nil {
		return nil, err
	}
	// The routes have the MTUs that count.
	r.dev, err = tun.Open(tun.Config{Name: "dscn%d", MTU: tun.MaxPacket, Offload: true, Alias: "dsco correspondent"})
	if err != nil {
		return nil, err
	}
	if r.routes, err = newRoutes(r.dev.Name(), *r.cfg.KernelHeaders, r.cfg.MaxBindings, log); err != nil {
		return nil, err
	}
	r.timer = time.AfterFunc(time.Hour, r.tick)
	if r.locals, err = newLocals(r.cfg.Addresses, r.lost); err != nil {
		return nil, err
	}
	r.filter, err = filter.Open(filter.Config{
		Queue:   r.cfg.Queue,
		Rules:   filter.CorrespondentRules(r.cfg.Addresses),
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
func Run(ctx context.Context, cfg config.Correspondent, log *slog.Logger) error {
	r, err := New(cfg, log)
	if err != nil {
		return err
	}
	return r.Run(ctx)
}

// Defaults of package config.
const (
	defaultQueue       = 7848
	defaultMaxBindings = 65536
	defaultState       = "/var/lib/dsco/correspondent"
)

func withDefaults(cfg config.Correspondent) config.Correspondent {
	if cfg.Queue == 0 {
		cfg.Queue = defaultQueue
	}
	if cfg.MaxBindings == 0 {
		cfg.MaxBindings = defaultMaxBindings
	}
	if cfg.State == "" {
		cfg.State = defaultState
	}
	if cfg.Socket == "" {
		cfg.Socket = api.CorrespondentSocket
	}
	if cfg.KernelHeaders == nil {
		cfg.KernelHeaders = new(true)
	}
	return cfg
}

// permit reports whether an address is in one of the prefixes; nil, which is
// every address, if there are none.
func permit(prefixes []netip.Prefix) func(netip.Addr) bool {
	if len(prefixes) == 0 {
		return nil
	}
	return func(home netip.Addr) bool {
		for _, p := range prefixes {
			if p.Contains(home) {
				return true
			}
		}
		return false
	}
}

// Run handles packets until the context ends, which is no error, or something is
// lost that the role cannot do without. It closes the role.
func (r *Role) Run(ctx context.Context) error {
	loops := []func() error{r.api.Serve}
	for q := range r.dev.Queues() {
		loops = append(loops, func() error { return r.readTUN(q) })
	}
	failed := make(chan error, len(loops))
	var running sync.WaitGroup
	for _, loop := range loops {
		running.Go(func() { failed <- loop() })
	}
	r.events.Publish(api.Event{Kind: api.EventStarted})
	r.log.Info("correspondent runs", "addresses", r.cfg.Addresses, "tun", r.dev.Name(), "offload", r.dev.Offloads(), "kernel_headers", r.routes.kernel != nil)

	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
		err = fmt.Errorf("correspondent: run: %w", err)
	}
	r.events.Publish(api.Event{Kind: api.EventStopping})
	err = errors.Join(err, r.Close())
	running.Wait()
	r.log.Info("correspondent has ended")
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
	end(r.locals, r.locals != nil)
	r.mu.Lock()
	r.ended = true
	if r.timer != nil {
		r.timer.Stop()
	}
	r.mu.Unlock()
	end(r.dev, r.dev != nil) // and the routes
	end(r.routes, r.routes != nil)
	end(r.sender, r.sender != nil)
	end(r.host, r.host != nil)
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("correspondent: close: %w", err)
	}
	return nil
}
