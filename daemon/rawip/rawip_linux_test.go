package rawip_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/distributed-servers/ds/daemon/rawip"
	"github.com/distributed-servers/ds/internal/netns/netnstest"
	"github.com/distributed-servers/ds/internal/netns/topology"
	"github.com/distributed-servers/ds/internal/probe"
	"github.com/distributed-servers/ds/mobility/wire"
)

// Tests with two hosts own this network:
//
//	fd00::a  a ─────────── b  fd00::b
var (
	addrA = netip.MustParseAddr("fd00::a")
	addrB = netip.MustParseAddr("fd00::b")
	other = netip.MustParseAddr("2001:db8::1")
)

func TestMain(m *testing.M) {
	probe.Main()
	os.Exit(m.Run())
}

func two(t testing.TB) (a, b *topology.Host) {
	t.Helper()
	n, err := topology.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	host := func(name string) *topology.Host {
		h, err := n.Host(name)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	a, b = host("a"), host("b")
	_, err = n.Connect(
		topology.End{Host: a, Name: "eth0", Addrs: []netip.Prefix{netip.PrefixFrom(addrA, 64)}},
		topology.End{Host: b, Name: "eth0", Addrs: []netip.Prefix{netip.PrefixFrom(addrB, 64)}})
	if err != nil {
		t.Fatal(err)
	}
	return a, b
}

// on runs f on a host.
func on(t testing.TB, h *topology.Host, f func() error) {
	t.Helper()
	if err := h.Do(f); err != nil {
		t.Fatal(err)
	}
}

func sender(t testing.TB, h *topology.Host) *rawip.Sender {
	t.Helper()
	var s *rawip.Sender
	on(t, h, func() (err error) { s, err = rawip.NewSender(); return err })
	t.Cleanup(func() { s.Close() })
	return s
}

func tunnel(t testing.TB, h *topology.Host, a netip.Addr) *rawip.Tunnel {
	t.Helper()
	var tn *rawip.Tunnel
	on(t, h, func() (err error) { tn, err = rawip.Listen(a); return err })
	t.Cleanup(func() { tn.Close() })
	return tn
}

// onOneCPU keeps the test on one processor until it ends: what comes from several may
// overtake each other in the kernel.
func onOneCPU(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		t.Fatal(err)
	}
	for cpu := 0; one.Count() == 0; cpu++ {
		if before.IsSet(cpu) {
			one.Set(cpu)
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.SchedSetaffinity(0, &before); err != nil {
			t.Error(err)
		}
		runtime.UnlockOSThread()
	})
}

// inner is a packet with n octets of payload of a protocol that nobody has.
func inner(n int) []byte {
	p := wire.Packet{Src: other, Dst: addrB, Protocol: 253, Payload: bytes.Repeat([]byte{7}, n)}
	b, err := p.Append(nil)
	if err != nil {
		panic(err)
	}
	return b
}

func outer(src, dst netip.Addr, inner []byte) []byte {
	p := wire.Packet{Src: src, Dst: dst, TrafficClass: 0xb9, HopLimit: 33, Protocol: wire.IPv6, Payload: inner}
	b, err := p.Append(nil)
	if err != nil {
		panic(err)
	}
	return b
}

// next reads the next packets until there are some.
func next(t *testing.T, tn *rawip.Tunnel) [][]byte {
	t.Helper()
	for {
		got, err := tn.ReadBatch()
		if err != nil {
			t.Fatal(err)
		}
		if len(got) > 0 {
			return got
		}
	}
}

// Rules that look at the source apply to a sender that is told so, and to no other;
// packets are the same.
func TestBySource(t *testing.T) {
	if !netnstest.Run(t) {
		return
	}
	a, b := two(t)
	onOneCPU(t)
	on(t, a, func() error {
		r := netlink.NewRule()
		r.Family, r.Priority, r.Type = netlink.FAMILY_V6, 100, unix.FR_ACT_PROHIBIT
		r.Src = &net.IPNet{IP: other.AsSlice(), Mask: net.CIDRMask(128, 128)}
		return netlink.RuleAdd(r)
	})
	tn := tunnel(t, b, addrB)
	for _, bySource := range []bool{false, true} {
		s := sender(t, a)
		if bySource {
			if err := s.BySource(); err != nil {
				t.Fatal(err)
			}
		}
		stranger := netip.MustParseAddr("2001:db8::2")
		want := [][]byte{outer(other, addrB, inner(10)), outer(stranger, addrB, inner(20)), outer(addrA, addrB, inner(30))}
		s.Send(want...)
		if bySource {
			want = want[1:]
		}
		if denied := s.Stats().Denied; denied > 0 != bySource || denied > 1 {
			t.Errorf("by source: %t: %d were denied", bySource, denied)
		}
		var got [][]byte
		for len(got) < len(want) {
			for _, p := range next(t, tn) {
				got = append(got, bytes.Clone(p))
			}
		}
		if !slices.EqualFunc(got, want, bytes.Equal) {
			t.Errorf("by source: %t: got\n%x, want\n%x", bySource, got, want)
		}
	}
}

