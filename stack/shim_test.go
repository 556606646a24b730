package stack

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/faketime"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// The addresses of these tests, which are those of the golden capture.
var (
	homeAddr   = netip.MustParseAddr("2001:db8:a::1234")
	careOfAddr = netip.MustParseAddr("2001:db8:f:0:5054:ff:fe00:f05")
	viaAddr    = netip.MustParseAddr("2001:db8:a::1") // the home agent
	clientAddr = netip.MustParseAddr("2001:db8:c::2")
	peerAddr   = netip.MustParseAddr("2001:db8:e::7")
	routerAddr = netip.MustParseAddr("2001:db8:ffff::1")
)

func testShim(t testing.TB, clients ...netip.Addr) *shim {
	t.Helper()
	s, err := newShim(&Mobile{Home: homeAddr, CareOf: careOfAddr, Via: viaAddr, Peers: []netip.Addr{peerAddr}},
		[]netip.Addr{homeAddr}, 1500, tcpip.NewStdClock())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range clients {
		s.set(c, bound, 0)
	}
	return s
}

// in and out run a copy of a packet through the shim. What is early does not come in:
// there is no connection for it.
func (s *shim) in(p []byte) (q []byte, signalling bool) {
	q, is := s.inbound(slices.Clone(p))
	if is == early {
		s.dropped.unbound.Add(1)
		q = nil
	}
	return q, is == signal
}

func (s *shim) outbound(b []byte) []byte { return s.translate(s.way(b[shimHeadroom:]), b, 0) }

func (s *shim) out(p []byte) []byte {
	return s.outbound(append(make([]byte, shimHeadroom), p...))
}

// tcpPacket is a packet with a TCP segment and the right checksum.
func tcpPacket(src, dst netip.Addr, flags header.TCPFlags, options, payload []byte) []byte {
	t := make([]byte, 20+len(options)+len(payload))
	h := header.TCP(t)
	h.Encode(&header.TCPFields{SrcPort: 1000, DstPort: 443, SeqNum: 7, AckNum: 8, DataOffset: uint8(20 + len(options)), Flags: flags, WindowSize: 1000})
	copy(t[20:], options)
	copy(t[20+len(options):], payload)
	h.SetChecksum(^checksum.Checksum(t, header.PseudoHeaderChecksum(header.TCPProtocolNumber, toAddress(src), toAddress(dst), uint16(len(t)))))
	return ip6(src, dst, 6, t)
}

// checkTCP checks the length and the checksum of a packet.
func checkTCP(t testing.TB, p []byte) {
	t.Helper()
	if len(p) < 60 || 40+payloadLength(p) != len(p) || p[6] != 6 {
		t.Fatalf("not a TCP packet: %x", p)
	}
	src, dst := tcpip.AddrFromSlice(p[8:24]), tcpip.AddrFromSlice(p[24:40])
	if sum := checksum.Checksum(p[40:], header.PseudoHeaderChecksum(header.TCPProtocolNumber, src, dst, uint16(len(p)-40))); sum != 0xffff {
		t.Errorf("TCP checksum is wrong: sum %#x", sum)
	}
}

// routing2 and homeOpt are the extension headers as a client, or its peer,
// writes them.
func routing2(home netip.Addr) ext {
	return ext{43, append([]byte{0, 2, 2, 1, 0, 0, 0, 0}, home.AsSlice()...)}
}

func homeOpt(home netip.Addr) ext {
	return ext{60, append([]byte{0, 2, 1, 2, 0, 0, 201, 16}, home.AsSlice()...)}
}

func tunnelled(src, dst netip.Addr, inner []byte) []byte { return ip6(src, dst, 41, inner) }

// icmp6 is an ICMPv6 message with the right checksum.
func icmp6(src, dst netip.Addr, kind, code byte, value uint32, body []byte, extensions ...ext) []byte {
	m := make([]byte, 8+len(body))
	m[0], m[1] = kind, code
	binary.BigEndian.PutUint32(m[4:], value)
	copy(m[8:], body)
	to := dst
	for _, e := range extensions {
		if e.kind == 43 {
			to = netip.AddrFrom16([16]byte(e.body[8:24]))
		}
	}
	header.ICMPv6(m).SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{Header: m, Src: toAddress(src), Dst: toAddress(to)}))
	return ip6(src, dst, 58, m, extensions...)
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Packets of the golden capture ref-mn0, where the mobile node is UMIP on Linux:
// the first two have a tunnel, the others routing header and Home Address
// option.
const (
	goldenSYN     = "60008adc0050293f20010db8000a0000000000000000000120010db8000f0000505400fffe000f05" + goldenSYNIn
	goldenSYNIn   = "600e69c80028063e20010db8000c0000000000000000000220010db8000a00000000000000001234a7e81b58b37251de00000000a002fd209e6a0000020405a00402080a2cd749630000000001030306"
	goldenSYNACK  = "600ae2a80050294020010db8000f0000505400fffe000f0520010db8000a00000000000000000001" + goldenSYNACKI
	goldenSYNACKI = "600ae2a80028064020010db8000a0000000000000000123420010db8000c000000000000000000021b58a7e811054b6bb37251dfa012fed4fbad0000020405780402080aa10ca3a22cd7496301030306"
	goldenHoT     = "60008adc0040293f20010db8000a0000000000000000000120010db8000f0000505400fffe000f056005d5d60018873e20010db8000c0000000000000000000220010db8000a000000000000000012343b020300dce200028b914b5748a6627e3d2b93048a179a66"
	goldenData    = "600ae2a800403c4020010db8000f0000505400fffe000f0520010db8000c00000000000000000002060201020000c91020010db8000a000000000000000012341b58a7e811054b6cb37251e9801803fcb43c00000101080aa10ca3fb2cd74c836d6e2d6563686f0a"
	goldenDataN   = "600ae2a80028064020010db8000a0000000000000000123420010db8000c000000000000000000021b58a7e811054b6cb37251e9801803fcb43c00000101080aa10ca3fb2cd74c836d6e2d6563686f0a"
	goldenACK     = "600e69c800382b3f20010db8000c0000000000000000000220010db8000f0000505400fffe000f05060202010000000020010db8000a00000000000000001234a7e81b58b37251e911054b74801003f5215d00000101080a2cd74cb8a10ca3fb"
	goldenACKN    = "600e69c80020063f20010db8000c0000000000000000000220010db8000a00000000000000001234a7e81b58b37251e911054b74801003f5215d00000101080a2cd74cb8a10ca3fb"
	goldenFIN     = "600ae2a800383c4020010db8000f0000505400fffe000f0520010db8000c00000000000000000002060201020000c91020010db8000a000000000000000012341b58a7e811054b9cb3725208801103fc083200000101080aa10cb0712cd7591e"
	goldenFINN    = "600ae2a80020064020010db8000a0000000000000000123420010db8000c000000000000000000021b58a7e811054b9cb3725208801103fc083200000101080aa10cb0712cd7591e"
)

