package wire

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

// Destination and hop-by-hop options (RFC 8200 section 4.2, RFC 6275 section 6.3).
const (
	optPad1        = 0
	optPadN        = 1
	optHomeAddress = 0xc9
)

var (
	errVersion      = errors.New("wire: parse packet: not IPv6")
	errTruncated    = errors.New("wire: parse packet: shorter than the IPv6 header states")
	errExtension    = errors.New("wire: parse packet: an extension header exceeds the packet")
	errOption       = errors.New("wire: parse packet: an option exceeds its header")
	errDiscard      = errors.New("wire: parse packet: unknown option, to be discarded")
	errHomeTwice    = errors.New("wire: parse packet: two Home Address options")
	errHomePlace    = errors.New("wire: parse packet: Home Address option behind a fragment header or before a routing header")
	errHomeLength   = errors.New("wire: parse packet: Home Address option not of 16 octets")
	errHomeAddress  = errors.New("wire: parse packet: home address that is not unicast and routable")
	errRouting      = errors.New("wire: parse packet: type 2 routing header of a length other than 2, or with other than 1 segment left")
	errRoutingTwice = errors.New("wire: parse packet: two type 2 routing headers")
)

// ParsePacket takes an IPv6 packet apart. Octets after the length that the
// IPv6 header states are ignored; fewer are an error.
//
// Unknown destination and hop-by-hop options are skipped or refused as their
// highest two bits say (RFC 8200 section 4.2). Errors that are a [*Problem]:
// an unknown option of that kind, a routing header of another type with
// segments left, hop-by-hop options that are not first. Errors that are not,
// so that the packet is dropped in silence, are all faults of a type 2 routing
// header (RFC 6275 section 11.3.3) and of a Home Address option: it may stand
// where RFC 6275 section 6.3 allows, and once. The address in either must be
// unicast and routable.
//
// A fragment is not reassembled: if a fragment header is not that of a whole
// packet (RFC 8200 section 4.5), Protocol is Fragment, and Payload begins with
// the fragment header.
func ParsePacket(b []byte) (Packet, error) {
	if len(b) < HeaderLen || b[0]>>4 != 6 {
		return Packet{}, errVersion
	}
	length := int(binary.BigEndian.Uint16(b[4:]))
	if len(b) < HeaderLen+length {
		return Packet{}, errTruncated
	}
	b = b[:HeaderLen+length]
	word := binary.BigEndian.Uint32(b)
	pp := parser{b: b, p: Packet{
		TrafficClass: uint8(word >> 20),
		FlowLabel:    word & (1<<20 - 1),
		HopLimit:     b[7],
		Src:          netip.AddrFrom16([16]byte(b[8:24])),
		Dst:          netip.AddrFrom16([16]byte(b[24:40])),
	}}
	if err := pp.extensions(); err != nil {
		return Packet{}, err
	}
	return pp.p, nil
}

// parser is where ParsePacket is in a packet.
type parser struct {
	b        []byte // the packet, of the length that its header states
	p        Packet
	fragment bool // a fragment header has been passed
}

// extensions walks the extension headers, which may come in any order and
// number (RFC 8200 section 4.1). Each takes eight octets, so that it ends.
func (pp *parser) extensions() error {
	next, at := Protocol(pp.b[6]), 6 // and where that was said
	off := HeaderLen
	for {
		var size int
		switch next {
		case HopByHop, Routing, DestOptions:
			if len(pp.b)-off < 8 {
				return errExtension
			}
			if size = 8 + 8*int(pp.b[off+1]); len(pp.b)-off < size {
				return errExtension
			}
		case Fragment:
			if size = 8; len(pp.b)-off < size {
				return errExtension
			}
		}
		var err error
		switch next {
		case HopByHop:
			// RFC 8200 section 4.1: only directly behind the IPv6 header;
			// elsewhere it is a next header that is not known.
			if off != HeaderLen {
				return &Problem{Code: 1, Pointer: uint32(at), Cause: "hop-by-hop options that are not first"}
			}
			err = pp.options(off, size, false)
		case DestOptions:
			err = pp.options(off, size, true)
		case Routing:
			err = pp.routing(off)
		case Fragment:
			// Offset and M flag; both 0: the packet is whole (RFC 8200 section 4.5).
			if binary.BigEndian.Uint16(pp.b[off+2:])&^6 != 0 {
				size = 0
			}
			pp.fragment = true
		}
		if err != nil {
			return err
		}
		if size == 0 {
			pp.p.Protocol, pp.p.Payload, pp.p.Offset = next, pp.b[off:], off
			return nil
		}
		next, at = Protocol(pp.b[off]), off
		off += size
	}
}

// options walks the options of the header at off (RFC 8200 section 4.2).
func (pp *parser) options(off, size int, destination bool) error {
	for i, end := off+2, off+size; i < end; {
		t := pp.b[i]
		if t == optPad1 {
			i++
			continue
		}
		if end-i < 2 || end-i < 2+int(pp.b[i+1]) {
			return errOption
		}
		data := pp.b[i+2 : i+2+int(pp.b[i+1])]
		switch {
		case t == optPadN:
		case t == optHomeAddress && destination:
			if err := pp.home(data); err != nil {
				return err
			}
		default:
			switch t >> 6 {
			case 1:
				return errDiscard
			case 2, 3:
				return &Problem{Code: 2, Pointer: uint32(i), Cause: "unknown option", EvenMulticast: t>>6 == 2}
			}
		}
		i += 2 + len(data)
	}
	return nil
}

// home takes a Home Address option. Wrong ones are dropped in silence, as
// kernels do: the sender that would be told is in doubt.
func (pp *parser) home(data []byte) error {
	switch {
	case len(data) != 16:
		return errHomeLength
	case pp.p.Home.IsValid():
		return errHomeTwice
	case pp.fragment:
		return errHomePlace
	}
	home := netip.AddrFrom16([16]byte(data))
	if !routable(home) {
		return errHomeAddress
	}
	pp.p.Home = home
	return nil
}

// routing takes the routing header at off. One of another type without segments
// left has done its work and is skipped (RFC 8200 section 4.4).
func (pp *parser) routing(off int) error {
	if pp.p.Home.IsValid() {
		return errHomePlace
	}
	const routingType = 2
	h := pp.b[off:]
	if h[2] != routingType {
		if h[3] == 0 {
			return nil
		}
		return &Problem{Pointer: uint32(off + 2), Cause: "unknown routing type"}
	}
	// RFC 6275 section 11.3.3: "If any of these checks fail, the node MUST
	// silently discard the packet."
	if h[1] != 2 || h[3] != 1 {
		return errRouting
	}
	if pp.p.Routing.IsValid() {
		return errRoutingTwice
	}
	home := netip.AddrFrom16([16]byte(h[8:24]))
	if !routable(home) {
		return errHomeAddress
	}
	pp.p.Routing = home
	return nil
}

// routable reports whether a is a unicast routable address, as home addresses
// are (RFC 6275 sections 6.3, 11.3.3).
func routable(a netip.Addr) bool { return a.IsGlobalUnicast() && !a.Is4In6() }
