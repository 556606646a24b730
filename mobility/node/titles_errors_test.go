package node

import (
	"net/netip"
	"testing"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

var none netip.Addr

// answerTo is an answer that a node expects, by its name, and whether it comes
// through the tunnel. The node is left waiting for it.
func (r *rig) answerTo(name string) (b []byte, tunneled bool) {
	r.Helper()
	switch name {
	case "BA":
		r.do(Register{})
		r.n.reg.pending, r.n.reg.next = true, r.now+time.Hour
		return mobility(addrAgent, addrA, none, &wire.BindingAck{Sequence: r.n.reg.seq}), false
	case "HoT":
		r.do(Optimise{addrC})
		return r.reply(r.one("HoTI")), true
	case "CoT":
		r.do(Optimise{addrC})
		return r.reply(r.one("CoTI")), false
	}
	r.Fatalf("no answer %s", name)
	return
}

func (r *rig) arrive(b []byte, tunneled bool) {
	r.Helper()
	if tunneled {
		r.tunneled(b)
	} else {
		r.receive(b)
	}
}

func testUnknownType(name string) func(*testing.T) {
	return func(t *testing.T) {
		r := contactRig(t)
		b, tunneled := r.answerTo(name)
		bad := rewrite(b, func(mh []byte) { mh[2] = 20 })
		r.arrive(bad, tunneled)
		r.want("BE")
		be := r.sent[0]
		m := be.m.(*wire.BindingError)
		if m.Status != wire.UnknownMHType || m.Home != netip.IPv6Unspecified() {
			t.Errorf("%+v", m)
		}
		if be.via.IsValid() != tunneled || be.Home.IsValid() {
			t.Errorf("via %v, home address %v", be.via, be.Home)
		}
		// A flood of them is not answered by a flood.
		count := 0
		for range 1000 {
			r.arrive(bad, tunneled)
			count += len(r.sent)
		}
		if count > 9 {
			t.Errorf("%d Binding Errors at once", count)
		}
	}
}

func testBindingError1(t *testing.T) {
	r := boundRig(t)
	r.receive(mobility(addrC, addrA, none, &wire.BindingError{Status: wire.UnknownBinding, Home: addrHome}))
	r.wantEvents("unbound, lost")
	r.want("BU", "HoTI", "CoTI") // in case that the client has started anew
	r.answer(r.sent[0])
	r.wantEvents("bound", "confirmed")
	r.wait(time.Minute)
	r.want()

	// One about another home address is none of ours.
	r = boundRig(t)
	r.receive(mobility(addrC, addrA, none, &wire.BindingError{Status: wire.UnknownBinding, Home: addrD}))
	r.wantEvents()
	r.want()
}

func testBindingError2(after string) func(*testing.T) {
	return func(t *testing.T) {
		r := contactRig(t)
		r.do(Optimise{addrC})
		dst, tunneled := addrA, false
		switch after {
		case "HoTI":
			dst, tunneled = addrHome, true
		case "BU":
			r.testsDone()
			r.want("BU")
		}
		r.arrive(mobility(addrC, dst, none, &wire.BindingError{Status: wire.UnknownMHType, Home: netip.IPv6Unspecified()}), tunneled)
		r.wantEvents("unsupported, not spoken")
		r.wait(time.Minute)
		r.want()
		r.wantState(Unable)
	}
}

func testBindingError2Unexpected(t *testing.T) {
	r := boundRig(t)
	r.receive(mobility(addrC, addrA, none, &wire.BindingError{Status: wire.UnknownMHType, Home: netip.IPv6Unspecified()}))
	r.wantEvents()
	r.wait(32 * time.Second)
	r.want()
	r.wantState(Established)
}

func testBindingError2Unknown(t *testing.T) {
	r := boundRig(t)
	r.receive(mobility(addrD, addrA, none, &wire.BindingError{Status: wire.UnknownMHType, Home: netip.IPv6Unspecified()}))
	r.wantEvents()
	r.wantState(Established)
}

// An octet of the mobility header is wrong: the answer points to it.
func testProblem(name string, octet int, pointer uint32) func(*testing.T) {
	return func(t *testing.T) {
		r := contactRig(t)
		b, tunneled := r.answerTo(name)
		bad := rewrite(b, func(mh []byte) {
			if octet == 0 {
				mh[0] = byte(wire.TCP)
			} else {
				mh[1] = 0
			}
		})
		if octet == 1 {
			// The whole header is shorter then.
			p, err := wire.ParsePacket(bad)
			if err != nil {
				t.Fatal(err)
			}
			p.Payload = p.Payload[:8]
			setChecksum(&p)
			bad = mustAppend(&p)
		}
		r.arrive(bad, tunneled)
		r.want("ICMP")
		s := r.sent[0]
		if s.icmp == nil || s.icmp.Kind != wire.ParameterProblem || s.icmp.Code != 0 || s.icmp.Param != pointer {
			t.Fatalf("%+v", s.icmp)
		}
		if s.via.IsValid() != tunneled {
			t.Errorf("via %v", s.via)
		}
		r.wantEvents()
	}
}

func testChecksum(name string) func(*testing.T) {
	return func(t *testing.T) {
		r := contactRig(t)
		b, tunneled := r.answerTo(name)
		bad := append([]byte(nil), b...)
		bad[len(bad)-1] ^= 1
		r.arrive(bad, tunneled)
		r.want()
		r.wantEvents()
	}
}

func testParameterProblem(after string) func(*testing.T) {
	return func(t *testing.T) {
		r := contactRig(t)
		r.do(Optimise{addrC})
		s := r.sent[0]
		switch after {
		case "CoTI":
			s = r.one("CoTI")
		case "BU":
			r.testsDone()
			s = r.one("BU")
		}
		// From elsewhere, or about a message that was never sent: ignored.
		r.arrive(icmpError(addrD, wire.ParameterProblem, 1, s.raw), s.via.IsValid())
		r.wantEvents()
		forged := rewrite(s.raw, func(mh []byte) {
			if after == "BU" {
				mh[6] ^= 0x10 // sequence number
			} else {
				mh[8] ^= 1 // cookie
			}
		})
		r.arrive(icmpError(addrC, wire.ParameterProblem, 1, forged), s.via.IsValid())
		r.wantEvents()

		r.arrive(icmpError(addrC, wire.ParameterProblem, 1, s.raw), s.via.IsValid())
		r.wantEvents("unsupported, not spoken")
		r.wait(time.Minute)
		r.want()
		r.do(Optimise{addrC})
		r.want()
		r.wantEvents("unsupported, not spoken")
	}
}

// An unreachable destination can be reachable again: nothing is concluded, and
// other clients are not concerned.
func testUnreachable(t *testing.T) {
	r := contactRig(t)
	r.do(Optimise{addrC})
	hoti, coti := r.one("HoTI"), r.one("CoTI")
	router := netip.MustParseAddr("2001:db8:ffff::1")
	r.tunneled(icmpError(router, wire.Unreachable, 3, hoti.raw))
	r.receive(icmpError(router, wire.Unreachable, 3, coti.raw))
	r.wantEvents()
	r.wantState(Testing)
	r.do(Optimise{addrD})
	r.want("HoTI", "CoTI")
	r.wait(time.Second)
	r.want("HoTI", "CoTI", "HoTI", "CoTI")
}

func testErrorStartsNothing(t *testing.T) {
	r := contactRig(t)
	about := data(wire.Packet{Src: addrHome, Dst: addrC})
	r.tunneled(icmpError(addrC, wire.Unreachable, 4, about))
	r.tunneled(icmpError(addrC, wire.ParameterProblem, 1, about))
	r.want()
	r.wantState(None)
}

// Code 2 about data is ignored, as RFC 6275 section 11.3.5 wants. But the
// client is asked whether it still knows what it acknowledged; one that is not
// a correspondent node any more says so.
func testOptionRefused(t *testing.T) {
	about := data(wire.Packet{Src: addrA, Dst: addrC, Home: addrHome})

	r := boundRig(t)
	r.receive(icmpError(addrC, wire.ParameterProblem, 2, about))
	r.wantEvents()
	r.want("BU")
	r.answer(r.sent[0])
	r.wantEvents("confirmed")

	r = boundRig(t)
	r.c.stock = true
	r.receive(icmpError(addrC, wire.ParameterProblem, 2, about))
	r.wantEvents()
	r.want("BU")
	r.answer(r.sent[0])
	r.wantEvents("unsupported, not spoken")

	r = boundRig(t)
	r.receive(icmpError(addrC, wire.ParameterProblem, 2, about))
	r.wait(time.Second)
	r.wantEvents("unbound, silent")

	// The quoted packet may be cut short, and is to be ours.
	r = boundRig(t)
	long := wire.Packet{Src: addrA, Dst: addrC, Home: addrHome, Protocol: wire.UDP, Payload: make([]byte, 1400)}
	r.receive(icmpError(addrC, wire.ParameterProblem, 2, mustAppend(&long)))
	r.want("BU")
	r = boundRig(t)
	r.receive(icmpError(addrC, wire.ParameterProblem, 2, data(wire.Packet{Src: addrA, Dst: addrC, Home: addrD})))
	r.want()
}

func testNotOurAddress(t *testing.T) {
	r := contactRig(t)
	r.do(Optimise{addrC})
	coti := r.one("CoTI").m.(*wire.CareOfTestInit)
	r.receive(mobility(addrC, addrB, none, &wire.CareOfTest{Cookie: coti.Cookie, NonceIndex: 1}))
	r.receive(mobility(addrC, addrB, addrHome, &wire.BindingRefreshRequest{}))
	r.want()
	r.wantEvents()
}

// routed is a packet with a type 2 routing header, for the tests to spoil.
func routed() []byte { return mobility(addrC, addrA, addrHome, &wire.BindingRefreshRequest{}) }

// RFC 6275 section 11.3.3: "If any of these checks fail, the node MUST silently
// discard the packet."
func testRoutingLength(t *testing.T)   { testRouting(t, 1, 3) }
func testRoutingSegments(t *testing.T) { testRouting(t, 3, 2) }

func testRouting(t *testing.T, octet int, value byte) {
	r := boundRig(t)
	b := routed()
	b[wire.HeaderLen+octet] = value
	r.receive(b)
	r.want()
	r.wantEvents()
}

func testRoutingHome(t *testing.T) {
	r := boundRig(t)
	r.receive(mobility(addrC, addrA, addrD, &wire.BindingRefreshRequest{}))
	r.want()
}

func testTunneledTestInit(t *testing.T) {
	r := contactRig(t)
	r.tunneled(mobility(addrC, addrHome, none, &wire.CareOfTestInit{}))
	r.tunneled(mobility(addrC, addrHome, none, &wire.HomeTestInit{}))
	r.want()
	r.wantState(None)
}
