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
	"github.com/distributed-servers/ds/internal/netns/topology"
	"github.com/distributed-servers/ds/internal/nodetest"
	"github.com/distributed-servers/ds/internal/probe"
	"github.com/distributed-servers/ds/mobility/node"
	"github.com/distributed-servers/ds/mobility/wire"
)

// The network is that of [nodetest.World], with
//
//	agent :d::1 ── home link ── :d::9 neighbor
//
// where there is a home link.
const neighbor = "2001:db8:d::9"

// roleEnv makes this program a home agent.
const roleEnv = "DS_TEST_ROLE"

func TestMain(m *testing.M) {
	probe.Main()
	if s := os.Getenv(roleEnv); s != "" {
		os.Exit(agentMain(s))
	}
	os.Exit(m.Run())
}

func agentMain(s string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var cfg config.HomeAgent
	_, text, _ := strings.Cut(s, " ")
	err := json.Unmarshal([]byte(text), &cfg)
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
	*nodetest.World
	neighbor *topology.Host
	cfg      config.HomeAgent
}

// newWorld builds the network; onLink: there is a home link. It is nil outside
// of the test's own namespaces.
func newWorld(t *testing.T, onLink bool) *world {
	t.Helper()
	w := &world{World: nodetest.NewWorld(t, roleEnv, nodetest.New)}
	if w.World == nil {
		return nil
	}
	w.cfg = config.HomeAgent{
		Address:       nodetest.AgentAddr,
		Prefixes:      []netip.Prefix{nodetest.Home.Masked()},
		Homes:         []config.Home{{Address: nodetest.Home.Addr(), SPI: w.SPI, KeyFile: w.KeyFile}},
		State:         t.TempDir(),
		Socket:        filepath.Join(t.TempDir(), "socket"),
		RefreshAdvice: config.Duration(4 * time.Second),
	}
	if onLink {
		w.neighbor = w.Host("neighbor")
		w.Connect(w.neighbor, neighbor+"/64", w.Agent, "eth2", nodetest.AgentAddr.String()+"/64")
		w.Must(w.neighbor.Route(netip.MustParsePrefix("::/0"), nodetest.AgentAddr))
		w.cfg.Interface = "eth2"
	} else {
		w.Must(w.Agent.AddAddr("lo", netip.PrefixFrom(nodetest.AgentAddr, 128)))
	}
	return w
}

func (w *world) start() *topology.Process {
	w.Helper()
	return w.Start(w.Agent, "home-agent", w.cfg, "home agent runs")
}

// nothingLeft checks that the home agent's host is as it was.
func (w *world) nothingLeft() {
	w.Helper()
	left := w.Left(w.Agent, "dsha", "dsco", "DSCO", "proto 79", nodetest.Home.Addr().String()) +
		"forwarding " + w.Output(w.Agent, "cat", "/proc/sys/net/ipv6/conf/all/forwarding")
	if left != "forwarding 0\n" {
		w.Errorf("left:\n%s", left)
	}
}

// Clients reach the server through the tunnel; what happens to the home agent
// they may notice by a pause.
func TestTunnelAndRestart(t *testing.T) { tunnelAndRestart(t, true) }

// The same where the kernel does not forward what is in tunnels.
func TestTunnelByDaemon(t *testing.T) { tunnelAndRestart(t, false) }

func tunnelAndRestart(t *testing.T, kernel bool) {
	w := newWorld(t, false)
	if w == nil {
		return
	}
	if kernel {
		probe.Skip(t, probe.NFTables, probe.Seg6)
	}
	w.cfg.KernelTunnels = &kernel
	w.nothingLeft()
	p := w.start()
	w.Register()
	w.Must(nodetest.Transfer(w.Dial(w.Client), 4<<20, 4<<20))

	c := &api.Client{Socket: w.cfg.Socket}
	defer c.Close()
	st, err := c.Status(w.Ctx)
	w.Must(err)
	if h := st.Homes; len(h) != 1 || h[0].Address != nodetest.Home.Addr() || h[0].CareOf != nodetest.CareOf || !h[0].Expires.After(time.Now()) {
		t.Errorf("status: %+v", st)
	}
	n := st.Counters
	if n["registrations"] == 0 || n["sent_packets"] == 0 {
		t.Errorf("counters: %v", n)
	}
	const some = 100 // of the thousands that came
	if kernel != (n["kernel_tunnels"] == 1) || kernel != (n["to_home_packets"] < some) || kernel != (n["tunnel_in_packets"] < some) {
		t.Errorf("counters, kernel %t: %v", kernel, n)
	}
	const transferred = 4 << 20 // each way
	if kernel != (n["kernel_to_home_octets"] > transferred) || kernel != (n["kernel_tunnel_in_octets"] > transferred) {
		t.Errorf("the kernel's counters, kernel %t: %v", kernel, n)
	}

	// It is killed while packets flow, and is back with nothing in mind.
	conn := w.Dial(w.Client)
	done := make(chan error, 1)
	go func() { done <- nodetest.Transfer(conn, 16<<20, 1<<20) }()
	from := w.Node.Events()
	p.Kill()
	p = w.start()
	_, err = w.Node.WaitFor(w.Ctx, from, netip.Addr{}, node.Registered)
	w.Must(err)
	w.Must(<-done)

	w.Stop(p)
	w.nothingLeft()
}

// On a home link, neighbors find the home address at the home agent, and again
// when they doubt it.
func TestHomeLink(t *testing.T) {
	w := newWorld(t, true)
	if w == nil {
		return
	}
	p := w.start()
	w.Register()
	w.Must(nodetest.Transfer(w.Dial(w.Client), 1<<20, 1<<20))

	// Soon a neighbor doubts what it knows: it probes, by unicast.
	w.Must(w.neighbor.Sysctl("net.ipv6.neigh.eth0.base_reachable_time_ms", "100"))
	w.Must(w.neighbor.Sysctl("net.ipv6.neigh.eth0.delay_first_probe_time", "0"))
	for range 3 {
		w.Must(nodetest.Transfer(w.Dial(w.neighbor), 1<<20, 1<<20))
	}
	mac := func(addr string) string {
		// "2001:db8:d::5 dev eth0 lladdr 02:… REACHABLE"
		_, mac, _ := strings.Cut(w.Output(w.neighbor, "ip", "-6", "neigh", "show", addr), "lladdr ")
		mac, _, _ = strings.Cut(mac, " ")
		return mac
	}
	if home, agent := mac(nodetest.Home.Addr().String()), mac(nodetest.AgentAddr.String()); home == "" || home != agent {
		t.Errorf("the home address is at %q, the home agent at %q", home, agent)
	}
	w.Stop(p)
	w.nothingLeft()
}

// A neighbor has the home address: the registration is refused, and the neighbor
// is reached as ever.
func TestDuplicateOnHomeLink(t *testing.T) {
	w := newWorld(t, true)
	if w == nil {
		return
	}
	w.Must(w.neighbor.AddAddr("eth0", nodetest.Home))
	p := w.start()
	from := w.Node.Events()
	w.Node.Step(node.Register{})
	e, err := w.Node.WaitFor(w.Ctx, from, netip.Addr{}, node.RegistrationFailed)
	w.Must(err)
	if e.Status != wire.DuplicateAddress {
		t.Errorf("refused with %v", e)
	}
	var l net.Listener
	l, err = w.neighbor.Listen("tcp", netip.AddrPortFrom(nodetest.Home.Addr(), nodetest.Port).String())
	w.Must(err)
	defer l.Close()
	w.Dial(w.Client)
	w.Stop(p)
}
