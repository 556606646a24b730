package wire

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"time"
)

// Types of ICMPv6 message (RFC 4861 section 4, RFC 6275 sections 6.5 to 6.8).
const (
	icmpInformational      = 128 // and above; errors are below
	icmpNeighborSolicit    = 135
	icmpNeighborAdvert     = 136
	icmpRedirect           = 137
	icmpAgentRequest       = 144
	icmpAgentReply         = 145
	icmpPrefixSolicitation = 146
	icmpPrefixAdvert       = 147
)

// Options of Neighbor Discovery (RFC 4861 section 4.6).
const (
	ndSourceLink = 1
	ndTargetLink = 2
	ndPrefix     = 3

	linkLen = 6 // of an Ethernet address: an option of 8 octets
)

// Flags in messages and options.
const (
	naRouter    = 0x80
	naSolicited = 0x40
	naOverride  = 0x20

	paManaged = 0x80
	paOther   = 0x40

	prefixOnLink     = 0x80
	prefixAutonomous = 0x40
	prefixRouter     = 0x20
)

var (
	errNotICMP      = errors.New("wire: parse ICMPv6: not the packet's payload")
	errICMPLength   = errors.New("wire: parse ICMPv6: a length that cannot be")
	errICMPChecksum = errors.New("wire: parse ICMPv6: wrong checksum")
	errNeighbor     = errors.New("wire: parse ICMPv6: neighbor discovery message that RFC 4861 section 7.1 forbids")
)

// ICMP is one of the ICMPv6 messages below, by pointer.
type ICMP interface {
	// Append appends the ICMPv6 message with its checksum for src and dst,
	// which are the addresses of [Packet.Source] and [Packet.Destination].
	Append(b []byte, src, dst netip.Addr) []byte
}

// ICMPError is an ICMPv6 error message (RFC 4443 section 3).
type ICMPError struct {
	Kind  ErrorKind
	Code  uint8
	Param uint32 // MTU of a Packet Too Big, pointer of a Parameter Problem, else 0

	// Quoted is the beginning of the packet that is the cause. After ParseICMP
	// it points into the payload parsed.
	Quoted []byte
}

// ErrorKind is the type of an ICMPv6 error.
type ErrorKind uint8

// Kinds of ICMPv6 error.
const (
	Unreachable      ErrorKind = 1
	PacketTooBig     ErrorKind = 2
	TimeExceeded     ErrorKind = 3
	ParameterProblem ErrorKind = 4
)

// AgentRequest is a Home Agent Address Discovery Request (RFC 6275 section 6.5).
type AgentRequest struct{ ID uint16 }

// AgentReply is a Home Agent Address Discovery Reply (section 6.6).
type AgentReply struct {
	ID     uint16
	Agents []netip.Addr // best first
}

// PrefixSolicitation is a Mobile Prefix Solicitation (section 6.7).
type PrefixSolicitation struct{ ID uint16 }

// PrefixAdvertisement is a Mobile Prefix Advertisement (section 6.8).
type PrefixAdvertisement struct {
	ID             uint16
	Managed, Other bool // M, O
	Prefixes       []PrefixInfo
}

// PrefixInfo is a Prefix Information option (RFC 4861 section 4.6.2, RFC 6275
// section 7.2).
type PrefixInfo struct {
	// Prefix has the whole address, not masked, where Router is set.
	Prefix                     netip.Prefix
	OnLink, Autonomous, Router bool          // L, A, R
	Valid, Preferred           time.Duration // whole seconds; Infinite is for ever
}

// Infinite is the lifetime of a prefix that is written as 0xffffffff.
const Infinite = 0xffffffff * time.Second

// NeighborSolicitation asks for a link-layer address, or whether an address is
// in use (RFC 4861 section 4.3).
type NeighborSolicitation struct {
	Target netip.Addr
	Source []byte // source link-layer address option, 6 octets; nil: none
}

// NeighborAdvertisement tells of a link-layer address (RFC 4861 section 4.4).
type NeighborAdvertisement struct {
	Router, Solicited, Override bool
	Target                      netip.Addr
	TargetLink                  []byte // target link-layer address option, 6 octets; nil: none
}

