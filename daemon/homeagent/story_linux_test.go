package homeagent_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/daemon/config"
	"github.com/distributed-servers/ds/daemon/homeagent"
	"github.com/distributed-servers/ds/internal/netns/netnstest"
	"github.com/distributed-servers/ds/internal/netns/topology"
	"github.com/distributed-servers/ds/internal/nodetest"
	"github.com/distributed-servers/ds/internal/probe"
	"github.com/distributed-servers/ds/mobility/node"
	"github.com/distributed-servers/ds/mobility/wire"
)

// The network of the tests:
//
//	                       agent :d::1
//	client :c::2 ── :c::1 ─┤         ├─ :5::1 ── :5::2 server ── TUN :5:1::a
//	                       └─ :d::1 ─ home link ─ :d::9 neighbor, if there is one
//
// and the distributed server address :d::5.
var (
	agentAddr = netip.MustParseAddr("2001:db8:d::1")
	dsa       = netip.MustParseAddr("2001:db8:d::5")
	careOf    = netip.MustParseAddr("2001:db8:5:1::a")
	neighbor  = netip.MustParseAddr("2001:db8:d::9")
)

const key = "000102030405060708090a0b0c0d0e0f"

// configEnv makes this program a home agent.
const configEnv = "DS_TEST_HOME_AGENT"

func TestMain(m *testing.M) {
	probe.Main()
	if s := os.Getenv(configEnv); s != "" {
		os.Exit(agentMain(s))
	}
	os.Exit(m.Run())
}

func agentMain(s string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var cfg config.HomeAgent
	err := json.Unmarshal([]byte(s), &cfg)
	if err == nil {
		err = homeagent.Run(ctx, cfg, slog.New(slog.NewTextHandler(os.Stderr, nil)))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

type world struct {
	*testing.T
	ctx                             context.Context
	net                             *topology.Net
	client, agent, server, neighbor *topology.Host
	cfg                             config.HomeAgent
	node                            *nodetest.Node
}

// newWorld builds the network; onLink: the home link is one, with a neighbor.
// It is nil outside of the test's own namespaces.
func newWorld(t *testing.T, onLink bool) *world {
	t.Helper()
	if !netnstest.Run(t) {
		return nil
	}
	probe.Skip(t, probe.TUN, probe.NFQueue, probe.Program("ip6tables-restore"))
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	t.Cleanup(cancel)
	w := &world{T: t, ctx: ctx}
	var err error
	if w.net, err = topology.New(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.net.Close(); err != nil {
			t.Error(err)
		}
	})
	for name, h := range map[string]**topology.Host{"client": &w.client, "agent": &w.agent, "server": &w.server} {
		*h, err = w.net.Host(name)
		w.must(err)
	}
	w.connect(w.client, "2001:db8:c::2/64", w.agent, "eth0", "2001:db8:c::1/64")
	w.connect(w.server, "2001:db8:5::2/64", w.agent, "eth1", "2001:db8:5::1/64")
	w.must(w.client.Route(netip.MustParsePrefix("::/0"), netip.MustParseAddr("2001:db8:c::1")))
	w.must(w.server.Route(netip.MustParsePrefix("::/0"), netip.MustParseAddr("2001:db8:5::1")))
	w.must(w.agent.Route(netip.MustParsePrefix("2001:db8:5:1::/64"), netip.MustParseAddr("2001:db8:5::2")))
	w.must(w.server.Forward())

	file := filepath.Join(t.TempDir(), "key")
	w.must(os.WriteFile(file, []byte(key), 0o600))
	w.cfg = config.HomeAgent{
		Address:       agentAddr,
		Prefixes:      []netip.Prefix{netip.PrefixFrom(dsa, 64).Masked()},
		Homes:         []config.Home{{Address: dsa, SPI: 256, KeyFile: file}},
		State:         t.TempDir(),
		Socket:        filepath.Join(t.TempDir(), "socket"),
		RefreshAdvice: config.Duration(4 * time.Second),
	}
	if onLink {
		w.neighbor, err = w.net.Host("neighbor")
		w.must(err)
		w.connect(w.neighbor, neighbor.String()+"/64", w.agent, "eth2", agentAddr.String()+"/64")
		w.must(w.neighbor.Route(netip.MustParsePrefix("::/0"), agentAddr))
		w.cfg.Interface = "eth2"
	} else {
		w.must(w.agent.AddAddr("lo", netip.PrefixFrom(agentAddr, 128)))
	}

	k, err := config.ReadKey(file)
	w.must(err)
	w.node, err = nodetest.New(nodetest.Config{
		Host: w.server, Home: netip.PrefixFrom(dsa, 64), CareOf: careOf, HomeAgent: agentAddr, SPI: 256, Key: k,
	})
	w.must(err)
	t.Cleanup(func() { w.node.Close() })
	return w
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) connect(a *topology.Host, addrA string, b *topology.Host, nameB, addrB string) {
	w.Helper()
	_, err := w.net.Connect(
		topology.End{Host: a, Name: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix(addrA)}},
		topology.End{Host: b, Name: nameB, Addrs: []netip.Prefix{netip.MustParsePrefix(addrB)}})
	w.must(err)
}

