package lab_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/faketime"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/distributed-servers/ds/internal/lab"
)

var (
	client  = netip.MustParseAddr("fd00:c::1")
	service = netip.MustParseAddr("fd00:5::1")
	any6    = netip.MustParsePrefix("::/0")
)

// packet is an IPv6 packet of size octets, without meaning but for number.
func packet(dst netip.Addr, number uint32, size int) []byte {
	b := make([]byte, size)
	header.IPv6(b).Encode(&header.IPv6Fields{
		PayloadLength:     uint16(size - header.IPv6MinimumSize),
		TransportProtocol: 253, // for experiments
		HopLimit:          64,
		SrcAddr:           tcpip.AddrFrom16(client.As16()),
		DstAddr:           tcpip.AddrFrom16(dst.As16()),
	})
	binary.BigEndian.PutUint32(b[header.IPv6MinimumSize:], number)
	return b
}

func number(b []byte) uint32 { return binary.BigEndian.Uint32(b[header.IPv6MinimumSize:]) }

func write(t testing.TB, p *lab.Port, b []byte) {
	t.Helper()
	if n, err := p.Write(b); n != len(b) || err != nil {
		t.Fatalf("Write: %d, %v", n, err)
	}
}

// read returns what is in the port's queue, which is all when nothing is on
// its way.
func read(t testing.TB, n *lab.Net, p *lab.Port, queued uint64) [][]byte {
	t.Helper()
	var all [][]byte
	for range queued {
		b := make([]byte, 65536)
		size, err := p.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b[:size])
	}
	if err := p.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Read(nil); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%s: Read after the deadline: %v", p.Name(), err)
	}
	if err := p.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	return all
}

func numbers(packets [][]byte) []uint32 {
	var all []uint32
	for _, b := range packets {
		all = append(all, number(b))
	}
	return all
}

func TestLongestPrefixWinsAndMoves(t *testing.T) {
	n := lab.New(1, nil)
	defer n.Close()
	c, a, b := n.Attach("client", 1500), n.Attach("a", 1500), n.Attach("b", 1500)
	n.Route(any6, c)
	n.Route(netip.PrefixFrom(service, 64), a)
	n.Route(netip.PrefixFrom(service, 128), b)
	host := netip.PrefixFrom(service, 128)

	send := func(number uint32, want *lab.Port) {
		t.Helper()
		write(t, c, packet(service, number, 100))
		if got := numbers(read(t, n, want, 1)); !slices.Equal(got, []uint32{number}) {
			t.Errorf("%s has %v, want %d", want.Name(), got, number)
		}
	}
	send(1, b)
	n.Route(host, a)
	send(2, a)
	n.Route(host, b)
	send(3, b)
	n.Unroute(host)
	send(4, a)
	n.Unroute(netip.PrefixFrom(service, 64))
	send(5, c) // back where it came from
	n.Unroute(any6)
	write(t, c, packet(service, 6, 100))
	write(t, c, []byte("no packet"))
	n.Inject(nil)
	if s := n.Stats(); s != (lab.Stats{Delivered: 5, NoRoute: 3}) {
		t.Errorf("stats are %+v", s)
	}
}

func TestTap(t *testing.T) {
	clock := faketime.NewManualClock()
	n := lab.New(1, clock)
	defer n.Close()
	c, s := n.Attach("client", 1500), n.Attach("server", 1280)
	n.Route(netip.PrefixFrom(client, 64), c)
	n.Route(netip.PrefixFrom(service, 64), s)
	var got []string
	remove := n.Tap(func(e lab.Event) {
		got = append(got, fmt.Sprintf("%v %s>%s %d %v", e.At, e.From, e.To, len(e.Packet), e.Verdict))
	})
	write(t, c, packet(service, 1, 100))
	clock.Advance(time.Second)
	n.Inject(packet(service, 2, 100))
	write(t, c, packet(netip.IPv6LinkLocalAllNodes(), 3, 100))
	write(t, c, packet(service, 4, 1281))
	c.SetImpair(lab.Impair{Loss: 1}, lab.Impair{})
	write(t, c, packet(service, 5, 100))
	c.SetImpair(lab.Impair{}, lab.Impair{})
	s.SetImpair(lab.Impair{}, lab.Impair{Duplicate: 1, Delay: time.Second})
	write(t, c, packet(service, 6, 100))
	clock.Advance(time.Second)
	s.SetImpair(lab.Impair{}, lab.Impair{Reorder: 1})
	write(t, c, packet(service, 7, 100))
	clock.Advance(time.Second)
	remove()
	write(t, c, packet(service, 8, 100))
	want := []string{
		"0s client>server 100 delivered",
		"1s >server 100 delivered",
		"1s client> 100 no route",
		"1s client>server 1281 too big",
		"1s >client 1280 delivered",
		"1s client>server 100 lost",
		"1s client>server 100 duplicated",
		"2s client>server 100 delivered",
		"2s client>server 100 delivered",
		"2s client>server 100 reordered",
		"2.005s client>server 100 delivered",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%q\nwant\n%q", got, want)
	}
}

