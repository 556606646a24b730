package correspondent

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// frame is a packet of a capture.
type frame struct {
	at     time.Duration
	packet []byte
}

// capture reads the IPv6 packets of a pcap file of Ethernet frames.
func capture(t *testing.T, file string) (all []frame) {
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	const magic = 0xa1b2c3d4
	if binary.LittleEndian.Uint32(b) != magic {
		t.Fatalf("%s is no pcap file", file)
	}
	for b = b[24:]; len(b) >= 16; {
		at := time.Duration(binary.LittleEndian.Uint32(b))*time.Second + time.Duration(binary.LittleEndian.Uint32(b[4:]))*time.Microsecond
		n := binary.LittleEndian.Uint32(b[8:])
		if f := b[16 : 16+n]; binary.BigEndian.Uint16(f[12:]) == 0x86dd {
			all = append(all, frame{at, f[14:]})
		}
		b = b[16+n:]
	}
	return all
}

// A capture of a real mobile node (UMIP) that talks to a real correspondent
// (UMIP, Linux), seen at the correspondent. The machine takes its place: it gets
// what came, and what the stack there sent, and has to send and deliver what
// went out and was delivered, octet for octet but for what depends on keys and
// random numbers.
func TestGolden(t *testing.T) {
	local := addr("2001:db8:c::2")
	h := newHost(t, func(cfg *Config) { cfg.Local = func(a netip.Addr) bool { return a == local } })
	frames := capture(t, "../wire/testdata/ref-cn0.pcap")
	m := h.mobile()
	m.local = local

	// mask hides what cannot be the same: checksum, and for each message its keys.
	mask := func(p packet) []byte {
		b := bytes.Clone(p.Payload)
		b[4], b[5] = 0, 0
		switch p.mh.(type) {
		case *wire.HomeTest, *wire.CareOfTest:
			clear(b[6:8])   // nonce index
			clear(b[16:24]) // token
		case *wire.BindingAck:
			clear(b[len(b)-12:]) // authenticator
		}
		return b
	}
	var answer []packet // of ours, for which the reference's has not been seen
	signalling, data := 0, 0
	for i, f := range frames {
		h.now = max(h.now, time.Hour+f.at-frames[0].at)
		s, ok := shapeOf(f.packet)
		src, dst := netip.AddrFrom16([16]byte(f.packet[8:24])), netip.AddrFrom16([16]byte(f.packet[24:40]))
		switch {
		case !ok || s.proto == wire.ICMPv6:
			continue
		case dst == local:
			p := parse(t, f.packet)
			in := f.packet
			if u, ok := p.mh.(*wire.BindingUpdate); ok {
				// Signed with our tokens instead of the reference's.
				u.HomeNonce, u.CareOfNonce = m.homeIndex, m.careIndex
				m.home, m.coa = p.Source(), p.Src
				if u.AltCareOf.IsValid() {
					m.coa = u.AltCareOf
				}
				key := wire.NewBindingKey(m.homeToken, m.careToken)
				mh := key.Sign(nil, u, p.Source(), local, m.coa, local)
				if len(mh) != len(p.Payload) {
					t.Fatalf("frame %d: the Binding Update is laid out otherwise", i+1)
				}
				in = build(t, wire.Packet{Src: p.Src, Dst: local, Home: p.Home, Protocol: wire.Mobility, Payload: mh})
			}
			answer = h.receive(in)
			if p.Protocol == wire.TCP {
				data++
				if len(h.delivered) != 1 || len(answer) != 0 {
					t.Fatalf("frame %d: %d delivered, answer %v", i+1, len(h.delivered), answer)
				}
				got := parse(t, h.delivered[0])
				if got.Src != p.Source() || got.Dst != local || got.Home.IsValid() || !bytes.Equal(got.Payload, p.Payload) ||
					sum(got.Payload, got.Src, got.Dst, wire.TCP) != 0xffff {
					t.Errorf("frame %d: delivered %v", i+1, got)
				}
			}
		case src == local:
			want := parse(t, f.packet)
			if want.Protocol == wire.Mobility {
				signalling++
				if len(answer) != 1 {
					t.Fatalf("frame %d: the machine has not answered", i+1)
				}
				got := answer[0]
				if got.Src != want.Src || got.Dst != want.Dst || got.Routing != want.Routing || !bytes.Equal(mask(got), mask(want)) {
					t.Errorf("frame %d: sent %v,\nwant %v", i+1, got, want)
				}
				switch test := got.mh.(type) {
				case *wire.HomeTest:
					m.homeIndex, m.homeToken = test.NonceIndex, test.Token
				case *wire.CareOfTest:
					m.careIndex, m.careToken = test.NonceIndex, test.Token
				}
				continue
			}
			data++
			stacks := f.packet
			if _, ok := routedHome(f.packet, &s); ok {
				stacks = appendUnrouted(nil, f.packet, &s)
			}
			if sent := h.step(Transmit{stacks}); len(sent) != 1 || !bytes.Equal(sent[0], f.packet) {
				t.Errorf("frame %d: sent %x\nwant %x", i+1, sent, f.packet)
			}
		}
	}
	if signalling != 3 || data < 20 {
		t.Errorf("%d messages and %d packets of data compared", signalling, data)
	}
}
