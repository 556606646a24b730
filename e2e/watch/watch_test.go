package watch

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/distributed-servers/ds/internal/ladder"
)

var (
	server = netip.MustParseAddrPort("[2001:db8:d5::1]:80")
	client = netip.MustParseAddrPort("[2001:db8:c1::2]:40000")
	nodeA  = netip.MustParseAddr("2001:db8:5::a")
	nodeB  = netip.MustParseAddr("2001:db8:5::b")
	router = netip.MustParseAddr("2001:db8:a::2")
	start  = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
)

// ipv6 is a header and what follows it.
func ipv6(src, dst netip.Addr, next uint8, payload []byte) []byte {
	b := append([]byte{0x60, 0, 0, 0}, byte(len(payload)>>8), byte(len(payload)), next, 64)
	b = append(b, src.AsSlice()...)
	return append(append(b, dst.AsSlice()...), payload...)
}

func tcp(src, dst netip.AddrPort, flags uint8, seq, ts uint32, payload int) []byte {
	b := binary.BigEndian.AppendUint16(nil, src.Port())
	b = binary.BigEndian.AppendUint16(b, dst.Port())
	b = binary.BigEndian.AppendUint32(b, seq)
	b = binary.BigEndian.AppendUint32(b, 7)
	b = append(b, 8<<4, flags, 0, 1, 0, 0, 0, 0, optNop, optNop, optTimestamps, 10)
	b = binary.BigEndian.AppendUint32(b, ts)
	b = append(b, 0, 0, 0, 0)
	return append(b, make([]byte, payload)...)
}

func fromCareOf(careOf netip.Addr, segment []byte) []byte {
	option := append([]byte{protoTCP, 2, 1, 2, 0, 0, optHomeAddress, 16}, server.Addr().AsSlice()...)
	return ipv6(careOf, client.Addr(), protoDest, append(option, segment...))
}

func toCareOf(careOf netip.Addr, segment []byte) []byte {
	header := append([]byte{protoTCP, 2, routingType2, 1, 0, 0, 0, 0}, server.Addr().AsSlice()...)
	return ipv6(client.Addr(), careOf, protoRouting, append(header, segment...))
}