// TestShimGolden: what real implementations sent, octet for octet.
func TestShimGolden(t *testing.T) {
	for _, c := range []struct {
		name, wire, netstack string
		outbound, bound      bool
	}{
		{"SYN in a tunnel", goldenSYN, goldenSYNIn, false, false},
		{"SYN-ACK in a tunnel", goldenSYNACK, goldenSYNACKI, true, false},
		{"data with Home Address option", goldenData, goldenDataN, true, true},
		{"ACK with routing header", goldenACK, goldenACKN, false, true},
		{"FIN with Home Address option", goldenFIN, goldenFINN, true, true},
		{"Home Test in a tunnel", goldenHoT, "", false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := testShim(t)
			if c.bound {
				s.set(clientAddr, bound, 0)
			}
			wire, inner := unhex(t, c.wire), unhex(t, c.netstack)
			if c.outbound {
				if got := s.out(inner); !bytes.Equal(got, wire) {
					t.Errorf("sent\n%x: want\n%x", got, wire)
				}
				return
			}
			got, signal := s.in(wire)
			if signal != (c.netstack == "") {
				t.Errorf("signalling: %v", signal)
			}
			if c.netstack == "" {
				if got != nil {
					t.Errorf("delivered %x", got)
				}
				return
			}
			checkTCP(t, got)
			if segment := header.TCP(got[40:]); segment.Flags().Contains(header.TCPFlagSyn) {
				// The one thing that is changed.
				if mss := header.ParseSynOptions(segment.Options(), false).MSS; mss != 1440-24 {
					t.Errorf("MSS %d", mss)
				}
				copy(got[40+22:], inner[40+22:40+24])
				copy(got[40+16:], inner[40+16:40+18])
			}
			if !bytes.Equal(got, inner) {
				t.Errorf("delivered\n%x: want\n%x", got, inner)
			}
		})
	}
}

// verdict is what became of a packet.
func (s *shim) verdict(p []byte) string {
	before := s.counts()
	q, signal := s.in(p)
	after := s.counts()
	switch {
	case signal:
		return "signalling"
	case q != nil:
		return "delivered"
	case after.Unbound > before.Unbound:
		return "unbound"
	case after.Stranger > before.Stranger:
		return "stranger"
	case after.Malformed > before.Malformed:
		return "malformed"
	case after.Unwanted > before.Unwanted:
		return "unwanted"
	}
	return "lost"
}

