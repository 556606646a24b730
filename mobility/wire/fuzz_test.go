package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"reflect"
	"testing"
)

// What is parsed is written so that it parses as the same, and is written the
// same from then on.
func FuzzParsePacket(f *testing.F) {
	for _, name := range captures {
		for _, c := range readPcap(f, name) {
			f.Add(c.b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		given := bytes.Clone(b)
		p, err := ParsePacket(b)
		if !bytes.Equal(b, given) {
			t.Fatal("the packet was changed")
		}
		if err != nil {
			var problem *Problem
			if errors.As(err, &problem) && int(problem.Pointer) >= len(b) {
				t.Fatalf("%v of %d", problem, len(b))
			}
			return
		}
		end := HeaderLen + int(binary.BigEndian.Uint16(b[4:]))
		if p.Offset+len(p.Payload) != end || !bytes.Equal(p.Payload, b[p.Offset:end]) {
			t.Fatalf("payload of %d octets at %d of %d", len(p.Payload), p.Offset, end)
		}
		switch p.Protocol {
		case HopByHop, Routing, DestOptions:
			t.Fatalf("protocol %d", p.Protocol)
		}
		written, err := p.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(written) > end {
			t.Fatalf("%d octets became %d", end, len(written))
		}
		again, err := ParsePacket(written)
		if err != nil {
			t.Fatal(err)
		}
		want := p
		want.Offset = again.Offset
		if want.HopLimit == 0 {
			want.HopLimit = DefaultHopLimit
		}
		if !reflect.DeepEqual(again, want) {
			t.Fatalf("%+v became %+v", want, again)
		}
		if third, err := again.Append(nil); err != nil || !bytes.Equal(third, written) {
			t.Fatalf("%x became %x (%v)", written, third, err)
		}
	})
}

// Whatever is in a mobility header, nothing panics; what is accepted is written
// so that it parses as the same; what is signed verifies.
func FuzzParseMobility(f *testing.F) {
	for _, m := range messages {
		f.Add(unhex(f, m.hex))
	}
	key, shared := NewBindingKey(Token{1}, Token{2}), SharedKey("sixteen octets..")
	f.Fuzz(func(t *testing.T, mh []byte) {
		as := Packet{Src: home, Dst: correspondent, Protocol: Mobility, Payload: mh, Offset: HeaderLen}
		_, _ = ParseMobility(&as)
		for _, m := range []Message{
			new(BindingRefreshRequest), new(HomeTestInit), new(CareOfTestInit), new(HomeTest),
			new(CareOfTest), new(BindingUpdate), new(BindingAck), new(BindingError),
		} {
			_ = Decode(&as, m)
		}
		key.Verify(mh, careOf, correspondent)
		shared.Verify(mh, careOf, home)

		if len(mh) < 8 {
			return
		}
		p := mobility(bytes.Clone(mh))
		m, err := ParseMobility(&p)
		if err != nil {
			var problem *Problem
			if errors.As(err, &problem) && problem.Pointer-HeaderLen > 1 {
				t.Fatalf("%v", problem)
			}
			return
		}
		written := m.Append(nil, home, correspondent)
		if len(written)%8 != 0 || len(written) != mobilityLen(written) {
			t.Fatalf("%d octets: %x", len(written), written)
		}
		parse := func(b []byte) Message {
			t.Helper()
			m, err := ParseMobility(&Packet{Src: home, Dst: correspondent, Protocol: Mobility, Payload: b})
			if err != nil {
				t.Fatalf("%x: %v", b, err)
			}
			return m
		}
		if again := parse(written); !reflect.DeepEqual(again, m) {
			t.Fatalf("%+v became %+v", m, again)
		}
		switch m.(type) {
		case *BindingUpdate, *BindingAck:
			b := key.Sign(nil, m, home, correspondent, careOf, correspondent)
			if parse(b); !key.Verify(b, careOf, correspondent) {
				t.Fatalf("%x does not verify", b)
			}
			b = shared.Sign(nil, m, 300, home, correspondent, careOf, home)
			if parse(b); !shared.Verify(b, careOf, home) {
				t.Fatalf("%x does not verify", b)
			}
		}
	})
}

// Likewise for ICMPv6.
func FuzzParseICMP(f *testing.F) {
	for _, m := range icmpMessages {
		f.Add(unhex(f, m.hex))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = ParseICMP(&Packet{HopLimit: 255, Src: home, Dst: correspondent, Protocol: ICMPv6, Payload: b})
		if len(b) < 8 {
			return
		}
		p := icmp(home, correspondent, bytes.Clone(b))
		m, err := ParseICMP(&p)
		if err != nil || m == nil {
			return
		}
		p.Payload = m.Append(nil, home, correspondent)
		if len(p.Payload) > len(b) {
			t.Fatalf("%d octets became %d", len(b), len(p.Payload))
		}
		again, err := ParseICMP(&p)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(again, m) {
			t.Fatalf("%+v became %+v", m, again)
		}
	})
}

// What goes into a tunnel comes out; an error about it is a packet of at most
// 1280 octets, and is not answered by another.
func FuzzTunnel(f *testing.F) {
	for _, name := range captures {
		for _, c := range readPcap(f, name) {
			f.Add(c.b, uint8(2), uint32(1400))
		}
	}
	f.Fuzz(func(t *testing.T, inner []byte, kind uint8, param uint32) {
		given := bytes.Clone(inner)
		relayed, ok := AppendRelayed(nil, agent, &ICMPError{Kind: ErrorKind(kind), Param: param, Quoted: inner})
		if ok {
			isError(t, relayed)
		}
		outer, err := AppendTunnel(nil, agent, careOf, inner)
		if !bytes.Equal(inner, given) {
			t.Fatal("the packet was changed")
		}
		if err != nil {
			if len(outer) != 0 {
				t.Fatalf("%v, but %x", err, outer)
			}
			return
		}
		p, err := ParsePacket(outer)
		if err != nil {
			t.Fatal(err)
		}
		out, err := p.Inner()
		if err != nil {
			t.Fatal(err)
		}
		out = bytes.Clone(out)
		out[7]++
		if !bytes.Equal(out, inner[:len(out)]) || len(outer) != len(out)+TunnelLen {
			t.Fatalf("%x became %x", inner, out)
		}
		b, ok := AppendError(nil, agent, ErrorKind(1+kind%4), 0, param, outer, false)
		if !ok {
			t.Fatal("no error about a tunnel packet")
		}
		if relayed, ok := AppendRelayed(nil, agent, isError(t, b)); ok {
			isError(t, relayed)
			if dst := netip.AddrFrom16([16]byte(relayed[24:])); dst != netip.AddrFrom16([16]byte(inner[8:])) {
				t.Fatalf("told %v", dst)
			}
		}
	})
}

// isError checks a packet that has an ICMPv6 error, and returns the error.
func isError(t *testing.T, b []byte) *ICMPError {
	t.Helper()
	p, err := ParsePacket(b)
	if err != nil || len(b) > MinMTU {
		t.Fatalf("%d octets: %x: %v", len(b), b, err)
	}
	m, err := ParseICMP(&p)
	if err != nil {
		t.Fatalf("%x: %v", b, err)
	}
	if _, ok := AppendError(nil, careOf, Unreachable, 0, 0, b, true); ok {
		t.Fatalf("%x: an error about an error", b)
	}
	return m.(*ICMPError)
}