func TestDecode(t *testing.T) {
	down := tcp(server, client, ACK, 100, 5, 10)
	up := tcp(client, server, ACK, 100, 5, 10)
	plain := Packet{Src: server, Dst: client, Flags: ACK, Seq: 100, Ack: 7, Payload: 10, TSVal: 5, HasTSVal: true}
	with := func(change func(p *Packet)) Packet { p := plain; change(&p); return p }
	for _, tt := range []struct {
		name string
		p    []byte
		want Packet
	}{
		{"plain", ipv6(server.Addr(), client.Addr(), protoTCP, down), plain},
		{"home address option", fromCareOf(nodeA, down), with(func(p *Packet) { p.CareOf = nodeA })},
		{"type 2 routing header", toCareOf(nodeB, up), with(func(p *Packet) { p.Src, p.Dst, p.CareOf = client, server, nodeB })},
		{"tunnel", ipv6(nodeA, router, protoIPv6, ipv6(server.Addr(), client.Addr(), protoTCP, down)),
			with(func(p *Packet) { p.Tunnel = nodeA })},
		{"tunnel in a tunnel", ipv6(router, nodeA, protoIPv6, ipv6(nodeA, nodeB, protoIPv6, fromCareOf(nodeB, down))),
			with(func(p *Packet) { p.Tunnel, p.CareOf = nodeA, nodeB })},
	} {
		got, ok := Decode(tt.p, len(tt.p))
		if !ok || got != tt.want {
			t.Errorf("%s: %+v, %t", tt.name, got, ok)
		}
		// What the capture has cut off the payload counts.
		if got, ok := Decode(tt.p[:len(tt.p)-10], len(tt.p)); !ok || got != tt.want {
			t.Errorf("%s, cut: %+v, %t", tt.name, got, ok)
		}
		for n := range len(tt.p) - 10 {
			if got, ok := Decode(tt.p[:n], len(tt.p)); ok {
				t.Fatalf("%s: the first %d octets are %+v", tt.name, n, got)
			}
		}
	}
	if got, ok := Decode(ipv6(nodeA, nodeB, 17, make([]byte, 40)), 80); ok {
		t.Errorf("a datagram is %+v", got)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(fromCareOf(nodeA, tcp(server, client, ACK, 1, 2, 3)), 0)
	f.Add(ipv6(nodeA, nodeB, protoDest, append([]byte{protoTCP, 32, optHomeAddress + 1, 255}, make([]byte, 260)...)), 0) // the longest option
	f.Add(ipv6(nodeA, nodeB, protoIPv6, toCareOf(nodeB, tcp(client, server, SYN, 1, 2, 3))), 1000)
	f.Fuzz(func(t *testing.T, p []byte, more int) {
		pkt, ok := Decode(p, len(p)+max(more, 0)%1_000_000)
		if ok && (pkt.Payload < 0 || !pkt.Src.IsValid() || !pkt.Dst.IsValid()) {
			t.Errorf("%+v", pkt)
		}
	})
}

// sent is a packet of the server: when, in milliseconds, by whom, and what.
type sent struct {
	at     int
	by     netip.Addr
	flags  uint8
	seq    uint32
	octets int
	clock  uint32
}

func TestProblems(t *testing.T) {
	var home netip.Addr
	for _, tt := range []struct {
		name   string
		sent   []sent
		limits Limits
		want   string // part of the only problem, "" if there is none
	}{
		{"a quiet life", []sent{{0, home, SYN, 99, 0, 1}, {1, home, ACK, 100, 50, 1}, {2, home, ACK | FIN, 150, 50, 2}}, Limits{}, ""},
		{"a handoff", []sent{{0, nodeA, ACK, 100, 50, 1}, {100, nodeB, ACK, 150, 50, 100}, {200, nodeB, ACK, 200, 50, 200}}, Limits{Handoffs: 1}, ""},
		{"a straggler", []sent{{0, nodeA, ACK, 100, 50, 1}, {100, nodeB, ACK, 200, 50, 100}, {101, nodeA, ACK, 150, 50, 99}, {200, nodeB, ACK, 250, 50, 200}},
			Limits{Handoffs: 1, Again: 50}, ""},
		{"across the end of numbers", []sent{{0, home, ACK, 0xffffffe0, 0x40, 0xfffffff0}, {100, home, ACK, 0x20, 50, 5}}, Limits{}, ""},
		{"sent again", []sent{{0, home, ACK, 100, 50, 1}, {1, home, ACK, 100, 50, 2}}, Limits{Again: 50}, ""},
		{"another connection", []sent{{0, home, SYN, 99, 0, 9}, {1, home, ACK, 100, 50, 9}, {2, home, SYN, 9, 0, 1}, {3, home, ACK, 10, 50, 1}}, Limits{}, ""},

		{"reset behind the end", []sent{{0, home, ACK | FIN, 100, 50, 1}, {1, home, RST, 151, 0, 1}, {2, home, RST, 150, 0, 1}}, Limits{}, ""},
		{"reset behind the end, with ACK", []sent{{0, home, ACK | FIN, 100, 50, 1}, {1, home, RST | ACK, 151, 0, 1}}, Limits{}, "1 resets"},
		{"reset of the next one", []sent{{0, home, ACK | FIN, 100, 50, 1}, {1, home, SYN, 99, 0, 2}, {2, home, RST, 100, 0, 1}}, Limits{}, "1 resets"},
		{"reset", []sent{{0, home, ACK, 100, 50, 1}, {1, home, RST, 150, 0, 1}}, Limits{}, "1 resets"},
		{"sent twice", []sent{{0, nodeA, ACK, 100, 50, 1}, {1, nodeB, ACK, 100, 50, 1}}, Limits{Handoffs: 1}, "50 of 100 octets were sent again"},
		{"one too many", []sent{{0, nodeA, ACK, 100, 50, 1}, {100, nodeB, ACK, 150, 50, 100}, {200, nodeA, ACK, 200, 50, 200}}, Limits{Handoffs: 1}, "changed 2 times in 1 handoffs"},
		{"back to home", []sent{{0, nodeA, ACK, 100, 50, 1}, {100, home, ACK, 150, 50, 100}}, Limits{}, "changed 1 times"},
		{"an old clock", []sent{{0, home, ACK, 100, 50, 100}, {100, home, ACK, 150, 50, 99}}, Limits{}, "old timestamps"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var file bytes.Buffer
			w, err := ladder.NewPcapng(&file, "test")
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range tt.sent {
				segment := tcp(server, client, s.flags, s.seq, s.clock, s.octets)
				p := ipv6(server.Addr(), client.Addr(), protoTCP, segment)
				if s.by.IsValid() {
					p = fromCareOf(s.by, segment)
				}
				if err := w.WritePacket(start.Add(time.Duration(s.at)*time.Millisecond), p); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
			flows, err := Read(&file)
			if err != nil {
				t.Fatal(err)
			}
			of := flows.Of(client.Addr())
			if len(of) != 1 || of[0].Key != (Key{server, client}) || of[0].Packets != len(tt.sent) {
				t.Fatalf("flows are %v", of)
			}
			got := of[0].Problems(tt.limits)
			if tt.want == "" && len(got) == 0 {
				return
			}
			if len(got) != 1 || tt.want == "" || !strings.Contains(got[0], tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestReadWhatIsNoCapture(t *testing.T) {
	if f, err := Read(strings.NewReader("hello")); err == nil {
		t.Errorf("flows are %v", f)
	}
}

func TestSendersAreToldApart(t *testing.T) {
	f := Flows{}
	for i, by := range []netip.Addr{nodeA, nodeA, nodeB, nodeB} {
		f.Add(Packet{At: start.Add(time.Duration(i) * time.Second), Src: server, Dst: client, CareOf: by})
	}
	var got []string
	for _, s := range f.Of(server.Addr())[0].Senders {
		got = append(got, s.String())
	}
	want := []string{"2001:db8:5::a 00.000–01.000 (2)", "2001:db8:5::b 02.000–03.000 (2)"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