// TestShimInbound: every kind of packet that can come.
func TestShimInbound(t *testing.T) {
	data := tcpPacket(clientAddr, homeAddr, header.TCPFlagAck, nil, []byte("hello"))
	segment := data[40:]
	mobility := make([]byte, 16)
	mobility[0], mobility[1], mobility[2] = 59, 1, 4 // a Care-of Test's beginning
	stranger := netip.MustParseAddr("2001:db8:bad::1")
	sent := tcpPacket(homeAddr, clientAddr, header.TCPFlagAck, nil, []byte("answer"))
	bySelf := func(p []byte, next byte, payload []byte) []byte { return ip6(careOfAddr, clientAddr, next, payload) }
	change := func(p []byte, at int, to byte) []byte {
		p = slices.Clone(p)
		p[at] = to
		return p
	}
	routed := ip6(clientAddr, careOfAddr, 6, segment, routing2(homeAddr))
	limit := ext{60, []byte{0, 0, 4, 1, 4, 1, 1, 0}} // tunnel encapsulation limit, as Linux writes it

	for _, c := range []struct {
		name string
		p    []byte
		want string
	}{
		// By the binding.
		{"routing header", routed, "delivered"},
		{"behind hop-by-hop options", ip6(clientAddr, careOfAddr, 6, segment, ext{0, []byte{0, 0, 5, 2, 0, 0, 1, 0}}, routing2(homeAddr)), "delivered"},
		{"before a fragment header", ip6(clientAddr, careOfAddr, 6, segment, routing2(homeAddr), fragment6(0, true)), "delivered"},
		{"before destination options", ip6(clientAddr, careOfAddr, 6, segment, routing2(homeAddr), extension(60, 8)), "delivered"},
		{"a client without binding", ip6(stranger, careOfAddr, 6, segment, routing2(homeAddr)), "unbound"},
		{"another home address", ip6(clientAddr, careOfAddr, 6, segment, routing2(peerAddr)), "malformed"},
		{"the care-of address as home address", ip6(clientAddr, careOfAddr, 6, segment, routing2(careOfAddr)), "malformed"},
		{"routing header of type 0", change(routed, 42, 0), "malformed"},
		{"two segments left", change(routed, 43, 2), "malformed"},
		{"routing header of 40 octets", ip6(clientAddr, careOfAddr, 6, segment, ext{43, append(routing2(homeAddr).body, make([]byte, 16)...)}), "malformed"},
		{"no segments left", change(routed, 43, 0), "unwanted"},
		{"nothing behind it", ip6(clientAddr, careOfAddr, 43, routing2(homeAddr).body), "malformed"},
		{"cut off", routed[:60], "malformed"},
		{"an option to be refused", ip6(clientAddr, careOfAddr, 6, segment, ext{60, []byte{0, 0, 0x80, 4, 0, 0, 0, 0}}, routing2(homeAddr)), "malformed"},
		{"a fragment of a mobility message", ip6(clientAddr, careOfAddr, 135, mobility, routing2(homeAddr), fragment6(0, true)), "malformed"},

		// By the tunnel.
		{"tunnel from the home agent", tunnelled(viaAddr, careOfAddr, data), "delivered"},
		{"tunnel from a peer", tunnelled(peerAddr, careOfAddr, data), "delivered"},
		{"tunnel with encapsulation limit", ip6(viaAddr, careOfAddr, 41, data, limit), "delivered"},
		{"a client without binding, in the tunnel", tunnelled(viaAddr, careOfAddr, tcpPacket(stranger, homeAddr, header.TCPFlagAck, nil, nil)), "delivered"},
		{"tunnel from a stranger", tunnelled(stranger, careOfAddr, data), "stranger"},
		{"tunnel from the client", tunnelled(clientAddr, careOfAddr, data), "stranger"},
		{"for another address", tunnelled(viaAddr, careOfAddr, tcpPacket(clientAddr, peerAddr, header.TCPFlagAck, nil, nil)), "malformed"},
		{"for the care-of address", tunnelled(viaAddr, careOfAddr, ip6(clientAddr, careOfAddr, 6, segment)), "malformed"},
		{"from the home address", tunnelled(viaAddr, careOfAddr, tcpPacket(homeAddr, homeAddr, header.TCPFlagAck, nil, nil)), "malformed"},
		{"from the care-of address", tunnelled(viaAddr, careOfAddr, tcpPacket(careOfAddr, homeAddr, header.TCPFlagAck, nil, nil)), "malformed"},
		{"from a group", tunnelled(viaAddr, careOfAddr, tcpPacket(netip.MustParseAddr("ff02::1"), homeAddr, header.TCPFlagAck, nil, nil)), "malformed"},
		{"a tunnel in the tunnel", tunnelled(viaAddr, careOfAddr, tunnelled(viaAddr, careOfAddr, data)), "malformed"},
		{"an inner packet cut off", tunnelled(viaAddr, careOfAddr, data[:50]), "malformed"},
		{"an inner header cut off", tunnelled(viaAddr, careOfAddr, data[:39]), "malformed"},
		{"IPv4 in the tunnel", tunnelled(viaAddr, careOfAddr, ip4(here4, there4, 6, segment, 0, 0)), "malformed"},
		{"an empty tunnel", tunnelled(viaAddr, careOfAddr, nil), "malformed"},

		// Signalling.
		{"mobility message", ip6(clientAddr, careOfAddr, 135, mobility), "signalling"},
		{"mobility message from a stranger", ip6(stranger, careOfAddr, 135, mobility), "signalling"},
		{"mobility message with routing header", ip6(clientAddr, careOfAddr, 135, mobility, routing2(homeAddr)), "signalling"},
		{"the same from a stranger", ip6(stranger, careOfAddr, 135, mobility, routing2(homeAddr)), "signalling"},
		{"mobility message in the tunnel", tunnelled(viaAddr, careOfAddr, ip6(clientAddr, homeAddr, 135, mobility)), "signalling"},
		{"mobility message in a stranger's tunnel", tunnelled(stranger, careOfAddr, ip6(clientAddr, homeAddr, 135, mobility)), "stranger"},
		{"mobility message to the home address", ip6(clientAddr, homeAddr, 135, mobility), "signalling"},
		{"prefix advertisement", icmp6(viaAddr, careOfAddr, 147, 0, 0, nil, routing2(homeAddr)), "signalling"},
		{"home agent discovery", icmp6(viaAddr, careOfAddr, 145, 0, 0, nil), "signalling"},
		{"error about a mobility message", icmp6(routerAddr, careOfAddr, 4, 1, 40, bySelf(nil, 135, mobility)), "signalling"},
		{"error about a Binding Update", icmp6(routerAddr, careOfAddr, 1, 0, 0, ip6(careOfAddr, clientAddr, 135, mobility, homeOpt(homeAddr))), "signalling"},
		{"error about a message in the tunnel", icmp6(routerAddr, careOfAddr, 1, 0, 0, tunnelled(careOfAddr, viaAddr, ip6(homeAddr, clientAddr, 135, mobility))), "signalling"},
		{"error in the tunnel about a message", tunnelled(viaAddr, careOfAddr, icmp6(routerAddr, homeAddr, 4, 1, 40, ip6(homeAddr, clientAddr, 135, mobility))), "signalling"},
		{"error with routing header about a message", icmp6(clientAddr, careOfAddr, 4, 1, 40, ip6(homeAddr, clientAddr, 135, mobility), routing2(homeAddr)), "signalling"},
		{"error to the home address about a message", icmp6(routerAddr, homeAddr, 4, 1, 40, ip6(homeAddr, clientAddr, 135, mobility)), "signalling"},
		{"error about somebody else's message", icmp6(routerAddr, careOfAddr, 4, 1, 40, ip6(peerAddr, clientAddr, 135, mobility)), "unwanted"},
		{"objection to the Home Address option", icmp6(clientAddr, careOfAddr, 4, 2, 46, ip6(careOfAddr, clientAddr, 6, segment, homeOpt(homeAddr))), "signalling"},
		{"objection to destination options", icmp6(clientAddr, careOfAddr, 4, 1, 6, ip6(careOfAddr, clientAddr, 6, segment, homeOpt(homeAddr))), "signalling"},

		// Errors about data; TestShimErrors looks at what they say.
		{"error about an optimised packet", icmp6(routerAddr, careOfAddr, 2, 0, 1400, ip6(careOfAddr, clientAddr, 6, segment, homeOpt(homeAddr))), "delivered"},
		{"error about a tunnelled packet", icmp6(routerAddr, careOfAddr, 2, 0, 1400, tunnelled(careOfAddr, viaAddr, sent)), "delivered"},
		{"error about a straggler", icmp6(routerAddr, careOfAddr, 2, 0, 1400, tunnelled(careOfAddr, peerAddr, data)), "unwanted"},
		{"error about a plain packet", icmp6(routerAddr, careOfAddr, 2, 0, 1400, bySelf(nil, 6, segment)), "unwanted"},
		{"error with another home address", icmp6(routerAddr, careOfAddr, 2, 0, 1400, ip6(careOfAddr, clientAddr, 6, segment, homeOpt(peerAddr))), "unwanted"},
		{"error with a wrong checksum", change(icmp6(routerAddr, careOfAddr, 2, 0, 1400, tunnelled(careOfAddr, viaAddr, sent)), 42, 1), "malformed"},
		{"MTU below the minimum", icmp6(routerAddr, careOfAddr, 2, 0, 1279, tunnelled(careOfAddr, viaAddr, sent)), "malformed"},
		{"MTU below the minimum, direct", icmp6(routerAddr, homeAddr, 2, 0, 600, sent), "malformed"},
		{"error in the tunnel", tunnelled(viaAddr, careOfAddr, icmp6(routerAddr, homeAddr, 2, 0, 1400, sent)), "delivered"},
		{"error that quotes next to nothing", icmp6(routerAddr, careOfAddr, 2, 0, 1400, sent[:39]), "unwanted"},
		{"error that quotes half the option", icmp6(routerAddr, careOfAddr, 2, 0, 1400, ip6(careOfAddr, clientAddr, 6, segment, homeOpt(homeAddr))[:63]), "unwanted"},
		{"error cut off", ip6(routerAddr, careOfAddr, 58, []byte{1, 0, 0, 0, 0, 0, 0}), "malformed"},

		// The rest.
		{"to the home address as it is", data, "delivered"},
		{"the same cut off", data[:len(data)-1], "malformed"},
		{"without payload", ip6(clientAddr, homeAddr, 59, nil), "malformed"},
		{"echo request to the home address", icmp6(clientAddr, homeAddr, 128, 0, 0, nil), "delivered"},
		{"echo request to the care-of address", icmp6(clientAddr, careOfAddr, 128, 0, 0, nil), "unwanted"},
		{"TCP to the care-of address", ip6(clientAddr, careOfAddr, 6, segment), "unwanted"},
		{"UDP to the care-of address", ip6(clientAddr, careOfAddr, 17, segment), "unwanted"},
		{"a fragment to the care-of address", ip6(clientAddr, careOfAddr, 6, segment, fragment6(0, true)), "unwanted"},
		{"nothing to the care-of address", ip6(clientAddr, careOfAddr, 59, nil), "malformed"},
		{"headers without end", ip6(clientAddr, careOfAddr, 6, segment, extension(60, 8), extension(60, 8), extension(60, 8), extension(60, 8),
			extension(60, 8), extension(60, 8), extension(60, 8), extension(60, 8), extension(60, 8)), "malformed"},
		{"to another address", tcpPacket(clientAddr, peerAddr, header.TCPFlagAck, nil, nil), "delivered"},
		{"IPv4", ip4(there4, here4, 6, segment, 0, 0), "delivered"},
		{"nothing", nil, "lost"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := testShim(t, clientAddr).verdict(c.p); got != c.want {
				t.Errorf("%s: want %s", got, c.want)
			}
		})
	}
}

