package tun_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/distributed-servers/ds/internal/netns/netnstest"
	"github.com/distributed-servers/ds/internal/probe"
	"github.com/distributed-servers/ds/tun"
)

// Each test that opens a device owns this network:
//
//	kernel fd00:1::1, 10.1.0.1 ── ds0 ── the test: fd00:2::/64, 10.2.0.0/24
var (
	kernel6 = netip.MustParseAddr("fd00:1::1")
	kernel4 = netip.MustParseAddr("10.1.0.1")
	peer6   = netip.MustParseAddr("fd00:2::5")
	peer4   = netip.MustParseAddr("10.2.0.5")

	config = tun.Config{
		MTU:    1400,
		Addrs:  []netip.Prefix{netip.PrefixFrom(kernel6, 64), netip.PrefixFrom(kernel4, 24)},
		Routes: []netip.Prefix{netip.PrefixFrom(peer6, 64), netip.MustParsePrefix("10.2.0.0/24")},
	}
)

// patience is how long a test waits for what must happen.
const patience = 30 * time.Second

func TestMain(m *testing.M) {
	probe.Main()
	os.Exit(m.Run())
}

// own reports whether the test is inside, with TUN interfaces to be had.
func own(t *testing.T) bool {
	t.Helper()
	if !netnstest.Run(t) {
		return false
	}
	probe.Skip(t, probe.TUN)
	return true
}

// each runs a test for the plain mode and for the one with offloads.
func each(t *testing.T, test func(t *testing.T, c tun.Config)) {
	t.Helper()
	if !own(t) {
		return
	}
	for name, offload := range map[string]bool{"plain": false, "offload": true} {
		t.Run(name, func(t *testing.T) {
			c := config
			c.Offload = offload
			test(t, c)
		})
	}
}

