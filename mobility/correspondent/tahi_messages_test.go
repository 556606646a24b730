package correspondent

import (
	"net/netip"
	"slices"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

var addrNone netip.Addr

var tahiNormal = []tahiCase{
	{"CN-1-1 - Normal Test - Return Routability", func(m *mobile) {
		hot := only[*wire.HomeTest](m.t, m.receive(m.hotiPacket()), cn, home, addrNone)
		cot := only[*wire.CareOfTest](m.t, m.receive(m.cotiPacket()), cn, coa1, addrNone)
		if hot.Cookie[6] != byte(wire.TypeHomeTestInit) || cot.Cookie[6] != byte(wire.TypeCareOfTestInit) {
			m.t.Fatal("the cookies are not those of the tests")
		}
	}},
	{"CN-1-2 - Normal Test - Binding Update", func(m *mobile) {
		m.rr().bind(good)
	}},
	{"CN-1-3 - Normal Test - Route Optimization", func(m *mobile) {
		m.rr().bind(good)
		m.bound()
	}},
}

// nonceIndices is a Nonce Indices option with padding to 8 octets.
var nonceIndices = []byte{4, 4, 0, 1, 0, 2, 1, 0}

// altCareOf is an Alternate Care-of Address option for an offset of 8n, with
// padding before it.
func altCareOf(a netip.Addr) []byte {
	a16 := a.As16()
	return append([]byte{1, 4, 0, 0, 0, 0, 3, 16}, a16[:]...)
}

func setLen(n byte) func([]byte) []byte {
	return func(mh []byte) []byte { mh[1] = n; return mh }
}

// initCases are those of Home and Care-of Test Inits alike.
func initCase(kind wire.Type, src netip.Addr, change func([]byte)) func(m *mobile) []packet {
	return func(m *mobile) []packet {
		mh := testInit(kind)
		change(mh)
		return m.receive(m.packet(src, addrNone, mh))
	}
}

var tahiMessages = []tahiCase{
	// 2.1. Receiving HoTI
	{"CN-2-1-1 - Receiving HoTI - Invalid Mobility Option (Nonce Indices option)", func(m *mobile) {
		got := m.receive(m.packet(home, addrNone, testInit(wire.TypeHomeTestInit, nonceIndices...)))
		only[*wire.HomeTest](m.t, got, cn, home, addrNone)
	}},
	{"CN-2-1-2 - Receiving HoTI - Home Address option", func(m *mobile) {
		silence(m.t, m.receive(m.packet(coa1, home, testInit(wire.TypeHomeTestInit))))
	}},
	{"CN-2-1-3 - Receiving HoTI - Invalid Mobility Header Len", func(m *mobile) {
		problem(m.t, initCase(wire.TypeHomeTestInit, home, func(b []byte) { b[1] = 0 })(m), home, 41)
	}},
	{"CN-2-1-4 - Receiving HoTI - Invalid Mobility Header Reserved", func(m *mobile) {
		got := initCase(wire.TypeHomeTestInit, home, func(b []byte) { b[3], b[6], b[7] = 0xff, 0xff, 0xff })(m)
		only[*wire.HomeTest](m.t, got, cn, home, addrNone)
	}},
	{"CN-2-1-5 - Receiving HoTI - Invalid Mobility Header Payload Proto", func(m *mobile) {
		problem(m.t, initCase(wire.TypeHomeTestInit, home, func(b []byte) { b[0] = 0xff })(m), home, 40)
	}},
	{"CN-2-1-6 - Receiving HoTI - Invalid Mobility Header Checksum", func(m *mobile) {
		p := m.hotiPacket()
		p[44] ^= 1
		silence(m.t, m.receive(p))
	}},

	// 2.2. Receiving CoTI
	{"CN-2-2-1-1 - Receiving CoTI - Invalid Mobility Option (Nonce Indices option)", func(m *mobile) {
		got := m.receive(m.packet(coa1, addrNone, testInit(wire.TypeCareOfTestInit, nonceIndices...)))
		only[*wire.CareOfTest](m.t, got, cn, coa1, addrNone)
	}},
	{"CN-2-2-1-2 - Receiving CoTI - Invalid Mobility Option (Alternate Care-of Address option)", func(m *mobile) {
		got := m.receive(m.packet(coa1, addrNone, testInit(wire.TypeCareOfTestInit, altCareOf(coa2)...)))
		only[*wire.CareOfTest](m.t, got, cn, coa1, addrNone)
	}},
	{"CN-2-2-2 - Receiving CoTI - Home Address option", func(m *mobile) {
		silence(m.t, m.receive(m.packet(coa1, home, testInit(wire.TypeCareOfTestInit))))
	}},
	{"CN-2-2-3 - Receiving CoTI - Invalid Mobility Header Len", func(m *mobile) {
		problem(m.t, initCase(wire.TypeCareOfTestInit, coa1, func(b []byte) { b[1] = 0 })(m), coa1, 41)
	}},
	{"CN-2-2-4 - Receiving CoTI - Invalid Mobility Header Reserved", func(m *mobile) {
		got := initCase(wire.TypeCareOfTestInit, coa1, func(b []byte) { b[3], b[6], b[7] = 0xff, 0xff, 0xff })(m)
		only[*wire.CareOfTest](m.t, got, cn, coa1, addrNone)
	}},
	{"CN-2-2-5 - Receiving CoTI - Invalid Mobility Header Payload Proto", func(m *mobile) {
		problem(m.t, initCase(wire.TypeCareOfTestInit, coa1, func(b []byte) { b[0] = 0xff })(m), coa1, 40)
	}},
	{"CN-2-2-6 - Receiving CoTI - Invalid Mobility Header Checksum", func(m *mobile) {
		p := m.cotiPacket()
		p[44] ^= 1
		silence(m.t, m.receive(p))
	}},

	// 2.3. Receiving BU
	{"CN-2-3-1-1 - Receiving BU - Invalid Mobility Option (Binding Refresh Advice option)", func(m *mobile) {
		m.rr().bind(bu{options: []byte{2, 2, 0, 7, 1, 2, 0, 0}})
		m.bound()
	}},
	{"CN-2-3-1-2 - Receiving BU - Invalid Mobility Option (Invalid alignment of Mobility Options)", func(m *mobile) {
		m.rr()
		silence(m.t, m.send(bu{mangle: func(mh []byte) []byte {
			mh = append(mh, altCareOf(coa1)...)
			mh[1] += 3
			return mh
		}}))
		silence(m.t, m.send(bu{noNonces: true, mangle: func(mh []byte) []byte {
			indices := []byte{4, 4, byte(m.homeIndex >> 8), byte(m.homeIndex), byte(m.careIndex >> 8), byte(m.careIndex), 1, 0}
			mh = append(mh, indices...)
			mh[1]++
			return mh
		}}))
		m.unbound()
	}},
	{"CN-2-3-2 - Receiving BU - Two Home Address options", func(m *mobile) {
		m.rr()
		p := m.updatePacket(good)
		second := slices.Clone(p[40:64]) // the destination options header once more
		second[0] = byte(wire.DestOptions)
		p = slices.Insert(p, 40, second...)
		p[5] += 24
		silence(m.t, m.receive(p))
		m.unbound()
	}},
	{"CN-2-3-3 - Receiving BU - Invalid Mobility Header Len", func(m *mobile) {
		m.rr()
		problem(m.t, m.send(bu{mangle: setLen(0)}), coa1, 65)
		m.unbound()
	}},
	{"CN-2-3-4 - Receiving BU - Invalid Mobility Header Reserved", func(m *mobile) {
		m.rr().bind(bu{remake: func(mh []byte) { mh[3] = 0xff }})
		m.bound()
	}},
	{"CN-2-3-5 - Receiving BU - Invalid Mobility Header Payload Proto", func(m *mobile) {
		m.rr()
		problem(m.t, m.send(bu{remake: func(mh []byte) { mh[0] = 0xff }}), coa1, 64)
		m.unbound()
	}},
	{"CN-2-3-6 - Receiving BU - Invalid Mobility Header Checksum", func(m *mobile) {
		p := m.rr().updatePacket(good)
		p[64+4] ^= 1
		silence(m.t, m.receive(p))
		m.unbound()
	}},
	{"CN-2-3-7 - Receiving BU - (L)bit is set", func(m *mobile) {
		m.rr().bind(bu{BindingUpdate: wire.BindingUpdate{LinkLocal: true}})
		m.bound()
	}},
	{"CN-2-3-8 - Receiving BU - (K)bit is set", func(m *mobile) {
		ack := m.rr().bind(bu{BindingUpdate: wire.BindingUpdate{KeyManagement: true}})
		if ack.KeyManagement {
			m.t.Fatal("the K bit is set in the acknowledgement of a correspondent")
		}
		m.bound()
	}},
	{"CN-2-3-9 - Receiving BU - Invalid Reserved after (K)bit", func(m *mobile) {
		m.rr().bind(bu{remake: func(mh []byte) { mh[8] |= 0x0f; mh[9] = 0xff }})
		m.bound()
	}},
	{"CN-2-3-10-1 - Receiving BU - Not include Nonce Indices option (Registration)", func(m *mobile) {
		silence(m.t, m.rr().send(bu{noNonces: true}))
		m.unbound()
	}},
	{"CN-2-3-10-2 - Receiving BU - Not include Nonce Indices option (De-Registration)", func(m *mobile) {
		m.rr().bind(good)
		m.hoti()
		leave := fromHome
		leave.lifetime, leave.noNonces = -1, true
		silence(m.t, m.send(leave))
		m.bound()
	}},
	{"CN-2-3-11 - Receiving BU - Invalid Binding Authorization Data option", func(m *mobile) {
		m.rr()
		silence(m.t, m.send(bu{noAuth: true}))
		silence(m.t, m.send(bu{mangle: func(mh []byte) []byte {
			mh[1]++
			return append(mh, 1, 6, 0, 0, 0, 0, 0, 0)
		}}))
		silence(m.t, m.send(bu{mangle: func(mh []byte) []byte { mh[len(mh)-1] ^= 1; return mh }}))
		m.unbound()
	}},

	// 2.4. Receiving mobility message
	{"CN-2-4-1 - Receiving mobility message - Invalid MH Type", func(m *mobile) {
		bindingError(m.t, initCase(8, home, func([]byte) {})(m), wire.UnknownMHType, home, netip.IPv6Unspecified())
		silence(m.t, initCase(8, group, func([]byte) {})(m))
		got := m.rr().send(bu{mangle: func(mh []byte) []byte { mh[2] = 8; return mh }})
		bindingError(m.t, got, wire.UnknownMHType, coa1, home)
	}},
	{"CN-2-4-2 - RR for two addresses", func(m *mobile) {
		for range 2 {
			m.rr() // checks that the tests come from the address the inits went to
			m.local = cn2
		}
	}},

	// 2.5. Receiving BU with (A)bit is cleared
	{"CN-2-5-1 - Receiving BU with (A)bit is cleared - BU accepted", func(m *mobile) {
		silence(m.t, m.rr().send(bu{noAck: true}))
		m.bound()
	}},
	{"CN-2-5-2 - Receiving BU with (A)bit is cleared - Sequence number out of window", func(m *mobile) {
		m.rr().bind(good)
		again := bu{noAck: true, again: true}
		ack := m.signedAck(m.send(again), wire.SequenceOutOfWindow, coa1, home, &again)
		if ack.Sequence != m.sequence {
			m.t.Fatalf("sequence number %d is not the stored one, %d", ack.Sequence, m.sequence)
		}
	}},
	{"CN-2-5-3 - Receiving BU with (A)bit is cleared - Expired home nonce index", func(m *mobile) {
		m.hoti().advance(240 * time.Second)
		m.refused(m.coti().send(bu{noAck: true}), wire.ExpiredHomeNonce, coa1, home)
	}},
	{"CN-2-5-4 - Receiving BU with (A)bit is cleared - Expired care-of nonce index", func(m *mobile) {
		m.coti().advance(240 * time.Second)
		m.refused(m.hoti().send(bu{noAck: true}), wire.ExpiredCareOfNonce, coa1, home)
	}},
	{"CN-2-5-5 - Receiving BU with (A)bit is cleared - Expired nonces", func(m *mobile) {
		m.rr().advance(240 * time.Second)
		m.refused(m.send(bu{noAck: true}), wire.ExpiredNonces, coa1, home)
	}},

	// 2.6. Receiving BU with invalid address
	{"CN-2-6-1 - Receiving BU with invalid address - Source Address (Registration)", func(m *mobile) {
		m.rr()
		silence(m.t, m.send(bu{src: group}))
		silence(m.t, m.send(bu{src: linkLocal}))
		m.unbound()
	}},
	{"CN-2-6-2 - Receiving BU with invalid address - Home Address (Registration)", func(m *mobile) {
		m.rr()
		silence(m.t, m.send(bu{option: group}))
		silence(m.t, m.send(bu{option: linkLocal}))
		m.unbound()
	}},
	{"CN-2-6-3 - Receiving BU with invalid address - Alternate Care-of Address (Registration)", func(m *mobile) {
		m.rr()
		silence(m.t, m.send(bu{BindingUpdate: wire.BindingUpdate{AltCareOf: group}}))
		silence(m.t, m.send(bu{BindingUpdate: wire.BindingUpdate{AltCareOf: linkLocal}}))
		m.unbound()
	}},
	{"CN-2-6-4 - Receiving BU with invalid address - Source Address (De-Registration)", func(m *mobile) {
		m.rr().bind(good)
		m.bound().hoti()
		for _, src := range []netip.Addr{group, linkLocal} {
			leave := fromHome
			leave.src, leave.lifetime = src, -1
			silence(m.t, m.send(leave))
		}
		m.replied(m.pingFrom(home, addrNone), coa1, home)
	}},
	{"CN-2-6-5 - Receiving BU with invalid address - Alternate Care-of Address (De-Registration)", func(m *mobile) {
		m.rr().bind(good)
		m.bound().hoti()
		for _, alternate := range []netip.Addr{group, linkLocal} {
			leave := fromHome
			leave.AltCareOf, leave.lifetime = alternate, -1
			silence(m.t, m.send(leave))
		}
		m.replied(m.pingFrom(home, addrNone), coa1, home)
	}},
}