// TestShimErrors: an ICMPv6 error comes to netstack as one about the packet
// that it sent, with the MTU that is left to it.
func TestShimErrors(t *testing.T) {
	sent := tcpPacket(homeAddr, clientAddr, header.TCPFlagAck, nil, bytes.Repeat([]byte("x"), 1200))
	s := testShim(t, clientAddr)
	optimised := s.out(sent)
	s.set(clientAddr, unbound, 0)
	inTunnel := s.out(sent)
	s.set(clientAddr, bound, 0)
	// As a client quotes it that has exchanged source and option.
	exchanged := slices.Clone(optimised)
	copy(exchanged[8:24], homeAddr.AsSlice())
	copy(exchanged[48:64], careOfAddr.AsSlice())
	withHopByHop := ip6(careOfAddr, clientAddr, 6, sent[40:], extension(0, 8), homeOpt(homeAddr))
	const quoteSize = 1280 - 48

	for _, c := range []struct {
		name         string
		p            []byte
		kind, code   byte
		value        uint32
		quotesHeader int // extension headers left in the quote
	}{
		{"optimised", icmp6(routerAddr, careOfAddr, 2, 0, 1400, optimised[:quoteSize]), 2, 0, 1376, 0},
		{"optimised, the least MTU", icmp6(routerAddr, careOfAddr, 2, 0, 1280, optimised[:quoteSize]), 2, 0, 1256, 0},
		{"tunnel", icmp6(routerAddr, careOfAddr, 2, 0, 1400, inTunnel[:quoteSize]), 2, 0, 1360, 0},
		{"unreachable", icmp6(routerAddr, careOfAddr, 1, 4, 0, optimised[:quoteSize]), 1, 4, 0, 0},
		{"home agent unreachable", icmp6(routerAddr, careOfAddr, 1, 1, 7, inTunnel[:quoteSize]), 1, 3, 0, 0},
		{"hop limit in the tunnel", icmp6(routerAddr, careOfAddr, 3, 0, 0, inTunnel[:quoteSize]), 1, 3, 0, 0},
		{"hop limit", icmp6(routerAddr, careOfAddr, 3, 0, 0, optimised[:quoteSize]), 3, 0, 0, 0},
		{"parameter problem behind the option", icmp6(clientAddr, careOfAddr, 4, 1, 64, optimised[:quoteSize]), 4, 1, 40, 0},
		{"parameter problem before it", icmp6(clientAddr, careOfAddr, 4, 0, 7, optimised[:quoteSize]), 4, 0, 7, 0},
		{"exchanged, with routing header", icmp6(clientAddr, careOfAddr, 1, 4, 0, exchanged[:quoteSize], routing2(homeAddr)), 1, 4, 0, 0},
		{"exchanged, in the tunnel", tunnelled(viaAddr, careOfAddr, icmp6(clientAddr, homeAddr, 1, 4, 0, exchanged[:quoteSize])), 1, 4, 0, 0},
		{"as sent, in the tunnel", tunnelled(viaAddr, careOfAddr, icmp6(routerAddr, homeAddr, 2, 0, 1300, sent[:quoteSize])), 2, 0, 1300, 0},
		{"behind hop-by-hop options", icmp6(routerAddr, careOfAddr, 2, 0, 1400, withHopByHop[:quoteSize]), 2, 0, 1376, 8},
		{"option and 8 octets", icmp6(routerAddr, careOfAddr, 2, 0, 1400, optimised[:72]), 2, 0, 1376, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			q, signal := s.in(c.p)
			if q == nil || signal {
				t.Fatalf("not delivered; %+v", s.counts())
			}
			if len(q) > len(c.p) || 40+payloadLength(q) != len(q) || netip.AddrFrom16([16]byte(q[24:40])) != homeAddr {
				t.Fatalf("delivered %x", q)
			}
			m := header.ICMPv6(q[40:])
			if want := header.ICMPv6Checksum(header.ICMPv6ChecksumParams{Header: m, Src: tcpip.AddrFromSlice(q[8:24]), Dst: toAddress(homeAddr)}); m.Checksum() != want {
				t.Errorf("checksum %#x: want %#x", m.Checksum(), want)
			}
			if value := binary.BigEndian.Uint32(m[4:]); m[0] != c.kind || m[1] != c.code || value != c.value {
				t.Errorf("type %d, code %d, value %d: want %d, %d, %d", m[0], m[1], value, c.kind, c.code, c.value)
			}
			quoted := slices.Clone([]byte(m[8:]))
			if c.quotesHeader > 0 {
				quoted[6] = quoted[40]
				setPayloadLength(quoted, payloadLength(quoted)-c.quotesHeader)
				quoted = slices.Delete(quoted, 40, 40+c.quotesHeader)
			}
			if !bytes.Equal(quoted, sent[:len(quoted)]) {
				t.Errorf("quoted\n%x: want\n%x", quoted, sent[:len(quoted)])
			}
			if f, ok := inboundFlow(q); !ok || f.tuple.Remote.Addr() != clientAddr || f.tuple.Local.Addr() != homeAddr {
				t.Errorf("the filter takes it for %v, %v", f, ok)
			}
		})
	}
}

