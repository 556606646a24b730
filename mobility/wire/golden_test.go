package wire

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
)

// captured is an IPv6 packet of a capture.
type captured struct {
	frame int
	b     []byte
}

// readPcap returns the IPv6 packets of a classic pcap file of Ethernet frames.
func readPcap(t testing.TB, name string) []captured {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	const ethernet = 1
	if binary.LittleEndian.Uint32(b) != 0xa1b2c3d4 || binary.LittleEndian.Uint32(b[20:]) != ethernet {
		t.Fatalf("%s: not a little-endian pcap of Ethernet", name)
	}
	var packets []captured
	b = b[24:]
	for frame := 1; len(b) > 0; frame++ {
		n := binary.LittleEndian.Uint32(b[8:])
		data := b[16 : 16+n]
		b = b[16+n:]
		if binary.BigEndian.Uint16(data[12:]) == 0x86dd {
			packets = append(packets, captured{frame, data[14:]})
		}
	}
	return packets
}

var captures = []string{"ref-mn0.pcap", "ref-ha0.pcap", "ref-cn0.pcap"}

// Every packet of the captures is parsed and written again octet for octet:
// packet, packet inside, mobility header, ICMPv6 message. The counts make sure
// that none was passed over.
func TestGoldenRewrite(t *testing.T) {
	want := map[string]string{ // tshark counts the same
		"ref-mn0.pcap": "map[*wire.BindingAck:2 *wire.BindingUpdate:2 *wire.CareOfTest:1 *wire.CareOfTestInit:1 " +
			"*wire.HomeTest:1 *wire.HomeTestInit:1 *wire.NeighborAdvertisement:2 *wire.NeighborSolicitation:2 " +
			"*wire.PrefixAdvertisement:1 *wire.PrefixSolicitation:1 home address option:13 hop-by-hop options:45 " +
			"inside:7 other ICMPv6:70 packet:77 type 2 routing header:19]",
		"ref-ha0.pcap": "map[*wire.BindingAck:1 *wire.BindingUpdate:1 *wire.HomeTest:2 *wire.HomeTestInit:2 " +
			"*wire.NeighborAdvertisement:5 *wire.NeighborSolicitation:5 *wire.PrefixAdvertisement:1 " +
			"*wire.PrefixSolicitation:1 home address option:2 hop-by-hop options:4 inside:7 other ICMPv6:24 " +
			"packet:55 type 2 routing header:2]",
		"ref-cn0.pcap": "map[*wire.BindingAck:1 *wire.BindingUpdate:1 *wire.CareOfTest:1 *wire.CareOfTestInit:1 " +
			"*wire.HomeTest:1 *wire.HomeTestInit:1 *wire.NeighborAdvertisement:3 *wire.NeighborSolicitation:3 " +
			"home address option:11 packet:43 type 2 routing header:17]",
	}
	for _, name := range captures {
		t.Run(name, func(t *testing.T) {
			got := make(map[string]int)
			for _, c := range readPcap(t, name) {
				t.Run(fmt.Sprint("frame ", c.frame), func(t *testing.T) {
					rewrite(t, c.b, got)
				})
			}
			if got := fmt.Sprint(got); got != want[name] {
				t.Errorf("saw  %s\nwant %s", got, want[name])
			}
		})
	}
}

// rewrite parses b and all that is in it, compares what is written from that,
// and counts what it saw.
func rewrite(t *testing.T, b []byte, count map[string]int) {
	t.Helper()
	p, err := ParsePacket(b)
	if err != nil {
		t.Fatalf("%x: %v", b, err)
	}
	if Protocol(b[6]) == HopByHop {
		count["hop-by-hop options"]++ // multicast listener reports; these options are not kept
	} else {
		again, err := p.Append(nil)
		if err != nil {
			t.Fatalf("%x: %v", b, err)
		}
		same(t, "packet", again, b)
		count["packet"]++
	}
	if p.Home.IsValid() {
		count["home address option"]++
	}
	if p.Routing.IsValid() {
		count["type 2 routing header"]++
	}
	switch p.Protocol {
	case IPv6:
		inner, err := p.Inner()
		if err != nil {
			t.Fatal(err)
		}
		count["inside"]++
		rewrite(t, inner, count)
	case Mobility:
		m, err := ParseMobility(&p)
		if err != nil {
			t.Fatal(err)
		}
		count[fmt.Sprintf("%T", m)]++
		same(t, fmt.Sprintf("%T", m), m.Append(nil, p.Source(), p.Destination()), p.Payload)
	case ICMPv6:
		m, err := ParseICMP(&p)
		if err != nil {
			t.Fatal(err)
		}
		if m == nil {
			count["other ICMPv6"]++ // router discovery, listener reports
			return
		}
		count[fmt.Sprintf("%T", m)]++
		same(t, fmt.Sprintf("%T", m), m.Append(nil, p.Source(), p.Destination()), p.Payload)
	}
}

func same(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Errorf("%s:\ngot  %x\nwant %x", what, got, want)
	}
}

// The tokens that the Home Test and the Care-of Test carry make the key which
// verifies the Binding Update and its acknowledgement.
func TestGoldenAuthenticators(t *testing.T) {
	for _, name := range []string{"ref-mn0.pcap", "ref-cn0.pcap"} {
		t.Run(name, func(t *testing.T) {
			home, careOf := make(map[uint16]Token), make(map[uint16]Token)
			var (
				key        BindingKey
				registered netip.Addr
				verified   []string
			)
			for _, c := range readPcap(t, name) {
				p, err := ParsePacket(c.b)
				if err != nil {
					t.Fatal(err)
				}
				if p.Protocol == IPv6 {
					inner, err := p.Inner()
					if err != nil {
						t.Fatal(err)
					}
					if p, err = ParsePacket(inner); err != nil {
						t.Fatal(err)
					}
				}
				if p.Protocol != Mobility {
					continue
				}
				m, err := ParseMobility(&p)
				if err != nil {
					t.Fatal(err)
				}
				switch m := m.(type) {
				case *HomeTest:
					home[m.NonceIndex] = m.Token
				case *CareOfTest:
					careOf[m.NonceIndex] = m.Token
				case *BindingUpdate:
					if m.Home {
						break // a home registration: protected by IPsec, if at all
					}
					key = NewBindingKey(home[m.HomeNonce], careOf[m.CareOfNonce])
					registered = p.Src
					if !key.Verify(p.Payload, registered, p.Dst) {
						t.Errorf("frame %d: Binding Update does not verify", c.frame)
					}
					same(t, "signed again", key.Sign(nil, m, p.Source(), p.Destination(), registered, p.Dst), p.Payload)
					verified = append(verified, "update")
				case *BindingAck:
					if !m.Authenticated {
						break
					}
					if !key.Verify(p.Payload, registered, p.Src) {
						t.Errorf("frame %d: Binding Acknowledgement does not verify", c.frame)
					}
					same(t, "signed again", key.Sign(nil, m, p.Source(), p.Destination(), registered, p.Src), p.Payload)
					verified = append(verified, "acknowledgement")
				}
			}
			if got, want := fmt.Sprint(verified), "[update acknowledgement]"; got != want {
				t.Errorf("verified %s, want %s", got, want)
			}
		})
	}
}