func TestTunnelPacketsArriveWhole(t *testing.T) {
	if !netnstest.Run(t) {
		return
	}
	a, b := two(t)
	onOneCPU(t)
	s, tn := sender(t, a), tunnel(t, b, addrB)
	// From any source: not that of the sender's host.
	want := outer(other, addrB, inner(1400))
	s.Send(want)
	if got := next(t, tn); len(got) != 1 || !bytes.Equal(got[0], want) {
		t.Errorf("got %d packets, %x, want\n%x", len(got), got[0], want)
	}

	// In fragments, which the kernel puts together.
	long := outer(addrA, addrB, inner(1460))
	s.Send(fragments(long)...)
	if got := next(t, tn); len(got) != 1 || !bytes.Equal(got[0], long) {
		t.Errorf("of fragments: %d packets, %d octets, want %d", len(got), len(got[0]), len(long))
	}

	// Many, but no more on their way than the queue holds of a user who may not make it
	// longer.
	const packets, most = 1000, 2 * rawip.BatchSize
	batch := s.NewBatch()
	read := make(chan int, packets)
	go func() {
		defer close(read)
		n := 0
		for n < packets {
			got, err := tn.ReadBatch()
			if err != nil {
				break
			}
			for _, p := range got {
				if binary.BigEndian.Uint16(p[80:]) != uint16(n) {
					t.Errorf("packet %d is %d", n, binary.BigEndian.Uint16(p[80:]))
				}
				n++
			}
			read <- n
		}
	}()
	n := 0
	for i := range packets {
		p := outer(addrA, addrB, inner(10+i%1000))
		binary.BigEndian.PutUint16(p[80:], uint16(i))
		batch.Add(p)
		if (i+1)%most == 0 {
			batch.Flush()
			for there := true; n <= i; {
				if n, there = <-read; !there {
					t.Fatalf("reading has ended ahead of packet %d", i)
				}
			}
		}
	}
	batch.Flush()
	for left := range read {
		n = left
	}
	if n != packets {
		t.Errorf("%d packets arrived", n)
	}
	if st := tn.Stats(); st.Packets != packets+2 || st.Malformed != 0 || st.Coalesced != 0 {
		t.Errorf("tunnel: %+v", st)
	}
	if st := s.Stats(); st.Sent != packets+3 || st.Failed != 0 {
		t.Errorf("sender: %+v", st)
	}
}

// fragments cuts a packet that is a little too long in two.
func fragments(b []byte) [][]byte {
	const at = 1024
	var out [][]byte
	for i, part := range [][]byte{b[40 : 40+at], b[40+at:]} {
		f := bytes.Clone(b[:40])
		f = append(f, f[6], 0)
		f[6] = byte(wire.Fragment)
		f = binary.BigEndian.AppendUint16(f, uint16(i*at)|uint16(1-i))
		f = append(append(f, 1, 2, 3, 4), part...)
		binary.BigEndian.PutUint16(f[4:], uint16(len(f)-40))
		out = append(out, f)
	}
	return out
}

// What is for this host comes to it, from wherever it seems to be.
func TestToThisHost(t *testing.T) {
	if !netnstest.Run(t) {
		return
	}
	a, _ := two(t)
	s, tn := sender(t, a), tunnel(t, a, addrA)
	want := outer(other, addrA, inner(10))
	s.Send(want)
	if got := next(t, tn); !bytes.Equal(got[0], want) {
		t.Errorf("got %x", got)
	}
}

func TestSenderCountsAndGoesOn(t *testing.T) {
	if !netnstest.Run(t) {
		return
	}
	a, b := two(t)
	s, tn := sender(t, a), tunnel(t, b, addrB)
	good := outer(addrA, addrB, inner(10))
	s.Send(
		good,
		outer(addrA, addrB, inner(1500)), // too big
		outer(addrA, other, inner(10)),   // no route
		good[:39], nil, append([]byte{4 << 4}, good[1:]...),
		good,
	)
	n := 0
	for n < 2 {
		n += len(next(t, tn))
	}
	want := rawip.SenderStats{Sent: 2, Octets: uint64(2 * len(good)), TooBig: 1, Unreachable: 1, Failed: 3}
	if got := s.Stats(); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	s.Send(good)
	if got := s.Stats(); got.Sent != 2 {
		t.Errorf("after Close: %+v", got)
	}
}

