//go:build linux

package topology_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gopacket/gopacket/pcapgo"
	"github.com/vishvananda/netlink"

	"github.com/distributed-servers/ds/internal/impair"
	"github.com/distributed-servers/ds/internal/netns/netnstest"
	"github.com/distributed-servers/ds/internal/netns/topology"
	"github.com/distributed-servers/ds/internal/probe"
)

// Each test that asks for it has this network:
//
//	client fd00:c::2 ── c0 ═══ r0 ── router ── r1 ═══ port1 switch port2 ═══ eth0 ── a fd00:5::a
//	                                 fd00:c::1        fd00:5::1      port3 ═══ eth0 ── b fd00:5::b
type network struct {
	*topology.Net
	client, router, a, b *topology.Host
	link                 *topology.Link // between client and router
}

// patience bounds what takes milliseconds on a machine with nothing else to do.
const patience = 20 * time.Second

const clientAddr, serverAddr = "fd00:c::2", "fd00:5::a"

func TestMain(m *testing.M) {
	probe.Main()
	os.Exit(m.Run())
}

func prefix(s string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(s)} }

func build(t *testing.T, impaired bool, ab, ba impair.Settings) *network {
	t.Helper()
	fatal := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	n, err := topology.New()
	fatal(err)
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	w := &network{Net: n}
	for name, h := range map[string]**topology.Host{"client": &w.client, "router": &w.router, "a": &w.a, "b": &w.b} {
		*h, err = n.Host(name)
		fatal(err)
	}
	c0 := topology.End{Host: w.client, Name: "c0", Addrs: prefix("fd00:c::2/64")}
	r0 := topology.End{Host: w.router, Name: "r0", Addrs: prefix("fd00:c::1/64")}
	if impaired {
		w.link, err = n.ConnectImpaired(c0, r0, 1, ab, ba)
	} else {
		w.link, err = n.Connect(c0, r0)
	}
	fatal(err)
	s, err := n.Switch("switch")
	fatal(err)
	_, err = s.Plug(topology.End{Host: w.router, Name: "r1", Addrs: prefix("fd00:5::1/64")})
	fatal(err)
	_, err = s.Plug(topology.End{Host: w.a, Name: "eth0", Addrs: prefix("fd00:5::a/64")})
	fatal(err)
	_, err = s.Plug(topology.End{Host: w.b, Name: "eth0", Addrs: prefix("fd00:5::b/64")})
	fatal(err)
	fatal(w.router.Forward())
	all := netip.MustParsePrefix("::/0")
	fatal(w.client.Route(all, netip.MustParseAddr("fd00:c::1")))
	fatal(w.a.Route(all, netip.MustParseAddr("fd00:5::1")))
	fatal(w.b.Route(all, netip.MustParseAddr("fd00:5::1")))
	return w
}

// echo transfers octets from client to a and back over TCP, at once.
func echo(t *testing.T, w *network, octets int) {
	t.Helper()
	l, err := w.a.Listen("tcp", "["+serverAddr+"]:7")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err == nil {
			io.Copy(c, c)
			c.Close()
		}
	}()
	c, err := w.client.Dial("tcp", "["+serverAddr+"]:7")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := c.LocalAddr().(*net.TCPAddr).IP.String(); got != clientAddr {
		t.Errorf("connected from %s", got)
	}
	sent := bytes.Repeat([]byte("0123456789abcdef"), octets/16)
	go func() {
		c.Write(sent)
		c.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d octets came back of %d: %v", len(got), len(sent), err)
	}
}

func TestNewIsRefusedOutside(t *testing.T) {
	if _, err := topology.New(); !errors.Is(err, topology.ErrOutside) {
		t.Errorf("error is %v", err)
	}
}

func TestHostsReachEachOther(t *testing.T) {
	if !netnstest.Run(t) {
		return
	}
	w := build(t, false, impair.Settings{}, impair.Settings{})
	echo(t, w, 1<<20)
	var names []string
	for _, h := range w.Hosts() {
		names = append(names, h.Name())
	}
	if len(names) != 5 || names[4] != "switch" {
		t.Errorf("hosts are %q", names)
	}
	if err := w.link.Impair(impair.Settings{}, impair.Settings{}); !errors.Is(err, topology.ErrNotImpaired) {
		t.Errorf("impair a pair of interfaces: %v", err)
	}
}