// TestShimOutbound: what the netstack may send, and what becomes of it.
func TestShimOutbound(t *testing.T) {
	segment := tcpPacket(homeAddr, clientAddr, header.TCPFlagAck, nil, []byte("hello"))[40:]
	away := netip.MustParseAddr("2001:db8:d::1")
	local := netip.MustParseAddr("fe80::1")
	for _, c := range []struct {
		name     string
		in, want []byte
	}{
		{"bound", ip6(homeAddr, clientAddr, 6, segment), ip6(careOfAddr, clientAddr, 6, segment, homeOpt(homeAddr))},
		{"behind hop-by-hop options and routing header", ip6(homeAddr, clientAddr, 6, segment, extension(0, 16), extension(43, 24)),
			ip6(careOfAddr, clientAddr, 6, segment, extension(0, 16), extension(43, 24), homeOpt(homeAddr))},
		{"before a fragment header", ip6(homeAddr, clientAddr, 6, segment, fragment6(8, true)),
			ip6(careOfAddr, clientAddr, 6, segment, homeOpt(homeAddr), fragment6(8, true))},
		{"before other destination options", ip6(homeAddr, clientAddr, 6, segment, extension(60, 8)),
			ip6(careOfAddr, clientAddr, 6, segment, homeOpt(homeAddr), extension(60, 8))},
		{"broken", ip6(homeAddr, clientAddr, 43, []byte{6, 9, 0, 0, 0, 0, 0, 0}), nil},
		{"unbound", ip6(homeAddr, away, 6, segment), tunnelled(careOfAddr, viaAddr, ip6(homeAddr, away, 6, segment))},
		{"link-local", ip6(homeAddr, local, 6, segment), ip6(homeAddr, local, 6, segment)},
		{"group of the link", ip6(homeAddr, netip.MustParseAddr("ff02::1"), 58, segment), ip6(homeAddr, netip.MustParseAddr("ff02::1"), 58, segment)},
		{"another source", ip6(local, clientAddr, 6, segment), ip6(local, clientAddr, 6, segment)},
		{"IPv4", ip4(here4, there4, 6, segment, 0, 0), ip4(here4, there4, 6, segment, 0, 0)},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := testShim(t, clientAddr)
			if got := s.out(c.in); !bytes.Equal(got, c.want) {
				t.Errorf("sent\n%x: want\n%x", got, c.want)
			}
		})
	}
	t.Run("no via", func(t *testing.T) {
		s := testShim(t)
		if err := s.setVia(netip.Addr{}); err != nil {
			t.Fatal(err)
		}
		p := ip6(homeAddr, away, 6, segment)
		if got := s.out(p); !bytes.Equal(got, p) {
			t.Errorf("sent %x", got)
		}
	})
	t.Run("tunnel of the kernel's", func(t *testing.T) {
		s := testShim(t, clientAddr)
		s.kernel.Store(true)
		p := ip6(homeAddr, away, 6, segment)
		if got := s.out(p); !bytes.Equal(got, p) {
			t.Errorf("sent %x", got)
		}
		for _, p := range [][]byte{ip6(homeAddr, away, 17, segment), ip6(homeAddr, away, 58, segment)} {
			if got := s.out(p); !bytes.Equal(got, tunnelled(careOfAddr, viaAddr, p)) {
				t.Errorf("sent %x", got)
			}
		}
		if got := s.out(ip6(homeAddr, clientAddr, 6, segment)); !bytes.Equal(got, ip6(careOfAddr, clientAddr, 6, segment, homeOpt(homeAddr))) {
			t.Errorf("to a bound client: sent %x", got)
		}
	})
	t.Run("traffic class and flow label", func(t *testing.T) {
		p := ip6(homeAddr, away, 6, segment)
		p[0], p[1], p[2], p[3] = 0x6b, 0x8a, 0xbc, 0xde
		if got := testShim(t).out(p); !bytes.Equal(got[:4], p[:4]) {
			t.Errorf("sent %x", got[:4])
		}
	})
}

