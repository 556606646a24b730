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
	if !own(t) {
		return
	}
	d := open(t, config)
	if d.Name() != "ds0" || d.MTU() != 1400 {
		t.Errorf("%s with MTU %d", d.Name(), d.MTU())
	}
	link, err := netlink.LinkByName(d.Name())
	if err != nil {
		t.Fatal(err)
	}
	if a := link.Attrs(); a.MTU != 1400 || a.Flags&net.FlagUp == 0 {
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
	if _, err := d.Read(make([]byte, 1500)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Read after Close: %v", err)
	}
	if _, err := d.Write(make([]byte, 40)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Write after Close: %v", err)
	}
}

func TestPacketsBothWays(t *testing.T) {
	if !own(t) {
		return
	}
	d := open(t, config)
	for _, tc := range []struct{ kernel, peer netip.Addr }{{kernel6, peer6}, {kernel4, peer4}} {
		conn := listenUDP(t, tc.kernel)
		here := conn.LocalAddr().(*net.UDPAddr).AddrPort()
		there := netip.AddrPortFrom(tc.peer, 7)

		send(t, conn, there, "out")
		if src, payload := readUDP(t, d, there); src != here || payload != "out" {
			t.Errorf("the device has %q from %v, want it from %v", payload, src, here)
		}

		// The kernel may drop a datagram when it is busy.
		p := udpPacket(there, here, "in")
		b := make([]byte, 10)
		n, from, err := 0, netip.AddrPort{}, os.ErrDeadlineExceeded
		for try := 0; try < 100 && errors.Is(err, os.ErrDeadlineExceeded); try++ {
			if n, err := d.Write(p); n != len(p) || err != nil {
				t.Fatal(n, err)
			}
			if err := conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			n, from, err = conn.ReadFromUDPAddrPort(b)
		}
		if err != nil || from != there || string(b[:n]) != "in" {
			t.Errorf("the kernel has %q from %v, %v", b[:n], from, err)
		}
	}
	if _, err := d.Write(make([]byte, 40)); !errors.Is(err, unix.EINVAL) {
		t.Errorf("Write of what is neither IPv4 nor IPv6: %v", err)
	}
}

func TestDeadlineLosesNoPacket(t *testing.T) {
	if !own(t) {
		return
	}
	testDeadline(t, open(t, config))
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
			if _, err := d.Read(b); err != nil {
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
		if n, err := d.Read(make([]byte, 1500)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("Read after the deadline: %d, %v", n, err)
		}
	}
	for i := range packets {
		// Move it about: every Read ends by a packet or by the deadline.
		for wait := time.Duration(0); ; wait += 100 * time.Microsecond {
			if err := d.SetReadDeadline(time.Now().Add(wait)); err != nil {
				t.Fatal(err)
			}
			_, payload, err := nextUDP(d, there)
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
	if !own(t) {
		return
	}
	d := open(t, config)
	done := make(chan error)
	go func() {
		for b := make([]byte, 1500); ; {
			if _, err := d.Read(b); err != nil {
				done <- err
				return
			}
		}
	}()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Read ended with %v", err)
	}
}

// The descriptor takes the way it takes from dsco to an application. A helper
// that opened it without the poller in mind may have left it blocking.
func TestFromFile(t *testing.T) {
	if !own(t) {
		return
	}
	d := open(t, config)
	f := pass(t, d.File())
	if err := unix.SetNonblock(int(f.Fd()), false); err != nil {
		t.Fatal(err)
	}
	d2, err := tun.FromFile(f, d.MTU())
	if err != nil {
		t.Fatal(err)
	}
	if d2.Name() != d.Name() || d2.MTU() != d.MTU() {
		t.Errorf("got %s with MTU %d", d2.Name(), d2.MTU())
	}
	testDeadline(t, d2)

	// The holder that is left has the device as before.
	if err := d2.Close(); err != nil {
		t.Fatal(err)
	}
	testDeadline(t, d)

	// And it stays when the opener goes.
	d3, err := tun.FromFile(pass(t, d.File()), d.MTU())
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

func TestFromFileRefusesOtherDescriptors(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	defer r.Close()
	if _, err := tun.FromFile(r, 1500); !errors.Is(err, unix.ENOTTY) {
		t.Errorf("a pipe: %v", err)
	}
	if _, err := w.Write([]byte("x")); err != nil {
		t.Errorf("the caller lost its file: %v", err)
	}
	if _, err := tun.FromFile(r, 0); err == nil || !strings.Contains(err.Error(), "MTU") {
		t.Errorf("MTU 0: %v", err)
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
	if _, err := tun.FromFile(f, 1500); err == nil || !strings.Contains(err.Error(), "IFF_TUN") {
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

// pass sends a descriptor through a UNIX socket and returns what arrives.
func pass(t *testing.T, f *os.File) *os.File {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
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
	return os.NewFile(uintptr(fds[0]), "passed")
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
		if _, err := d.Read(b); errors.Is(err, os.ErrDeadlineExceeded) {
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
	src, payload, err := nextUDP(d, to)
	if err != nil {
		t.Fatal(err)
	}
	return src, payload
}

// nextUDP returns the next datagram to to, and passes over all else.
func nextUDP(d *tun.TUN, to netip.AddrPort) (src netip.AddrPort, payload string, err error) {
	for b := make([]byte, 1500); ; {
		n, err := d.Read(b)
		if err != nil {
			return netip.AddrPort{}, "", err
		}
		header, at := 40, 8
		if b[0]>>4 == 4 {
			header, at = 20, 12
		}
		if n < header+8 {
			continue
		}
		size := to.Addr().BitLen() / 8
		dst, _ := netip.AddrFromSlice(b[at+size : at+2*size])
		if netip.AddrPortFrom(dst, binary.BigEndian.Uint16(b[header+2:])) != to {
			continue
		}
		from, _ := netip.AddrFromSlice(bytes.Clone(b[at : at+size]))
		return netip.AddrPortFrom(from, binary.BigEndian.Uint16(b[header:])), string(b[header+8 : n]), nil
	}
}

func udpPacket(src, dst netip.AddrPort, payload string) []byte {
	addrs := append(src.Addr().AsSlice(), dst.Addr().AsSlice()...)
	udp := binary.BigEndian.AppendUint16(nil, src.Port())
	udp = binary.BigEndian.AppendUint16(udp, dst.Port())
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(payload)))
	udp = append(udp, 0, 0)
	udp = append(udp, payload...)
	pseudo := binary.BigEndian.AppendUint32(bytes.Clone(addrs), uint32(len(udp)))
	pseudo = binary.BigEndian.AppendUint32(pseudo, unix.IPPROTO_UDP)
	binary.BigEndian.PutUint16(udp[6:], checksum(append(pseudo, udp...)))

	if src.Addr().Is6() {
		ip := binary.BigEndian.AppendUint32(nil, 6<<28)
		ip = binary.BigEndian.AppendUint16(ip, uint16(len(udp)))
		ip = append(ip, unix.IPPROTO_UDP, 64)
		return append(append(ip, addrs...), udp...)
	}
	ip := []byte{0x45, 0, 0, byte(20 + len(udp)), 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}
	ip = append(ip, addrs...)
	binary.BigEndian.PutUint16(ip[10:], checksum(ip))
	return append(ip, udp...)
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
