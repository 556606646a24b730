package correspondent_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/daemon/config"
	"github.com/distributed-servers/ds/daemon/correspondent"
	"github.com/distributed-servers/ds/daemon/homeagent"
	"github.com/distributed-servers/ds/internal/netns/topology"
	"github.com/distributed-servers/ds/internal/nodetest"
	"github.com/distributed-servers/ds/internal/probe"
	"github.com/distributed-servers/ds/mobility/node"
	"github.com/distributed-servers/ds/mobility/wire"
)

// The network is that of nodetest.World, with the correspondent on the client.

// roleEnv makes this program a home agent or a correspondent.
const roleEnv = "DS_TEST_ROLE"

func TestMain(m *testing.M) {
	probe.Main()
	if s := os.Getenv(roleEnv); s != "" {
		os.Exit(roleMain(s))
	}
	os.Exit(m.Run())
}

func roleMain(s string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	role, text, _ := strings.Cut(s, " ")
	var err error
	switch role {
	case "home-agent":
		var cfg config.HomeAgent
		if err = json.Unmarshal([]byte(text), &cfg); err == nil {
			err = homeagent.Run(ctx, cfg, log)
		}
	case "correspondent":
		var cfg config.Correspondent
		if err = json.Unmarshal([]byte(text), &cfg); err == nil {
			err = correspondent.Run(ctx, cfg, log)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

type world struct {
	*nodetest.World
	cfg   config.Correspondent
	api   *api.Client
	agent *topology.Process
}

// newWorld has a home agent and a registered node. It is nil outside of the
// test's own namespaces.
func newWorld(t *testing.T) *world {
	t.Helper()
	w := nodetest.NewWorld(t, roleEnv, nodetest.New)
	if w == nil {
		return nil
	}
	return inWorld(t, w)
}

func inWorld(t testing.TB, nw *nodetest.World) *world {
	t.Helper()
	w := &world{World: nw, cfg: config.Correspondent{State: t.TempDir(), Socket: filepath.Join(t.TempDir(), "socket"), KernelHeaders: new(false)}}
	w.api = &api.Client{Socket: w.cfg.Socket}
	t.Cleanup(w.api.Close)
	w.Must(w.Agent.AddAddr("lo", netip.PrefixFrom(nodetest.AgentAddr, 128)))
	w.agent = w.Start(w.Agent, "home-agent", config.HomeAgent{
		Address:       nodetest.AgentAddr,
		Prefixes:      []netip.Prefix{nodetest.Home.Masked()},
		Homes:         []config.Home{{Address: nodetest.Home.Addr(), SPI: w.SPI, KeyFile: w.KeyFile}},
		State:         t.TempDir(),
		Socket:        filepath.Join(t.TempDir(), "socket"),
		RefreshAdvice: config.Duration(4 * time.Second),
	}, "home agent runs")
	w.Register()
	return w
}

// bothWays runs a test twice: the kernel treats packets of bindings, where it can, and
// the daemon does.
func bothWays(t *testing.T, test func(w *world)) {
	bothWaysIn(t, func(t *testing.T) *world { return newWorld(t) }, test)
}

func bothWaysIn(t *testing.T, newWorld func(t *testing.T) *world, test func(w *world)) {
	for _, kernel := range []bool{true, false} {
		t.Run(fmt.Sprintf("kernel=%t", kernel), func(t *testing.T) {
			if kernel {
				probe.Skip(t, probe.BPF)
			}
			w := newWorld(t)
			if w == nil {
				return
			}
			w.cfg.KernelHeaders = &kernel
			test(w)
		})
	}
}

func (w *world) start() *topology.Process {
	w.Helper()
	return w.Start(w.Client, "correspondent", w.cfg, "correspondent runs")
}

// nothingLeft checks that the client is as it was.
func (w *world) nothingLeft() {
	w.Helper()
	if left := w.Left(w.Client, "dscn", "dsco", "DSCO", "proto 80", nodetest.Home.Addr().String()); left != "" {
		w.Errorf("left:\n%s", left)
	}
}

// bind makes a binding at the client, and waits for its acknowledgement.
func (w *world) bind() {
	w.Helper()
	w.Must(w.Node.Do(w.Ctx, node.Optimise{Client: nodetest.ClientAddr}, nodetest.ClientAddr, node.Confirmed))
}

// unbind deletes it.
func (w *world) unbind() {
	w.Helper()
	w.Must(w.Node.Do(w.Ctx, node.Release{Client: nodetest.ClientAddr}, nodetest.ClientAddr, node.Released))
}

// direct returns how many packets have gone each way with a binding.
func (w *world) direct() (out, in uint64) {
	w.Helper()
	st, err := w.api.Status(w.Ctx)
	w.Must(err)
	n := st.Counters
	out, in = n["out_packets"], n["in_packets"]
	by := n["kernel_out_packets"] + n["kernel_in_packets"]
	if kernel := *w.cfg.KernelHeaders; kernel != (n["kernel_headers"] == 1) || by > 0 && !kernel || by == 0 && kernel && out+in > 0 {
		w.Errorf("kernel_headers = %t, and %v", kernel, n)
	}
	if out < n["kernel_out_packets"] || in < n["kernel_in_packets"] {
		w.Errorf("the totals are without the kernel's: %v", n)
	}
	return out, in
}

// used waits until packets have gone each way with a binding, beyond those before.
func (w *world) used(out, in uint64) {
	w.Helper()
	for {
		if o, i := w.direct(); o > out && i > in {
			return
		}
	}
}

// A connection of a program that knows nothing of this changes its way again and
// again while it transfers.
func TestConnectionsSurvive(t *testing.T) {
	bothWays(t, func(w *world) {
		w.nothingLeft()
		p := w.start()
		const octets, ways = 8 << 20, 4
		done, pace := make(chan error, 2), newPace(octets/ways)
		for range 2 {
			c := &paced{Conn: w.Dial(w.Client), pace: pace}
			go func() { done <- nodetest.Transfer(c, octets, octets) }()
		}
		changes := 0
		for running := 2; running > 0; {
			w.bind()
			// They end on the last way at the earliest, and each before has a part of it.
			switch out, in := w.direct(); {
			case changes < ways-1:
				pace.set(octets/ways*int64(changes+1) + octets/ways/2)
				w.used(out, in)
			case changes == ways-1:
				pace.set(unlimited)
			}
			w.unbind()
			changes++
			select {
			case err := <-done:
				w.Must(err)
				running--
			default:
			}
		}
		out, in := w.direct()
		w.Logf("%d bindings; %d packets out, %d in", changes, out, in)
		if out == 0 || in == 0 || changes < ways {
			w.Error("the way did not change")
		}

		w.bind()
		st, err := w.api.Status(w.Ctx)
		w.Must(err)
		if b := st.Bindings; len(b) != 1 || b[0].Home != nodetest.Home.Addr() || b[0].CareOf != nodetest.CareOf || b[0].Peer != nodetest.ClientAddr {
			w.Errorf("bindings: %+v", st.Bindings)
		}
		w.Stop(p)
		w.nothingLeft()
	})
}

// A connection that was there before the binding takes the new way, with smaller
// segments, and so do programs that come later. Others do not notice.
func TestNewWay(t *testing.T) {
	bothWays(t, func(w *world) {
		p := w.start()
		old := w.Dial(w.Client)
		// The kernel prefers it for new connections, if nothing else counts.
		w.Must(w.Client.AddAddr("eth0", netip.MustParsePrefix("2001:db8:c::3/64")))
		w.bind()
		out0, in0 := w.direct()
		w.Must(nodetest.Transfer(old, 1<<20, 1<<20))
		out1, in1 := w.direct()
		if out1 == out0 || in1 < in0+1<<20/1500 {
			w.Errorf("the old connection: %d packets out, %d in", out1-out0, in1-in0)
		}
		w.Must(nodetest.Transfer(w.Dial(w.Client), 1<<20, 1<<20))
		out2, in2 := w.direct()
		if out2 == out1 || in2 < in1+1<<20/1500 {
			w.Errorf("a new connection: %d packets out, %d in", out2-out1, in2-in1)
		}

		route := w.Output(w.Client, "ip", "-6", "route", "get", nodetest.Home.Addr().String())
		if !strings.Contains(route, "dev dscn0") || !strings.Contains(route, "mtu 1476") || !strings.Contains(route, "src 2001:db8:c::2") {
			w.Errorf("route: %s", route)
		}
		if route := w.Output(w.Client, "ip", "-6", "route", "get", "2001:db8:d::6"); !strings.Contains(route, "dev eth0") {
			w.Errorf("route to a neighbor of the home address: %s", route)
		}

		// From another address of the client, which has no binding.
		var c net.Conn
		w.Must(w.Client.Do(func() (err error) {
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("2001:db8:c::3")}}
			c, err = d.DialContext(w.Ctx, "tcp", netip.AddrPortFrom(nodetest.Home.Addr(), nodetest.Port).String())
			return err
		}))
		defer c.Close()
		w.Must(nodetest.Transfer(c, 1<<20, 1<<20))

		w.Stop(p)
		w.Must(nodetest.Transfer(w.Dial(w.Client), 1<<20, 1<<20))
		w.nothingLeft()
	})
}

// Super-packets, which the kernel has not cut yet and of which no checksum is
// complete, come and go whole as far as that is possible.
func TestSuperPackets(t *testing.T) {
	bothWaysIn(t, func(t *testing.T) *world {
		nw := nodetest.NewWorld(t, roleEnv, nodetest.NewKernel)
		if nw == nil {
			return nil
		}
		return inWorld(t, nw)
	}, testSuperPackets)
}

func testSuperPackets(w *world) {
	p := w.start()
	w.Must(nodetest.Transfer(w.Dial(w.Client), 8<<20, 8<<20))
	w.bind()
	const octets = 32 << 20
	// How large they are is TCP's affair: after a loss, on a busy machine, they are small for
	// a while. Where they are cut, they never are large.
	var out, in uint64
	for range 5 {
		out0, in0 := w.direct()
		w.Must(nodetest.Transfer(w.Dial(w.Client), octets, octets))
		out, in = w.direct()
		out, in = out-out0, in-in0
		w.Logf("%d octets a packet out, %d in", octets/out, octets/in)
		if out <= octets/4000 && in <= octets/4000 {
			break
		}
	}
	if out > octets/4000 || in > octets/4000 {
		w.Errorf("%d packets out, %d in: hardly any was whole", out, in)
	}
	w.Stop(p)
}

// The interface's MTU becomes smaller. The route follows, and with it TCP.
func TestSmallerMTU(t *testing.T) {
	bothWays(t, func(w *world) {
		p := w.start()
		c := w.Dial(w.Client)
		w.bind()
		w.Must(nodetest.Transfer(w.Dial(w.Client), 1<<20, 1<<20))
		w.Output(w.Client, "ip", "link", "set", "eth0", "mtu", "1300")
		w.Output(w.Agent, "ip", "link", "set", "eth0", "mtu", "1300")
		w.Must(nodetest.Transfer(c, 128<<10, 1<<20))
		// Perhaps the kernel has told TCP before the daemon had its turn.
		for route := ""; !strings.Contains(route, "mtu 1276"); {
			if w.Ctx.Err() != nil {
				w.Fatalf("route: %s", route)
			}
			route = w.Output(w.Client, "ip", "-6", "route", "get", nodetest.Home.Addr().String())
		}
		w.Stop(p)
	})
}

// The way to the node changes to another interface. A connection follows, whatever its
// binding has found before.
func TestOtherInterface(t *testing.T) {
	bothWays(t, func(w *world) {
		_, err := w.Net.Connect(
			topology.End{Host: w.Client, Name: "eth1", Addrs: []netip.Prefix{netip.MustParsePrefix("2001:db8:cc::2/64")}},
			topology.End{Host: w.Agent, Name: "eth2", Addrs: []netip.Prefix{netip.MustParsePrefix("2001:db8:cc::1/64")}})
		w.Must(err)
		w.cfg.Addresses = []netip.Addr{nodetest.ClientAddr}
		p := w.start()
		c := w.Dial(w.Client)
		w.bind()
		w.Must(nodetest.Transfer(w.Dial(w.Client), 1<<20, 1<<20))
		// The client's address stays: what is for it goes the other way, too.
		w.Output(w.Client, "ip", "addr", "add", "2001:db8:c::2/128", "dev", "eth1", "nodad")
		w.Output(w.Client, "ip", "-6", "route", "replace", "default", "via", "2001:db8:cc::1", "dev", "eth1")
		w.Output(w.Agent, "ip", "-6", "route", "add", "2001:db8:c::2/128", "via", "2001:db8:cc::2")
		w.Output(w.Client, "ip", "link", "set", "eth0", "down")
		out0, in0 := w.direct()
		w.Must(nodetest.Transfer(c, 1<<20, 1<<20))
		if out1, in1 := w.direct(); out1 == out0 || in1 == in0 {
			w.Errorf("%d packets out, %d in: they did not go by way of the binding", out1-out0, in1-in0)
		}
		w.Stop(p)
	})
}

// The correspondent is killed while packets flow by way of a binding. Connections
// go on.
func TestKilled(t *testing.T) {
	bothWays(t, func(w *world) {
		p := w.start()
		const octets = 8 << 20
		pace := newPace(octets / 2)
		c := &paced{Conn: w.Dial(w.Client), pace: pace}
		w.bind()
		done := make(chan error, 1)
		go func() { done <- nodetest.Transfer(c, octets, octets) }()
		w.used(0, 0)
		from := w.Node.Events()
		p.Kill()
		pace.set(unlimited) // some are left
		// The kernel answers in its own way.
		_, err := w.Node.WaitFor(w.Ctx, from, nodetest.ClientAddr, node.Unbound, node.Unsupported)
		w.Must(err)
		p = w.start()
		w.Must(<-done)
		if left := strings.Count(w.Left(w.Client, "-j DSCO"), "PREROUTING"); left != 1 {
			w.Errorf("%d rules lead to the queue", left)
		}
		w.Stop(p)
		w.nothingLeft()
	})
}

// Who is not permitted gets no binding, and works as ever.
func TestPermit(t *testing.T) {
	w := newWorld(t)
	if w == nil {
		return
	}
	w.cfg.Permit = []netip.Prefix{netip.MustParsePrefix("2001:db8:aaaa::/48")}
	p := w.start()
	from := w.Node.Events()
	w.Node.Step(node.Optimise{Client: nodetest.ClientAddr})
	e, err := w.Node.WaitFor(w.Ctx, from, nodetest.ClientAddr, node.Unbound)
	w.Must(err)
	if e.Reason != node.Refused || e.Status != wire.Prohibited {
		t.Errorf("unbound: %+v", e)
	}
	w.Must(nodetest.Transfer(w.Dial(w.Client), 1<<20, 1<<20))
	if out, in := w.direct(); out != 0 || in != 0 {
		t.Errorf("%d packets out, %d in", out, in)
	}
	w.Stop(p)
}

// What is on the wire is what an independent dissector expects, checksums of
// routed packets included.
func TestCaptures(t *testing.T) {
	bothWays(t, func(w *world) {
		probe.Skip(w, probe.Program("tshark"))
		p := w.start()
		var files []string
		var captures []*topology.Capture
		for _, h := range []*topology.Host{w.Client, w.Server} {
			f, err := os.Create(filepath.Join(w.TempDir(), h.Name()+".pcapng"))
			w.Must(err)
			defer f.Close()
			c, err := h.Capture("eth0", f)
			w.Must(err)
			files, captures = append(files, f.Name()), append(captures, c)
		}
		// So that checksums are whole on links that no wire is part of.
		w.Must(w.Client.OffloadOff("eth0"))
		c := w.Dial(w.Client)
		w.bind()
		w.Must(nodetest.Transfer(c, 128<<10, 128<<10))
		w.unbind()
		w.Must(nodetest.Transfer(w.Dial(w.Client), 128<<10, 128<<10))
		w.Stop(p)
		for _, c := range captures {
			w.Must(c.Stop())
		}
		for i, file := range files {
			n := dissect(w, file)
			w.Logf("%s: %+v", filepath.Base(file), n)
			if n.malformed > 0 || n.problems > 0 || n.wrong > 0 {
				w.Errorf("%s: %+v", file, n)
			}
			if n.home == 0 || n.routed == 0 {
				w.Errorf("%s: no optimised TCP", file)
			}
			// On the client's side the beginnings of super-packets are all there is.
			if i == 1 && n.right == 0 {
				w.Errorf("%s: no checksum behind a routing header was looked at", file)
			}
		}
	})
}

// seen are packets in a capture.
type seen struct {
	malformed, problems int // ICMPv6 Parameter Problems
	home, routed        int // TCP with Home Address option, with routing header
	wrong, right        int // checksums behind a routing header, where the packet is whole
}

func dissect(w *world, file string) (n seen) {
	w.Helper()
	out, err := exec.CommandContext(w.Ctx, "tshark", "-r", file, "-n", "-o", "tcp.check_checksum:TRUE",
		"-T", "fields", "-E", "separator=|", "-e", "_ws.malformed", "-e", "icmpv6.type", "-e", "ipv6.opt.type",
		"-e", "ipv6.routing.type", "-e", "tcp.checksum.status").Output()
	w.Must(err)
	for line := range strings.Lines(string(out)) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "|")
		if len(f) != 5 {
			w.Fatalf("tshark: %q", line)
		}
		routed := f[3] == "2"
		for counter, is := range map[*int]bool{
			&n.malformed: f[0] != "",
			&n.problems:  f[1] == "4",
			&n.home:      strings.Contains(f[2], "0xc9") && f[4] != "",
			&n.routed:    routed && f[4] != "",
			&n.wrong:     routed && f[4] == "0",
			&n.right:     routed && f[4] == "1",
		} {
			if is {
				*counter++
			}
		}
	}
	return n
}