// ParseICMP parses the ICMPv6 message that is p's payload: one of those above,
// by pointer, or nil if it is another. A bad checksum, or a length that cannot
// be, is an error; so is a Neighbor Solicitation or Advertisement that RFC 4861
// section 7.1 says to discard: of a hop limit that is not 255, because it comes
// from off the link, and others.
//
// Options that are unknown are skipped, reserved fields and codes of
// informational messages ignored, except of Neighbor Discovery.
func ParseICMP(p *Packet) (ICMP, error) {
	if p.Protocol != ICMPv6 {
		return nil, errNotICMP
	}
	b := p.Payload
	if len(b) < 8 {
		return nil, errICMPLength
	}
	if checksum(b, p.Source(), p.Destination(), ICMPv6) != 0 {
		return nil, errICMPChecksum
	}
	id := binary.BigEndian.Uint16(b[4:])
	switch b[0] {
	case byte(Unreachable), byte(PacketTooBig), byte(TimeExceeded), byte(ParameterProblem):
		return &ICMPError{
			Kind:   ErrorKind(b[0]),
			Code:   b[1],
			Param:  binary.BigEndian.Uint32(b[4:]),
			Quoted: b[8:],
		}, nil
	case icmpNeighborSolicit:
		return parseNeighborSolicitation(p)
	case icmpNeighborAdvert:
		return parseNeighborAdvertisement(p)
	case icmpAgentRequest:
		return &AgentRequest{ID: id}, nil
	case icmpAgentReply:
		return parseAgentReply(id, b[8:])
	case icmpPrefixSolicitation:
		return &PrefixSolicitation{ID: id}, nil
	case icmpPrefixAdvert:
		return parsePrefixAdvertisement(id, b)
	}
	return nil, nil
}

// beginICMP appends type, code, checksum, and four octets that differ.
func beginICMP(b []byte, kind, code uint8, word uint32) []byte {
	b = append(b, kind, code, 0, 0)
	return binary.BigEndian.AppendUint32(b, word)
}

// endICMP sets the checksum of the message that begins at start.
func endICMP(b []byte, start int, src, dst netip.Addr) []byte {
	binary.BigEndian.PutUint16(b[start+2:], checksum(b[start:], src, dst, ICMPv6))
	return b
}

// Append implements [ICMP].
func (m *ICMPError) Append(b []byte, src, dst netip.Addr) []byte {
	start := len(b)
	b = beginICMP(b, byte(m.Kind), m.Code, m.Param)
	b = append(b, m.Quoted...)
	return endICMP(b, start, src, dst)
}

// Append implements [ICMP].
func (m *AgentRequest) Append(b []byte, src, dst netip.Addr) []byte {
	start := len(b)
	b = beginICMP(b, icmpAgentRequest, 0, uint32(m.ID)<<16)
	return endICMP(b, start, src, dst)
}

// Append implements [ICMP].
func (m *AgentReply) Append(b []byte, src, dst netip.Addr) []byte {
	start := len(b)
	b = beginICMP(b, icmpAgentReply, 0, uint32(m.ID)<<16)
	for _, a := range m.Agents {
		b = appendAddr(b, a)
	}
	return endICMP(b, start, src, dst)
}

func parseAgentReply(id uint16, b []byte) (ICMP, error) {
	if len(b)%16 != 0 {
		return nil, errICMPLength
	}
	m := &AgentReply{ID: id}
	for ; len(b) > 0; b = b[16:] {
		m.Agents = append(m.Agents, netip.AddrFrom16([16]byte(b)))
	}
	return m, nil
}

// Append implements [ICMP].
func (m *PrefixSolicitation) Append(b []byte, src, dst netip.Addr) []byte {
	start := len(b)
	b = beginICMP(b, icmpPrefixSolicitation, 0, uint32(m.ID)<<16)
	return endICMP(b, start, src, dst)
}

// Append implements [ICMP].
func (m *PrefixAdvertisement) Append(b []byte, src, dst netip.Addr) []byte {
	start := len(b)
	flags := flagIf(m.Managed, paManaged) | flagIf(m.Other, paOther)
	b = beginICMP(b, icmpPrefixAdvert, 0, uint32(m.ID)<<16|uint32(flags)<<8)
	for i := range m.Prefixes {
		b = m.Prefixes[i].append(b)
	}
	return endICMP(b, start, src, dst)
}

func parsePrefixAdvertisement(id uint16, b []byte) (ICMP, error) {
	m := &PrefixAdvertisement{
		ID:      id,
		Managed: b[6]&paManaged != 0,
		Other:   b[6]&paOther != 0,
	}
	for b = b[8:]; len(b) > 0; {
		o, rest, err := nextOption(b)
		if err != nil {
			return nil, err
		}
		b = rest
		if o[0] != ndPrefix {
			continue
		}
		i, err := parsePrefix(o)
		if err != nil {
			return nil, err
		}
		m.Prefixes = append(m.Prefixes, i)
	}
	return m, nil
}

// nextOption cuts an option of Neighbor Discovery off b, with its type and
// length (RFC 4861 section 4.6). A length of 0 must be refused.
func nextOption(b []byte) (option, rest []byte, err error) {
	if len(b) < 8 {
		return nil, nil, errICMPLength
	}
	n := 8 * int(b[1])
	if n == 0 || n > len(b) {
		return nil, nil, errICMPLength
	}
	return b[:n], b[n:], nil
}

const prefixLen = 32 // of a Prefix Information option

