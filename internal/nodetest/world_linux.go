package nodetest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/distributed-servers/ds/internal/netns/netnstest"
	"github.com/distributed-servers/ds/internal/netns/topology"
	"github.com/distributed-servers/ds/internal/probe"
	"github.com/distributed-servers/ds/mobility/node"
)

// Addresses of a [World].
var (
	ClientAddr = netip.MustParseAddr("2001:db8:c::2")
	AgentAddr  = netip.MustParseAddr("2001:db8:d::1")
	Home       = netip.MustParsePrefix("2001:db8:d::5/64")
	CareOf     = netip.MustParseAddr("2001:db8:5:1::a")
)

const (
	spi    = 256
	keyHex = "000102030405060708090a0b0c0d0e0f"
)

// World is a network for tests of the roles around a node:
//
//	                       agent :d::1
//	client :c::2 ── :c::1 ─┤         ├─ :5::1 ── :5::2 server ── TUN :5:1::a, the node
//	                       └─ home link, if the test adds one
//
// The home address is :d::5.
type World struct {
	testing.TB
	Ctx                   context.Context
	Net                   *topology.Net
	Client, Agent, Server *topology.Host
	Node                  *Node
	KeyFile               string
	SPI                   uint32

	env string // the variable that makes this program a role
}

// NewWorld builds the network in namespaces of the test's own; outside of them it
// returns nil. start is [New] or [NewKernel], and env the variable with which
// [World.Start] starts this program.
func NewWorld(t *testing.T, env string, start func(Config) (*Node, error)) *World {
	t.Helper()
	if !netnstest.Run(t) {
		return nil
	}
	return NewWorldHere(t, env, start)
}

// NewWorldHere is NewWorld in namespaces that are the caller's own already.
func NewWorldHere(t testing.TB, env string, start func(Config) (*Node, error)) *World {
	t.Helper()
	probe.Skip(t, probe.TUN, probe.NFQueue, probe.Program("ip6tables-restore"))
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	w := &World{TB: t, Ctx: ctx, SPI: spi, env: env}
	var err error
	w.Net, err = topology.New()
	w.Must(err)
	t.Cleanup(func() {
		if err := w.Net.Close(); err != nil {
			t.Error(err)
		}
	})
	w.Client, w.Agent, w.Server = w.Host("client"), w.Host("agent"), w.Host("server")
	w.Connect(w.Client, "2001:db8:c::2/64", w.Agent, "eth0", "2001:db8:c::1/64")
	w.Connect(w.Server, "2001:db8:5::2/64", w.Agent, "eth1", "2001:db8:5::1/64")
	w.Must(w.Client.Route(netip.MustParsePrefix("::/0"), netip.MustParseAddr("2001:db8:c::1")))
	w.Must(w.Server.Route(netip.MustParsePrefix("::/0"), netip.MustParseAddr("2001:db8:5::1")))
	w.Must(w.Agent.Route(netip.MustParsePrefix("2001:db8:5:1::/64"), netip.MustParseAddr("2001:db8:5::2")))
	w.Must(w.Server.Forward())

	w.KeyFile = filepath.Join(t.TempDir(), "key")
	w.Must(os.WriteFile(w.KeyFile, []byte(keyHex), 0o600))
	var key []byte
	_, err = fmt.Sscanf(keyHex, "%x", &key)
	w.Must(err)
	w.Node, err = start(Config{Host: w.Server, Home: Home, CareOf: CareOf, HomeAgent: AgentAddr, SPI: spi, Key: key})
	w.Must(err)
	t.Cleanup(func() { w.Node.Close() })
	return w
}

// Must fails the test if there is an error.
func (w *World) Must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// Host adds a host.
func (w *World) Host(name string) *topology.Host {
	w.Helper()
	h, err := w.Net.Host(name)
	w.Must(err)
	return h
}

// Connect connects eth0 of a with an interface of b.
func (w *World) Connect(a *topology.Host, addrA string, b *topology.Host, nameB, addrB string) {
	w.Helper()
	_, err := w.Net.Connect(
		topology.End{Host: a, Name: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix(addrA)}},
		topology.End{Host: b, Name: nameB, Addrs: []netip.Prefix{netip.MustParsePrefix(addrB)}})
	w.Must(err)
}

// Start starts this program as a role on a host, with a configuration, and waits
// until it says that it runs.
func (w *World) Start(h *topology.Host, role string, cfg any, running string) *topology.Process {
	w.Helper()
	b, err := json.Marshal(cfg)
	w.Must(err)
	cmd := h.Command(w.Ctx, "/proc/self/exe", "-test.run=^$")
	cmd.Env = append(os.Environ(), w.env+"="+role+" "+string(b), "GORACE=atexit_sleep_ms=0")
	p, err := cmd.Background()
	w.Must(err)
	if _, err := p.Log.WaitFor(w.Ctx, 0, running); err != nil {
		w.Fatalf("%v\n%s", err, p.Log)
	}
	return p
}

// Stop stops a role, which must end well.
func (w *World) Stop(p *topology.Process) {
	w.Helper()
	if err := p.Stop(time.Minute); err != nil {
		w.Errorf("%v\n%s", err, p.Log)
	}
}

// Register makes the node the contact.
func (w *World) Register() {
	w.Helper()
	w.Must(w.Node.Do(w.Ctx, node.Register{}, netip.Addr{}, node.Registered))
}

// Dial connects from a host to the node, with the kernel's TCP.
func (w *World) Dial(h *topology.Host) net.Conn {
	w.Helper()
	c, err := h.Dial("tcp", netip.AddrPortFrom(Home.Addr(), Port).String())
	w.Must(err)
	w.Cleanup(func() { c.Close() })
	deadline, _ := w.Ctx.Deadline()
	w.Must(c.SetDeadline(deadline))
	return c
}

// Output is what a program on a host prints.
func (w *World) Output(h *topology.Host, name string, arg ...string) string {
	w.Helper()
	out, err := h.Command(w.Ctx, name, arg...).Output()
	w.Must(err)
	return string(out)
}

// Left is what there is on a host that has one of the marks: interfaces, routes,
// routing rules, packet filter rules.
func (w *World) Left(h *topology.Host, marks ...string) string {
	w.Helper()
	var left []byte
	for line := range bytes.Lines([]byte(w.Output(h, "ip", "-o", "link") + w.Output(h, "ip", "-6", "route", "show", "table", "all") +
		w.Output(h, "ip", "-6", "rule") + w.Output(h, "ip6tables-save", "-t", "raw"))) {
		for _, mark := range marks {
			if bytes.Contains(line, []byte(mark)) {
				left = append(left, line...)
				break
			}
		}
	}
	return string(left)
}