// run sends count packets through an impaired link and returns what arrives.
// Every other packet goes to a second port, which takes no part.
func run(t *testing.T, seed uint64, count int, up, down lab.Impair, noise bool) ([]uint32, lab.Stats) {
	clock := faketime.NewManualClock()
	n := lab.New(seed, clock)
	defer n.Close()
	if noise {
		n.Attach("earlier", 1500)
	}
	c, s := n.Attach("client", 1500), n.Attach("server", 1500)
	n.Route(netip.PrefixFrom(service, 64), s)
	o := n.Attach("other", 1500)
	o.SetImpair(lab.Impair{}, lab.Impair{Loss: .5, Reorder: .5})
	n.Route(netip.PrefixFrom(client, 64), o)
	c.SetImpair(up, lab.Impair{})
	s.SetImpair(lab.Impair{}, down)
	for i := range count {
		write(t, c, packet(service, uint32(i), 100))
		if noise {
			n.Inject(packet(client, 0, 100))
		}
		clock.Advance(100 * time.Microsecond)
	}
	clock.Advance(time.Minute)
	queued := n.Stats().Delivered
	if noise {
		return numbersUntilEmpty(t, s), n.Stats()
	}
	return numbers(read(t, n, s, queued)), n.Stats()
}

// numbersUntilEmpty reads a queue whose length is not known.
func numbersUntilEmpty(t *testing.T, p *lab.Port) []uint32 {
	var all []uint32
	p.Deliver(packet(service, ^uint32(0), 100)) // the last one
	for b := make([]byte, 1500); ; {
		if _, err := p.Read(b); err != nil {
			t.Fatal(err)
		}
		if number(b) == ^uint32(0) {
			return all
		}
		all = append(all, number(b))
	}
}

func TestDecisionsDependOnSeedAndOwnPacketsOnly(t *testing.T) {
	up := lab.Impair{Loss: .1, Duplicate: .05, Reorder: .1}
	down := lab.Impair{Loss: .05, Reorder: .2, Delay: 3 * time.Millisecond, Jitter: 2 * time.Millisecond}
	a, _ := run(t, 7, 2000, up, down, false)
	b, _ := run(t, 7, 2000, up, down, false)
	if !slices.Equal(a, b) {
		t.Error("the same seed gave another run")
	}
	if c, _ := run(t, 7, 2000, up, down, true); !slices.Equal(a, c) {
		t.Error("other traffic changed the run")
	}
	if d, _ := run(t, 8, 2000, up, down, false); slices.Equal(a, d) {
		t.Error("another seed gave the same run")
	}
}

func TestImpairmentsHappenAsOftenAsAsked(t *testing.T) {
	const count = 5000
	about := func(name string, got uint64, p float64) {
		t.Helper()
		if f := float64(got) / count; f < .8*p || f > 1.2*p {
			t.Errorf("%s: %.3f, want about %.2f", name, f, p)
		}
	}
	got, s := run(t, 3, count, lab.Impair{Loss: .2, Duplicate: .2, Reorder: .2}, lab.Impair{}, false)
	about("lost", s.Lost, .2)
	about("duplicated", s.Duplicated, .2*.8)
	about("reordered", s.Reordered, .2*.8)
	if s.Delivered != count-s.Lost+s.Duplicated || uint64(len(got)) != s.Delivered {
		t.Errorf("%d arrived, stats are %+v", len(got), s)
	}
	if slices.IsSorted(got) {
		t.Error("all in order")
	}
}

func TestDelayAndJitterKeepTheOrder(t *testing.T) {
	delay := lab.Impair{Delay: 10 * time.Millisecond, Jitter: 10 * time.Millisecond}
	got, s := run(t, 3, 1000, delay, delay, false)
	if len(got) != 1000 || !slices.IsSorted(got) {
		t.Errorf("%d arrived, in order %t, stats are %+v", len(got), slices.IsSorted(got), s)
	}
}

