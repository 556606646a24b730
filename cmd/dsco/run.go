package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/internal/version"
)

func roleCommand(k kind) *cobra.Command {
	var path string
	var log logFlags
	c := &cobra.Command{
		Use:   k.name,
		Short: k.short,
		Long: k.long + `

It tells systemd when it is ready, reloads and stops, and keeps the watchdog
quiet as long as it answers calls. It ends with status 78 if the configuration
is wrong.`,
		Example: fmt.Sprintf("  dsco %s\n  dsco %s --config ./dsco.toml --log-level debug", k.name, k.name),
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			logger, err := log.logger(c.ErrOrStderr())
			if err != nil {
				return err
			}
			cfg, err := k.load(path)
			if err != nil {
				return err
			}
			r, err := k.start(cfg, logger)
			if err != nil {
				return err
			}
			p := &process{kind: &k, path: path, role: r, socket: k.traces(cfg).socket, log: logger, notify: notifySystemd(logger)}
			return p.run(c.Context())
		},
	}
	configFlag(c, &path)
	log.add(c)
	return c
}

// process is a role as a process: what comes from outside, and what is told.
type process struct {
	kind   *kind
	path   string
	socket string
	role   role
	log    *slog.Logger
	notify func(string) // systemd, sd_notify(3)
}

// run lasts until the context ends or the role fails.
func (p *process) run(ctx context.Context) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)

	var beside sync.WaitGroup
	defer beside.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	ready := make(chan struct{})
	beside.Go(func() {
		defer p.notify(daemon.SdNotifyStopping)
		select {
		case <-ready:
		case <-ctx.Done():
			return
		}
		for {
			select {
			case <-hup:
				p.reload()
			case <-ctx.Done():
				return
			}
		}
	})
	beside.Go(func() { p.watchdog(ctx, ready) })

	p.log.Info("starting", "role", p.kind.name, "version", version.String(), "config", p.path, "pid", os.Getpid())
	err := p.role.Run(ctx, func() {
		p.notify(daemon.SdNotifyReady)
		p.log.Info("ready", "socket", p.socket)
		close(ready)
	})
	if err != nil {
		return err
	}
	p.log.Info("stopped")
	return nil
}

// reload reads the configuration again. If something is wrong with it, or takes
// a restart, the daemon goes on with the old one.
func (p *process) reload() {
	// systemd wants to know when that was (Type=notify-reload).
	p.notify(daemon.SdNotifyReloading + "\n" + daemon.SdNotifyMonotonicUsec())
	cfg, err := p.kind.load(p.path)
	if err == nil {
		err = p.role.Reload(cfg)
	}
	status := "STATUS=running, configuration of " + time.Now().Format(time.RFC3339)
	if err != nil {
		p.log.Error("the configuration stays as it was", "err", err)
		status = "STATUS=running with an old configuration: the new one was refused, see the log"
	} else {
		p.log.Info("the configuration has been read again", "config", p.path)
	}
	p.notify(daemon.SdNotifyReady + "\n" + status)
}

// watchdog tells systemd that the daemon is alive, as long as it answers a call.
func (p *process) watchdog(ctx context.Context, ready <-chan struct{}) {
	within, err := daemon.SdWatchdogEnabled(false)
	if err != nil || within == 0 {
		return
	}
	select {
	case <-ready:
	case <-ctx.Done():
		return
	}
	client := &api.Client{Socket: p.socket}
	defer client.Close()
	tick := time.NewTicker(within / 3)
	defer tick.Stop()
	for {
		p.alive(ctx, client, within/3)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (p *process) alive(ctx context.Context, client *api.Client, within time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	if _, err := client.Status(ctx); err != nil {
		if ctx.Err() == nil {
			p.log.Error("the daemon does not answer itself", "err", err)
		}
		return
	}
	p.notify(daemon.SdNotifyWatchdog)
}

// notifySystemd tells systemd, if it has started this process.
func notifySystemd(log *slog.Logger) func(string) {
	return func(state string) {
		if _, err := daemon.SdNotify(false, state); err != nil {
			log.Warn("systemd is not told", "state", state, "err", err)
		}
	}
}
