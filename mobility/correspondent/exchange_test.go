package correspondent

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// peerNode is a mobile node that sends again what is not answered, as RFC 6275
// section 11.8 says: tests as they are, a Binding Update with the next sequence
// number, or the one after that which status 135 tells.
type peerNode struct {
	*mobile
	wanted bu // what it wants the correspondent to know
	acked  bool
	trips  int
}

func (n *peerNode) handle(got []packet) {
	for _, p := range got {
		switch m := p.mh.(type) {
		case *wire.HomeTest:
			n.homeIndex, n.homeToken = m.NonceIndex, m.Token
		case *wire.CareOfTest:
			n.careIndex, n.careToken = m.NonceIndex, m.Token
		case *wire.BindingAck:
			switch {
			case m.Status == wire.Accepted && m.Sequence == n.sequence:
				n.acked = true
			case m.Status == wire.SequenceOutOfWindow && int16(m.Sequence-n.sequence) >= 0:
				n.sequence = m.Sequence
			case m.Status == wire.ExpiredHomeNonce || m.Status == wire.ExpiredCareOfNonce || m.Status == wire.ExpiredNonces:
				n.homeToken, n.careToken = wire.Token{}, wire.Token{}
			}
		}
	}
}

// next is what it would send now; nil: it is content.
func (n *peerNode) next() []byte {
	switch {
	case n.acked:
		return nil
	case n.careToken == wire.Token{}:
		return n.cotiPacket()
	case n.homeToken == wire.Token{}:
		return n.hotiPacket()
	}
	return n.updatePacket(n.wanted)
}

// A message of an exchange is lost, doubled or late, at each position and in
// each direction. In the end the mobile node has its acknowledgement, and the
// correspondent the binding that the mobile node wants.
func TestLostDoubledLate(t *testing.T) {
	ends := []struct {
		name   string
		wanted bu
		coa    netip.Addr
		bound  bool
	}{
		{"registration", good, coa1, true},
		{"handover", good, coa2, true},
		{"deregistration", leave, coa1, false},
		{"deregistration at home", atHome, coa1, false},
	}
	const messages = 6 // CoTI, CoT, HoTI, HoT, BU, BA
	for _, end := range ends {
		for _, fault := range []string{"lost", "doubled", "late", "very late"} {
			for at := range messages {
				t.Run(fmt.Sprintf("%s/%s/%d", end.name, fault, at), func(t *testing.T) {
					h := newHost(t, unlimited)
					n := &peerNode{mobile: h.mobile(), wanted: end.wanted}
					if end.name != "registration" {
						n.rr().bind(good)
						n.homeToken, n.careToken = wire.Token{}, wire.Token{}
					}
					n.coa = end.coa

					position := 0
					var lateIn [][]byte
					var lateOut [][]packet
					for n.next() != nil || len(lateIn)+len(lateOut) > 0 {
						if n.trips++; n.trips > 20 {
							t.Fatal("it does not end")
						}
						var got []packet
						if p := n.nextOrNil(); p != nil {
							here := position == at
							position++
							switch {
							case here && fault == "lost":
							case here && (fault == "late" || fault == "very late"):
								lateIn = append(lateIn, p)
							case here && fault == "doubled":
								got = append(h.receive(p), h.receive(p)...)
							default:
								got = h.receive(p)
							}
						}
						if len(got) > 0 {
							here := position == at
							position++
							switch {
							case here && fault == "lost":
								got = nil
							case here && (fault == "late" || fault == "very late"):
								lateOut = append(lateOut, got)
								got = nil
							case here && fault == "doubled":
								got = append(got, got...)
							}
						}
						n.handle(got)
						h.advance(time.Second)
						if fault == "late" || n.acked {
							for _, p := range lateIn {
								n.handle(h.receive(p))
							}
							for _, p := range lateOut {
								n.handle(p)
							}
							lateIn, lateOut = nil, nil
						}
					}
					if position <= at {
						t.Fatal("there was no such message")
					}
					careOf, ok := h.c.Lookup(cn, home)
					if ok != end.bound || ok && careOf != end.coa {
						t.Errorf("bound: %t, to %v", ok, careOf)
					}
				})
			}
		}
	}
}

// nextOrNil is next, without making a new Binding Update for nothing.
func (n *peerNode) nextOrNil() []byte {
	if n.acked {
		return nil
	}
	return n.next()
}

// Binding Updates of one mobile node arrive in any order, some never, some
// twice. After each, the cache says what the one with the greatest sequence
// number so far says.
func TestAnyOrder(t *testing.T) {
	r := random(t)
	for round := range 500 {
		m := newHost(t, unlimited).mobile()
		m.sequence = uint16(r.Uint32())
		coas := []netip.Addr{coa1, coa2, addr("2001:db8:c::1")}
		type update struct {
			packet []byte
			coa    netip.Addr // zero: deletes
		}
		var all []update
		m.hoti()
		for range 3 + r.IntN(6) {
			m.coa = coas[r.IntN(len(coas))]
			m.coti()
			switch r.IntN(4) {
			case 0:
				all = append(all, update{packet: m.updatePacket(leave)})
			case 1:
				all = append(all, update{packet: m.updatePacket(atHome)})
			default:
				all = append(all, update{m.updatePacket(good), m.coa})
			}
			if r.IntN(3) == 0 {
				m.advance(time.Duration(r.IntN(20)) * time.Second)
			}
		}
		newest := -1
		for range 2 * len(all) {
			i := r.IntN(len(all))
			m.receive(all[i].packet)
			newest = max(newest, i)
			careOf, ok := m.c.Lookup(cn, home)
			if want := all[newest].coa; ok != want.IsValid() || careOf != want {
				t.Fatalf("round %d: after update %d of %d the binding is to %v, want %v", round, i, newest, careOf, want)
			}
			m.c.check(t)
		}
	}
}
