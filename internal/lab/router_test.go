package lab_test

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/faketime"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/distributed-servers/ds/internal/lab"
)

// arrivals records when packets leave a port of a network on a manual clock.
func arrivals(n *lab.Net, clock *faketime.ManualClock, p *lab.Port) *[]time.Duration {
	start := clock.NowMonotonic()
	var at []time.Duration
	p.Handle(func([]byte) { at = append(at, clock.NowMonotonic().Sub(start)) })
	return &at
}

func TestBandwidth(t *testing.T) {
	clock := faketime.NewManualClock()
	n := lab.New(1, clock)
	defer n.Close()
	c, s := n.Attach("client", 1500), n.Attach("server", 1500)
	n.Route(any6, s)
	at := arrivals(n, clock, s)
	// 1000 octets take 10 ms; three of them fit into the queue.
	c.SetImpair(lab.Impair{Bandwidth: 100_000, Queue: 3000, Delay: time.Millisecond}, lab.Impair{})
	for i := range 6 {
		write(t, c, packet(service, uint32(i), 1000))
	}
	clock.Advance(time.Minute)
	const ms = time.Millisecond
	if want := []time.Duration{11 * ms, 21 * ms, 31 * ms}; !slices.Equal(*at, want) {
		t.Errorf("arrivals at %v, want %v", *at, want)
	}
	if got := n.Stats().Overflowed; got != 3 {
		t.Errorf("%d found the queue full, want 3", got)
	}

	// An idle line takes a packet that is larger than the queue.
	c.SetImpair(lab.Impair{Bandwidth: 100_000, Queue: 100}, lab.Impair{})
	write(t, c, packet(service, 6, 1000))
	clock.Advance(10 * ms)
	if len(*at) != 4 || n.Stats().Overflowed != 3 {
		t.Errorf("an idle line did not take a large packet: %+v", n.Stats())
	}
}

func TestLinkDown(t *testing.T) {
	clock := faketime.NewManualClock()
	n := lab.New(1, clock)
	defer n.Close()
	c, s := n.Attach("client", 1500), n.Attach("server", 1500)
	n.Route(any6, s)
	at := arrivals(n, clock, s)
	c.SetImpair(lab.Impair{Delay: time.Second}, lab.Impair{})
	write(t, c, packet(service, 1, 100)) // is on its way when the link goes down
	c.SetDown(true)
	write(t, c, packet(service, 2, 100))
	clock.Advance(2 * time.Second)
	c.SetDown(false)
	write(t, c, packet(service, 3, 100))
	clock.Advance(2 * time.Second)
	s.SetDown(true)
	n.Inject(packet(service, 4, 100))
	if got := n.Stats(); len(*at) != 1 || got.Down != 3 || got.Delivered != 1 {
		t.Errorf("arrivals at %v, %+v", *at, got)
	}
}

func TestPartition(t *testing.T) {
	addr := func(i int) netip.Addr {
		return netip.AddrFrom16([16]byte{0: 0xfd, 15: byte(i + 1)})
	}
	names := []string{"a", "b", "c", "d"}
	n := lab.New(1, nil)
	defer n.Close()
	ports := make([]*lab.Port, len(names))
	got := make([]int, len(names))
	for i, name := range names {
		ports[i] = n.Attach(name, 1500)
		ports[i].Handle(func([]byte) { got[i]++ })
		n.Route(netip.PrefixFrom(addr(i), 128), ports[i])
	}
	// reach draws who reaches whom: a row for each sender.
	reach := func() (s string) {
		for _, p := range ports {
			for j := range ports {
				clear(got)
				write(t, p, packet(addr(j), 0, 100))
				s += string("-x"[got[j]])
			}
			s += " "
		}
		return s
	}
	var heal []func()
	for _, step := range []struct {
		name string
		do   func()
		want string
	}{
		{"whole", func() {}, "xxxx xxxx xxxx xxxx "},
		{"a|b", func() { heal = append(heal, n.Partition([]string{"a"}, []string{"b"})) }, "x-xx -xxx xxxx xxxx "},
		{"and ab|rest", func() { heal = append(heal, n.Partition([]string{"a", "b"}, nil)) }, "x--- -x-- --xx --xx "},
		{"first healed", func() { heal[0]() }, "xx-- xx-- --xx --xx "},
		{"healed", func() { heal[1](); heal[1]() }, "xxxx xxxx xxxx xxxx "},
		{"c to d only", func() { heal = append(heal, n.Block([]string{"c"}, []string{"d"})) }, "xxxx xxxx xxx- xxxx "},
		{"nothing passes", func() { n.Partition(nil, nil) }, "x--- -x-- --x- ---x "},
	} {
		step.do()
		if s := reach(); s != step.want {
			t.Errorf("%s: %s, want %s", step.name, s, step.want)
		}
	}
}

