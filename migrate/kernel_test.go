package migrate_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/distributed-servers/ds/internal/lab"
	"github.com/distributed-servers/ds/internal/netns/netnstest"
	"github.com/distributed-servers/ds/internal/probe"
	"github.com/distributed-servers/ds/stack"
	"github.com/distributed-servers/ds/tun"
)

func TestMain(m *testing.M) {
	probe.Main()
	os.Exit(m.Run())
}

// TestStoryKernel has the Linux kernel as the peer, in a network namespace of
// the test's own:
//
//	kernel TCP ── TUN ── lab ──┬── node a
//	                           └── node b
func TestStoryKernel(t *testing.T) {
	probe.Skip(t, probe.TUN)
	if !netnstest.Run(t) {
		return
	}
	for _, service := range []netip.Addr{service6, service4} {
		for _, bad := range []bool{false, true} {
			t.Run(family(service)+map[bool]string{true: " lossy"}[bad], func(t *testing.T) {
				w := newWorld(t, options{service: service})
				kernel := w.bridge(t)
				every, size := int64(64<<10), *flagMiB<<20*2
				if bad {
					kernel.SetImpair(impairment, impairment)
					every, size = 8<<10, *flagMiB<<20/4
				}
				before := kernelResets(t)
				for moves := 0; moves < 20; {
					c, s := w.connectKernel(service)
					x := newTransfer(w, nil, s, size, every)
					x.peer = c
					n, err := x.run()
					moves += n
					if err != nil {
						t.Fatalf("seed %d, after %d moves: %v", w.seed, moves, err)
					}
					t.Logf("%d octets each way, %d moves", size, n)
				}
				// What the network has kept longer than the connection lasted, as where
				// others have the processors, the kernel answers so; those have been seen.
				eventually(t, "resets that the kernel counts are those of a connection that is over", func() bool {
					return kernelResets(t)-before == w.watch.lateResets()
				})
				w.watch.check(t)
			})
		}
	}
}

// bridge puts the kernel in the client's place.
func (w *world) bridge(t *testing.T) *lab.Port {
	t.Helper()
	dev, err := tun.Open(tun.Config{
		Addrs:  []netip.Prefix{netip.PrefixFrom(client6, 64), netip.PrefixFrom(client4, 24)},
		Routes: []netip.Prefix{prefix(service6), prefix(service4)},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dev.Close() })
	port := w.net.Attach("kernel", 1500)
	for _, a := range []netip.Addr{client6, client4} {
		w.net.Route(prefix(a), port)
	}
	copyPackets := func(to, from tun.Device) {
		b := make([]byte, 2000)
		for {
			n, err := from.Read(b)
			if err != nil {
				return
			}
			to.Write(b[:n])
		}
	}
	go copyPackets(watched{port, w.watch, true}, dev)
	go copyPackets(dev, port)
	return port
}

// connectKernel makes one connection from the kernel.
func (w *world) connectKernel(service netip.Addr) (*net.TCPConn, *stack.Conn) {
	w.t.Helper()
	l, err := w.node[w.at].Listen("tcp", netip.AddrPortFrom(service, 443).String())
	if err != nil {
		w.t.Fatal(err)
	}
	defer l.Close()
	c, err := net.DialTimeout("tcp", l.Addr().String(), 20*time.Second)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	s, err := l.AcceptConn()
	if err != nil {
		w.t.Fatal(err)
	}
	return c.(*net.TCPConn), s
}

// kernelResets is how many resets the kernel of this namespace has sent, and
// how many connections it has seen reset.
func kernelResets(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/net/snmp")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	sum := 0
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if f[0] != "Tcp:" {
			continue
		}
		if names == nil {
			names = f
			continue
		}
		for i, n := range names {
			if n == "OutRsts" || n == "EstabResets" {
				v := 0
				for _, d := range f[i] {
					v = v*10 + int(d-'0')
				}
				sum += v
			}
		}
	}
	if names == nil {
		t.Fatal(errors.New("no TCP statistics"))
	}
	return sum
}
