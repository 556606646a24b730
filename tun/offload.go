package tun

const (
	// MaxPacket is how many octets a packet of an [OffloadDevice] has at most.
	MaxPacket = 65535
	// HeaderRoom is what a buffer for [OffloadDevice.ReadPacket] needs beside
	// MaxPacket.
	HeaderRoom = 32
)

// OffloadDevice is a Device whose packets come with what the kernel knows of
// them, on one or several queues. Where the link offloads segmentation, a packet
// may be a super-packet: a TCP segment of up to 64 KiB, many times the MTU, which
// costs hardly more than one of 1500 octets, and which is cut up below by whoever
// needs it in pieces.
//
// ReadPacket is called by one goroutine at a time for each queue, WritePacket by
// any number. Read fails on a device that offloads or has several queues: it
// could not say what it must.
type OffloadDevice interface {
	Device

	// Queues is how many queues there are, at least 1. The packets of a TCP
	// connection come in order on one of them: the one that its packets were
	// last written to.
	Queues() int

	// Offloads tells whether the link takes and gives super-packets and
	// packets without a checksum. If not, every Offload is the zero value.
	Offloads() bool

	// ReadPacket returns the next packet of a queue, within the first
	// HeaderRoom octets of b and as many as it has; b should have HeaderRoom +
	// MaxPacket, for what is longer is truncated. If there is none it waits,
	// or without wait returns nil. The deadline and Close end it as they end
	// Read.
	ReadPacket(queue int, b []byte, wait bool) (packet []byte, o Offload, err error)

	// WritePacket sends the packet whose octets are those of parts, one after
	// the other, of which the first has all of the IP header. There are at
	// most [MaxParts], and it keeps none. A full queue drops the packet; that
	// is no error.
	WritePacket(queue int, o Offload, parts [][]byte) error
}

// MaxParts is how many parts a packet may have in [OffloadDevice.WritePacket].
const MaxParts = 64

// Offload is what is known of a packet beside its octets: the meaning of a
// virtio_net_hdr (Virtual I/O Device 1.2, section 5.1.6). The zero value is a
// packet as it is, whose checksums nobody has looked at.
type Offload struct {
	// Partial means that the checksum field at SumAt+SumOffset has the sum of
	// the pseudo-header alone; who needs more adds the sum of all from SumAt
	// to the end. SumAt is where the transport header begins. Such a packet
	// has not been on a wire and needs no check.
	Partial          bool
	SumAt, SumOffset uint16

	// Verified means that somebody below has checked the transport's checksum.
	Verified bool

	// SegmentSize, if not 0, makes it a super-packet: the octets of payload
	// in each of its TCP segments, of which the last may have fewer.
	SegmentSize uint16

	// HeaderSize is the length of all headers, the transport's included: of
	// what is written with a SegmentSize or Partial. What is read may have 0.
	HeaderSize uint16
}
