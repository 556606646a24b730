package homeagent

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// frame is an IPv6 packet of a capture.
type frame struct {
	number int
	at     time.Duration
	from   [6]byte
	b      []byte
}

// readPcap returns the IPv6 packets of a classic pcap file of Ethernet frames.
func readPcap(t *testing.T, name string) []frame {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var frames []frame
	var start time.Duration
	for b, n := b[24:], 1; len(b) > 0; n++ {
		at := time.Duration(binary.LittleEndian.Uint32(b))*time.Second + time.Duration(binary.LittleEndian.Uint32(b[4:]))*time.Microsecond
		if n == 1 {
			start = at
		}
		size := binary.LittleEndian.Uint32(b[8:])
		data := b[16 : 16+size]
		b = b[16+size:]
		if binary.BigEndian.Uint16(data[12:]) == 0x86dd {
			frames = append(frames, frame{n, at - start, [6]byte(data[6:12]), data[14:]})
		}
	}
	return frames
}

// kind is what a packet is, as far as two home agents should agree.
func kind(t *testing.T, b []byte) string {
	t.Helper()
	p, err := wire.ParsePacket(b)
	if err != nil {
		t.Fatal(err)
	}
	way := fmt.Sprintf("> %v", p.Dst)
	if p.Routing.IsValid() {
		way += fmt.Sprintf(" type 2 routing header %v", p.Routing)
	}
	switch p.Protocol {
	case wire.Mobility:
		m, err := wire.ParseMobility(&p)
		if err != nil {
			t.Fatal(err)
		}
		if ba, ok := m.(*wire.BindingAck); ok {
			return fmt.Sprintf("BindingAck %d #%d %v %s", ba.Status, ba.Sequence, ba.Lifetime, way)
		}
		return fmt.Sprintf("%T %v %s", m, p.Src, way)
	case wire.ICMPv6:
		m, err := wire.ParseICMP(&p)
		if err != nil {
			t.Fatal(err)
		}
		switch m := m.(type) {
		case *wire.NeighborSolicitation:
			return fmt.Sprintf("NS %v %s source %x for %v", p.Src, way, m.Source, m.Target)
		case *wire.NeighborAdvertisement:
			return fmt.Sprintf("NA %s for %v at %x, router %t, solicited %t, override %t", way, m.Target, m.TargetLink, m.Router, m.Solicited, m.Override)
		case *wire.PrefixAdvertisement:
			s := fmt.Sprintf("prefixes #%d %s", m.ID, way)
			for _, i := range m.Prefixes {
				s += fmt.Sprintf(" %v on-link %t, autonomous %t, router %t", i.Prefix, i.OnLink, i.Autonomous, i.Router)
			}
			return s
		}
		return ""
	case wire.IPv6:
		inner, err := p.Inner()
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("tunnel %v %s: %s", p.Src, way, octets(inner))
	case wire.TCP:
		return octets(b)
	}
	return ""
}

// octets of a packet, TCP's checksum left out: the capture's machines had
// their interfaces compute it, so that it is wrong where they begin.
func octets(b []byte) string {
	if wire.Protocol(b[6]) == wire.TCP {
		b = bytes.Clone(b)
		b[40+16], b[40+17] = 0, 0
	}
	return fmt.Sprintf("%x", b)
}

// The capture of a home agent (UMIP on Linux) is played to ours: what came to
// it comes to us, at the same times, and what it sent we have to send, in the
// same order. Forwarded packets agree octet for octet. Only its Binding Update
// gets our authentication option.
func TestGoldenCapture(t *testing.T) {
	var (
		self = [6]byte(agentLink)
		cfg  = func(cfg *Config) { cfg.Start = 0 }
		s    = newScene(t, cfg)
		want []string
		got  []string
	)
	s.now = 0
	collect := func(out Output) {
		for _, b := range slices.Concat(out.Link, out.Send, out.Local) {
			got = append(got, kind(t, b))
		}
	}
	var solicited, bound time.Duration
	for _, f := range readPcap(t, "../wire/testdata/ref-ha0.pcap") {
		for {
			at, ok := s.m.NextDeadline()
			if !ok || at > f.at {
				break
			}
			bound = at
			collect(s.m.Step(at, Tick{}))
		}
		s.now = f.at
		p, err := wire.ParsePacket(f.b)
		if err != nil {
			t.Fatal(err)
		}
		if f.from == self {
			k := kind(t, f.b)
			m, _ := wire.ParseICMP(&p)
			switch m := m.(type) {
			case *wire.NeighborSolicitation:
				if m.Target != home {
					continue // of the host, not of the home agent
				}
			case *wire.NeighborAdvertisement:
				if m.Target != home {
					continue
				}
			}
			if k != "" {
				want = append(want, k)
			}
			continue
		}
		switch {
		case p.Protocol == wire.ICMPv6 && p.HopLimit == 255:
			collect(s.m.Step(f.at, OnLink{f.b}))
		case p.Protocol == wire.Mobility && p.Home.IsValid():
			solicited = f.at
			b := authenticated(s, &p)
			collect(s.m.Step(f.at, Received{b}))
		default:
			collect(s.m.Step(f.at, Received{bytes.Clone(f.b)}))
		}
	}
	if len(want) != 12 {
		t.Errorf("the capture has %d packets of the home agent", len(want))
	}
	for i := range max(len(want), len(got)) {
		switch {
		case i >= len(got):
			t.Errorf("not sent: %s", want[i])
		case i >= len(want):
			t.Errorf("sent too: %s", got[i])
		case got[i] != want[i]:
			t.Errorf("sent %s\nwant %s", got[i], want[i])
		}
	}
	if bound-solicited != time.Second {
		t.Errorf("Duplicate Address Detection took %v", bound-solicited)
	}
}

// authenticated is the Binding Update in p with our authentication option.
func authenticated(s *scene, p *wire.Packet) []byte {
	m, err := wire.ParseMobility(p)
	if err != nil {
		s.Fatal(err)
	}
	return s.packet(bu{BindingUpdate: *m.(*wire.BindingUpdate), home: p.Home, src: p.Src})
}
