package rawip

// BatchSize is how many packets a system call moves at most.
const BatchSize = 64

// SenderStats counts what became of the packets of a [Sender].
type SenderStats struct {
	Sent, Octets uint64
	TooBig       uint64 // longer than the MTU of the interface
	Unreachable  uint64 // no route to the destination
	Full         uint64 // no room in the interface's queue
	Denied       uint64 // a rule of a packet filter
	Failed       uint64 // else, such as no IPv6 packet at all
}

// TunnelStats counts what a [Tunnel] has received.
type TunnelStats struct {
	Packets, Octets uint64
	Coalesced       uint64 // packets that had to be cut into segments again
	Malformed       uint64 // dropped: shorter than an IPv6 header, or not to be understood
}