func open(t *testing.T, c tun.Config) *tun.TUN {
	t.Helper()
	d, err := tun.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestOpenConfiguresAndCloseRemoves(t *testing.T) {
	each(t, testOpen)
}

func testOpen(t *testing.T, config tun.Config) {
	config.Alias = "dsco fd00:2::"
	d := open(t, config)
	if d.Name() != "ds0" || d.MTU() != 1400 || d.Offloads() != config.Offload || d.Queues() != 1 {
		t.Errorf("%s with MTU %d, offloads %v, %d queues", d.Name(), d.MTU(), d.Offloads(), d.Queues())
	}
	link, err := netlink.LinkByName(d.Name())
	if err != nil {
		t.Fatal(err)
	}
	if a := link.Attrs(); a.MTU != 1400 || a.Flags&net.FlagUp == 0 || a.Alias != config.Alias {
		t.Errorf("link is %+v", a)
	}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	has := map[string]bool{}
	for _, a := range addrs {
		has[a.IPNet.String()] = true
		if a.IP.Equal(kernel6.AsSlice()) && a.Flags&(unix.IFA_F_NODAD|unix.IFA_F_TENTATIVE) != unix.IFA_F_NODAD {
			t.Errorf("%v has flags %#x", a, a.Flags)
		}
	}
	for _, want := range config.Addrs {
		if !has[want.String()] {
			t.Errorf("no address %v in %v", want, addrs)
		}
	}
	for _, to := range []netip.Addr{peer6, peer4} {
		routes, err := netlink.RouteGet(to.AsSlice())
		if err != nil || routes[0].LinkIndex != link.Attrs().Index {
			t.Errorf("route to %v: %v, %v", to, routes, err)
		}
	}

	if second := open(t, tun.Config{}); second.Name() != "ds1" || second.MTU() != tun.DefaultMTU {
		t.Errorf("second is %s with MTU %d", second.Name(), second.MTU())
	} else if err := second.Close(); err != nil {
		t.Error(err)
	}

	for range 2 {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := netlink.LinkByName("ds0"); !errors.As(err, new(netlink.LinkNotFoundError)) {
		t.Errorf("after Close: %v", err)
	}
	if _, err := netlink.RouteGet(peer6.AsSlice()); err == nil {
		t.Error("the route outlived the device")
	}
	if _, _, err := d.ReadPacket(0, make([]byte, 1500), true); !errors.Is(err, os.ErrClosed) {
		t.Errorf("ReadPacket after Close: %v", err)
	}
	if _, err := d.Write(make([]byte, 40)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Write after Close: %v", err)
	}
}

func TestPacketsBothWays(t *testing.T) { each(t, testPackets) }

func testPackets(t *testing.T, config tun.Config) {
	d := open(t, config)
	for _, tc := range []struct{ kernel, peer netip.Addr }{{kernel6, peer6}, {kernel4, peer4}} {
		conn := listenUDP(t, tc.kernel)
		here := conn.LocalAddr().(*net.UDPAddr).AddrPort()
		there := netip.AddrPortFrom(tc.peer, 7)

		send(t, conn, there, "out")
		if src, payload := readUDP(t, d, there); src != here || payload != "out" {
			t.Errorf("the device has %q from %v, want it from %v", payload, src, here)
		}

		p := udpPacket(there, here, "in")
		if n, err := d.Write(p); n != len(p) || err != nil {
			t.Fatal(n, err)
		}
		if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 10)
		n, from, err := conn.ReadFromUDPAddrPort(b)
		if err != nil || from != there || string(b[:n]) != "in" {
			t.Errorf("the kernel has %q from %v, %v", b[:n], from, err)
		}
	}
	if _, err := d.Write(make([]byte, 40)); !errors.Is(err, unix.EINVAL) {
		t.Errorf("Write of what is neither IPv4 nor IPv6: %v", err)
	}
}

func TestDeadlineLosesNoPacket(t *testing.T) {
	each(t, func(t *testing.T, c tun.Config) { testDeadline(t, open(t, c)) })
}

func testDeadline(t *testing.T, d *tun.TUN) {
	t.Helper()
	conn := listenUDP(t, kernel6)
	there := netip.AddrPortFrom(peer6, 7)
	drain(t, d)

	// A Read that is already blocked ends when the deadline comes.
	if err := d.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	blocked := make(chan error)
	go func() {
		for b := make([]byte, 1500); ; {
			if _, _, err := d.ReadPacket(0, b, true); err != nil {
				blocked <- err
				return
			}
		}
	}()
	if err := d.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if err := <-blocked; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("blocked Read: %v", err)
	}

	// While it is past, packets wait.
	const packets = 100
	for i := range packets {
		send(t, conn, there, fmt.Sprint(i))
		if p, _, err := d.ReadPacket(0, make([]byte, 1500), true); p != nil || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("ReadPacket after the deadline: %x, %v", p, err)
		}
	}
	for i := range packets {
		// Move it about: every Read ends by a packet or by the deadline.
		for wait := time.Duration(0); ; wait += 100 * time.Microsecond {
			if err := d.SetReadDeadline(time.Now().Add(wait)); err != nil {
				t.Fatal(err)
			}
			_, payload, err := nextUDP(d, 0, there)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				continue
			}
			if err != nil || payload != fmt.Sprint(i) {
				t.Fatalf("packet %d is %q, %v", i, payload, err)
			}
			break
		}
	}
}