func TestReorderIsBounded(t *testing.T) {
	got, _ := run(t, 3, 5000, lab.Impair{Reorder: .1}, lab.Impair{}, false)
	for i, number := range got {
		// Up to 8 pass, and some of them bring others that were held.
		if late := i - int(number); late > 16 || late < -16 {
			t.Errorf("packet %d came as number %d", number, i)
		}
	}
}

func TestDelayIsOnTheClock(t *testing.T) {
	clock := faketime.NewManualClock()
	n := lab.New(1, clock)
	defer n.Close()
	c, s := n.Attach("client", 1500), n.Attach("server", 1500)
	n.Route(any6, s)
	c.SetImpair(lab.Impair{Delay: 10 * time.Millisecond}, lab.Impair{})
	write(t, c, packet(service, 1, 100))
	c.SetImpair(lab.Impair{}, lab.Impair{})
	write(t, c, packet(service, 2, 100)) // may not overtake
	clock.Advance(10*time.Millisecond - 1)
	read(t, n, s, 0)
	clock.Advance(1)
	if got := numbers(read(t, n, s, 2)); !slices.Equal(got, []uint32{1, 2}) {
		t.Errorf("got %v", got)
	}
}

func TestPacketTooBig(t *testing.T) {
	n := lab.New(1, nil)
	defer n.Close()
	c, s := n.Attach("client", 1500), n.Attach("server", 1400)
	n.Route(netip.PrefixFrom(client, 64), c)
	n.Route(netip.PrefixFrom(service, 64), s)
	big := packet(service, 1, 1500)
	write(t, c, big)

	answer := header.IPv6(read(t, n, c, 1)[0])
	icmp := header.ICMPv6(answer.Payload())
	if len(answer) != 1280 || answer.SourceAddress() != tcpip.AddrFrom16(lab.Router6.As16()) ||
		icmp.Type() != header.ICMPv6PacketTooBig || icmp.MTU() != 1400 {
		t.Errorf("%d octets from %v: type %d, MTU %d", len(answer), answer.SourceAddress(), icmp.Type(), icmp.MTU())
	}
	if quote := icmp[8:]; !slices.Equal([]byte(quote), big[:len(quote)]) {
		t.Error("it quotes another packet")
	}
	sum := header.PseudoHeaderChecksum(header.ICMPv6ProtocolNumber, answer.SourceAddress(), answer.DestinationAddress(), uint16(len(icmp)))
	if checksum.Checksum(icmp, sum) != 0xffff {
		t.Error("wrong checksum")
	}

	// No answer to an error message, nor to a source that is no node.
	errorMessage := packet(service, 0, 1500)
	errorMessage[6], errorMessage[40] = uint8(header.ICMPv6ProtocolNumber), uint8(header.ICMPv6DstUnreachable)
	write(t, c, errorMessage)
	anonymous := packet(service, 0, 1500)
	clear(anonymous[8:24])
	write(t, c, anonymous)
	read(t, n, c, 0)
	read(t, n, s, 0)
	if got := n.Stats().TooBig; got != 3 {
		t.Errorf("%d too big, want 3", got)
	}
}

func TestFragmentationNeeded(t *testing.T) {
	n := lab.New(1, nil)
	defer n.Close()
	c, s := n.Attach("client", 1500), n.Attach("server", 1400)
	from, to := netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("203.0.113.1")
	n.Route(netip.PrefixFrom(from, 24), c)
	n.Route(netip.PrefixFrom(to, 24), s)
	build := func(flags uint8, protocol tcpip.TransportProtocolNumber, first byte) []byte {
		b := make([]byte, 1500)
		header.IPv4(b).Encode(&header.IPv4Fields{
			TotalLength: 1500, Flags: flags, TTL: 64, Protocol: uint8(protocol),
			SrcAddr: tcpip.AddrFrom4(from.As4()), DstAddr: tcpip.AddrFrom4(to.As4()),
		})
		b[20] = first
		return b
	}
	write(t, c, build(header.IPv4FlagDontFragment, 253, 0))
	answer := header.IPv4(read(t, n, c, 1)[0])
	icmp := header.ICMPv4(answer.Payload())
	if len(answer) != 576 || !answer.IsChecksumValid() || answer.SourceAddress() != tcpip.AddrFrom4(lab.Router4.As4()) ||
		icmp.Type() != header.ICMPv4DstUnreachable || icmp.Code() != header.ICMPv4FragmentationNeeded || icmp.MTU() != 1400 ||
		checksum.Checksum(icmp, 0) != 0xffff {
		t.Errorf("got % x", answer[:60])
	}
	write(t, c, build(0, 253, 0))
	write(t, c, build(header.IPv4FlagDontFragment, header.ICMPv4ProtocolNumber, byte(header.ICMPv4TimeExceeded)))
	read(t, n, c, 0)
	read(t, n, s, 0)
}

