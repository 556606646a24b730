package correspondent

import (
	"errors"
	"net/netip"

	"github.com/distributed-servers/ds/mobility/wire"
)

// receive handles a packet from the network.
func (c *Correspondent) receive(b []byte) {
	s, ok := shapeOf(b)
	if !ok || !concerns(b, &s) {
		c.deliver(b) // the host's stack knows what to do
		return
	}
	if s.plainHome(b) && s.proto != wire.Mobility {
		_, e := c.cache.find(key{[16]byte(b[24:40]), [16]byte(b[s.option+2:])})
		if e != nil && e.live(c.now) && e.careOf == [16]byte(b[8:24]) {
			c.deliverFromHome(b, &s, e)
			return
		}
	}
	dst := netip.AddrFrom16([16]byte(b[24:40]))
	if !c.cfg.Local(dst) {
		// Nothing of ours is for a group: no binding is kept for one.
		if !dst.IsMulticast() || s.proto == wire.ICMPv6 && s.options == 0 && s.routing == 0 {
			c.deliver(b)
		}
		return
	}
	if s.routing != 0 && b[s.routing+2] == 2 {
		// A correspondent that is not a mobile node too MUST silently discard
		// all packets with a type 2 routing header (RFC 6275 section 8.2).
		if home, ok := routedHome(b, &s); ok && c.cfg.Local(netip.AddrFrom16(home)) {
			c.deliver(b) // for the mobile node on this host
		}
		return
	}
	if s.proto == wire.ICMPv6 && s.options == 0 && s.routing == 0 {
		c.icmpError(b, &s)
		return
	}

	p := &c.packet
	var err error
	*p, err = wire.ParsePacket(b)
	// To a source that is not one node there goes neither an acknowledgement nor
	// an error (RFC 6275 sections 9.3.3, 9.5.4), and such a packet is of no use.
	if src := netip.AddrFrom16([16]byte(b[8:24])); src.IsMulticast() || src.IsUnspecified() || src.IsLoopback() {
		return
	}
	switch {
	case err != nil:
		c.problem(b, err)
	case p.Routing.IsValid():
		// One of type 2 behind another routing header: likewise.
	case p.Protocol == wire.Mobility:
		c.mobility(b)
	case p.Home.IsValid():
		if s.options == 0 || p.Home.As16() != [16]byte(b[s.option+2:]) {
			return // an option at a place that shapeOf does not look at
		}
		// An ICMPv6 error is not answered by an error.
		if e := c.homeAddress(s.proto != wire.ICMPv6 || len(p.Payload) == 0 || p.Payload[0] >= 128); e != nil {
			c.deliverFromHome(b, &s, e)
		}
	default:
		c.deliver(b)
	}
}

// concerns reports whether a packet may have to do with mobility.
func concerns(b []byte, s *shape) bool {
	switch {
	case s.options != 0, s.proto == wire.Mobility:
		return s.total-wire.HeaderLen == int(b[4])<<8|int(b[5]) // all there
	case s.routing != 0 && b[s.routing+2] == 2:
		return true
	case s.proto == wire.ICMPv6 && s.upper < s.total:
		return b[s.upper] >= 1 && b[s.upper] <= 4 // an error
	}
	return false
}

func (c *Correspondent) deliver(b []byte) { c.out.Deliver = append(c.out.Deliver, b) }

// deliverFromHome delivers a packet that came by way of e.
func (c *Correspondent) deliverFromHome(b []byte, s *shape, e *entry) {
	e.use(c.now)
	from := len(c.buf)
	c.buf = appendWithoutHome(c.buf, b, s)
	c.deliver(c.buf[from:len(c.buf):len(c.buf)])
}

// homeAddress is the binding by way of which c.packet came: of the address in
// its Home Address option to its source address. It is nil if there is none:
// the packet MUST be discarded, and, if answer, the sender told by a Binding
// Error (RFC 6275 section 9.3.1).
func (c *Correspondent) homeAddress(answer bool) *entry {
	p := &c.packet
	_, e := c.cache.find(pair(p.Dst, p.Home))
	if e != nil && e.live(c.now) && e.careOf == p.Src.As16() {
		return e
	}
	if answer {
		c.bindingError(wire.UnknownBinding)
	}
	return nil
}

