// Package homeagent is the home agent's role of dsco: the driver around the
// machine of package mobility/homeagent.
//
// # Theory of operation
//
//	          routed, or                        ┌───────────┐
//	clients ── by proxy ──► TUN ───────────────►│           │
//	          on the link                       │  machine  ├──► raw socket ──► contact
//	contact ═══ protocol 41 ═══► raw socket ───►│           │    (whole packets)
//	network ── signalling ──► Netfilter queue ─►│           │──► clients
//	home link ── Neighbor Discovery ───────────►└───────────┘
//
// Packets to home addresses are routed to a TUN of the daemon, which goes with
// it; the kernel forwards, so forwarding is switched on while the daemon runs. All
// that leaves, in the tunnel to a contact and out of it to clients, leaves by a
// raw socket: routed by its destination, with no rules or addresses to be kept.
//
// TCP with a binding takes none of these ways where the kernel can forward it by
// itself: by a route into the tunnel, and by rules and another route out of it
// (package daemon/forward, kernel_linux.go).
//
// Mobility messages and the few ICMPv6 messages that concern a home agent are
// taken out of a Netfilter queue before the kernel answers them itself: it does
// not know the Home Address option.
//
// # On a home link
//
// With an interface, the home addresses belong to a link with other hosts. What
// these say to each other is heard on a packet socket, since solicitations come
// also to addresses that are not this host's. The machine's own messages leave by
// a socket that is bound to the interface: there the route into the TUN does not
// count, and the kernel finds the neighbor.
//
// # Restart
//
// Nothing is stored. A new home agent has no bindings, and asks the contacts to
// come back within RefreshAdvice; until then packets to home addresses are
// dropped in silence. When the daemon ends, its TUN and with it the routes end,
// rules and forwarding are put back.
package homeagent