// startAgent starts a home agent and waits until it runs.
func (w *world) startAgent() *topology.Process {
	w.Helper()
	b, err := json.Marshal(w.cfg)
	w.must(err)
	cmd := w.agent.Command(w.ctx, "/proc/self/exe", "-test.run=^$")
	cmd.Env = append(os.Environ(), configEnv+"="+string(b), "GORACE=atexit_sleep_ms=0")
	p, err := cmd.Background()
	w.must(err)
	if _, err := p.Log.WaitFor(w.ctx, 0, "home agent runs"); err != nil {
		w.Fatalf("%v\n%s", err, p.Log)
	}
	return p
}

func (w *world) register() {
	w.Helper()
	w.must(w.node.Do(w.ctx, node.Register{}, netip.Addr{}, node.Registered))
}

func (w *world) dial(h *topology.Host) net.Conn {
	w.Helper()
	c, err := h.Dial("tcp", netip.AddrPortFrom(dsa, nodetest.Port).String())
	w.must(err)
	w.Cleanup(func() { c.Close() })
	deadline, _ := w.ctx.Deadline()
	w.must(c.SetDeadline(deadline))
	return c
}

func (w *world) output(name string, arg ...string) string {
	w.Helper()
	out, err := w.agent.Command(w.ctx, name, arg...).Output()
	w.must(err)
	return string(out)
}

// left is what there is on the home agent's host of what a home agent makes:
// interfaces, routes, rules, sysctls.
func (w *world) left() string {
	w.Helper()
	var left []string
	for line := range strings.Lines(w.output("ip", "-o", "link") + w.output("ip", "-6", "route", "show", "table", "all") +
		w.output("ip", "-6", "rule") + w.output("ip6tables-save", "-t", "mangle")) {
		for _, mark := range []string{"dsha", "dsco", "DSCO", "proto 79", dsa.String()} {
			if strings.Contains(line, mark) {
				left = append(left, line)
				break
			}
		}
	}
	return strings.Join(left, "") + "forwarding " + w.output("cat", "/proc/sys/net/ipv6/conf/all/forwarding")
}

const nothing = "forwarding 0\n"