func TestCloseWakesRead(t *testing.T) {
	each(t, func(t *testing.T, c tun.Config) {
		c.Queues = 2
		d := open(t, c)
		done := make(chan error)
		for q := range c.Queues {
			go func() {
				for b := make([]byte, 1500); ; {
					if _, _, err := d.ReadPacket(q, b, true); err != nil {
						done <- err
						return
					}
				}
			}()
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		for range c.Queues {
			if err := <-done; !errors.Is(err, os.ErrClosed) {
				t.Errorf("ReadPacket ended with %v", err)
			}
		}
	})
}

// The packets of a flow come on the queue that its packets were last written to.
func TestQueues(t *testing.T) {
	each(t, func(t *testing.T, c tun.Config) {
		c.Queues = 3
		d := open(t, c)
		if d.Queues() != 3 || len(d.Files()) != 3 {
			t.Fatalf("%d queues, %d files", d.Queues(), len(d.Files()))
		}
		if _, err := d.Read(make([]byte, 1500)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Read of three queues: %v", err)
		}
		conn := listenUDP(t, kernel6)
		here := conn.LocalAddr().(*net.UDPAddr).AddrPort()
		there := netip.AddrPortFrom(peer6, 7)
		for q := range d.Queues() {
			p := udpPacket(there, here, "in")
			if err := d.WritePacket(q, tun.Offload{}, [][]byte{p[:40], p[40:48], nil, p[48:]}); err != nil {
				t.Fatal(err)
			}
			if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 10)
			if n, err := conn.Read(b); err != nil || string(b[:n]) != "in" {
				t.Fatalf("queue %d: the kernel has %q, %v", q, b[:n], err)
			}
			send(t, conn, there, fmt.Sprint(q))
			if err := d.SetReadDeadline(time.Now().Add(patience)); err != nil {
				t.Fatal(err)
			}
			if _, payload, err := nextUDP(d, q, there); err != nil || payload != fmt.Sprint(q) {
				t.Errorf("queue %d has %q, %v", q, payload, err)
			}
		}
	})
}

// What an application sends without a checksum comes so to the device, which may
// do the same.
func TestChecksumIsLeftOut(t *testing.T) {
	if !own(t) {
		return
	}
	c := config
	c.Offload = true
	d := open(t, c)
	if _, err := d.Read(make([]byte, 1500)); err == nil {
		t.Error("Read of a device with offloads: no error")
	}
	conn := listenUDP(t, kernel6)
	here := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	there := netip.AddrPortFrom(peer6, 7)
	send(t, conn, there, "out")
	p, o, err := nextPacket(d, 0, there)
	if err != nil {
		t.Fatal(err)
	}
	if want := (tun.Offload{Partial: true, SumAt: 40, SumOffset: 6}); o.Partial != want.Partial || o.SumAt != 40 || o.SumOffset != 6 || o.SegmentSize != 0 {
		t.Errorf("%+v, want %+v", o, want)
	}
	whole := checksum(pseudo(p))
	if got := binary.BigEndian.Uint16(p[46:]); got == 0 || got == whole {
		t.Errorf("checksum %#x is whole", got)
	}

	q := udpPacket(there, here, "in")
	header := pseudo(q)[:40]
	binary.BigEndian.PutUint16(q[46:], ^checksum(header))
	if err := d.WritePacket(0, tun.Offload{Partial: true, SumAt: 40, SumOffset: 6, HeaderSize: 48}, [][]byte{q}); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 10)
	if n, err := conn.Read(b); err != nil || string(b[:n]) != "in" {
		t.Errorf("the kernel has %q, %v", b[:n], err)
	}
	if err := d.WritePacket(0, tun.Offload{}, nil); !errors.Is(err, unix.EINVAL) {
		t.Errorf("nothing written: %v", err)
	}
}

// The descriptors take the way they take from dsco to an application. A helper
// that opened them without the poller in mind may have left them blocking.
func TestFromFiles(t *testing.T) { each(t, testFromFiles) }

func testFromFiles(t *testing.T, config tun.Config) {
	d := open(t, config)
	files := pass(t, d.Files())
	if err := unix.SetNonblock(int(files[0].Fd()), false); err != nil {
		t.Fatal(err)
	}
	d2, err := tun.FromFiles(files, d.MTU())
	if err != nil {
		t.Fatal(err)
	}
	if d2.Name() != d.Name() || d2.MTU() != d.MTU() || d2.Offloads() != config.Offload {
		t.Errorf("got %s with MTU %d, offloads %v", d2.Name(), d2.MTU(), d2.Offloads())
	}
	testDeadline(t, d2)

	// The holder that is left has the device as before.
	if err := d2.Close(); err != nil {
		t.Fatal(err)
	}
	testDeadline(t, d)

	// And it stays when the opener goes.
	d3, err := tun.FromFiles(pass(t, d.Files()), d.MTU())
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	testDeadline(t, d3)
	if err := d3.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := netlink.LinkByName("ds0"); !errors.As(err, new(netlink.LinkNotFoundError)) {
		t.Errorf("after the last Close: %v", err)
	}
}

