//go:build linux

package e2e

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/distributed-servers/ds/internal/impair"
	"github.com/distributed-servers/ds/internal/netns/topology"
	"github.com/distributed-servers/ds/internal/probe"
	"github.com/distributed-servers/ds/internal/testbed"
)

// patience bounds everything that takes milliseconds on a machine with nothing
// else to do.
const patience = 20 * time.Second

// setup is what a test wants. Where the programs are, unless said, and who runs them is
// filled in.
type setup = testbed.Setup

type (
	node   = testbed.Node
	server = testbed.Server
)

// cluster is a network with all that runs in it, whose errors end the test.
type cluster struct {
	*testbed.Bed
	t       *testing.T
	ctx     context.Context // ends before the test's deadline
	clients []*client
	jobs    []*job
	files   map[int64][]byte // SHA-256 of files with so many octets

	exhausted []*topology.Process // that end because they get no memory
}

// client is a client that runs programs.
type client struct {
	*testbed.Client
	cluster *cluster
}

// appUser is who the application runs as, where there is more than root.
const appUser = 65534

func appUID() int {
	if probe.Check(probe.Users).OK {
		return appUser
	}
	return 0
}

// start builds the network of doc.go, without anything running in it.
func start(t *testing.T, s setup) *cluster {
	t.Helper()
	s.Programs, s.App, s.AppUser = cmp.Or(s.Programs, os.Getenv(programsEnv)), []string{"service"}, appUID()
	c := &cluster{t: t, files: make(map[int64][]byte)}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 4*time.Minute, errors.New("e2e: the test has taken too long"))
	c.ctx = ctx
	t.Cleanup(cancel)
	var err error
	c.Bed, err = testbed.New(s)
	c.ok(err)
	t.Cleanup(c.end)
	for _, cl := range c.Clients {
		c.clients = append(c.clients, &client{cl, c})
	}
	return c
}

// addClient connects one more client with the router.
func (c *cluster) addClient(i int) *client {
	c.t.Helper()
	cl, err := c.AddClient(i, impair.Settings{})
	c.ok(err)
	return &client{cl, c}
}

// ok ends the test on an error.
func (c *cluster) ok(err error) {
	if err != nil {
		c.t.Helper()
		c.t.Fatal(err)
	}
}

// end ends everything, and shows what was said if the test has failed.
func (c *cluster) end() {
	if err := c.Net.Close(); err != nil {
		c.t.Error(err)
	}
	for _, j := range c.jobs {
		if c.t.Failed() && j.ended() && j.err != nil {
			c.t.Log(j.err)
		}
	}
	for i, p := range c.Running {
		log := p.Log.String()
		if err := os.WriteFile(filepath.Join(c.Dir, fmt.Sprintf("%02d.log", i)), []byte(p.String()+"\n\n"+log), 0o644); err != nil {
			c.t.Error(err)
		}
		for _, bad := range []string{"DATA RACE", "panic: ", "fatal error: "} {
			if strings.Contains(log, bad) && !(bad == "fatal error: " && slices.Contains(c.exhausted, p)) {
				c.t.Errorf("%s: there is a %q in what it wrote", p, bad)
			}
		}
		if c.t.Failed() {
			c.t.Logf("%s wrote:\n%s", p, tail(log, 40))
		}
	}
	if keep := os.Getenv("DS_E2E_KEEP"); keep != "" {
		c.keep(filepath.Join(keep, c.t.Name()))
	}
	if err := c.Close(); err != nil {
		c.t.Error(err)
	}
}

// keep copies the files of the test, for people to look at.
func (c *cluster) keep(to string) {
	err := os.MkdirAll(to, 0o755)
	files, _ := os.ReadDir(c.Dir)
	for _, f := range files {
		if f.Type().IsRegular() && filepath.Ext(f.Name()) != ".octets" {
			b, errRead := os.ReadFile(filepath.Join(c.Dir, f.Name()))
			err = errors.Join(err, errRead, os.WriteFile(filepath.Join(to, f.Name()), b, 0o644))
		}
	}
	if err != nil {
		c.t.Log(err)
	}
	c.t.Logf("kept in %s", to)
}

// tail is the end of a text.
func tail(s string, lines int) string {
	for i := len(s) - 1; i > 0; i-- {
		if s[i-1] == '\n' {
			if lines--; lines == 0 {
				return "…\n" + s[i:]
			}
		}
	}
	return s
}

// launch starts a program that runs until it is stopped, or the test ends.
func (c *cluster) launch(cmd *topology.Cmd) *topology.Process {
	c.t.Helper()
	p, err := c.Launch(cmd)
	c.ok(err)
	return p
}

// within is a context for something that takes milliseconds.
func (c *cluster) within(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(c.ctx, d)
}

// eventually waits until what ask tells is so.
func (c *cluster) eventually(what string, ask func(ctx context.Context) (bool, error)) {
	c.t.Helper()
	ctx, cancel := c.within(patience)
	defer cancel()
	c.ok(testbed.Eventually(ctx, what, func() (bool, error) { return ask(ctx) }))
}
