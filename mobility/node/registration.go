package node

import (
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// registration is the entry for the home agent in the Binding Update List
// (RFC 6275 sections 11.1, 11.7.1, 11.7.3).
//
//	          Register                    accepted
//	off ────────────────────► registering ─────────► registered ──┐ refresh
//	 ▲ ▲                        │  ▲   ▲                │  ▲──────┘
//	 │ │            refused:    │  │   │ refused,       │
//	 │ │            32 s later  └──┘   │ expired        │
//	 │ │                               └────────────────┤
//	 │ │ Resign, SetContact, superseded                 │
//	 │ └──────────────────────────────(from any)        │ Deregister
//	 │                                                  ▼
//	 └────────────────────────────────────────────── leaving
//	                 accepted, 133, or silence
type registration struct {
	goal regGoal
	limit

	due     bool // a Binding Update is to be sent as soon as the rate limit allows
	pending bool // one waits for its acknowledgement
	sentAt  time.Duration
	next    time.Duration // retransmission, or another attempt after a refusal
	wait    time.Duration
	tries   uint8 // Binding Updates since the last acknowledgement
	widen   bool  // as in client

	known    bool // seq has been used, or told
	seq      uint16
	stamp    uint64 // timestamp of the last Binding Update
	skew     time.Duration
	refusals uint8 // in a row, each of which led to another attempt at once

	confirmed bool          // the home agent has accepted one since Register
	expires   time.Duration // 0: not registered
	refresh   time.Duration
	told      Event // the last failure, not to tell it again and again
}

type regGoal uint8

const (
	regOff regGoal = iota
	regOn
	regLeave
)

// refusedRetry is when a home agent is asked again that has refused for good:
// the cause is the operator's to remove, and a server is to come back by itself.
const refusedRetry = time.Minute

// maxRefusals is how many refusals in a row, each with its remedy, are met with
// another attempt at once.
const maxRefusals = 4

func (n *Node) register() {
	r := &n.reg
	n.setVia(n.cfg.HomeAgent)
	if r.goal == regOn {
		// Anew: so a greater number of somebody else's is no reason to give up.
		// What has not been acknowledged is remembered, for its answers may still
		// come.
		tries := r.tries
		n.askHomeAgent()
		r.tries, r.confirmed = tries, false
		return
	}
	*r = registration{goal: regOn, limit: r.limit, known: r.known, seq: r.seq, skew: r.skew, stamp: r.stamp}
	if !r.known {
		r.known, r.seq = true, n.sequence()
	}
	n.askHomeAgent()
}

func (n *Node) deregister() {
	r := &n.reg
	switch r.goal {
	case regOff:
		n.event(Event{Kind: Deregistered})
		return
	case regLeave:
		return
	}
	r.goal, r.expires = regLeave, 0
	n.askHomeAgent()
}

// resign stops, at once and silently. The sequence number stays: it is not to
// be used again.
func (n *Node) resign() {
	r := &n.reg
	*r = registration{limit: r.limit, known: r.known, seq: r.seq, skew: r.skew, stamp: r.stamp}
}

// askHomeAgent begins to send Binding Updates. Without a binding the first
// acknowledgement takes its time: the home agent looks for duplicates of the
// home address first (RFC 6275 section 11.8).
func (n *Node) askHomeAgent() {
	r := &n.reg
	r.due, r.pending, r.tries = true, false, 0
	r.wait = InitialBindackTimeout
	if r.goal == regOn && r.expires <= n.now {
		r.wait = n.cfg.RegisterTimeout
	}
}

// advanceRegistration does what is due.
func (n *Node) advanceRegistration() {
	r := &n.reg
	if r.goal == regOff {
		return
	}
	if r.expires > 0 && r.expires <= n.now {
		// The home agent has forgotten us: as if for the first time
		// (RFC 6275 section 11.7.1).
		r.expires = 0
		n.registrationFailed(Event{Reason: Expired})
		n.askHomeAgent()
	}
	if r.expires > 0 && !r.pending && !r.due && r.refresh <= n.now {
		n.askHomeAgent()
	}
	if r.pending && !r.due && r.next <= n.now {
		if int(r.tries) >= n.cfg.Attempts {
			if r.goal == regLeave {
				n.resign()
				n.event(Event{Kind: Deregistered, Reason: Silent})
				return
			}
			if r.expires == 0 {
				n.registrationFailed(Event{Reason: Silent})
			}
		}
		// RFC 6275 section 11.8: go on at the slow rate for as long as it takes.
		r.due = true
	}
	if r.due {
		n.sendHomeUpdate()
	}
}

func (r *registration) deadline() (at time.Duration, ok bool) {
	switch {
	case r.goal == regOff:
		return 0, false
	case r.due:
		at = r.limit[0]
	case r.pending:
		at = r.next
	default:
		at = r.refresh
	}
	if r.expires > 0 {
		at = min(at, r.expires)
	}
	return at, true
}

// sendHomeUpdate sends a Binding Update to the home agent (RFC 6275 section
// 11.7.1): A and H set; L clear, because there is no link-local address of the
// home link; K clear, because there is no key management.
func (n *Node) sendHomeUpdate() {
	r := &n.reg
	if _, ok := r.take(n.now); !ok {
		return
	}
	r.due, r.pending = false, true
	r.seq++ // RFC 6275 section 11.8: retransmissions too
	r.tries = min(r.tries, 254) + 1
	r.sentAt = n.now
	r.next, r.wait = n.now+r.wait, min(2*r.wait, MaxBindackTimeout)

	n.bu = wire.BindingUpdate{Sequence: r.seq, Ack: true, Home: true, AltCareOf: n.cfg.CareOf}
	if r.goal == regOn {
		n.bu.Lifetime = n.cfg.HomeLifetime
	}
	if len(n.cfg.Key) == 0 {
		n.mh = n.bu.Append(n.mh[:0], n.home, n.cfg.HomeAgent)
	} else {
		// RFC 4285 section 6: a timestamp is greater than the one before.
		r.stamp = max(r.stamp+1, n.ntp(n.now+r.skew))
		n.auth = wire.MobileAuth{SPI: n.cfg.SPI, Timestamp: r.stamp}
		n.bu.MobileAuth = &n.auth
		n.mh = n.cfg.Key.Sign(n.mh[:0], &n.bu, n.cfg.SPI, n.home, n.cfg.HomeAgent, n.cfg.CareOf, n.home)
	}
	n.send(&wire.Packet{Src: n.cfg.CareOf, Dst: n.cfg.HomeAgent, Home: n.home, Protocol: wire.Mobility, Payload: n.mh})
}

// homeAck takes a Binding Acknowledgement of the home agent (RFC 6275 section
// 11.7.3); mh is the mobility header with it.
func (n *Node) homeAck(mh []byte) {
	r, ba := &n.reg, &n.ba
	if !r.pending {
		return
	}
	secure := len(n.cfg.Key) == 0 ||
		ba.MobileAuth != nil && ba.MobileAuth.SPI == n.cfg.SPI && n.cfg.Key.Verify(mh, n.cfg.CareOf, n.home)
	if !secure {
		// Whoever says so cannot prove it, but the operator wants to know of a
		// wrong key. It changes nothing (RFC 4285 section 5.1).
		if ba.Status == wire.AuthFail && ba.Sequence == r.seq {
			n.registrationFailed(Event{Reason: Refused, Status: ba.Status})
		}
		return
	}
	if ba.Status == wire.SequenceOutOfWindow {
		n.homeSequence(ba.Sequence)
		return
	}
	if ba.Sequence != r.seq {
		return
	}
	if ba.Status == wire.MessageIDMismatch && r.goal == regOn && ba.MobileAuth != nil && r.refusals < maxRefusals {
		// RFC 4285 section 6: the home agent's time is in its option.
		r.skew += n.since(ba.MobileAuth.Timestamp, n.now+r.skew)
		r.stamp = 0
		r.refusals++
		n.askHomeAgent()
		return
	}
	if ba.Status.OK() && ba.MobileAuth != nil && ba.MobileAuth.Timestamp != 0 && ba.MobileAuth.Timestamp != r.stamp {
		return // an answer to another Binding Update with this number
	}

	if r.goal == regLeave {
		e := Event{Kind: Deregistered}
		// 133 says that there was nothing to delete (RFC 6275 section 10.3.2).
		if !ba.Status.OK() && ba.Status != wire.NotHomeAgent {
			e.Reason, e.Status = Refused, ba.Status
		}
		n.resign()
		n.event(e)
		return
	}
	granted := min(ba.Lifetime, n.cfg.HomeLifetime)
	if !ba.Status.OK() || granted == 0 {
		n.homeRefused(ba.Status)
		return
	}
	first := r.expires == 0
	r.pending, r.tries, r.refusals = false, 0, 0
	r.confirmed = true
	r.expires = r.sentAt + granted
	r.refresh = r.sentAt + refreshAfter(granted)
	if ba.RefreshAdvice > 0 && ba.RefreshAdvice < granted {
		r.refresh = r.sentAt + ba.RefreshAdvice
	}
	r.told = Event{}
	n.event(Event{Kind: Registered, Status: ba.Status, Until: r.expires})
	if r.widen {
		r.widen = false
		r.seq += fence - 1
		n.askHomeAgent()
	}
	if first {
		n.retryHomeTests()
	}
}

// homeRefused takes a refusal. After one of 133, from a home agent that has
// started anew, another attempt is worth making at once.
func (n *Node) homeRefused(s wire.Status) {
	r := &n.reg
	again := s == wire.NotHomeAgent && r.expires > 0
	r.expires = 0
	n.registrationFailed(Event{Reason: Refused, Status: s})
	n.askHomeAgent()
	if !again {
		r.due, r.pending = false, true
		r.next, r.wait = n.now+refusedRetry, MaxBindackTimeout
	}
}

// homeSequence takes status 135: the home agent has the number stored. It is
// adopted (RFC 6275 section 11.7.3), unless this node is registered already:
// then the number is that of another contact, which is the later one.
func (n *Node) homeSequence(stored uint16) {
	r := &n.reg
	switch {
	case oldNews(stored, r.seq, r.tries, r.confirmed):
		r.widen = true
	case r.confirmed:
		n.homeSuperseded()
	case r.refusals >= maxRefusals:
		r.refusals = 0
		r.seq = stored
		n.homeRefused(wire.SequenceOutOfWindow)
	default:
		r.refusals++
		r.seq, r.widen = stored, true
		n.askHomeAgent()
	}
}

func (n *Node) homeSuperseded() {
	e := Event{Kind: RegistrationFailed, Reason: Superseded}
	if n.reg.goal == regLeave {
		e.Kind = Deregistered
	}
	n.resign()
	n.event(e)
}

// homeLost takes a hint, which anyone can forge, that the home agent does not
// know us any more: it is asked.
func (n *Node) homeLost() {
	if r := &n.reg; r.goal == regOn && !r.pending && !r.due {
		n.askHomeAgent()
	}
}

// homeUnable: the home agent does not know Mobile IPv6.
func (n *Node) homeUnable() {
	r := &n.reg
	if r.goal == regLeave {
		n.resign()
		n.event(Event{Kind: Deregistered, Reason: NotSpoken})
		return
	}
	n.registrationFailed(Event{Reason: NotSpoken})
	r.expires, r.due = 0, false
	r.next, r.wait = n.now+refusedRetry, MaxBindackTimeout
}

// registrationFailed tells so, once for each cause.
func (n *Node) registrationFailed(e Event) {
	e.Kind = RegistrationFailed
	if n.reg.told != e {
		n.reg.told = e
		n.event(e)
	}
}

// ntp is the wall clock at at, in the format of NTP (RFC 5905 section 6).
func (n *Node) ntp(at time.Duration) uint64 {
	const since1900 = 2208988800
	t := n.cfg.Epoch.Add(at)
	return uint64(t.Unix()+since1900)<<32 | uint64(t.Nanosecond())<<32/uint64(time.Second)
}

// since is how far the timestamp is ahead of the wall clock at at.
func (n *Node) since(stamp uint64, at time.Duration) time.Duration {
	d := int64(stamp - n.ntp(at))
	return time.Duration(d>>32)*time.Second + time.Duration(uint64(d)&0xffffffff*uint64(time.Second)>>32)
}