func TestFromFilesOfSeveralQueues(t *testing.T) {
	each(t, func(t *testing.T, c tun.Config) {
		c.Queues = 2
		d := open(t, c)
		passed, err := tun.FromFiles(pass(t, d.Files()), d.MTU())
		if err != nil {
			t.Fatal(err)
		}
		defer passed.Close()
		if passed.Queues() != 2 || passed.Offloads() != c.Offload {
			t.Errorf("%d queues, offloads %v", passed.Queues(), passed.Offloads())
		}
		other := open(t, tun.Config{})
		mixed := append(pass(t, d.Files()), pass(t, other.Files())...)
		for _, f := range mixed {
			defer f.Close()
		}
		if _, err := tun.FromFiles(mixed, d.MTU()); err == nil || !strings.Contains(err.Error(), "one interface") {
			t.Errorf("files of two interfaces: %v", err)
		}
	})
}

func TestFromFilesRefusesOtherDescriptors(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	defer r.Close()
	if _, err := tun.FromFiles([]*os.File{r}, 1500); !errors.Is(err, unix.ENOTTY) {
		t.Errorf("a pipe: %v", err)
	}
	if _, err := w.Write([]byte("x")); err != nil {
		t.Errorf("the caller lost its file: %v", err)
	}
	if _, err := tun.FromFiles([]*os.File{r}, 0); err == nil || !strings.Contains(err.Error(), "MTU") {
		t.Errorf("MTU 0: %v", err)
	}
	if _, err := tun.FromFiles(nil, 1500); err == nil || !strings.Contains(err.Error(), "none") {
		t.Errorf("no files: %v", err)
	}
	if !own(t) {
		return
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "tap")
	defer f.Close()
	ifr, err := unix.NewIfreq("tap0")
	if err != nil {
		t.Fatal(err)
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		t.Fatal(err)
	}
	if _, err := tun.FromFiles([]*os.File{f}, 1500); err == nil || !strings.Contains(err.Error(), "IFF_TUN") {
		t.Errorf("a TAP: %v", err)
	}
}

func TestOpenFailsAndLeavesNothing(t *testing.T) {
	if !own(t) {
		return
	}
	open(t, config)
	for want, c := range map[string]tun.Config{
		"the name is in use":   {Name: "ds0"},
		"not a valid name":     {Name: "a/b%d"},
		"remove that route":    {Routes: config.Routes},
		"add address 10.1.0.1": {Addrs: []netip.Prefix{config.Addrs[1], config.Addrs[1]}},
	} {
		if _, err := tun.Open(c); err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "tun: ") {
			t.Errorf("want %q, got %v", want, err)
		}
	}
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if name := l.Attrs().Name; name != "lo" && name != "ds0" && l.Type() == "tuntap" {
			t.Errorf("%s is left", name)
		}
	}
}

// pass sends descriptors through a UNIX socket and returns what arrives.
func pass(t *testing.T, files []*os.File) (passed []*os.File) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	for _, f := range files {
		if err := unix.Sendmsg(pair[0], []byte{0}, unix.UnixRights(int(f.Fd())), nil, 0); err != nil {
			t.Fatal(err)
		}
		oob := make([]byte, unix.CmsgSpace(4))
		if _, _, _, _, err = unix.Recvmsg(pair[1], make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		msgs, err := unix.ParseSocketControlMessage(oob)
		if err != nil {
			t.Fatal(err)
		}
		fds, err := unix.ParseUnixRights(&msgs[0])
		if err != nil {
			t.Fatal(err)
		}
		passed = append(passed, os.NewFile(uintptr(fds[0]), "passed"))
	}
	return passed
}

