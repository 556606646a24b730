//go:build linux

package testbed

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/internal/impair"
	"github.com/distributed-servers/ds/internal/netns/topology"
)

// Setup is what is wanted. Programs is required.
type Setup struct {
	// Programs is the directory of dsco and of the application.
	Programs string

	// App is the application: its program's name in Programs, then arguments.
	// --socket and --addr follow. It says "ready on" a node's name when it is.
	App []string

	// AppUser is who the application runs as. Default root.
	AppUser int

	Clients  int  // default 1
	Servers  int  // distributed servers; default 1
	HomeLink bool // they are on the home agent's link, instead of routed to it

	UserSpace bool // kernel_tunnels = false, kernel_headers = false

	// Apart gives each node's programs processors of their own, as a machine's have. Where
	// there are fewer than nodes, some share one.
	Apart bool

	// Links are the clients', in both directions. Zero: pairs of interfaces.
	Links impair.Settings

	// Seed decides about packets on Links.
	Seed uint64
}

// Bed is the network with all that runs in it.
type Bed struct {
	*topology.Net
	Setup   Setup
	Dir     string // configurations, sockets, states
	Router  *topology.Host
	Home    *topology.Host
	Clients []*Client
	Nodes   []*Node
	Servers []*Server

	HomeAgent  *topology.Process
	HomeConfig string              // file
	Running    []*topology.Process // all that ever ran
}

// Client is a host with a client's programs.
type Client struct {
	*topology.Host
	bed  *Bed
	Addr netip.Addr
	Link *topology.Link

	Correspondent *topology.Process // if it is one
}

// Node is a server node.
type Node struct {
	*topology.Host
	bed    *Bed
	Addr   netip.Addr // the daemon's
	Config string     // file
	Socket string
	API    *api.Client

	Daemon *topology.Process
	Apps   []*topology.Process // by server

	processors *unix.CPUSet // of its programs; nil: all that there are
}

// Server is a distributed server.
type Server struct {
	Number int // from 1
	Addr   netip.Prefix
	Key    string // file
}

var nodeNames = []string{"a", "b", "c"}

// Networks, and the home agent's address.
var (
	Everywhere = netip.MustParsePrefix("::/0")
	RoutedHome = netip.MustParsePrefix("2001:db8:d::/64")
	HomeNet    = netip.MustParsePrefix("2001:db8:a::/64")
	ServerNet  = netip.MustParsePrefix("2001:db8:5::/64")
	HomeAddr   = At(HomeNet, "::2")
)

// At is the address with an interface identifier, written as "::2".
func At(p netip.Prefix, id string) netip.Addr {
	a, b := p.Addr().As16(), netip.MustParseAddr(id).As16()
	copy(b[:8], a[:8])
	return netip.AddrFrom16(b)
}

func end(h *topology.Host, name string, p netip.Prefix, id string) topology.End {
	return topology.End{Host: h, Name: name, Addrs: []netip.Prefix{netip.PrefixFrom(At(p, id), p.Bits())}}
}

// New builds the network, without anything running in it.
func New(s Setup) (_ *Bed, err error) {
	s.Clients, s.Servers = max(s.Clients, 1), max(s.Servers, 1)
	b := &Bed{Setup: s}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("testbed: %w", err), b.Close())
		}
	}()
	if b.Net, err = topology.New(); err != nil {
		return nil, err
	}
	// In the directory for temporary files itself: the path of a UNIX socket has
	// at most 107 octets.
	if b.Dir, err = os.MkdirTemp("", "ds-bed"); err != nil {
		return nil, err
	}
	if err := os.Chmod(b.Dir, 0o755); err != nil { // the application is another user's
		return nil, err
	}
	return b, b.build()
}

