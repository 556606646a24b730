//go:build linux

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/internal/impair"
	"github.com/distributed-servers/ds/internal/netns/topology"
)

// patience bounds everything that takes milliseconds on a machine with nothing
// else to do.
const patience = 20 * time.Second

// setup is what a test wants.
type setup struct {
	clients  int  // default 1
	servers  int  // distributed servers; default 1
	homeLink bool // they are on the home agent's link, instead of routed to it

	userTunnels bool // kernel_tunnels = false

	// links are the clients', in both directions. Zero: pairs of interfaces.
	links impair.Settings
}

// cluster is a network with all that runs in it.
type cluster struct {
	*topology.Net
	t       *testing.T
	dir     string
	ctx     context.Context // ends before the test's deadline
	router  *topology.Host
	home    *topology.Host
	clients []*client
	nodes   []*node
	servers []*server

	userTunnels bool

	homeAgent *topology.Process
	running   []*topology.Process // all that ever ran, for their logs
	jobs      []*job
	files     map[int64][]byte // SHA-256 of files with so many octets
}

// client is a host with a client's programs.
type client struct {
	*topology.Host
	cluster *cluster
	addr    netip.Addr
	link    *topology.Link

	dsco *topology.Process // the correspondent, if it is one
}

// node is a server node.
type node struct {
	*topology.Host
	cluster *cluster
	addr    netip.Addr // the daemon's
	config  string     // file
	socket  string
	api     *api.Client

	dsco *topology.Process
	apps []*topology.Process // by server
}

// server is a distributed server.
type server struct {
	number int
	addr   netip.Prefix
	key    string // file
}

var (
	everywhere = netip.MustParsePrefix("::/0")
	routedHome = netip.MustParsePrefix("2001:db8:d::/64")
	homeNet    = netip.MustParsePrefix("2001:db8:a::/64")
	serverNet  = netip.MustParsePrefix("2001:db8:5::/64")
	homeAddr   = at(homeNet, "::2")
)

// at is the address with an interface identifier, written as "::2".
func at(p netip.Prefix, id string) netip.Addr {
	a, b := p.Addr().As16(), netip.MustParseAddr(id).As16()
	copy(b[:8], a[:8])
	return netip.AddrFrom16(b)
}

func end(h *topology.Host, name string, p netip.Prefix, id string) topology.End {
	return topology.End{Host: h, Name: name, Addrs: []netip.Prefix{netip.PrefixFrom(at(p, id), p.Bits())}}
}

// start builds the network of doc.go, without anything running in it.
func start(t *testing.T, s setup) *cluster {
	t.Helper()
	s.clients, s.servers = max(s.clients, 1), max(s.servers, 1)
	c := &cluster{t: t, userTunnels: s.userTunnels, files: make(map[int64][]byte)}
	var err error
	c.Net, err = topology.New()
	c.ok(err)
	// Not t.TempDir: the path of a UNIX socket has at most 107 octets.
	c.dir, err = os.MkdirTemp("", "ds-e2e")
	c.ok(err)
	c.ok(os.Chmod(c.dir, 0o755))
	ctx, cancel := context.WithTimeoutCause(t.Context(), 2*time.Minute, errors.New("e2e: the test has taken too long"))
	c.ctx = ctx
	t.Cleanup(func() {
		cancel()
		c.end()
	})

	c.router = c.host("router")
	c.home = c.host("h")
	_, err = c.Connect(end(c.home, "eth0", homeNet, "::2"), end(c.router, "home", homeNet, "::1"))
	c.ok(err)
	sw, err := c.Switch("switch")
	c.ok(err)
	_, err = sw.Plug(end(c.router, "servers", serverNet, "::1"))
	c.ok(err)
	for i := range s.clients {
		c.clients = append(c.clients, c.addClient(i+1, s.links))
	}
	for _, name := range []string{"a", "b", "c"} {
		n := &node{Host: c.host(name), cluster: c, addr: at(serverNet, "::"+name)}
		_, err = sw.Plug(end(n.Host, "eth0", serverNet, "::"+name))
		c.ok(err)
		c.ok(n.Route(everywhere, at(serverNet, "::1")))
		n.socket = filepath.Join(c.dir, name+".sock")
		n.api = &api.Client{Socket: n.socket}
		n.apps = make([]*topology.Process, s.servers)
		c.nodes = append(c.nodes, n)
	}
	c.ok(c.home.Route(everywhere, at(homeNet, "::1")))
	c.ok(c.router.Forward())
	prefix := routedHome
	if s.homeLink {
		prefix = homeNet
	} else {
		c.ok(c.router.Route(routedHome, homeAddr))
	}
	for i := range s.servers {
		addr := netip.PrefixFrom(at(prefix, fmt.Sprintf("::d%d", i+1)), prefix.Bits())
		c.servers = append(c.servers, &server{number: i + 1, addr: addr, key: filepath.Join(c.dir, fmt.Sprintf("d%d.key", i+1))})
	}
	return c
}

func (c *cluster) host(name string) *topology.Host {
	c.t.Helper()
	h, err := c.Host(name)
	c.ok(err)
	return h
}

// addClient connects one more client with the router.
func (c *cluster) addClient(i int, link impair.Settings) *client {
	c.t.Helper()
	name := fmt.Sprintf("c%d", i)
	p := netip.MustParsePrefix("2001:db8:" + name + "::/64")
	cl := &client{Host: c.host(name), cluster: c, addr: at(p, "::2")}
	var err error
	a, b := end(cl.Host, "eth0", p, "::2"), end(c.router, name, p, "::1")
	if link == (impair.Settings{}) {
		cl.link, err = c.Connect(a, b)
	} else {
		cl.link, err = c.ConnectImpaired(a, b, uint64(i), link, link)
	}
	c.ok(err)
	c.ok(cl.Route(everywhere, at(p, "::1")))
	return cl
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
	for _, n := range c.nodes {
		n.api.Close()
	}
	if err := c.Close(); err != nil {
		c.t.Error(err)
	}
	for _, j := range c.jobs {
		if c.t.Failed() && j.ended() && j.err != nil {
			c.t.Log(j.err)
		}
	}
	for i, p := range c.running {
		log := p.Log.String()
		if err := os.WriteFile(filepath.Join(c.dir, fmt.Sprintf("%02d.log", i)), []byte(p.String()+"\n\n"+log), 0o644); err != nil {
			c.t.Error(err)
		}
		for _, bad := range []string{"DATA RACE", "panic: ", "fatal error: "} {
			if strings.Contains(log, bad) {
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
	os.RemoveAll(c.dir)
}

// keep copies the files of the test, for people to look at.
func (c *cluster) keep(to string) {
	err := os.MkdirAll(to, 0o755)
	files, _ := os.ReadDir(c.dir)
	for _, f := range files {
		if f.Type().IsRegular() && filepath.Ext(f.Name()) != ".octets" {
			b, errRead := os.ReadFile(filepath.Join(c.dir, f.Name()))
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
	p, err := cmd.Background()
	c.ok(err)
	c.running = append(c.running, p)
	return p
}

// within is a context for something that takes milliseconds.
func (c *cluster) within(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(c.ctx, d)
}

// eventually waits until what ask tells is so. Each time it is asked it may
// take its time; between, there is a pause, since nobody says when it changes.
func (c *cluster) eventually(what string, ask func(ctx context.Context) (bool, error)) {
	c.t.Helper()
	ctx, cancel := c.within(patience)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := ask(ctx)
		if ok {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			c.t.Fatalf("%s: not within %v: %v", what, patience, err)
		}
	}
}