func TestRestartKeepsTheLink(t *testing.T) {
	clock := faketime.NewManualClock()
	n := lab.New(1, clock)
	defer n.Close()
	c, s := n.Attach("client", 1500), n.Attach("server", 1400)
	n.Route(any6, c)
	n.Route(netip.PrefixFrom(service, 64), s)
	s.SetImpair(lab.Impair{}, lab.Impair{Delay: time.Second})
	write(t, c, packet(service, 1, 100))
	s = n.Restart(s)
	at := arrivals(n, clock, s)
	clock.Advance(10 * time.Second)
	if len(*at) != 0 {
		t.Errorf("the packet for the old port arrived at %v", *at)
	}
	write(t, c, packet(service, 2, 100))
	clock.Advance(10 * time.Second)
	if want := []time.Duration{11 * time.Second}; !slices.Equal(*at, want) || s.MTU() != 1400 || s.Name() != "server" {
		t.Errorf("%s, MTU %d: arrivals at %v, want %v", s.Name(), s.MTU(), *at, want)
	}
}

// chain is a line of routers with a host at each end.
//
//	client ── r0 ── r1 ── r2 ── server
func chain(t *testing.T) (nets []*lab.Net, c, s *lab.Port) {
	for i := range 3 {
		n := lab.New(uint64(i), faketime.NewManualClock())
		t.Cleanup(func() { n.Close() })
		nets = append(nets, n)
		n.SetRouter(lab.Router{Addr6: netip.AddrFrom16([16]byte{0: 0xfd, 15: byte(i)})})
	}
	c, s = nets[0].Attach("client", 1500), nets[2].Attach("server", 1500)
	nets[0].Route(netip.PrefixFrom(client, 64), c)
	nets[2].Route(netip.PrefixFrom(service, 64), s)
	for i := range 2 {
		right, left := lab.Join(nets[i], nets[i+1], "link", 1500-100*i)
		nets[i].Route(netip.PrefixFrom(service, 64), right)
		nets[i+1].Route(netip.PrefixFrom(client, 64), left)
	}
	return nets, c, s
}

