package filter

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/distributed-servers/ds/mobility/wire"
)

var nodeRules = NodeRules(here, []NodeServer{{Address: service, CareOf: careOf, TUN: "ta", Peers: []netip.Addr{peer}}})

// What comes to a care-of address: signalling is queued, data is not.
func TestNodeQueues(t *testing.T) {
	if !own(t) {
		return
	}
	s := newScene(t)
	f, q := open(t, nodeRules, accepting)

	ack := mobility(t, wire.Packet{Src: away, Dst: careOf, Routing: service}, &wire.BindingAck{Sequence: 7})
	data := udp(t, away, careOf, "data")
	routed := build(t, wire.Packet{Src: away, Dst: careOf, Routing: service, Protocol: wire.UDP,
		Payload: sumUDP([]byte{0, 7, 0, 7, 0, 8, 0, 0}, away, service)})
	sent := mobility(t, wire.Packet{Src: careOf, Dst: away}, &wire.CareOfTestInit{})
	for name, tc := range map[string]struct {
		b      []byte
		queued bool
	}{
		"care-of test": {mobility(t, wire.Packet{Src: away, Dst: careOf}, &wire.CareOfTest{}), true},
		"binding acknowledgement behind a routing header": {ack, true},
		"refresh request behind destination options":      {insert(mobility(t, wire.Packet{Src: away, Dst: careOf}, &wire.BindingRefreshRequest{}), wire.DestOptions, 0, 0, 1, 4, 0, 0, 0, 0), true},
		"mobility header with a Home Address option":      {mobility(t, wire.Packet{Src: away, Dst: careOf, Home: other}, &wire.BindingError{Status: 1, Home: other}), true},
		"mobility header of an unknown type":              {build(t, wire.Packet{Src: away, Dst: careOf, Protocol: wire.Mobility, Payload: []byte{59, 0, 99, 0, 0, 0, 0, 0}}), true},
		"mobility header that is cut short":               {build(t, wire.Packet{Src: away, Dst: careOf, Protocol: wire.Mobility, Payload: []byte{59, 3}}), true},
		"parameter problem about a mobility header":       {icmpError(t, away, careOf, wire.ParameterProblem, 1, sent), true},
		"packet too big":                   {icmpError(t, away, careOf, wire.PacketTooBig, 0, data), true},
		"unreachable":                      {icmpError(t, away, careOf, wire.Unreachable, 0, sent), true},
		"time exceeded":                    {icmpError(t, away, careOf, wire.TimeExceeded, 0, sent), true},
		"echo request":                     {build(t, wire.Packet{Src: away, Dst: careOf, Protocol: wire.ICMPv6, Payload: []byte{128, 0, 0, 0, 0, 0, 0, 0}}), false},
		"data":                             {data, false},
		"data of a route optimised client": {routed, false},
		"mobility header to the distributed server address": {mobility(t, wire.Packet{Src: away, Dst: service}, &wire.HomeTest{}), false},
	} {
		before := f.Stats().Packets
		s.net.send(tc.b)
		if tc.queued {
			if p := q.next(t); !is(tc.b)(p.Payload) || p.InIndex == 0 {
				t.Errorf("%s: queued %x from %d", name, p.Payload, p.InIndex)
			}
		}
		s.tun.receive(is(tc.b))
		if got := f.Stats().Packets - before; (got == 1) != tc.queued || got > 1 {
			t.Errorf("%s: queued %d times", name, got)
		}
	}
}

// What is taken away, and what is put in its place.
func TestVerdicts(t *testing.T) {
	if !own(t) {
		return
	}
	s := newScene(t)
	taken := mobility(t, wire.Packet{Src: away, Dst: careOf}, &wire.CareOfTest{})
	replaced := mobility(t, wire.Packet{Src: away, Dst: careOf}, &wire.BindingAck{})
	larger := udp(t, away, careOf, string(make([]byte, 1000)))
	f, q := open(t, nodeRules, func(p Packet) Verdict {
		switch {
		case is(taken)(p.Payload):
			return Drop()
		case is(replaced)(p.Payload):
			return Replace(larger)
		}
		return Accept()
	})
	s.net.send(taken)
	s.net.send(replaced)
	q.next(t)
	q.next(t)
	s.tun.receive(func(b []byte) bool {
		if is(taken)(b) || is(replaced)(b) {
			t.Errorf("passed: %x", b)
		}
		return is(larger)(b)
	})
	if st := f.Stats(); st.Packets != 2 || st.Dropped != 1 || st.Replaced != 1 || st.Failed != 0 {
		t.Errorf("%+v", st)
	}
}

