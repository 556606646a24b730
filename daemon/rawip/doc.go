// Package rawip moves whole IPv6 packets between a daemon and the kernel by raw
// sockets, in batches: what comes in tunnels to an address of this host
// ([Tunnel]), packets of any source out ([Sender]), and Neighbor Discovery as
// it is heard on a link ([Listener]).
//
// # Theory of operation
//
// A tunnel's end is an address of this host, and the kernel does for it what
// hosts do: it reassembles fragments, and takes the IPv6 header and the headers
// that are for this host away. The tunnel's payload, protocol 41, comes to a raw
// socket, and with it the source, hop limit and traffic class, of which the
// header is made again. The socket has another use: without one the kernel
// answers protocol 41 with an ICMPv6 Parameter Problem (where it has no
// ip6_tunnel of its own).
//
// Network cards and their drivers coalesce segments of TCP (GRO), also inside a
// tunnel, and leave the checksum of the result to be completed. What is to be
// sent on must be packets as they were on the wire, so [Tunnel] cuts them and
// completes their checksums. What comes super from a TUN a [Cutter] or a [Batch]
// cuts; a [Coalescer] is the way back, for what goes into a TUN.
//
// What is sent carries its IPv6 header, and is routed by its destination like
// all else that this host sends; a destination of this host's own receives it
// through loopback. No forwarding has to be switched on, no hop is taken off.
//
// Raw and packet sockets need CAP_NET_RAW.
package rawip