// bindingError sends a Binding Error about c.packet to its source address, not
// by way of a binding, and rate limited as ICMPv6 errors are (RFC 6275 section
// 9.3.3).
func (c *Correspondent) bindingError(status wire.ErrorStatus) {
	p := &c.packet
	if !c.errors.allow(p.Src, c.now) {
		return
	}
	c.fault = wire.BindingError{Status: status, Home: p.Home}
	if !p.Home.IsValid() {
		c.fault.Home = netip.IPv6Unspecified()
	}
	c.send(p.Dst, p.Src, netip.Addr{}, &c.fault)
}

// problem answers a packet that could not be parsed, if the error says so.
func (c *Correspondent) problem(b []byte, err error) {
	var problem *wire.Problem
	if !errors.As(err, &problem) {
		return
	}
	if !c.errors.allow(netip.AddrFrom16([16]byte(b[8:24])), c.now) {
		return
	}
	from := len(c.buf)
	out, ok := wire.AppendError(c.buf, netip.AddrFrom16([16]byte(b[24:40])), wire.ParameterProblem,
		problem.Code, problem.Pointer, b, false)
	if ok {
		c.buf = out
		c.out.Send = append(c.out.Send, out[from:len(out):len(out)])
	}
}

// mobility handles the mobility header of c.packet, which is the packet b
// (RFC 6275 section 9.2).
func (c *Correspondent) mobility(b []byte) {
	p := &c.packet
	kind, err := wire.TypeOf(p)
	if err != nil {
		if unknown := (*wire.UnknownTypeError)(nil); errors.As(err, &unknown) {
			c.bindingError(wire.UnknownMHType)
			return
		}
		c.problem(b, err)
		return
	}
	switch kind {
	case wire.TypeHomeTestInit:
		c.homeTestInit()
	case wire.TypeCareOfTestInit:
		c.careOfTestInit()
	case wire.TypeBindingUpdate:
		c.bindingUpdate()
	default:
		// What a correspondent sends, not what it gets. A Home Address option
		// without a binding is an error here too, but an error is not answered.
		if p.Home.IsValid() {
			c.homeAddress(kind != wire.TypeBindingError)
		}
	}
}

// homeTestInit answers a Home Test Init (RFC 6275 sections 5.2.5, 9.4.1,
// 9.4.3). Nothing is remembered: the token is made again when it comes back.
func (c *Correspondent) homeTestInit() {
	p := &c.packet
	if wire.Decode(p, &c.homeTI) != nil {
		return
	}
	if index, nonce := c.test(); nonce != nil {
		c.homeT = wire.HomeTest{
			NonceIndex: index,
			Cookie:     c.homeTI.Cookie,
			Token:      wire.HomeToken(&c.cfg.Key, p.Src, nonce),
		}
		c.send(p.Dst, p.Src, netip.Addr{}, &c.homeT)
	}
}

// careOfTestInit answers a Care-of Test Init (RFC 6275 sections 5.2.5, 9.4.2,
// 9.4.4), likewise.
func (c *Correspondent) careOfTestInit() {
	p := &c.packet
	if wire.Decode(p, &c.careTI) != nil {
		return
	}
	if index, nonce := c.test(); nonce != nil {
		c.careT = wire.CareOfTest{
			NonceIndex: index,
			Cookie:     c.careTI.Cookie,
			Token:      wire.CareOfToken(&c.cfg.Key, p.Src, nonce),
		}
		c.send(p.Dst, p.Src, netip.Addr{}, &c.careT)
	}
}

// test is the nonce for the answer to the test in c.packet, nil if there is to
// be none: a test MUST NOT have a Home Address option (RFC 6275 sections 9.4.1,
// 9.4.2). The answer goes to where the test came from, never by way of a
// binding: that is what it tests.
func (c *Correspondent) test() (uint16, *wire.Nonce) {
	p := &c.packet
	if p.Home.IsValid() || !c.peer(p.Src) || !c.tests.allow(p.Src, c.now) {
		return 0, nil
	}
	return c.nonces.current(c.now)
}
