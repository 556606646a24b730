package homeagent

import (
	"fmt"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// accepted is that the answer to a Binding Update is yes, in the way of the link.
func (s *scene) accepted(n uint16, life time.Duration) {
	s.Helper()
	ba := fmt.Sprintf("send: BA 0 #%d %v to coa1 for home", n, life)
	if !s.real() {
		s.want(ba)
		return
	}
	s.want("join ff02::1:ff00:1234", "link: NS home")
	s.wait(dad - 1)
	s.silence()
	s.wait(1)
	s.want("link: NA home to all O", ba)
}

var tahiHeaders = []tahiCase{
	{"HA_0_0_0 Initialization and general configuration", false, func(s *scene) {
		if _, ok := s.m.NextDeadline(); ok {
			s.Error("there is something to be done")
		}
		s.away(home)
	}},
	{"HA_1_1_1 Unrecognized MH Type value", false, unknownType},
	{"HA_1_1_2 Receiving invalid BU (piggybacking)", false, piggybacking},
	{"HA_1_1_3 Receiving invalid BU (invalid checksum)", false, wrongChecksum},
	{"HA_1_1_4 Receiving invalid BU (invalid header length)", false, wrongLength},
	{"HA_1_1_5 Unrecognized MH Type value w/ BCE", false, withBinding(unknownType)},
	{"HA_1_1_6 Receiving invalid BU (piggybacking) w/ BCE", false, withBinding(piggybacking)},
	{"HA_1_1_7 Receiving invalid BU (invalid header length) w/ BCE", false, withBinding(wrongLength)},
	{"HA_1_1_8 Receiving invalid BU (invalid checksum)", true, wrongChecksum},
	{"HA_1_1_9 Receiving invalid BU (piggybacking)", true, piggybacking},
	{"HA_1_1_10 Receiving invalid BU (invalid header length)", true, wrongLength},
}

func withBinding(run func(*scene)) func(*scene) {
	return func(s *scene) {
		s.bind(seq(1, long))
		run(s)
		s.bound(home, coa1)
	}
}

func unknownType(s *scene) {
	u := seq(15, long)
	u.edit = func(mh []byte) { mh[2] = 99 }
	s.update(u)
	s.want("send: BE 2 home to coa1")
	u.noHAO, u.home, u.key = true, coa1, secret
	s.update(u)
	s.want("send: BE 2 :: to coa1")
}

// Behind the IPv6 header and 24 octets with the Home Address option.
func piggybacking(s *scene) {
	u := seq(15, long)
	u.edit = func(mh []byte) { mh[0] = byte(wire.ICMPv6) }
	s.update(u)
	s.want("send: ICMP error 4/0 64 to coa1")
}

func wrongLength(s *scene) {
	u := seq(15, long)
	u.spoil = func(mh []byte) { mh[1] = 0 }
	s.update(u)
	s.want("send: ICMP error 4/0 65 to coa1")
}

func wrongChecksum(s *scene) {
	b := s.packet(seq(15, long))
	b[40+24+4] ^= 1
	s.receive(b)
	s.wait(dad)
	s.silence()
}

var tahiRegistration = []tahiCase{
	{"HA_2_1_1 Receiving valid BU A=1", false, validUpdate(true)},
	{"HA_2_1_2 Receiving valid BU A=0", false, validUpdate(false)},
	{"HA_2_1_3 Decrease lifetime", false, decreaseLifetime},
	{"HA_2_1_4 Lifetime expired", false, expired},
	{"HA_2_1_5 Receiving valid BU A=1", true, validUpdate(true)},
	{"HA_2_1_6 Receiving valid BU A=0", true, validUpdate(false)},
	{"HA_2_1_7 Decrease lifetime", true, decreaseLifetime},
	{"HA_2_1_8 Lifetime expired", true, expired},
	{"HA_2_1_9 Comparison of binding lifetime and prefix lifetime", false, func(s *scene) {
		// What is left of the prefix's lifetimes, in units of 4 s, against the binding's.
		for i, test := range []struct {
			valid, preferred, wanted, granted time.Duration
			status                            wire.Status
		}{
			{103 * time.Second, 0, 400 * time.Second, 100 * time.Second, 1}, // ends with the prefix
			{103 * time.Second, 0, 96 * time.Second, 96 * time.Second, 0},
			{103 * time.Second, 0, 100 * time.Second, 100 * time.Second, 1},
			{800 * time.Second, 40 * time.Second, 400 * time.Second, 400 * time.Second, 1}, // deprecated meanwhile
			{800 * time.Second, 403 * time.Second, 400 * time.Second, 400 * time.Second, 0},
			{800 * time.Second, -1, 400 * time.Second, 400 * time.Second, 1}, // deprecated now
			{0, 0, 400 * time.Second, 400 * time.Second, 0},
		} {
			s.wait(time.Second)
			s.step(SetPrefixes{[]Prefix{{s.cfg.Prefixes[0].Prefix, test.valid, test.preferred}}})
			s.forget()
			s.update(seq(uint16(i), test.wanted))
			if i == 0 {
				// By the end of Duplicate Address Detection there are 102 s left.
				s.wait(dad)
				s.log = s.log[3:]
			}
			s.want(fmt.Sprintf("send: BA %d #%d %v to coa1 for home", test.status, i, test.granted))
		}
	}},
	{"HA_2_1_10 Receiving valid BU K=0", false, validUpdate(true)},
	{"HA_2_1_11 Receiving valid BU K=1", false, keyManagement},
	{"HA_2_1_12 Receiving valid BU K=0", true, validUpdate(true)},
	{"HA_2_1_13 Receiving valid BU K=1", true, keyManagement},
	{"HA_2_1_14 Receiving suspicious BU non-zero reserved field", false, reservedField},
	{"HA_2_1_15 Receiving suspicious BU non-zero reserved field", true, reservedField},
}

// validUpdate: the answer of a home agent does not depend on A.
func validUpdate(ack bool) func(*scene) {
	return func(s *scene) {
		u := seq(15, long)
		u.Ack = ack
		s.update(u)
		s.accepted(15, long)
		s.bound(home, coa1)
	}
}

func decreaseLifetime(s *scene) {
	s.cfg.MaxLifetime = 62 * time.Second
	s.m = s.agent(s.cfg)
	s.update(seq(15, long))
	s.accepted(15, 60*time.Second) // ours, in units of 4 s
	s.update(seq(16, 8*time.Second))
	s.want("send: BA 0 #16 8s to coa1 for home")
	s.wait(8*time.Second - 1)
	s.bound(home, coa1)
	s.wait(1)
	s.away(home)
}

func expired(s *scene) {
	s.update(seq(15, 40*time.Second))
	s.accepted(15, 40*time.Second)
	s.wait(40*time.Second - 1)
	s.bound(home, coa1)
	s.wait(1)
	if s.real() {
		s.want("leave ff02::1:ff00:1234")
	}
	s.away(home)
}

func keyManagement(s *scene) {
	u := seq(15, long)
	u.KeyManagement = true
	s.update(u)
	s.accepted(15, long)
}

func reservedField(s *scene) {
	u := seq(15, long)
	u.edit = func(mh []byte) { mh[3], mh[8], mh[9] = 0xff, mh[8]|0x0f, 0xff }
	s.update(u)
	s.accepted(15, long)
	s.bound(home, coa1)
}

var tahiRefusal = []tahiCase{
	{"HA_2_2_1 Receiving invalid BU (Not home subnet) A=1", false, notHomeSubnet(true)},
	{"HA_2_2_2 Receiving invalid BU (Not home subnet) A=0", false, notHomeSubnet(false)},
	{"HA_2_2_3 Receiving invalid BU (unauthorization)", false, unauthorized},
	{"HA_2_2_4 Receiving invalid BU (Not home subnet) A=1", true, notHomeSubnet(true)},
	{"HA_2_2_5 Receiving invalid BU (Not home subnet) A=0", true, notHomeSubnet(false)},
	{"HA_2_2_6 Receiving invalid BU (unauthorization)", true, unauthorized},
	{"HA_2_2_7 Receiving invalid BU w/ Nonce Indices option", false, nonceIndices},
	{"HA_2_2_8 Receiving invalid BU w/ Nonce Indices option", true, nonceIndices},
	{"HA_2_2_9 Receiving invalid BU, HaO contains link-local address, L=0", false, homeIs("fe80::1234", false)},
	{"HA_2_2_10 Receiving invalid BU, HaO contains link-local address, L=1", false, homeIs("fe80::1234", true)},
	{"HA_2_2_11 Receiving invalid BU, HaO contains link-local address, L=0", true, homeIs("fe80::1234", false)},
	{"HA_2_2_12 Receiving invalid BU, HaO contains link-local address, L=1", true, homeIs("fe80::1234", true)},
	{"HA_2_2_13 Receiving invalid BU, HaO contains multicast address", false, homeIs("ff0e::1234", false)},
	{"HA_2_2_14 Receiving invalid BU, HaO contains multicast address", true, homeIs("ff0e::1234", false)},
}

func notHomeSubnet(ack bool) func(*scene) {
	return func(s *scene) {
		u := seq(15, long)
		u.Ack = ack
		u.home = offLink
		s.update(u)
		s.want("send: BA 132 #15 0s to coa1 for off-link")
		u.home = addr("2001:db8:b::99") // nobody's
		s.update(u)
		s.want("send: BA 132 #15 0s to coa1 for 2001:db8:b::99 unsigned")
		s.away(offLink)
	}
}

func unauthorized(s *scene) {
	u := seq(15, long)
	u.noAuth = true
	s.update(u)
	s.silence()
	u = seq(16, long)
	u.key = secret2
	s.update(u)
	s.want("send: BA 146 #16 0s to coa1 for home")
	u = seq(17, long)
	u.spi = spi + 1
	s.update(u)
	s.want("send: BA 146 #17 0s to coa1 for home")
	s.wait(dad)
	s.away(home)
}

func nonceIndices(s *scene) {
	u := seq(15, long)
	u.HasNonces, u.HomeNonce, u.CareOfNonce = true, 1, 2
	s.update(u)
	s.wait(dad)
	s.silence()
	s.away(home)
}

func homeIs(a string, linkLocal bool) func(*scene) {
	return func(s *scene) {
		u := seq(15, long)
		u.home, u.LinkLocal = addr(a), linkLocal
		s.update(u)
		s.wait(dad)
		s.silence()
	}
}

var tahiDuplicates = []tahiCase{
	{"HA_2_3_1 DAD succeeded (L=0)", false, func(s *scene) {
		s.update(seq(15, long))
		s.accepted(15, long)
	}},
	{"HA_2_3_2 DAD succeeded (L=1)", false, func(s *scene) {
		u := seq(15, long)
		u.LinkLocal = true
		s.update(u)
		s.want("join ff02::1:ff00:1234", "link: NS home", "link: NS home-ll")
		s.wait(dad - 1)
		s.silence()
		s.wait(1)
		s.want("link: NA home to all O", "link: NA home-ll to all O", "send: BA 0 #15 6m40s to coa1 for home")
	}},
	{"HA_2_3_3 DAD succeeded (L=0), but recept of NA w/ link-local target address", false, func(s *scene) {
		s.update(seq(15, long))
		s.want("join ff02::1:ff00:1234", "link: NS home")
		s.hear(s.advertisement(linkLocal(home)))
		s.silence()
		s.wait(dad)
		s.want("link: NA home to all O", "send: BA 0 #15 6m40s to coa1 for home")
	}},
	{"HA_2_4_1 Recept of NA w/ global target address (A=1 & L=0)", false, duplicate(true, false, false)},
	{"HA_2_4_2 Recept of NA w/ global target address (A=1 & L=1)", false, duplicate(true, true, false)},
	{"HA_2_4_3 Recept of NA w/ link-local target address (A=1 & L=1)", false, duplicate(true, true, true)},
	{"HA_2_4_4 Recept of NA w/ global target address (A=0 & L=0)", false, duplicate(false, false, false)},
	{"HA_2_4_5 Recept of NA w/ global target address (A=0 & L=1)", false, duplicate(false, true, false)},
	{"HA_2_4_6 Recept of NA w/ link-local target address (A=0 & L=1)", false, duplicate(false, true, true)},
}

func duplicate(ack, l, targetLinkLocal bool) func(*scene) {
	return func(s *scene) {
		u := seq(15, long)
		u.Ack, u.LinkLocal = ack, l
		s.update(u)
		s.wait(dad / 2)
		s.forget()
		target := home
		if targetLinkLocal {
			target = linkLocal(home)
		}
		s.hear(s.advertisement(target))
		s.want("send: BA 134 #15 0s to coa1 for home", "leave ff02::1:ff00:1234")
		s.wait(dad)
		s.silence()
		s.away(home)
	}
}

// tahiSequence: chapters 2.5 to 2.8, each with A set and clear, on both links.
func tahiSequence() []tahiCase {
	type pair struct{ first, second uint16 }
	valid := func(id string, virtual bool, p pair, ack bool) tahiCase {
		return tahiCase{sequenceTitle(id, p.first, p.second, ack), virtual, func(s *scene) {
			u := seq(p.first, long)
			u.Ack = ack
			s.bind(u)
			s.wait(time.Second)
			u = seq(p.second, long)
			u.Ack, u.src = ack, coa2
			s.update(u)
			s.want(fmt.Sprintf("send: BA 0 #%d 6m40s to coa2 for home", p.second))
			s.bound(home, coa2)
		}}
	}
	invalid := func(id string, virtual bool, p pair, ack bool) tahiCase {
		return tahiCase{sequenceTitle(id, p.first, p.second, ack), virtual, func(s *scene) {
			u := seq(p.first, long)
			u.Ack = ack
			s.bind(u)
			s.wait(time.Second)
			u = seq(p.second, long)
			u.Ack, u.src = ack, coa2
			s.update(u)
			s.want(fmt.Sprintf("send: BA 135 #%d 0s to coa2 for home", p.first))
			s.bound(home, coa1)
		}}
	}
	var all []tahiCase
	for _, chapter := range []struct {
		id    string
		make  func(string, bool, pair, bool) tahiCase
		pairs []pair
		order []int // 0: A=1, 1: A=0; 2 and 3: on the virtual link
	}{
		{"HA_2_5", valid, []pair{{15, 16}, {15, 32782}}, []int{0, 2, 1, 3}},
		{"HA_2_6", invalid, []pair{{15, 14}, {15, 15}, {15, 32783}}, []int{0, 1, 2, 3}},
		{"HA_2_7", valid, []pair{{32783, 32784}, {32783, 14}}, []int{0, 2, 1, 3}},
		{"HA_2_8", invalid, []pair{{32783, 32782}, {32783, 32783}, {32783, 15}}, []int{0, 1, 2, 3}},
	} {
		n := 1
		for _, o := range chapter.order {
			for _, p := range chapter.pairs {
				all = append(all, chapter.make(fmt.Sprintf("%s_%d", chapter.id, n), o >= 2, p, o%2 == 0))
				n++
			}
		}
	}
	return all
}

func sequenceTitle(id string, first, second uint16, ack bool) string {
	a := 0
	if ack {
		a = 1
	}
	return fmt.Sprintf("%s 1st=%d, 2nd=%d (A=%d)", id, first, second, a)
}

// Deregistration: from coa1, or from home with or without a Home Address option.
func leaveAway(ack bool) bu {
	u := seq(16, 0)
	u.Ack = ack
	return u
}

func leaveHome(ack, hao, lifetime bool) bu {
	u := leaveAway(ack)
	u.src, u.noHAO = home, !hao
	if lifetime {
		u.Lifetime = long
	}
	return u
}

const (
	toHome = "link: BA %d #%d 0s to home"
	toAway = "send: BA %d #%d 0s to coa1 for home"
)

// valid: there is a binding, and then no more.
func leaves(u bu, answer string) func(*scene) {
	return func(s *scene) {
		s.bind(seq(15, long))
		s.update(u)
		want := []string{fmt.Sprintf(answer, 0, 16)}
		if s.real() {
			want = append(want, "leave ff02::1:ff00:1234")
		}
		s.want(want...)
		s.away(home)
	}
}

// unknown: there is none.
func leavesNothing(u bu, answer string) func(*scene) {
	return func(s *scene) {
		s.update(u)
		s.wait(dad)
		s.want(fmt.Sprintf(answer, 133, 16))
		s.away(home)
	}
}

// late: the sequence number is out of the window.
func leavesLate(u bu, answer string) func(*scene) {
	return func(s *scene) {
		s.bind(seq(20, long))
		s.update(u)
		s.want(fmt.Sprintf(answer, 135, 20))
		s.bound(home, coa1)
	}
}

var tahiDeregistration = []tahiCase{
	{"HA_3_1_1 CoA!=HoA (A=1 & Lifetime=0) w/ HaO", false, leaves(leaveAway(true), toAway)},
	{"HA_3_1_2 CoA=HoA (A=1 & Lifetime=0) w/ HaO", false, leaves(leaveHome(true, true, false), toHome)},
	{"HA_3_1_3 CoA=HoA (A=1 & Lifetime!=0) w/ HaO [Informational Test]", false, leaves(leaveHome(true, true, true), toHome)},
	{"HA_3_1_4 CoA=HoA (A=1 & Lifetime=0) w/o HaO", false, leaves(leaveHome(true, false, false), toHome)},
	{"HA_3_1_5 CoA=HoA (A=1 & Lifetime!=0) w/o HaO [Informational Test]", false, leaves(leaveHome(true, false, true), toHome)},
	{"HA_3_1_6 CoA!=HoA (A=0 & Lifetime=0) w/ HaO", false, leaves(leaveAway(false), toAway)},
	{"HA_3_1_7 CoA=HoA (A=0 & Lifetime=0) w/ HaO", false, leaves(leaveHome(false, true, false), toHome)},
	{"HA_3_1_8 CoA=HoA (A=0 & Lifetime!=0) w/ HaO [Informational Test]", false, leaves(leaveHome(false, true, true), toHome)},
	{"HA_3_1_9 CoA=HoA (A=0 & Lifetime=0) w/o HaO", false, leaves(leaveHome(false, false, false), toHome)},
	{"HA_3_1_10 CoA=HoA (A=0 & Lifetime!=0) w/o HaO [Informational Test]", false, leaves(leaveHome(false, false, true), toHome)},
	{"HA_3_1_11 CoA!=HoA (A=1 & Lifetime=0) w/ HaO", true, leaves(leaveAway(true), toAway)},
	{"HA_3_1_12 CoA!=HoA (A=0 & Lifetime=0) w/ HaO", true, leaves(leaveAway(false), toAway)},

	{"HA_3_2_1 CoA!=HoA (A=1 & Lifetime=0) w/ HaO", false, leavesNothing(leaveAway(true), toAway)},
	{"HA_3_2_2 CoA=HoA (A=1 & Lifetime=0) w/ HaO", false, leavesNothing(leaveHome(true, true, false), toHome)},
	{"HA_3_2_3 CoA=HoA (A=1 & Lifetime!=0) w/ HaO [Informational Test]", false, leavesNothing(leaveHome(true, true, true), toHome)},
	{"HA_3_2_4 CoA=HoA (A=1 & Lifetime=0) w/o HaO", false, leavesNothing(leaveHome(true, false, false), toHome)},
	{"HA_3_2_5 CoA=HoA (A=1 & Lifetime!=0) w/o HaO [Informational Test]", false, leavesNothing(leaveHome(true, false, true), toHome)},
	{"HA_3_2_6 CoA!=HoA (A=0 & Lifetime=0) w/ HaO", false, leavesNothing(leaveAway(false), toAway)},
	{"HA_3_2_7 CoA=HoA (A=0 & Lifetime=0) w/ HaO", false, leavesNothing(leaveHome(false, true, false), toHome)},
	{"HA_3_2_8 CoA=HoA (A=0 & Lifetime!=0) w/ HaO [Informational Test]", false, leavesNothing(leaveHome(false, true, true), toHome)},
	{"HA_3_2_9 CoA=HoA (A=0 & Lifetime=0) w/o HaO", false, leavesNothing(leaveHome(false, false, false), toHome)},
	{"HA_3_2_10 CoA=HoA (A=0 & Lifetime!=0) w/o HaO [Informational Test]", false, leavesNothing(leaveHome(false, false, true), toHome)},
	{"HA_3_2_11 CoA!=HoA (A=1 & Lifetime=0) w/ HaO", true, leavesNothing(leaveAway(true), toAway)},
	{"HA_3_2_12 CoA!=HoA (A=0 & Lifetime=0) w/ HaO", true, leavesNothing(leaveAway(false), toAway)},

	{"HA_3_3_1 CoA=HoA (A=1 & Lifetime=0) w/ HaO", false, leavesLate(leaveHome(true, true, false), toHome)},
	{"HA_3_3_2 CoA=HoA (A=0 & Lifetime=0) w/ HaO", false, leavesLate(leaveHome(false, true, false), toHome)},
	{"HA_3_3_3 CoA=HoA (A=1 & Lifetime=0) w/o HaO", false, leavesLate(leaveHome(true, false, false), toHome)},
	{"HA_3_3_4 CoA=HoA (A=0 & Lifetime=0) w/o HaO", false, leavesLate(leaveHome(false, false, false), toHome)},
	{"HA_3_3_5 CoA=HoA (A=1 & Lifetime!=0) w/ HaO [Informational Test]", false, leavesLate(leaveHome(true, true, true), toHome)},
	{"HA_3_3_6 CoA=HoA (A=0 & Lifetime!=0) w/ HaO [Informational Test]", false, leavesLate(leaveHome(false, true, true), toHome)},
	{"HA_3_3_7 CoA=HoA (A=1 & Lifetime!=0) w/o HaO [Informational Test]", false, leavesLate(leaveHome(true, false, true), toHome)},
	{"HA_3_3_8 CoA=HoA (A=0 & Lifetime!=0) w/o HaO [Informational Test]", false, leavesLate(leaveHome(false, false, true), toHome)},
}