func TestCloseWakesReadBatch(t *testing.T) {
	if !netnstest.Run(t) {
		return
	}
	a, _ := two(t)
	tn := tunnel(t, a, addrA)
	done := make(chan error)
	go func() {
		_, err := tn.ReadBatch()
		done <- err
	}()
	for range 2 {
		if err := tn.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("ReadBatch ended with %v", err)
	}
}

func TestListenRefuses(t *testing.T) {
	for _, a := range []string{"fe80::1", "::", "ff02::1", "10.0.0.1", "::ffff:10.0.0.1"} {
		if _, err := rawip.Listen(netip.MustParseAddr(a)); err == nil || !strings.Contains(err.Error(), "not a global IPv6 address") {
			t.Errorf("%s: %v", a, err)
		}
	}
	if !netnstest.Run(t) {
		return
	}
	if _, err := rawip.Listen(other); err == nil || !strings.Contains(err.Error(), "add it to an interface") {
		t.Errorf("not local: %v", err)
	}
	if _, err := rawip.ListenNeighbors("nowhere0"); err == nil || !strings.HasPrefix(err.Error(), "rawip: listen on nowhere0") {
		t.Errorf("no interface: %v", err)
	}
}

// With receive offload on the link, a stream of segments arrives coalesced; what
// is read are segments again, with true checksums.
func TestReceiveOffload(t *testing.T) {
	if !netnstest.Run(t) {
		return
	}
	// Root of a user namespace may not set the timeout below.
	probe.Skip(t, probe.Program("ethtool"), probe.Program("unshare"), probe.Users)
	a, b := two(t)
	onOneCPU(t)
	run(t, b, "ethtool", "-K", "eth0", "gro", "on")
	run(t, a, "ethtool", "-K", "eth0", "tso", "off")
	// Packets that come one by one are waited for.
	run(t, b, "unshare", "-m", "sh", "-c", "mount -t sysfs sys /sys && echo 1000000 > /sys/class/net/eth0/gro_flush_timeout")
	s, tn := sender(t, a), tunnel(t, b, addrB)
	const segments, size = 40, 1000
	var packets [][]byte
	for i := range segments {
		packets = append(packets, outer(addrA, addrB, segment(i*size, size)))
	}
	var data []byte
	for round := 0; tn.Stats().Coalesced == 0; round++ {
		if round == 100 {
			t.Fatal("nothing was coalesced")
		}
		data = data[:0]
		s.Send(packets...)
		for len(data) < segments*size {
			for _, p := range next(t, tn) {
				in, err := wire.ParsePacket(p[40:])
				if err != nil {
					t.Fatal(err)
				}
				if seq := int(binary.BigEndian.Uint32(in.Payload[4:])); seq != len(data) {
					t.Fatalf("octet %d after %d", seq, len(data))
				}
				if c := checksum(&in); c != 0 {
					t.Fatalf("checksum is wrong by %#x", c)
				}
				data = append(data, in.Payload[20:]...)
			}
		}
	}
	for i, c := range data {
		if c != byte(i/size+i%size) {
			t.Fatalf("octet %d is %d", i, c)
		}
	}
	t.Logf("%+v", tn.Stats())
}

func run(t *testing.T, h *topology.Host, name string, arg ...string) {
	t.Helper()
	if out, err := h.Command(t.Context(), name, arg...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v: %s", name, arg, err, out)
	}
}

// segment is a TCP segment of data at seq.
func segment(seq, size int) []byte {
	tcp := make([]byte, 20+size)
	binary.BigEndian.PutUint32(tcp[4:], uint32(seq))
	tcp[12], tcp[13] = 5<<4, 0x10
	for i := range tcp[20:] {
		tcp[20+i] = byte(seq/size + i)
	}
	p := wire.Packet{Src: other, Dst: addrB, Protocol: wire.TCP, Payload: tcp}
	binary.BigEndian.PutUint16(tcp[16:], checksum(&p))
	b, err := p.Append(nil)
	if err != nil {
		panic(err)
	}
	return b
}

// checksum is what p's payload lacks to a checksum of 0.
func checksum(p *wire.Packet) uint16 {
	pseudo := append(p.Src.AsSlice(), p.Dst.AsSlice()...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(p.Payload)))
	pseudo = append(pseudo, 0, 0, 0, byte(p.Protocol))
	var sum uint32
	for b := append(pseudo, p.Payload...); len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
