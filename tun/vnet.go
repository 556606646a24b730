package tun

import (
	"encoding/binary"
	"fmt"
)

// vnetHeaderSize is that of a virtio_net_hdr without a number of buffers, which
// is what a TUN has unless it is told otherwise. The fields are in the machine's
// own byte order.
const vnetHeaderSize = 10

// Flags and types of a virtio_net_hdr (Virtual I/O Device 1.2, section 5.1.6).
const (
	vnetNeedsChecksum = 1
	vnetDataValid     = 2

	vnetNone  = 0
	vnetTCPv4 = 1
	vnetTCPv6 = 4
	vnetECN   = 0x80 // the first segment has CWR
)

// putVnet writes the header of a packet; first is the packet's first octet.
func (o Offload) putVnet(h []byte, first byte) {
	clear(h[:vnetHeaderSize])
	switch {
	case o.Partial:
		h[0] = vnetNeedsChecksum
		binary.NativeEndian.PutUint16(h[6:], o.SumAt)
		binary.NativeEndian.PutUint16(h[8:], o.SumOffset)
	case o.Verified:
		h[0] = vnetDataValid
	}
	if o.SegmentSize != 0 {
		if h[1] = vnetTCPv6; first>>4 == 4 {
			h[1] = vnetTCPv4
		}
		binary.NativeEndian.PutUint16(h[4:], o.SegmentSize)
	}
	binary.NativeEndian.PutUint16(h[2:], o.HeaderSize)
}

// parseVnet reads the header of a packet of size octets. It fails for what was
// not asked for, and for what points outside of the packet.
func parseVnet(h []byte, size int) (o Offload, err error) {
	flags, kind := h[0], h[1]&^vnetECN
	if flags&vnetNeedsChecksum != 0 {
		o.Partial = true
		o.SumAt = binary.NativeEndian.Uint16(h[6:])
		o.SumOffset = binary.NativeEndian.Uint16(h[8:])
		if int(o.SumAt)+int(o.SumOffset)+2 > size {
			return Offload{}, fmt.Errorf("checksum at %d+%d of a packet of %d octets", o.SumAt, o.SumOffset, size)
		}
	}
	o.Verified = flags&vnetDataValid != 0
	switch kind {
	case vnetNone:
	case vnetTCPv4, vnetTCPv6:
		o.SegmentSize = binary.NativeEndian.Uint16(h[4:])
		if o.SegmentSize == 0 {
			return Offload{}, fmt.Errorf("super-packet of segments of 0 octets")
		}
	default:
		return Offload{}, fmt.Errorf("super-packet of type %d, which is not TCP", kind)
	}
	if o.HeaderSize = binary.NativeEndian.Uint16(h[2:]); int(o.HeaderSize) > size {
		o.HeaderSize = 0 // the kernel promises no more than a hint
	}
	return o, nil
}