func (b *Bed) build() (err error) {
	if b.Router, err = b.Host("router"); err != nil {
		return err
	}
	if b.Home, err = b.Host("h"); err != nil {
		return err
	}
	b.HomeConfig = b.Config("h")
	if _, err := b.Connect(end(b.Home, "eth0", HomeNet, "::2"), end(b.Router, "home", HomeNet, "::1")); err != nil {
		return err
	}
	sw, err := b.Switch("switch")
	if err != nil {
		return err
	}
	if _, err := sw.Plug(end(b.Router, "servers", ServerNet, "::1")); err != nil {
		return err
	}
	for i := range b.Setup.Clients {
		if _, err := b.AddClient(i+1, b.Setup.Links); err != nil {
			return err
		}
	}
	for _, name := range nodeNames {
		if err := b.addNode(sw, name); err != nil {
			return err
		}
	}
	if err := errors.Join(b.Home.Route(Everywhere, At(HomeNet, "::1")), b.Router.Forward()); err != nil {
		return err
	}
	prefix := HomeNet
	if !b.Setup.HomeLink {
		prefix = RoutedHome
		if err := b.Router.Route(RoutedHome, HomeAddr); err != nil {
			return err
		}
	}
	for i := range b.Setup.Servers {
		addr := netip.PrefixFrom(At(prefix, fmt.Sprintf("::d%d", i+1)), prefix.Bits())
		b.Servers = append(b.Servers, &Server{Number: i + 1, Addr: addr, Key: filepath.Join(b.Dir, fmt.Sprintf("d%d.key", i+1))})
	}
	return nil
}

// AddClient connects client ci with the router, as if it had been there from the
// beginning; number i must not have been used. link is like Setup.Links.
func (b *Bed) AddClient(i int, link impair.Settings) (c *Client, err error) {
	name := fmt.Sprintf("c%d", i)
	p := netip.MustParsePrefix("2001:db8:" + name + "::/64")
	c = &Client{bed: b, Addr: At(p, "::2")}
	if c.Host, err = b.Host(name); err != nil {
		return nil, err
	}
	here, there := end(c.Host, "eth0", p, "::2"), end(b.Router, name, p, "::1")
	if link == (impair.Settings{}) {
		c.Link, err = b.Connect(here, there)
	} else {
		c.Link, err = b.ConnectImpaired(here, there, b.Setup.Seed+uint64(i), link, link)
	}
	if err = errors.Join(err, c.Route(Everywhere, At(p, "::1"))); err != nil {
		return nil, err
	}
	b.Clients = append(b.Clients, c)
	return c, nil
}

func (b *Bed) addNode(sw *topology.Switch, name string) (err error) {
	n := &Node{bed: b, Addr: At(ServerNet, "::"+name), Socket: filepath.Join(b.Dir, name+".sock"), Apps: make([]*topology.Process, b.Setup.Servers)}
	n.Config = b.Config(name)
	n.API = &api.Client{Socket: n.Socket}
	if b.Setup.Apart {
		if n.processors, err = topology.Share(len(b.Nodes), len(nodeNames)); err != nil {
			return err
		}
	}
	if n.Host, err = b.Host(name); err != nil {
		return err
	}
	if _, err = sw.Plug(end(n.Host, "eth0", ServerNet, "::"+name)); err != nil {
		return err
	}
	b.Nodes = append(b.Nodes, n)
	return n.Route(Everywhere, At(ServerNet, "::1"))
}

// CareOf is the node's care-of address for a server.
func (n *Node) CareOf(d *Server) netip.Addr {
	return At(ServerNet, fmt.Sprintf("::%d:%s", d.Number, n.Name()))
}

// Logs is the end of what every program has written, for a report of what went
// wrong.
func (b *Bed) Logs() string {
	var all strings.Builder
	for _, p := range b.Running {
		lines := strings.SplitAfter(p.Log.String(), "\n")
		fmt.Fprintf(&all, "%s:\n%s\n", p, strings.Join(lines[max(0, len(lines)-20):], ""))
	}
	return all.String()
}

// Close ends everything, and removes Dir.
func (b *Bed) Close() error {
	var err error
	for _, n := range b.Nodes {
		n.API.Close()
	}
	if b.Net != nil {
		err = b.Net.Close()
	}
	if b.Dir != "" {
		err = errors.Join(err, os.RemoveAll(b.Dir))
	}
	return err
}
