package correspondent

import (
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// Chapter 4 of the suite: nonces that have expired, indices that never were,
// tokens that are wrong, each with a registration and with a deregistration from
// the foreign link and from home. The one from the foreign link has an
// Alternate Care-of Address option.

const expired = 240 * time.Second

// registered is a mobile node with a binding of 420 s.
func (m *mobile) registered() *mobile {
	m.t.Helper()
	m.rr().bind(good)
	return m.bound()
}

var tahiNonces = []tahiCase{
	{"CN-4-2-1 - Home Nonce Index timeout - Registration from the foreign link", func(m *mobile) {
		m.hoti().advance(expired)
		m.refused(m.coti().send(good), wire.ExpiredHomeNonce, coa1, home)
		m.unbound()
	}},
	{"CN-4-2-2 - Home Nonce Index timeout - De-Registration from the foreign link", func(m *mobile) {
		m.registered().hoti().advance(expired)
		m.refused(m.send(leaveAlternate), wire.ExpiredHomeNonce, coa1, home)
		m.bound()
	}},
	{"CN-4-2-3 - Home Nonce Index timeout - De-Registration from the home link", func(m *mobile) {
		m.registered().hoti().advance(expired)
		m.refused(m.send(atHome), wire.ExpiredHomeNonce, home, addrNone)
		m.bound()
	}},

	{"CN-4-3-1 - Care-of Nonce Index timeout - Registration from the foreign link", func(m *mobile) {
		m.coti().advance(expired)
		m.refused(m.hoti().send(good), wire.ExpiredCareOfNonce, coa1, home)
		m.unbound()
	}},
	{"CN-4-3-2 - Care-of Nonce Index timeout - De-Registration from the foreign link", func(m *mobile) {
		m.registered().coti().advance(expired)
		m.accepted(m.hoti().send(leaveAlternate), coa1, home, &leaveAlternate)
		m.unbound()
	}},
	{"CN-4-3-3 - Care-of Nonce Index timeout - De-Registration from the home link", func(m *mobile) {
		m.registered().coti().advance(expired)
		m.accepted(m.hoti().send(atHome), home, addrNone, &atHome)
		m.unbound()
	}},

	{"CN-4-8-1 - Home and Care-of Nonce Index timeout - Registration from the foreign link", func(m *mobile) {
		m.rr().advance(expired)
		m.refused(m.send(good), wire.ExpiredNonces, coa1, home)
		m.unbound()
	}},
	{"CN-4-8-2 - Home and Care-of Nonce Index timeout - De-Registration from the foreign link", func(m *mobile) {
		m.registered().rr().advance(expired)
		m.refused(m.send(leaveAlternate), wire.ExpiredHomeNonce, coa1, home)
		m.bound()
	}},
	{"CN-4-8-3 - Home and Care-of Nonce Index timeout - De-Registration from the home link", func(m *mobile) {
		m.registered().rr().advance(expired)
		m.refused(m.send(atHome), wire.ExpiredHomeNonce, home, addrNone)
		m.bound()
	}},

	{"CN-4-4-1 - Home Nonce Index error - Registration from the foreign link", func(m *mobile) {
		m.refused(m.rr().send(bu{homeIndex: 0xffff}), wire.ExpiredHomeNonce, coa1, home)
		m.unbound()
	}},
	{"CN-4-4-2 - Home Nonce Index error - De-Registration from the foreign link", func(m *mobile) {
		wrong := leaveAlternate
		wrong.homeIndex = 0xffff
		m.refused(m.registered().hoti().send(wrong), wire.ExpiredHomeNonce, coa1, home)
		m.bound()
	}},
	{"CN-4-4-3 - Home Nonce Index error - De-Registration from the home link", func(m *mobile) {
		wrong := atHome
		wrong.homeIndex = 0xffff
		m.refused(m.registered().hoti().send(wrong), wire.ExpiredHomeNonce, home, addrNone)
		m.bound()
	}},

	{"CN-4-5-1 - Care-of Nonce Index error - Registration from the foreign link", func(m *mobile) {
		m.refused(m.rr().send(bu{careIndex: 0xffff}), wire.ExpiredCareOfNonce, coa1, home)
		m.unbound()
	}},
	{"CN-4-5-2 - Care-of Nonce Index error - De-Registration from the foreign link", func(m *mobile) {
		any := leaveAlternate
		any.careIndex = 0xffff
		m.accepted(m.registered().hoti().send(any), coa1, home, &any)
		m.unbound()
	}},
	{"CN-4-5-3 - Care-of Nonce Index error - De-Registration from the home link", func(m *mobile) {
		any := atHome
		any.careIndex = 0xffff
		m.accepted(m.registered().hoti().send(any), home, addrNone, &any)
		m.unbound()
	}},

	{"CN-4-9-1 - Home and Care-of Nonce Indeices error - Registration from the foreign link", func(m *mobile) {
		m.refused(m.rr().send(bu{homeIndex: 0xffff, careIndex: 0xffff}), wire.ExpiredNonces, coa1, home)
		m.unbound()
	}},
	{"CN-4-9-2 - Home and Care-of Nonce Indeices error - De-Registration from the foreign link", func(m *mobile) {
		wrong := leaveAlternate
		wrong.homeIndex, wrong.careIndex = 0xffff, 0xffff
		m.refused(m.registered().hoti().send(wrong), wire.ExpiredHomeNonce, coa1, home)
		m.bound()
	}},
	{"CN-4-9-3 - Home and Care-of Nonce Indeices error - De-Registration from the home link", func(m *mobile) {
		wrong := atHome
		wrong.homeIndex, wrong.careIndex = 0xffff, 0xffff
		m.refused(m.registered().hoti().send(wrong), wire.ExpiredHomeNonce, home, addrNone)
		m.bound()
	}},

	{"CN-4-11 - Generation of nonces", func(m *mobile) {
		first := m.rr().careIndex
		for m.careIndex == first {
			m.advance(time.Second)
			m.coti()
		}
		first = m.hoti().homeIndex
		for m.homeIndex == first {
			m.advance(time.Second)
			m.hoti()
		}
		if m.now > time.Hour+expired {
			m.t.Fatalf("it took %v", m.now-time.Hour)
		}
	}},
	{"CN-4-12-1 - Indices not recent but valid - Registration from the foreign link", func(m *mobile) {
		m.notRecent()
		m.bind(good)
		m.bound()
	}},
	{"CN-4-12-2 - Indices not recent but valid - De-Registration from the foreign link", func(m *mobile) {
		m.registered().notRecent()
		m.accepted(m.send(leaveAlternate), coa1, home, &leaveAlternate)
		m.unbound()
	}},
	{"CN-4-12-3 - Indices not recent but valid - De-Registration from the home link", func(m *mobile) {
		m.registered().notRecent()
		m.accepted(m.send(atHome), home, addrNone, &atHome)
		m.unbound()
	}},
}

// notRecent gets tokens, and waits until others would be given.
func (m *mobile) notRecent() {
	m.t.Helper()
	m.rr()
	other := *m
	for other.homeIndex == m.homeIndex || other.careIndex == m.careIndex {
		other.advance(time.Second)
		other.rr()
	}
	if m.now > time.Hour+210*time.Second {
		m.t.Fatalf("it took %v", m.now-time.Hour)
	}
}

// wrong is b, signed as if a keygen token was all ones.
func (m *mobile) wrong(b bu, homeToken bool) bu {
	ones := wire.Token{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	key := wire.NewBindingKey(m.homeToken, ones)
	if homeToken {
		key = wire.NewBindingKey(ones, m.careToken)
		if b.lifetime < 0 {
			key = wire.DeleteKey(ones)
		}
	}
	b.key = &key
	return b
}

var tahiTokens = []tahiCase{
	{"CN-4-6-1 - Home Keygen Token error - Registration from the foreign link", func(m *mobile) {
		m.rr()
		silence(m.t, m.send(m.wrong(good, true)))
		m.unbound()
	}},
	{"CN-4-6-2 - Home Keygen Token error - De-Registration from the foreign link", func(m *mobile) {
		m.registered().hoti()
		silence(m.t, m.send(m.wrong(leaveAlternate, true)))
		m.bound()
	}},
	{"CN-4-6-3 - Home Keygen Token error - De-Registration from the home link", func(m *mobile) {
		m.registered().hoti()
		silence(m.t, m.send(m.wrong(atHome, true)))
		m.bound()
	}},
	{"CN-4-7-1 - Care-of Keygen Token error - Registration from the foreign link", func(m *mobile) {
		m.rr()
		silence(m.t, m.send(m.wrong(good, false)))
		m.unbound()
	}},
}