// An application can send from its own two addresses, and neither signalling
// nor anything in the name of others.
func TestNodeSpoofing(t *testing.T) {
	if !own(t) {
		return
	}
	s := newScene(t)
	open(t, nodeRules, accepting)

	inTunnelTo := func(to netip.Addr, inner []byte) []byte {
		b, err := wire.AppendTunnel(nil, careOf, to, inner)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	inTunnel := func(inner []byte) []byte { return inTunnelTo(away, inner) }
	udpFragment := func(next byte, src wire.Packet) []byte {
		src.Protocol, src.Payload = wire.Fragment, []byte{next, 0, 0, 1, 0, 0, 0, 1, 0, 7, 0, 7, 0, 8, 0, 0}
		return build(t, src)
	}
	marker := udp(t, service, away, "the end")
	for name, tc := range map[string]struct {
		b    []byte
		pass bool
	}{
		"from the distributed server address":  {udp(t, service, away, "1"), true},
		"from the care-of address":             {udp(t, careOf, away, "2"), true},
		"route optimised":                      {build(t, wire.Packet{Src: careOf, Dst: away, Home: service, Protocol: wire.UDP, Payload: sumUDP([]byte{0, 7, 0, 7, 0, 8, 0, 0}, service, away)}), true},
		"in a tunnel":                          {inTunnel(udp(t, service, other, "3")), true},
		"late, for another node":               {inTunnelTo(peer, udp(t, away, service, "9")), true},
		"late, for who is no node":             {inTunnelTo(away, udp(t, other, service, "10")), false},
		"to another node, for another server":  {inTunnelTo(peer, udp(t, away, other, "11")), false},
		"fragment":                             {udpFragment(17, wire.Packet{Src: service, Dst: away}), true},
		"from another address":                 {udp(t, other, away, "4"), false},
		"from this host's address":             {udp(t, here, away, "5"), false},
		"signalling from the care-of address":  {mobility(t, wire.Packet{Src: careOf, Dst: away}, &wire.CareOfTestInit{}), false},
		"signalling from the server's address": {mobility(t, wire.Packet{Src: service, Dst: away}, &wire.HomeTestInit{}), false},
		"a binding update":                     {mobility(t, wire.Packet{Src: careOf, Dst: away, Home: service}, &wire.BindingUpdate{}), false},
		"signalling in a fragment":             {udpFragment(135, wire.Packet{Src: careOf, Dst: away}), false},
		"options in a fragment":                {udpFragment(60, wire.Packet{Src: careOf, Dst: away}), false},
		"tunnel with another inside":           {inTunnel(udp(t, other, away, "6")), false},
		"tunnel with signalling inside":        {inTunnel(mobility(t, wire.Packet{Src: service, Dst: away}, &wire.HomeTestInit{})), false},
		"tunnel behind options":                {insert(inTunnel(udp(t, service, other, "7")), wire.DestOptions, 0, 0, 1, 4, 0, 0, 0, 0), false},
		"tunnel from the server's address": {func() []byte {
			b, err := wire.AppendTunnel(nil, service, away, udp(t, service, other, "8"))
			if err != nil {
				t.Fatal(err)
			}
			return b
		}(), false},
		"no upper layer": {build(t, wire.Packet{Src: careOf, Dst: away, Protocol: wire.NoNext}), false},
	} {
		s.tun.send(tc.b)
		s.tun.send(marker)
		passed := false
		s.net.receive(func(b []byte) bool {
			passed = passed || is(tc.b)(b)
			return is(marker)(b)
		})
		if passed != tc.pass {
			t.Errorf("%s: passed %t", name, passed)
		}
	}
}

// Of IPv4 an application can send nothing, though the host may forward it.
func TestNodeSpoofingIPv4(t *testing.T) {
	if !own(t) {
		return
	}
	s := newScene(t)
	open(t, nodeRules, accepting)
	header := []byte{0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2}
	binary.BigEndian.PutUint16(header[10:], ^fold(header))
	frame := append(append(append([]byte{}, s.tun.peer...), s.tun.addr...), 0x08, 0x00)
	if _, err := unix.Write(s.tun.fd, append(frame, header...)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a packet dropped", func() bool {
		out, _, err := runProgram(ipv4.save, "", "-t", table, "-c")
		return err == nil && strings.Contains(out, "[1:20] -A DSCO-7846 -i ta -j DROP")
	})
}
