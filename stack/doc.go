// Package stack is a TCP/IP stack on a link: gVisor's netstack in the
// application's own process, with listeners and connections that are ordinary
// [net.Listener] and [net.Conn].
//
// # Theory of operation
//
// A [Stack] reads whole IP packets from a [tun.Device] and writes its own
// there. Between device and netstack stands the filter:
//
//	device ──read──► filter ──► netstack ──► Conn ──► application
//	device ◄─write── filter ◄── netstack ◄── Conn ◄── application
//
// The filter normally passes everything. A [Hold] makes it keep the packets of
// one connection or of one client, in order and bounded, both ways, together
// with the ICMP errors that quote them. A held connection can be taken apart
// and rebuilt elsewhere (package migrate) while nothing reaches it and nobody
// answers for it. A hold ends in one of two ways: Release delivers what it
// kept, or Forward turns it into the moved filter, which hands every later
// packet to a function and never to the netstack. Without that, the listener
// would answer a straggler with a reset.
//
// With [Config.Mobile] the shim stands between device and filter: it gives the
// netstack packets to and from the home address of a mobile node (RFC 6275),
// whatever way they take outside, and puts what the netstack sends on that way.
// So holds keep packets that mean the same on every node. See [Mobile].
//
// On a [tun.OffloadDevice] packets are super-packets of up to 64 KiB, both ways,
// and a TCP checksum is computed or checked only where nobody else does. Filter
// and shim take them as they are; a hold keeps, and Forward hands out, packets as
// they are on a wire. Each queue of the device has a reader.
//
// A [Conn] stands between the application and its endpoint. Calls pass a gate;
// Suspend closes the gate, so that calls wait (their deadlines still count)
// while the endpoint is taken apart. Resume opens it again; Detach makes every
// waiting and later call fail with [ErrMoved].
//
// # A server in a few lines
//
//	dev, err := tun.Open(tun.Config{Offload: true, Routes: []netip.Prefix{service}})
//	s, err := stack.New(stack.Config{Device: dev, Addrs: []netip.Addr{addr}})
//	l, err := s.Listen("tcp", ":80")
//	err = http.Serve(l, handler)
package stack