// TestShimThere: what one node sends by the tunnel or the binding another one
// takes as it was.
func TestShimThere(t *testing.T) {
	there, err := newShim(&Mobile{Home: homeAddr, CareOf: peerAddr, Via: viaAddr, Peers: []netip.Addr{careOfAddr}}, []netip.Addr{homeAddr}, 1500, tcpip.NewStdClock())
	if err != nil {
		t.Fatal(err)
	}
	p := tcpPacket(clientAddr, homeAddr, header.TCPFlagAck, nil, []byte("straggler"))
	here := tunnelTo(careOfAddr.As16(), peerAddr.As16())
	q, signal := there.in(here.wrap(append(make([]byte, shimHeadroom), p...), shimHeadroom, 0))
	if signal || !bytes.Equal(q, p) {
		t.Errorf("delivered %x: want %x", q, p)
	}
	again := here.wrap(append(make([]byte, 2*shimHeadroom), p...), 2*shimHeadroom, 0)
	if q := here.wrap(append(make([]byte, shimHeadroom), again...), shimHeadroom, 0); q != nil {
		t.Error("a packet went into a tunnel twice")
	}
}

// TestShimCongestion: RFC 6040, figure 4, for what the tunnel can do.
func TestShimCongestion(t *testing.T) {
	const notECT, ect1, ect0, ce = 0, 1, 2, 3
	for _, c := range []struct{ inner, outer, want byte }{
		{notECT, notECT, notECT}, {notECT, ect0, notECT}, {notECT, ect1, notECT}, {notECT, ce, 0xff},
		{ect0, notECT, ect0}, {ect0, ect0, ect0}, {ect0, ect1, ect1}, {ect0, ce, ce},
		{ect1, notECT, ect1}, {ect1, ect0, ect1}, {ect1, ect1, ect1}, {ect1, ce, ce},
		{ce, notECT, ce}, {ce, ect0, ce}, {ce, ect1, ce}, {ce, ce, ce},
	} {
		p := tcpPacket(clientAddr, homeAddr, header.TCPFlagAck, nil, nil)
		p[1] = 0x40 | c.inner<<4
		p = tunnelled(viaAddr, careOfAddr, p)
		p[1] |= c.outer << 4
		q, _ := testShim(t).in(p)
		got := byte(0xff)
		if q != nil {
			got = q[1] >> 4 & 3
			if q[1]&^0x30 != 0x40 {
				t.Errorf("inner %d, outer %d: octet %#x", c.inner, c.outer, q[1])
			}
		}
		if got != c.want {
			t.Errorf("inner %d, outer %d: %d, want %d", c.inner, c.outer, got, c.want)
		}
	}
}

// TestClampMSS: the option wherever it is, and no harm if it is broken.
func TestClampMSS(t *testing.T) {
	mss := func(v uint16) []byte { return []byte{2, 4, byte(v >> 8), byte(v)} }
	pad := func(n int, b ...byte) []byte { return append(bytes.Repeat([]byte{1}, n), b...) }
	for _, c := range []struct {
		name     string
		in, want []byte
	}{
		{"first", mss(1440), mss(1416)},
		{"aligned", pad(2, append(mss(1440), 1, 1)...), pad(2, append(mss(1416), 1, 1)...)},
		{"odd", pad(1, append(mss(1440), 1, 1, 1)...), pad(1, append(mss(1416), 1, 1, 1)...)},
		{"jumbo", mss(65535), mss(65511)},
		{"a link of 1280", mss(1220), mss(1196)},
		{"little more than enough", mss(1200), mss(1196)},
		{"small anyway", mss(536), mss(536)},
		{"none", pad(4), pad(4)},
		{"behind the end", append([]byte{0}, mss(1440)[:3]...), append([]byte{0}, mss(1440)[:3]...)},
		{"cut off", []byte{1, 1, 2, 4}, []byte{1, 1, 2, 4}},
		{"length 0", []byte{2, 0, 5, 5}, []byte{2, 0, 5, 5}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, _ := testShim(t).in(tcpPacket(clientAddr, homeAddr, header.TCPFlagSyn, c.in, nil))
			checkTCP(t, p)
			if got := p[60:]; !bytes.Equal(got, c.want) {
				t.Errorf("options %x: want %x", got, c.want)
			}
		})
	}
	p, _ := testShim(t).in(tcpPacket(clientAddr, homeAddr, header.TCPFlagAck, mss(1440), nil))
	if !bytes.Equal(p[60:], mss(1440)) {
		t.Error("changed without a SYN")
	}
}

// TestNewShimErrors: what cannot work is said when the stack is made.
func TestNewShimErrors(t *testing.T) {
	good := Mobile{Home: homeAddr, CareOf: careOfAddr}
	for name, change := range map[string]func(*Mobile){
		"home not ours":   func(m *Mobile) { m.Home = peerAddr },
		"IPv4 home":       func(m *Mobile) { m.Home = here4 },
		"no care-of":      func(m *Mobile) { m.CareOf = netip.Addr{} },
		"care-of is ours": func(m *Mobile) { m.CareOf = homeAddr },
		"IPv4 care-of":    func(m *Mobile) { m.CareOf = there4 },
		"group":           func(m *Mobile) { m.CareOf = netip.MustParseAddr("ff02::1") },
		"via ourselves":   func(m *Mobile) { m.Via = careOfAddr },
		"via home":        func(m *Mobile) { m.Via = homeAddr },
		"our own peer":    func(m *Mobile) { m.Peers = []netip.Addr{peerAddr, careOfAddr} },
	} {
		m := good
		change(&m)
		if s, err := newShim(&m, []netip.Addr{homeAddr, here4}, 1500, tcpip.NewStdClock()); err == nil {
			t.Errorf("%s: %v", name, s)
		}
	}
	if _, err := newShim(&good, []netip.Addr{homeAddr}, 1319, tcpip.NewStdClock()); err == nil {
		t.Error("an MTU of 1319 leaves 1279 for IPv6")
	}
	if _, err := newShim(&good, []netip.Addr{homeAddr}, 1320, tcpip.NewStdClock()); err != nil {
		t.Error(err)
	}
}

