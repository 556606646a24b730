// Package correspondent is the correspondent's role of dsco: it makes a Linux
// host without Mobile IPv6 in its kernel a correspondent node, for all of its
// programs. It is the driver around the machine of package
// mobility/correspondent.
//
// # Theory of operation
//
//	            out                                             in
//	programs ──► kernel TCP ─── route ───► TUN      TUN ──► kernel TCP ──► programs
//	                │          to home      │        ▲
//	 to all others  │                       ▼        │
//	                │                      machine ──┘ ◄── Netfilter queue
//	                ▼                       │                    ▲
//	             network ◄── raw socket ────┘                    │
//	                                     type 2 routing header   │ Home Address option
//	                                                             network
//
// Out: for each home address that has a binding, and for no other, there is a
// host route into a TUN. The machine puts the care-of address and the routing
// header into what comes there, and a raw socket sends it. The route has an MTU
// that leaves room for the header, so TCP makes its segments smaller by itself,
// of connections too that were there before the binding. Where the kernel gives
// super-packets, one pass through the machine serves some forty packets.
//
// In: packets with a Home Address option, mobility messages and ICMPv6 errors
// about routed packets are taken out of a Netfilter queue before the kernel,
// which would answer them with a Parameter Problem, sees them. What is left of
// them for the host goes in through the TUN, as if the home address was behind
// it, and so it is: whoever compares an arriving packet with the route back
// (rp_filter of firewalls) is content. Super-packets stay whole.
//
// No binding, no route: traffic to anybody else is not touched, and costs what it
// did.
//
// Where the kernel can (package internal/kernelro), nearly no packet takes these ways:
// programs of ours in it put the headers in on the way into the TUN and send what is
// there on, and take them off where packets come in and lead them through the TUN. They
// know the bindings from here, and leave to the machine what is not a plain packet of
// one.
//
// # What ends
//
// The routes go with the TUN, and the TUN with the daemon, however it ends:
// connections go on, by way of the home agent. Packets that still come with a
// Home Address option are then answered by the kernel with a Parameter Problem,
// and the other end uses the tunnel. Rules are removed by Close, or by the next
// daemon; without a daemon they let packets pass.
//
// # What it is not
//
// A kernel that was built with Mobile IPv6 could do all of this in its XFRM
// policies. Few are (probe mip6 of ds check tells), and those are not treated in
// another way: what makes it fast works with any kernel.
//
// A program that binds itself to an address of this host that has no binding,
// while another one has, is passed on as it is: by way of the home agent.
//
// The kernel must have IPv6 with TUN, raw sockets and Netfilter queues.
package correspondent
