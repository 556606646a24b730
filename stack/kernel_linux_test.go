package stack_test

import (
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/distributed-servers/ds/internal/kernelro"
	"github.com/distributed-servers/ds/internal/netns/netnstest"
	"github.com/distributed-servers/ds/internal/probe"
	"github.com/distributed-servers/ds/stack"
	"github.com/distributed-servers/ds/tun"
)

// The kernel forwards between a client, which is a kernel too, and the TUN. All
// namespaces are the test's own:
//
//	client: kernel TCP ── veth ══ veth ── kernel forwards ── TUN ── netstack
//	        fd00:c::1, 10.12.0.1          fd00:c::2, 10.12.0.2      server6, server4
//
// Between the two veth interfaces packets are whole super-packets, or, when the
// interfaces take none, what the kernels have cut them up to.
const (
	clientVeth = "client"
	routerVeth = "router"
)

var (
	vethClient = [2]netip.Prefix{netip.MustParsePrefix("fd00:c::1/64"), netip.MustParsePrefix("10.12.0.1/24")}
	vethRouter = [2]netip.Prefix{netip.MustParsePrefix("fd00:c::2/64"), netip.MustParsePrefix("10.12.0.2/24")}
)

// kernelClient is a goroutine in a network namespace of its own.
type kernelClient struct{ calls chan func() }

// do runs f there.
func (k *kernelClient) do(f func()) {
	done := make(chan struct{})
	k.calls <- func() { defer close(done); f() }
	<-done
}

// newKernelClient makes the namespace of the client, and the link to it. Without
// super, no super-packet passes the link.
func newKernelClient(t *testing.T, super bool) *kernelClient {
	t.Helper()
	k := &kernelClient{calls: make(chan func())}
	t.Cleanup(func() { close(k.calls) })
	tid := make(chan int)
	go func() {
		runtime.LockOSThread() // and never again used for anything else
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Error(err)
		}
		tid <- unix.Gettid()
		for f := range k.calls {
			f()
		}
	}()
	thread := <-tid
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: clientVeth}, PeerName: routerVeth}))
	if !super {
		for _, name := range []string{clientVeth, routerVeth} {
			// The number of segments for what a kernel makes, the size for what
			// came from a TUN.
			must(t, netlink.LinkSetGSOMaxSegs(linkNamed(t, name), 1))
			must(t, netlink.LinkSetGSOMaxSize(linkNamed(t, name), 2500))
		}
	}
	must(t, netlink.LinkSetNsPid(linkNamed(t, clientVeth), thread))
	for _, name := range []string{"ipv6/conf/all/forwarding", "ipv4/ip_forward"} {
		must(t, os.WriteFile("/proc/sys/net/"+name, []byte("1"), 0))
	}
	addAddrs(t, routerVeth, vethRouter)
	t.Cleanup(func() { must(t, netlink.LinkDel(linkNamed(t, routerVeth))) })
	k.do(func() {
		addAddrs(t, clientVeth, vethClient)
		for i, size := range []int{128, 32} {
			dst := &net.IPNet{IP: make(net.IP, size/8), Mask: net.CIDRMask(0, size)}
			must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: linkNamed(t, clientVeth).Attrs().Index, Dst: dst, Gw: vethRouter[i].Addr().AsSlice()}))
		}
	})
	return k
}

func linkNamed(t *testing.T, name string) netlink.Link {
	t.Helper()
	link, err := netlink.LinkByName(name)
	must(t, err)
	return link
}

func addAddrs(t *testing.T, name string, addrs [2]netip.Prefix) {
	t.Helper()
	for _, a := range addrs {
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), a.Addr().BitLen())}}
		if a.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		must(t, netlink.AddrAdd(linkNamed(t, name), addr))
	}
	must(t, netlink.LinkSetUp(linkNamed(t, name)))
}