func TestRouters(t *testing.T) {
	nets, c, s := chain(t)
	var at []header.IPv6
	s.Handle(func(b []byte) { at = append(at, b) })
	var errors []header.IPv6
	c.Handle(func(b []byte) { errors = append(errors, b) })

	send := func(b []byte) { write(t, c, b) }
	hops := func(n byte) []byte {
		b := packet(service, 0, 100)
		b[7] = n
		return b
	}
	send(hops(64))
	send(hops(4)) // the server gets it with 1
	for n := range byte(4) {
		send(hops(n))
	}
	send(packet(service, 0, 1500))                             // too big for the second link
	send(packet(netip.MustParseAddr("fd00:dead::1"), 0, 100))  // no route
	send(slices.Replace(hops(1), 24, 40, make([]byte, 16)...)) // to nobody
	multicast := hops(1)
	multicast[24] = 0xff
	send(multicast) // no answer

	if len(at) != 2 || at[0].HopLimit() != 61 || at[1].HopLimit() != 1 {
		t.Errorf("%d packets arrived, want 2", len(at))
	}
	type answer struct {
		router byte
		typ    header.ICMPv6Type
		code   header.ICMPv6Code
	}
	var got []answer
	for _, e := range errors {
		icmp := header.ICMPv6(e.Payload())
		got = append(got, answer{e[23], icmp.Type(), icmp.Code()})
		sum := header.PseudoHeaderChecksum(header.ICMPv6ProtocolNumber, e.SourceAddress(), e.DestinationAddress(), uint16(len(icmp)))
		if checksum.Checksum(icmp, sum) != 0xffff {
			t.Error("wrong checksum")
		}
	}
	want := []answer{
		{0, header.ICMPv6TimeExceeded, 0}, // with 0
		{0, header.ICMPv6TimeExceeded, 0}, // with 1
		{1, header.ICMPv6TimeExceeded, 0},
		{2, header.ICMPv6TimeExceeded, 0},
		{1, header.ICMPv6PacketTooBig, 0},
		{0, header.ICMPv6DstUnreachable, 0},
		{0, header.ICMPv6TimeExceeded, 0},
	}
	if !slices.Equal(got, want) {
		t.Errorf("answers %v, want %v", got, want)
	}
	if got := nets[1].Stats(); got.Expired != 1 || got.TooBig != 1 {
		t.Errorf("router 1: %+v", got)
	}
}

// A packet that goes round ends.
func TestRoutingLoop(t *testing.T) {
	a, b := lab.New(1, nil), lab.New(2, nil)
	defer a.Close()
	defer b.Close()
	onA, onB := lab.Join(a, b, "link", 1500)
	a.Route(any6, onA)
	b.Route(any6, onB)
	c := a.Attach("client", 1500)
	write(t, c, packet(service, 1, 100))
	// The answer goes round too, and is answered no more.
	if got := a.Stats().Expired + b.Stats().Expired; got != 2 {
		t.Errorf("%d have expired, want 2", got)
	}
}

func TestRouterIPv4(t *testing.T) {
	n := lab.New(1, nil)
	defer n.Close()
	own := netip.MustParseAddr("192.0.2.77")
	n.SetRouter(lab.Router{Addr4: own})
	c, s := n.Attach("client", 1500), n.Attach("server", 1500)
	from, to := netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("203.0.113.1")
	n.Route(netip.PrefixFrom(from, 24), c)
	n.Route(netip.PrefixFrom(to, 24), s)
	build := func(ttl uint8, dst netip.Addr) []byte {
		b := make([]byte, 100)
		ip := header.IPv4(b)
		ip.Encode(&header.IPv4Fields{
			TotalLength: 100, TTL: ttl, Protocol: 253,
			SrcAddr: tcpip.AddrFrom4(from.As4()), DstAddr: tcpip.AddrFrom4(dst.As4()),
		})
		ip.SetChecksum(^ip.CalculateChecksum())
		return b
	}
	for ttl := 255; ttl > 1; ttl-- {
		write(t, c, build(uint8(ttl), to))
		got := header.IPv4(read(t, n, s, 1)[0])
		if int(got.TTL()) != ttl-1 || !got.IsChecksumValid() {
			t.Fatalf("TTL %d: got %d, checksum valid %v", ttl, got.TTL(), got.IsChecksumValid())
		}
	}
	write(t, c, build(1, to))
	write(t, c, build(9, netip.MustParseAddr("10.0.0.1")))
	answers := read(t, n, c, 2)
	for i, want := range []header.ICMPv4Type{header.ICMPv4TimeExceeded, header.ICMPv4DstUnreachable} {
		answer := header.IPv4(answers[i])
		icmp := header.ICMPv4(answer.Payload())
		if icmp.Type() != want || icmp.Code() != 0 || answer.SourceAddress() != tcpip.AddrFrom4(own.As4()) {
			t.Errorf("answer %d: type %d code %d from %v", i, icmp.Type(), icmp.Code(), answer.SourceAddress())
		}
	}
}