// append appends the option (RFC 4861 section 4.6.2). Without Router, what is
// beyond the prefix is zero.
func (i *PrefixInfo) append(b []byte) []byte {
	p := i.Prefix
	if !i.Router {
		p = p.Masked()
	}
	b = append(b, ndPrefix, prefixLen/8, uint8(max(p.Bits(), 0)),
		flagIf(i.OnLink, prefixOnLink)|flagIf(i.Autonomous, prefixAutonomous)|flagIf(i.Router, prefixRouter))
	b = binary.BigEndian.AppendUint32(b, toSeconds(i.Valid))
	b = binary.BigEndian.AppendUint32(b, toSeconds(i.Preferred))
	b = append(b, 0, 0, 0, 0) // reserved
	return appendAddr(b, p.Addr())
}

func parsePrefix(o []byte) (PrefixInfo, error) {
	if len(o) != prefixLen || o[2] > 128 {
		return PrefixInfo{}, errICMPLength
	}
	i := PrefixInfo{
		Prefix:     netip.PrefixFrom(netip.AddrFrom16([16]byte(o[16:])), int(o[2])),
		OnLink:     o[3]&prefixOnLink != 0,
		Autonomous: o[3]&prefixAutonomous != 0,
		Router:     o[3]&prefixRouter != 0,
		Valid:      fromSeconds(o[4:]),
		Preferred:  fromSeconds(o[8:]),
	}
	if !i.Router {
		i.Prefix = i.Prefix.Masked()
	}
	return i, nil
}

func toSeconds(d time.Duration) uint32 {
	return uint32(min(max(d, 0), Infinite) / time.Second)
}

func fromSeconds(b []byte) time.Duration {
	return time.Duration(binary.BigEndian.Uint32(b)) * time.Second
}

// Append implements [ICMP].
func (m *NeighborSolicitation) Append(b []byte, src, dst netip.Addr) []byte {
	return appendNeighbor(b, icmpNeighborSolicit, 0, m.Target, ndSourceLink, m.Source, src, dst)
}

// Append implements [ICMP].
func (m *NeighborAdvertisement) Append(b []byte, src, dst netip.Addr) []byte {
	flags := flagIf(m.Router, naRouter) | flagIf(m.Solicited, naSolicited) | flagIf(m.Override, naOverride)
	return appendNeighbor(b, icmpNeighborAdvert, flags, m.Target, ndTargetLink, m.TargetLink, src, dst)
}

func appendNeighbor(b []byte, kind, flags uint8, target netip.Addr, option uint8, link []byte, src, dst netip.Addr) []byte {
	start := len(b)
	b = beginICMP(b, kind, 0, uint32(flags)<<24)
	b = appendAddr(b, target)
	if len(link) == linkLen {
		b = append(b, option, 1)
		b = append(b, link...)
	}
	return endICMP(b, start, src, dst)
}

// parseNeighborSolicitation makes the checks of RFC 4861 section 7.1.1.
func parseNeighborSolicitation(p *Packet) (ICMP, error) {
	target, link, err := parseNeighbor(p, ndSourceLink)
	if err != nil {
		return nil, err
	}
	if p.Src.IsUnspecified() && (link != nil || !solicitedNode(p.Dst)) {
		return nil, errNeighbor
	}
	return &NeighborSolicitation{Target: target, Source: link}, nil
}

// parseNeighborAdvertisement makes the checks of RFC 4861 section 7.1.2.
func parseNeighborAdvertisement(p *Packet) (ICMP, error) {
	target, link, err := parseNeighbor(p, ndTargetLink)
	if err != nil {
		return nil, err
	}
	flags := p.Payload[4]
	if p.Dst.IsMulticast() && flags&naSolicited != 0 {
		return nil, errNeighbor
	}
	return &NeighborAdvertisement{
		Router:     flags&naRouter != 0,
		Solicited:  flags&naSolicited != 0,
		Override:   flags&naOverride != 0,
		Target:     target,
		TargetLink: link,
	}, nil
}

// parseNeighbor parses what both messages have. The link-layer address is a
// copy; one that is not of Ethernet is not understood, and skipped.
func parseNeighbor(p *Packet, option uint8) (target netip.Addr, link []byte, err error) {
	b := p.Payload
	if len(b) < 24 {
		return netip.Addr{}, nil, errICMPLength
	}
	target = netip.AddrFrom16([16]byte(b[8:]))
	if p.HopLimit != 255 || b[1] != 0 || target.IsMulticast() {
		return netip.Addr{}, nil, errNeighbor
	}
	for b = b[24:]; len(b) > 0; {
		o, rest, err := nextOption(b)
		if err != nil {
			return netip.Addr{}, nil, err
		}
		b = rest
		if o[0] == option && len(o) == 2+linkLen && link == nil {
			link = append(link, o[2:]...)
		}
	}
	return target, link, nil
}

// solicitedNode reports whether a is a solicited-node multicast address
// (RFC 4291 section 2.7.1).
func solicitedNode(a netip.Addr) bool {
	b := a.As16()
	return [13]byte(b[:]) == [13]byte{0: 0xff, 1: 0x02, 11: 1, 12: 0xff}
}