func TestClose(t *testing.T) {
	clock := faketime.NewManualClock()
	n := lab.New(1, clock)
	c, s := n.Attach("client", 1500), n.Attach("server", 1500)
	n.Route(any6, s)
	c.SetImpair(lab.Impair{Delay: time.Second}, lab.Impair{})
	write(t, c, packet(service, 1, 100))

	// A node that crashed swallows packets; it may come back.
	s.Close()
	n.Inject(packet(service, 2, 100))
	if st := n.Stats(); st.Delivered != 1 || st.Dropped != 1 {
		t.Errorf("stats are %+v", st)
	}
	s = n.Attach("server", 1500)
	n.Route(any6, s)
	n.Inject(packet(service, 3, 100))
	if got := numbers(read(t, n, s, 1)); got[0] != 3 {
		t.Errorf("got %v", got)
	}

	for range 2 {
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
	clock.Advance(time.Minute)
	for _, p := range []*lab.Port{c, s, n.Attach("late", 1500)} {
		if _, err := p.Read(make([]byte, 1500)); !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s: Read: %v", p.Name(), err)
		}
		if _, err := p.Write(packet(service, 4, 100)); !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s: Write: %v", p.Name(), err)
		}
	}
	if got := n.Stats().Delivered; got != 2 {
		t.Errorf("%d delivered, want 2", got)
	}
}

// Everything at once, for the race detector: no packet is lost or doubled
// without a verdict that says so.
func TestConcurrentUse(t *testing.T) {
	n := lab.New(1, nil)
	defer n.Close()
	a, b := n.Attach("a", 1500), n.Attach("b", 1500)
	n.Route(any6, a)
	defer n.Tap(func(lab.Event) {})()
	const writers, each = 4, 500
	var wg sync.WaitGroup
	for w := range writers {
		p := n.Attach(fmt.Sprint("w", w), 1500)
		p.SetImpair(lab.Impair{Reorder: .1, Duplicate: .1, Jitter: time.Microsecond}, lab.Impair{})
		wg.Go(func() {
			for i := range each {
				write(t, p, packet(service, uint32(i), 100))
				switch i % 50 {
				case 10:
					n.Route(any6, b)
				case 30:
					n.Route(any6, a)
				case 40:
					b.SetImpair(lab.Impair{}, lab.Impair{Delay: time.Millisecond, Loss: .01})
				case 49:
					b.SetImpair(lab.Impair{}, lab.Impair{})
				}
			}
		})
	}
	wg.Wait()
	done := make(chan struct{})
	var once sync.Once
	check := func() {
		if s := n.Stats(); s.Delivered+s.Lost == writers*each+s.Duplicated {
			once.Do(func() { close(done) })
		}
	}
	defer n.Tap(func(lab.Event) { check() })()
	check()
	<-done // a packet that never comes is a timeout
}

func BenchmarkPath(b *testing.B) {
	n := lab.New(1, nil)
	defer n.Close()
	c, s := n.Attach("client", 1500), n.Attach("server", 1500)
	n.Route(netip.PrefixFrom(client, 64), c)
	n.Route(netip.PrefixFrom(service, 64), s)
	p, r := packet(service, 1, 1500), make([]byte, 1500)
	b.SetBytes(1500)
	b.ReportAllocs()
	for b.Loop() {
		write(b, c, p)
		if _, err := s.Read(r); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPathWrite(b *testing.B) {
	n := lab.New(1, nil)
	defer n.Close()
	c, s := n.Attach("client", 1500), n.Attach("server", 1500)
	n.Route(netip.PrefixFrom(service, 64), s)
	s.Close() // swallows
	p := packet(service, 1, 1500)
	b.SetBytes(1500)
	b.ReportAllocs()
	for b.Loop() {
		write(b, c, p)
	}
}

func BenchmarkPathLossy(b *testing.B) {
	n := lab.New(1, nil)
	defer n.Close()
	c, s := n.Attach("client", 1500), n.Attach("server", 1500)
	n.Route(netip.PrefixFrom(service, 64), s)
	c.SetImpair(lab.Impair{Loss: .01, Duplicate: .01}, lab.Impair{})
	s.Close()
	p := packet(service, 1, 1500)
	b.SetBytes(1500)
	b.ReportAllocs()
	for b.Loop() {
		write(b, c, p)
	}
}