// TestLeave: a binding that another node has taken over lasts for its grace.
func TestLeave(t *testing.T) {
	clock := faketime.NewManualClock()
	s, err := newShim(&Mobile{Home: homeAddr, CareOf: careOfAddr}, []netip.Addr{homeAddr}, 1500, clock)
	if err != nil {
		t.Fatal(err)
	}
	data := tcpPacket(clientAddr, homeAddr, header.TCPFlagAck, nil, nil)
	routed := ip6(clientAddr, careOfAddr, 6, data[40:], routing2(homeAddr))
	back := tcpPacket(homeAddr, clientAddr, header.TCPFlagAck, nil, nil)
	expect := func(when string, in, out bool) {
		t.Helper()
		if q, _ := s.in(routed); (q != nil) != in {
			t.Errorf("%s: comes in: %v", when, !in)
		}
		if q := s.out(back); (q[6] == nextDestOptions) != out {
			t.Errorf("%s: goes out with the option: %v", when, !out)
		}
	}
	expect("first", false, false)
	s.set(clientAddr, leaving, time.Second)
	expect("left without having been", false, false)
	s.set(clientAddr, bound, 0)
	expect("bound", true, true)
	s.set(clientAddr, leaving, time.Second)
	clock.Advance(999 * time.Millisecond)
	expect("leaving", true, false)
	clock.Advance(time.Millisecond)
	expect("grace over", false, false)

	s.set(clientAddr, bound, 0)
	s.set(clientAddr, leaving, time.Second)
	s.set(clientAddr, bound, 0) // it has come back
	clock.Advance(time.Minute)
	expect("back", true, true)
	s.set(clientAddr, leaving, time.Minute)
	clock.Advance(time.Second)
	s.set(clientAddr, leaving, time.Second) // anew
	clock.Advance(time.Second)
	expect("grace over again", false, false)
	s.set(clientAddr, bound, 0)
	s.set(clientAddr, leaving, 0)
	expect("no grace", false, false)
	if len(s.graces) != 0 || s.bindings.live != 0 {
		t.Errorf("%d timers, %d clients left over", len(s.graces), s.bindings.live)
	}
}

// TestBindingsModel compares the table with a map.
func TestBindingsModel(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	b, model := newBindings(), map[netip.Addr]bindingState{}
	addr := func() netip.Addr {
		a := clientAddr.As16()
		binary.BigEndian.PutUint16(a[14:], uint16(rnd.IntN(1000)))
		return netip.AddrFrom16(a)
	}
	for range 100_000 {
		a, state := addr(), bindingState(rnd.IntN(3))
		b.set(a, state)
		if model[a] = state; state == unbound {
			delete(model, a)
		}
		if a = addr(); b.state(a.AsSlice()) != model[a] {
			t.Fatalf("%s: %d, want %d", a, b.state(a.AsSlice()), model[a])
		}
	}
	if b.live != len(model) {
		t.Errorf("%d clients: want %d", b.live, len(model))
	}
	for a := range model {
		b.set(a, unbound)
	}
	b.set(clientAddr, bound)
	if n := len(b.table.Load().clients); n > 4096 {
		t.Errorf("%d slots for at most 1000 clients", n)
	}
}

// TestBindingsRaces: readers see each client as one or the other, never as
// somebody else, while the table changes under them.
func TestBindingsRaces(t *testing.T) {
	b := newBindings()
	fixed, never := addrNumber(1<<20), addrNumber(1<<21)
	b.set(fixed, bound)
	done := make(chan struct{})
	var writers, readers sync.WaitGroup
	for w := range 2 {
		writers.Go(func() {
			for i := range 5000 {
				b.set(addrNumber(i%1500*2+w), bindingState(i*7%3))
			}
		})
	}
	for range 2 {
		readers.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-done:
					return
				default:
				}
				b.state(addrNumber(i % 3000).AsSlice())
				if b.state(fixed.AsSlice()) != bound || b.state(never.AsSlice()) != unbound {
					t.Error("another client's state")
					return
				}
			}
		})
	}
	writers.Wait()
	close(done)
	readers.Wait()
}

// addrNumber is the address of one of many clients.
func addrNumber(n int) netip.Addr {
	a := clientAddr.As16()
	binary.BigEndian.PutUint32(a[12:], uint32(n))
	return netip.AddrFrom16(a)
}

// FuzzShimIn: whatever arrives, the netstack gets a whole packet to the home
// address, no longer than what came, or what was not for us, unchanged; and
// signalling is what came, unchanged.
func FuzzShimIn(f *testing.F) {
	for _, s := range []string{goldenSYN, goldenSYNACK, goldenData, goldenACK, goldenFIN, goldenHoT} {
		f.Add(unhex(f, s))
	}
	sent := tcpPacket(homeAddr, clientAddr, header.TCPFlagAck, nil, []byte("x"))
	option := ip6(careOfAddr, clientAddr, 6, sent[40:], homeOpt(homeAddr))
	f.Add(icmp6(routerAddr, careOfAddr, 2, 0, 1400, option))
	f.Add(icmp6(routerAddr, careOfAddr, 4, 2, 46, option))
	f.Add(icmp6(routerAddr, careOfAddr, 1, 0, 0, tunnelled(careOfAddr, viaAddr, sent)))
	f.Add(icmp6(clientAddr, careOfAddr, 1, 4, 0, option, routing2(homeAddr)))
	f.Add(tunnelled(peerAddr, careOfAddr, icmp6(routerAddr, homeAddr, 2, 0, 1300, sent)))
	f.Add(tcpPacket(clientAddr, homeAddr, header.TCPFlagSyn, []byte{1, 2, 4, 5, 160, 0, 0, 0}, nil))
	f.Add(ip6(clientAddr, careOfAddr, 6, sent[40:], extension(0, 8), routing2(homeAddr), fragment6(0, true)))
	s := testShim(f, clientAddr)
	f.Fuzz(func(t *testing.T, p []byte) {
		// Most inputs should get past the checksum.
		if len(p) >= 48 && p[6] == 58 && 40+payloadLength(p) <= len(p) {
			m := header.ICMPv6(p[40 : 40+payloadLength(p)])
			if len(m) >= 8 {
				m.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{Header: m, Src: tcpip.AddrFromSlice(p[8:24]), Dst: tcpip.AddrFromSlice(p[24:40])}))
			}
		}
		was := slices.Clone(p)
		before := s.counts()
		q, is := s.inbound(p)
		lost := s.counts() != before
		switch {
		case is == signal:
			if q != nil || lost || !bytes.Equal(p, was) {
				t.Fatal("signalling was changed, or used twice")
			}
		case q == nil:
			if !lost && len(was) != 0 {
				t.Fatal("dropped without being counted")
			}
		case lost:
			t.Fatal("delivered and counted as dropped")
		default:
			checkDelivered(t, was, q, is)
		}
	})
}