func listenUDP(t *testing.T, addr netip.Addr) *net.UDPConn {
	t.Helper()
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func send(t *testing.T, conn *net.UDPConn, to netip.AddrPort, payload string) {
	t.Helper()
	if _, err := conn.WriteToUDPAddrPort([]byte(payload), to); err != nil {
		t.Fatal(err)
	}
}

// drain takes what the kernel has said of itself, such as multicast reports.
func drain(t *testing.T, d *tun.TUN) {
	t.Helper()
	for b := make([]byte, 1500); ; {
		if err := d.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if _, _, err := d.ReadPacket(0, b, true); errors.Is(err, os.ErrDeadlineExceeded) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func readUDP(t *testing.T, d *tun.TUN, to netip.AddrPort) (netip.AddrPort, string) {
	t.Helper()
	if err := d.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	src, payload, err := nextUDP(d, 0, to)
	if err != nil {
		t.Fatal(err)
	}
	return src, payload
}

// nextUDP returns the next datagram to to, and passes over all else.
func nextUDP(d *tun.TUN, queue int, to netip.AddrPort) (src netip.AddrPort, payload string, err error) {
	p, _, err := nextPacket(d, queue, to)
	if err != nil {
		return netip.AddrPort{}, "", err
	}
	header, at := 40, 8
	if p[0]>>4 == 4 {
		header, at = 20, 12
	}
	from, _ := netip.AddrFromSlice(bytes.Clone(p[at : at+to.Addr().BitLen()/8]))
	return netip.AddrPortFrom(from, binary.BigEndian.Uint16(p[header:])), string(p[header+8:]), nil
}

// nextPacket is nextUDP for the packet around the datagram.
func nextPacket(d *tun.TUN, queue int, to netip.AddrPort) (p []byte, o tun.Offload, err error) {
	for b := make([]byte, 1500); ; {
		p, o, err := d.ReadPacket(queue, b, true)
		if err != nil {
			return nil, o, err
		}
		header, at := 40, 8
		if p[0]>>4 == 4 {
			header, at = 20, 12
		}
		if len(p) < header+8 {
			continue
		}
		size := to.Addr().BitLen() / 8
		dst, _ := netip.AddrFromSlice(p[at+size : at+2*size])
		if netip.AddrPortFrom(dst, binary.BigEndian.Uint16(p[header+2:])) == to {
			return p, o, nil
		}
	}
}

func udpPacket(src, dst netip.AddrPort, payload string) []byte {
	addrs := append(src.Addr().AsSlice(), dst.Addr().AsSlice()...)
	udp := binary.BigEndian.AppendUint16(nil, src.Port())
	udp = binary.BigEndian.AppendUint16(udp, dst.Port())
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(payload)))
	udp = append(udp, 0, 0)
	udp = append(udp, payload...)
	if src.Addr().Is6() {
		ip := binary.BigEndian.AppendUint32(nil, 6<<28)
		ip = binary.BigEndian.AppendUint16(ip, uint16(len(udp)))
		ip = append(ip, unix.IPPROTO_UDP, 64)
		p := append(append(ip, addrs...), udp...)
		binary.BigEndian.PutUint16(p[46:], checksum(pseudo(p)))
		return p
	}
	ip := []byte{0x45, 0, 0, byte(20 + len(udp)), 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}
	ip = append(ip, addrs...)
	binary.BigEndian.PutUint16(ip[10:], checksum(ip))
	p := append(ip, udp...)
	binary.BigEndian.PutUint16(p[26:], checksum(pseudo(p)))
	return p
}

// pseudo puts the pseudo-header before the datagram of a packet.
func pseudo(p []byte) []byte {
	at, addrs := 40, 8
	if p[0]>>4 == 4 {
		at, addrs = 20, 12
	}
	addresses, udp := p[addrs:at], p[at:]
	b := binary.BigEndian.AppendUint32(bytes.Clone(addresses), uint32(len(udp)))
	return append(binary.BigEndian.AppendUint32(b, unix.IPPROTO_UDP), udp...)
}

// checksum is that of RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for i, c := range b {
		sum += uint32(c) << (8 * (1 - i%2))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
