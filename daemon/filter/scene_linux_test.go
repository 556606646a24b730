package filter

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/distributed-servers/ds/internal/netns/netnstest"
	"github.com/distributed-servers/ds/internal/probe"
)

// patience is longer than a busy machine stands still.
const patience = time.Minute

func TestMain(m *testing.M) {
	probe.Main()
	os.Exit(m.Run())
}

// own reports whether the test is inside a network of its own where queues are
// to be had.
func own(t *testing.T) bool {
	t.Helper()
	if !netnstest.Run(t) {
		return false
	}
	probe.Skip(t, probe.NFQueue, probe.Program("ip6tables-restore"))
	return true
}

// A scene is the network that each test with real packets owns:
//
//	the test ── vb ══ va ── kernel ── ta ══ tb ── the test
//	  (away)          (here)         (in the place of a TUN: careOf, service)
//
// The kernel forwards. The test sends and receives Ethernet frames on vb and tb,
// where there is no IPv6. The addresses are in packets_test.go.
type scene struct {
	net, tun *port // vb, tb
}

func newScene(t testing.TB) *scene {
	t.Helper()
	s := &scene{newPort(t, "va", "vb", 1500), newPort(t, "ta", "tb", 1500)}
	sysctl(t, "all/forwarding", "1")
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", append([]string{"-6"}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
	probe.Skip(t, probe.Program("ip"))
	run("addr", "add", here.String()+"/64", "dev", "va", "nodad")
	run("neigh", "add", away.String(), "lladdr", s.net.addr.String(), "dev", "va")
	for _, a := range []netip.Addr{careOf, service} {
		run("route", "add", a.String(), "dev", "ta")
		run("neigh", "add", a.String(), "lladdr", s.tun.addr.String(), "dev", "ta")
	}
	run("route", "add", "default", "via", away.String(), "dev", "va")
	for deadline := time.Now().Add(patience); ; { // the address is in use
		r, err := netlink.RouteGet(here.AsSlice())
		if err == nil && r[0].Type == unix.RTN_LOCAL {
			return s
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v does not become local: %v, %v", here, r, err)
		}
	}
}

func sysctl(t testing.TB, key, value string) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+key, []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}

// A port is the test's end of a veth pair.
type port struct {
	t          testing.TB
	fd, index  int
	frame, buf []byte
	addr, peer hardware
}

type hardware []byte

func (h hardware) String() string {
	return fmt.Sprintf("%x:%x:%x:%x:%x:%x", h[0], h[1], h[2], h[3], h[4], h[5])
}

// newPort makes a veth pair of which the kernel has near and the test far.
func newPort(t testing.TB, near, far string, mtu int) *port {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(near, far, err)
		}
	}
	must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: near, MTU: mtu}, PeerName: far}))
	sysctl(t, far+"/disable_ipv6", "1")
	sysctl(t, near+"/accept_dad", "0")
	n, err := netlink.LinkByName(near)
	must(err)
	f, err := netlink.LinkByName(far)
	must(err)
	must(netlink.LinkSetUp(n))
	must(netlink.LinkSetUp(f))
	for _, name := range []string{near, far} { // until then packets are lost
		for deadline := time.Now().Add(patience); ; {
			l, err := netlink.LinkByName(name)
			must(err)
			if l.Attrs().OperState == netlink.OperUp {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s does not come up", name)
			}
		}
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	must(err)
	must(unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1))
	must(unix.SetNonblock(fd, true))
	must(unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_IPV6), Ifindex: f.Attrs().Index}))
	p := &port{t: t, fd: fd, buf: make([]byte, 1<<17), index: f.Attrs().Index, addr: hardware(f.Attrs().HardwareAddr), peer: hardware(n.Attrs().HardwareAddr)}
	t.Cleanup(func() {
		unix.Close(fd)
		must(netlink.LinkDel(n))
	})
	return p
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// send sends a packet to the kernel.
func (p *port) send(b []byte) {
	p.t.Helper()
	if err := p.trySend(b); err != nil {
		p.t.Fatal("send", err)
	}
}

// trySend is send where the link may be down.
func (p *port) trySend(b []byte) error {
	p.frame = append(append(p.frame[:0], p.peer...), p.addr...)
	p.frame = append(append(p.frame, 0x86, 0xdd), b...)
	_, err := unix.Write(p.fd, p.frame)
	return err
}

// receive returns the next packet from the kernel that want accepts. It is good
// until the next one.
func (p *port) receive(want func(b []byte) bool) []byte {
	p.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		left := time.Until(deadline)
		if left <= 0 {
			p.t.Fatal("no packet came")
		}
		fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, int(left.Milliseconds())+1); err != nil && err != unix.EINTR {
			p.t.Fatal(err)
		}
		n, err := unix.Read(p.fd, p.buf)
		if err == nil && n > 14 && want(p.buf[14:n]) {
			return p.buf[14:n]
		}
	}
}

func is(want []byte) func([]byte) bool {
	return func(b []byte) bool {
		return len(b) == len(want) && bytes.Equal(b[8:], want[8:]) // but for the hop limit
	}
}

// Filters.

// queued collects what a filter has queued.
type queued chan Packet

func (q queued) next(t testing.TB) Packet {
	t.Helper()
	select {
	case p := <-q:
		return p
	case <-time.After(patience):
		t.Fatal("no packet was queued")
		panic("unreachable")
	}
}

// open opens a filter that notes packets and gives a verdict.
func open(t testing.TB, rules Rules, v func(Packet) Verdict) (*Filter, queued) {
	t.Helper()
	q := make(queued, 1024)
	f, err := Open(Config{Queue: 7846, Rules: rules, Logger: slog.New(slog.DiscardHandler), Handler: func(p Packet) Verdict {
		verdict := v(p)
		q <- p
		return verdict
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f, q
}

func accepting(Packet) Verdict { return Accept() }

// tables is what the kernel has of rules, both versions.
func tables(t testing.TB) string {
	t.Helper()
	var all string
	for _, save := range []string{ipv6.save, ipv4.save} {
		out, _, err := runProgram(save, "")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(out) {
			switch line[0] {
			case '#':
			case ':':
				name, _, _ := strings.Cut(line, " [") // without the counters
				all += name + "\n"
			default:
				all += line
			}
		}
	}
	return all
}