// dial connects to the server from the client's namespace.
func (k *kernelClient) dial(t *testing.T, to netip.Addr) *net.TCPConn {
	t.Helper()
	var c net.Conn
	var err error
	k.do(func() { c, err = net.DialTimeout("tcp", netip.AddrPortFrom(to, 80).String(), patience) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

// packets are how many packets an interface has received and sent.
func packets(t *testing.T, name string) (received, sent int) {
	t.Helper()
	b, err := os.ReadFile("/proc/thread-self/net/dev")
	must(t, err)
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 10 && f[0] == name+":" {
			received, _ = strconv.Atoi(f[2])
			sent, _ = strconv.Atoi(f[10])
		}
	}
	return received, sent
}

// TestKernel: every octet arrives, over every kind of device, packet and path.
func TestKernel(t *testing.T) {
	if !netnstest.Run(t) {
		return
	}
	probe.Skip(t, probe.TUN)
	for _, super := range []bool{true, false} {
		for _, offload := range []bool{true, false} {
			for _, bound := range []bool{false, true} {
				t.Run(fmt.Sprintf("super=%v/offload=%v/bound=%v", super, offload, bound), func(t *testing.T) {
					if bound {
						probe.Skip(t, probe.BPF)
					}
					testKernel(t, super, offload, bound)
				})
			}
		}
	}
}

func testKernel(t *testing.T, super, offload, bound bool) {
	const octets = 4 << 20
	client := newKernelClient(t, super)
	dev, err := tun.Open(tun.Config{
		Offload: offload, Queues: 2,
		Routes: []netip.Prefix{netip.PrefixFrom(server6, 128), netip.PrefixFrom(server4, 32), netip.PrefixFrom(careOf[0], 128)},
	})
	if err != nil {
		t.Fatal(err)
	}
	cfg := stack.Config{Device: dev, Addrs: []netip.Addr{server6, server4}}
	if bound {
		cfg.Mobile = &stack.Mobile{Home: server6, CareOf: careOf[0]}
		bindKernel(t, client, server6, careOf[0])
	}
	server, err := stack.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	server.Bind(vethClient[0].Addr())
	for _, to := range []netip.Addr{server6, server4} {
		l, err := server.Listen("tcp", netip.AddrPortFrom(to, 80).String())
		if err != nil {
			t.Fatal(err)
		}
		c := client.dial(t, to)
		s, err := l.AcceptConn()
		if err != nil {
			t.Fatal(err)
		}
		in, out := packets(t, routerVeth)
		done := make(chan error, 4)
		go func() { _, err := send(c, 0, octets); done <- err }()
		go func() { _, err := send(s, 0, octets); done <- err }()
		go func() { done <- receive(c, 0, octets) }()
		go func() { done <- receive(s, 0, octets) }()
		for range 4 {
			if err := result(t, "the octets", done); err != nil {
				t.Fatal(err)
			}
		}
		in2, out2 := packets(t, routerVeth)
		const cut = octets / 1500 // packets at least, if there is no super-packet
		if super && offload && (in2-in > cut/2 || out2-out > cut) {
			t.Errorf("%s: %d packets in and %d out: are they super-packets?", to, in2-in, out2-out)
		}
		if !super && (in2-in < cut || out2-out < cut) {
			t.Errorf("%s: %d packets in and %d out: they cannot have been packets of 1500 octets", to, in2-in, out2-out)
		}
		must(t, c.CloseWrite())
		if _, err := s.Read(make([]byte, 1)); err == nil {
			t.Error("read past the end")
		}
		must(t, s.Close())
		l.Close()
	}
	st := server.Netstack().Stats().TCP
	if st.ChecksumErrors.Value() != 0 || st.InvalidSegmentsReceived.Value() != 0 || st.ResetsSent.Value() != 0 {
		t.Errorf("%d wrong checksums, %d invalid segments, %d resets sent", st.ChecksumErrors.Value(), st.InvalidSegmentsReceived.Value(), st.ResetsSent.Value())
	}
	var stats any
	client.do(func() { stats = resetsOf(t) })
	if stats != 0 {
		t.Errorf("the client counts %v resets", stats)
	}
}

// bindKernel makes the client's kernel a correspondent with a binding.
func bindKernel(t *testing.T, client *kernelClient, home, careOf netip.Addr) {
	t.Helper()
	k, err := kernelro.New(1)
	must(t, err)
	t.Cleanup(func() { must(t, k.Close()) })
	must(t, k.Bind(vethClient[0].Addr(), home, kernelro.Binding{CareOf: careOf, MTU: 1500, Until: math.MaxInt64}))
	client.do(func() {
		i, err := kernelro.InterfaceOf(linkNamed(t, clientVeth))
		must(t, err)
		must(t, k.AttachOut(i))
		must(t, k.AttachIn(i, 0))
	})
}

// resetsOf counts the resets of this namespace's kernel.
func resetsOf(t *testing.T) (n int) {
	t.Helper()
	b, err := os.ReadFile("/proc/thread-self/net/snmp")
	must(t, err)
	var names []string
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] != "Tcp:" {
			continue
		}
		if names == nil {
			names = f
			continue
		}
		for i, name := range names {
			if name == "OutRsts" || name == "EstabResets" {
				v, err := strconv.Atoi(f[i])
				must(t, err)
				n += v
			}
		}
	}
	return n
}