func TestDoComesBack(t *testing.T) {
	if !netnstest.Run(t) {
		return
	}
	w := build(t, false, impair.Settings{}, impair.Settings{})
	here, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	var a, b, again string
	err = w.a.Do(func() (err error) {
		if a, err = os.Readlink("/proc/thread-self/ns/net"); err != nil {
			return err
		}
		if err = w.b.Do(func() (err error) { b, err = os.Readlink("/proc/thread-self/ns/net"); return err }); err != nil {
			return err
		}
		again, err = os.Readlink("/proc/thread-self/ns/net")
		return err
	})
	back, _ := os.Readlink("/proc/thread-self/ns/net")
	if err != nil || a == here || b == a || again != a || back != here {
		t.Errorf("from %s to %s, %s, %s and %s: %v", here, a, b, again, back, err)
	}
	if _, err := netlink.LinkByName("c0"); err == nil {
		t.Error("an interface of a host is here")
	}
}

func TestCommand(t *testing.T) {
	if !netnstest.Run(t) {
		return
	}
	w := build(t, false, impair.Settings{}, impair.Settings{})
	const inAddrs = "cut -d' ' -f1 /proc/net/if_inet6 | grep ^fd00"
	out, err := w.b.Command(t.Context(), "/bin/sh", "-c", inAddrs).Output()
	if got := strings.TrimSpace(string(out)); err != nil || got != "fd00000500000000000000000000000b" {
		t.Errorf("b has %q: %v", got, err)
	}
	_, err = w.a.Command(t.Context(), "/bin/sh", "-c", "echo why >&2; exit 3").Output()
	if err == nil || !strings.Contains(err.Error(), "exit status 3: why") {
		t.Errorf("error is %v", err)
	}
	out, err = w.a.Command(t.Context(), "/bin/sh", "-c", "echo one; echo two >&2").CombinedOutput()
	if err != nil || string(out) != "one\ntwo\n" {
		t.Errorf("%q, %v", out, err)
	}
	if err := w.a.Command(t.Context(), "/no/such/program").Run(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error is %v", err)
	}
}

func TestProcess(t *testing.T) {
	if !netnstest.Run(t) {
		return
	}
	w := build(t, false, impair.Settings{}, impair.Settings{})
	p, err := w.a.Start("/bin/sh", "-c", `echo hello; sleep 60 & trap "kill $!; wait; echo bye; exit 0" TERM; echo ready; wait`)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	at, err := p.Log.WaitFor(ctx, 0, "ready")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(patience); err != nil {
		t.Error(err)
	}
	if got := p.Log.String()[at:]; got != "\nbye\n" {
		t.Errorf("it said %q", got)
	}
	if _, err := p.Log.WaitFor(ctx, at, "never"); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("error is %v", err)
	}

	stubborn, err := w.a.Start("/bin/sh", "-c", `trap '' TERM; echo ready; while :; do :; done`)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stubborn.Log.WaitFor(ctx, 0, "ready"); err != nil {
		t.Fatal(err)
	}
	if err := stubborn.Stop(time.Millisecond); err == nil || !strings.Contains(err.Error(), "had not ended") {
		t.Errorf("error is %v", err)
	}
	left, err := w.b.Start("sleep", "60")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	select {
	case <-left.Ended():
	default:
		t.Error("a program has survived Close")
	}
	if err := syscall.Kill(left.PID(), 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("signal to the program left: %v", err)
	}
}

func TestCapture(t *testing.T) {
	if !netnstest.Run(t) {
		return
	}
	w := build(t, false, impair.Settings{}, impair.Settings{})
	var file bytes.Buffer
	c, err := w.router.Capture("r1", &file)
	if err != nil {
		t.Fatal(err)
	}
	echo(t, w, 1<<20)
	if err := c.Stop(); err != nil {
		t.Fatal(err)
	}
	r, err := pcapgo.NewNgReader(&file, pcapgo.DefaultNgReaderOptions)
	if err != nil {
		t.Fatal(err)
	}
	octets, fins := map[netip.Addr]int{}, map[netip.Addr]int{}
	for {
		p, info, err := r.ReadPacketData()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if p[0]>>4 != 6 || len(p) > topology.CaptureLength || info.Length < len(p) {
			t.Fatalf("packet of %d octets, %d kept: %x", info.Length, len(p), p)
		}
		if p[6] != 6 { // neighbour discovery
			continue
		}
		src, _ := netip.AddrFromSlice(p[8:24])
		octets[src] += info.Length
		if p[40+13]&1 != 0 {
			fins[src]++
		}
	}
	for _, a := range []string{clientAddr, serverAddr} {
		src := netip.MustParseAddr(a)
		if n := octets[src]; n < 1<<20 {
			t.Errorf("%d octets from %s", n, a)
		}
		if fins[src] == 0 { // TCP may have sent it again
			t.Errorf("no segment with FIN from %s: what came last is not there", a)
		}
	}
	if _, err := w.router.Capture("none", io.Discard); err == nil {
		t.Error("capture on an interface that is not there")
	}
}