// Clients reach the server through the tunnel; what happens to the home agent
// they may notice by a pause.
func TestTunnelAndRestart(t *testing.T) {
	w := newWorld(t, false)
	if w == nil {
		return
	}
	if got := w.left(); got != nothing {
		t.Fatalf("before: %s", got)
	}
	p := w.startAgent()
	w.register()

	w.must(nodetest.Transfer(w.dial(w.client), 4<<20, 4<<20))
	c := &api.Client{Socket: w.cfg.Socket}
	st, err := c.Status(w.ctx)
	w.must(err)
	if h := st.Homes; len(h) != 1 || h[0].Address != dsa || h[0].CareOf != careOf || !h[0].Expires.After(time.Now()) {
		t.Errorf("status: %+v", st)
	}
	if n := st.Counters; n["registrations"] == 0 || n["to_home_packets"] == 0 || n["tunnel_in_packets"] == 0 || n["sent_packets"] == 0 {
		t.Errorf("counters: %v", n)
	}

	// It is killed while packets flow, and is back with nothing in mind.
	conn := w.dial(w.client)
	done := make(chan error, 1)
	go func() { done <- nodetest.Transfer(conn, 16<<20, 1<<20) }()
	from := w.node.Events()
	p.Kill()
	p = w.startAgent()
	if _, err := w.node.WaitFor(w.ctx, from, netip.Addr{}, node.Registered); err != nil {
		t.Fatal(err)
	}
	w.must(<-done)

	// It stops as it should.
	if err := p.Stop(10 * time.Second); err != nil {
		t.Errorf("%v\n%s", err, p.Log)
	}
	if got := w.left(); got != nothing {
		t.Errorf("left:\n%s", got)
	}
	t.Log(p.Log)
}

// On a home link, neighbors find the home address at the home agent, and again
// when they doubt it.
func TestHomeLink(t *testing.T) {
	w := newWorld(t, true)
	if w == nil {
		return
	}
	p := w.startAgent()
	w.register()
	w.must(nodetest.Transfer(w.dial(w.client), 1<<20, 1<<20))

	// Soon a neighbor doubts what it knows: it probes, by unicast.
	w.must(w.neighbor.Sysctl("net.ipv6.neigh.eth0.base_reachable_time_ms", "100"))
	w.must(w.neighbor.Sysctl("net.ipv6.neigh.eth0.delay_first_probe_time", "0"))
	for range 3 {
		w.must(nodetest.Transfer(w.dial(w.neighbor), 1<<20, 1<<20))
	}
	// "2001:db8:d::5 dev eth0 lladdr 02:… REACHABLE"
	mac := func(a netip.Addr) string {
		out, err := w.neighbor.Command(w.ctx, "ip", "-6", "neigh", "show", a.String()).Output()
		w.must(err)
		_, mac, _ := strings.Cut(string(out), "lladdr ")
		mac, _, _ = strings.Cut(mac, " ")
		return mac
	}
	if home, agent := mac(dsa), mac(agentAddr); home == "" || home != agent {
		t.Errorf("the home address is at %q, the home agent at %q", home, agent)
	}

	if err := p.Stop(10 * time.Second); err != nil {
		t.Errorf("%v\n%s", err, p.Log)
	}
	if got := w.left(); got != nothing {
		t.Errorf("left:\n%s", got)
	}
	t.Log(p.Log)
}

// A neighbor has the home address: the registration is refused, and the neighbor
// is reached as ever.
func TestDuplicateOnHomeLink(t *testing.T) {
	w := newWorld(t, true)
	if w == nil {
		return
	}
	w.must(w.neighbor.AddAddr("eth0", netip.PrefixFrom(dsa, 64)))
	p := w.startAgent()
	from := w.node.Events()
	w.node.Step(node.Register{})
	e, err := w.node.WaitFor(w.ctx, from, netip.Addr{}, node.RegistrationFailed)
	w.must(err)
	if e.Status != wire.DuplicateAddress {
		t.Errorf("refused with %v", e)
	}
	var l net.Listener
	w.must(func() (err error) {
		l, err = w.neighbor.Listen("tcp", netip.AddrPortFrom(dsa, nodetest.Port).String())
		return err
	}())
	defer l.Close()
	w.dial(w.client)
	if err := p.Stop(10 * time.Second); err != nil {
		t.Errorf("%v\n%s", err, p.Log)
	}
}