func checkDelivered(t *testing.T, was, q []byte, is note) {
	dst := func(p []byte) netip.Addr { return netip.AddrFrom16([16]byte(p[24:40])) }
	if len(was) < 40 || was[0]>>4 != 6 || dst(was) != homeAddr && dst(was) != careOfAddr {
		if !bytes.Equal(q, was) {
			t.Fatal("a packet that is not ours was changed")
		}
		return
	}
	if len(q) > len(was) || len(q) <= 40 || q[0]>>4 != 6 || 40+payloadLength(q) != len(q) {
		t.Fatalf("delivered %x", q)
	}
	if dst(q) != homeAddr {
		t.Fatalf("delivered to %s", dst(q))
	}
	if dst(was) == careOfAddr && was[6] != 58 && netip.AddrFrom16([16]byte(was[8:24])) != clientAddr {
		switch netip.AddrFrom16([16]byte(was[8:24])) {
		case viaAddr, peerAddr:
		default:
			if is != early && q[6] != 58 { // an error behind extension headers
				t.Fatal("delivered from somebody without binding")
			}
		}
	}
	if is == early && netip.AddrFrom16([16]byte(was[8:24])) == clientAddr {
		t.Fatal("from a client with a binding, as if it had none")
	}
	if _, _, proto, _, _, ok := parseIP(q); ok && proto == nextMobility {
		t.Fatal("the netstack got a mobility message")
	}
}

// FuzzShimOut: what the netstack sends comes back the same by the other side's
// rules.
func FuzzShimOut(f *testing.F) {
	f.Add(unhex(f, goldenDataN), true)
	f.Add(unhex(f, goldenSYNACKI), false)
	s, u := testShim(f, clientAddr), testShim(f)
	f.Fuzz(func(t *testing.T, p []byte, optimise bool) {
		if len(p) < 40 || len(p) > 60000 {
			return
		}
		p[0] = 6<<4 | p[0]&0xf
		copy(p[8:], homeAddr.AsSlice())
		copy(p[24:], clientAddr.AsSlice())
		setPayloadLength(p, len(p)-40)
		if !optimise {
			if q := u.out(p); !bytes.Equal(q[40:], p) || 40+payloadLength(q) != len(q) {
				t.Fatalf("sent %x", q)
			}
			return
		}
		q := s.out(p)
		if q == nil {
			return
		}
		if len(q) != len(p)+24 || 40+payloadLength(q) != len(q) || !bytes.Equal(q[24:40], p[24:40]) || netip.AddrFrom16([16]byte(q[8:24])) != careOfAddr {
			t.Fatalf("sent %x", q)
		}
		at := bytes.Index(q[40:], append([]byte{2, 1, 2, 0, 0, 201, 16}, homeAddr.AsSlice()...))
		if at < 0 {
			t.Fatal("no Home Address option")
		}
	})
}

// The shim allocates nothing for a packet, whatever way it takes.
func TestShimNoAllocations(t *testing.T) {
	s := testShim(t)
	s.set(clientAddr, bound, 0)
	u := testShim(t) // where the client is unbound
	routed := ip6(clientAddr, careOfAddr, 6, make([]byte, 1400), routing2(homeAddr))
	tunnelled := ip6(viaAddr, careOfAddr, 41, ip6(clientAddr, homeAddr, 6, make([]byte, 1400)))
	sent := append(make([]byte, shimHeadroom), ip6(homeAddr, clientAddr, 6, make([]byte, 1400))...)
	p := make([]byte, 2000)
	for name, way := range map[string]func() []byte{
		"in by the binding":  func() []byte { q, _ := s.inbound(p[:copy(p, routed)]); return q },
		"in by the tunnel":   func() []byte { q, _ := u.inbound(p[:copy(p, tunnelled)]); return q },
		"out by the binding": func() []byte { return s.outbound(p[:copy(p, sent)]) },
		"out by the tunnel":  func() []byte { return u.outbound(p[:copy(p, sent)]) },
	} {
		if way() == nil {
			t.Errorf("%s: dropped", name)
		}
		if n := testing.AllocsPerRun(1000, func() { way() }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// BenchmarkShim is what the shim costs per packet, with all the clients taking
// turns so that the table is not in the nearest cache.
func BenchmarkShimIn(b *testing.B) {
	benchmarkShim(b, func(b *testing.B, s *shim, clients []netip.Addr) {
		template := ip6(clientAddr, careOfAddr, 6, make([]byte, 1400), routing2(homeAddr))
		p := make([]byte, len(template))
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			copy(p, template[:72])
			a := clients[i].As16()
			copy(p[8:24], a[:])
			if i++; i == len(clients) {
				i = 0
			}
			if q, _ := s.inbound(p); q == nil {
				b.Fatal("dropped")
			}
		}
	})
}

func BenchmarkShimOut(b *testing.B) {
	benchmarkShim(b, func(b *testing.B, s *shim, clients []netip.Addr) {
		template := append(make([]byte, shimHeadroom), ip6(homeAddr, clientAddr, 6, make([]byte, 1400))...)
		p := slices.Clone(template)
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			copy(p, template[:shimHeadroom+72])
			a := clients[i].As16()
			copy(p[shimHeadroom+24:], a[:])
			if i++; i == len(clients) {
				i = 0
			}
			if q := s.outbound(p); q == nil {
				b.Fatal("dropped")
			}
		}
	})
}

func benchmarkShim(b *testing.B, f func(*testing.B, *shim, []netip.Addr)) {
	for _, n := range []int{100, 100_000} {
		s := testShim(b)
		rnd := rand.New(rand.NewPCG(1, 2))
		clients := make([]netip.Addr, n)
		for i := range clients {
			clients[i] = addrNumber(i)
			s.set(clients[i], bound, 0)
		}
		rnd.Shuffle(n, func(i, j int) { clients[i], clients[j] = clients[j], clients[i] })
		b.Run(fmt.Sprintf("bindings=%d", n), func(b *testing.B) { f(b, s, clients) })
	}
}
