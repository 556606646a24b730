package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/daemon/config"
	"github.com/distributed-servers/ds/daemon/server"
)

// fakeRole serves the API, if it has a socket, and nothing else.
type fakeRole struct {
	server.Unsupported
	socket  string
	fail    error // of Run
	reloads chan *config.Config
	answers chan error // of Reload
}

func (r *fakeRole) Status(context.Context) (*api.Status, error) { return &api.Status{}, nil }

func (r *fakeRole) Run(ctx context.Context, ready func()) error {
	if r.fail != nil {
		return r.fail
	}
	if r.socket != "" {
		s, err := server.New(server.Config{Socket: r.socket, Backend: r})
		if err != nil {
			return err
		}
		go s.Serve()
		defer s.Close()
	}
	ready()
	<-ctx.Done()
	return nil
}

func (r *fakeRole) Reload(cfg *config.Config) error {
	r.reloads <- cfg
	return <-r.answers
}

// told is what a systemd is told.
type told chan string

func (c told) next(t *testing.T, want string) {
	t.Helper()
	select {
	case got := <-c:
		if !strings.HasPrefix(got, want) {
			t.Errorf("told %q, want %q", got, want)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("not told %q", want)
	}
}

func newProcess(t *testing.T, r *fakeRole) (*process, told, *log) {
	t.Helper()
	c := make(told, 100)
	l := new(log)
	r.reloads, r.answers = make(chan *config.Config), make(chan error)
	file := writeAgent(t, agentFile)
	return &process{kind: &kinds[1], path: file, socket: r.socket, role: r, log: slog.New(slog.NewTextHandler(l, nil)), notify: func(s string) { c <- s }}, c, l
}

// log may be read while it is written.
type log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestProcess(t *testing.T) {
	r := new(fakeRole)
	p, systemd, log := newProcess(t, r)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- p.run(ctx) }()
	systemd.next(t, "READY=1")

	hup := func() {
		t.Helper()
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		systemd.next(t, "RELOADING=1\nMONOTONIC_USEC=")
	}
	hup()
	if cfg := <-r.reloads; len(cfg.HomeAgent.Homes) != 1 {
		t.Errorf("got %+v", cfg)
	}
	r.answers <- nil
	systemd.next(t, "READY=1\nSTATUS=running, configuration of ")

	hup()
	<-r.reloads
	r.answers <- errors.New("that takes a restart")
	systemd.next(t, "READY=1\nSTATUS=running with an old configuration")
	if !strings.Contains(log.String(), "that takes a restart") {
		t.Errorf("log:\n%s", log)
	}

	if err := os.WriteFile(p.path, []byte("[home_agent"), 0o600); err != nil {
		t.Fatal(err)
	}
	hup()
	systemd.next(t, "READY=1\nSTATUS=running with an old configuration")
	if !strings.Contains(log.String(), p.path+":1: ") {
		t.Errorf("log:\n%s", log)
	}

	cancel()
	systemd.next(t, "STOPPING=1")
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestProcessFails(t *testing.T) {
	r := &fakeRole{fail: errors.New("no TUN")}
	p, _, _ := newProcess(t, r)
	if err := p.run(t.Context()); err != r.fail {
		t.Errorf("got %v", err)
	}
}

// The watchdog is kept quiet by a daemon that answers, and by no other.
func TestWatchdog(t *testing.T) {
	t.Setenv("WATCHDOG_USEC", "30000")
	t.Setenv("WATCHDOG_PID", "")
	dir, err := os.MkdirTemp("", "dsco")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	for _, socket := range []string{filepath.Join(dir, "s"), ""} {
		r := &fakeRole{socket: socket}
		p, systemd, log := newProcess(t, r)
		if socket == "" {
			p.socket = filepath.Join(dir, "nowhere")
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- p.run(ctx) }()
		systemd.next(t, "READY=1")
		if socket != "" {
			systemd.next(t, "WATCHDOG=1")
			systemd.next(t, "WATCHDOG=1")
		} else {
			for !strings.Contains(log.String(), "does not answer itself") {
				time.Sleep(time.Millisecond)
			}
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		for len(systemd) > 0 {
			if s := <-systemd; socket == "" && s == "WATCHDOG=1" {
				t.Error("the watchdog hears of a daemon that does not answer")
			}
		}
	}
}

func TestFixedRole(t *testing.T) {
	cfg := func(mtu int) *config.Config { return &config.Config{HomeAgent: &config.HomeAgent{TunnelMTU: mtu}} }
	r := &fixedRole{func(context.Context) error { return nil }, cfg(1500), func(c *config.Config) any { return c.HomeAgent }, "[home_agent]"}
	if err := r.Reload(cfg(1500)); err != nil {
		t.Error(err)
	}
	if err := r.Reload(cfg(1400)); err == nil || !strings.Contains(err.Error(), "[home_agent] has changed, which takes a restart") {
		t.Errorf("got %v", err)
	}
	ready := false
	if err := r.Run(t.Context(), func() { ready = true }); err != nil || !ready {
		t.Errorf("ready %t, %v", ready, err)
	}
}
