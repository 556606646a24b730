package wire

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

// ErrHopLimit: the hop limit is used up; the answer is an ICMPv6 Time Exceeded.
var ErrHopLimit = errors.New("wire: hop limit exceeded")

var (
	errNotTunnel  = errors.New("wire: tunnel: the payload is not IPv6")
	errInner      = errors.New("wire: tunnel: no whole IPv6 packet inside")
	errTunnelLoop = errors.New("wire: tunnel: the packet inside has the addresses of the tunnel")
	errTunnelAddr = errors.New("wire: tunnel: an end is missing or not of IPv6")
	errTunnelLong = errors.New("wire: tunnel: packet of more than 65535 octets")
)

// Inner returns the packet inside of one whose Protocol is IPv6. It points into
// p.Payload. It is an error if it is not a whole IPv6 packet, or if it has the
// addresses of p: such a packet would be tunnelled for ever (RFC 2473 section 4.1.2).
func (p *Packet) Inner() ([]byte, error) {
	if p.Protocol != IPv6 {
		return nil, errNotTunnel
	}
	inner, ok := whole(p.Payload)
	if !ok {
		return nil, errInner
	}
	if between(inner, p.Src, p.Dst) {
		return nil, errTunnelLoop
	}
	return inner, nil
}

// AppendTunnel appends the packet inner, with its hop limit lowered by one,
// behind a header from src to dst (RFC 2473 sections 3.1, 6.3: hop limit
// DefaultHopLimit, traffic class of inner). It refuses what may not or need not
// be tunnelled: no IPv6 packet, hop limit used up (the error is [ErrHopLimit]),
// the addresses src and dst in inner again (RFC 2473 section 4.1.2), more than
// 64 KiB; then nothing is appended. Octets of inner after the length that its
// header states are left out. inner must not overlap what b has room for.
func AppendTunnel(b []byte, src, dst netip.Addr, inner []byte) ([]byte, error) {
	inner, ok := whole(inner)
	switch {
	case !src.Is6() || !dst.Is6():
		return b, errTunnelAddr
	case !ok:
		return b, errInner
	case len(inner) > maxPayload:
		return b, errTunnelLong
	case inner[7] <= 1:
		return b, ErrHopLimit
	case between(inner, src, dst):
		return b, errTunnelLoop
	}
	class := uint8(binary.BigEndian.Uint16(inner) >> 4)
	b = appendHeader(b, class, 0, len(inner), IPv6, DefaultHopLimit, src, dst)
	at := len(b)
	b = append(b, inner...)
	b[at+7]--
	return b, nil
}

// whole returns the IPv6 packet at the beginning of b, if it is all there.
func whole(b []byte) ([]byte, bool) {
	if len(b) < HeaderLen || b[0]>>4 != 6 {
		return nil, false
	}
	n := HeaderLen + int(binary.BigEndian.Uint16(b[4:]))
	if len(b) < n {
		return nil, false
	}
	return b[:n:n], true
}

// between reports whether the IPv6 header b is from src to dst.
func between(b []byte, src, dst netip.Addr) bool {
	return netip.AddrFrom16([16]byte(b[8:24])) == src.WithZone("") &&
		netip.AddrFrom16([16]byte(b[24:40])) == dst.WithZone("")
}
