// Package node is a server node in the role of RFC 6275's mobile node, turned
// round: it does not move. Clients are moved between nodes that share one home
// address, the distributed server address, each with a care-of address of its
// own.
//
// # Theory of operation
//
// A [Node] is a machine without clock, socket, goroutine or random numbers of
// its own. It does two things that have little to do with each other:
//
//   - As the contact it keeps its care-of address registered with the home
//     agent (registration.go). One node at a time does; the others know the
//     contact's care-of address.
//   - For each client that it owns it has a binding at the client, and for each
//     that it is about to own the tokens for one (client.go, binding.go).
//
// Where its packets from the home address go, [Node.Via], depends on the first:
// to the home agent, or to the contact, which passes them on. They go in a
// tunnel; home tests are among them. What comes in a tunnel is believed to be
// for the home address only if it comes from there.
//
// # A driver
//
//	n, err := node.New(cfg)
//	for {
//		var in node.Input
//		select {
//		case p := <-packets: // mobility messages and ICMPv6 errors to CareOf, also in tunnels
//			in = node.Received{Packet: p}
//		case in = <-commands:
//		case <-at(n.NextDeadline()):
//			in = node.Tick{}
//		}
//		out := n.Step(now(), in)
//		for _, p := range out.Send {
//			send(p)
//		}
//		for _, e := range out.Events {
//			switch e.Kind {
//			case node.Bound:
//				shim.Optimise(e.Client) // from CareOf, with a Home Address option
//			case node.Unbound, node.Unsupported:
//				shim.Tunnel(e.Client) // from the home address, to n.Via()
//			}
//		}
//	}
//
// # A handoff
//
//	target  Prepare{c, grant}    care-of test, unless it has been here in the last three
//	                             minutes; the owner does not notice → Ready
//	donor   Grant(c, now)        the last word about tokens and numbers
//	donor   Abandon{c}           before the commit leaves: silent from now on
//	target  Bind{c, grant}       Binding Update, at once → Bound: data behind it
//	                             → Confirmed
//
// A home keygen token proves that its holder is reachable at the home address,
// whoever that is: the donor's serves the target. What is missing of all this,
// the target fetches: a care-of test takes one round trip, a home test one
// through contact and home agent. A donor that takes a client back binds it
// with its own grant.
//
// # When route optimised sending begins
//
// [Bound] comes with the first Binding Update, not with its acknowledgement.
// RFC 6275 section 11.3.1 has a mobile node use a binding that "has been
// successfully created", which, for one that does not set the A bit, is when
// the update has been sent. We set it, to know of losses, and send data behind
// it all the same: a round trip is what a handoff is about. If the update is
// lost or overtaken, the client answers the data with a Binding Error, or the
// acknowledgement fails to come: then there is [Unbound], and data takes the
// tunnel, which always works, until an acknowledgement brings [Bound] again.
//
// # The fence
//
// A client accepts a Binding Update only if its sequence number is greater than
// that of the last one, modulo 2^16 (RFC 6275 section 9.5.1). That makes it the
// judge of who owns it:
//
//   - A new owner begins 256 after the last number of the one before. If it has
//     no grant it takes over the number that the client tells with status 135,
//     and repeats its update 256 further once accepted.
//   - So what an owner before sends, late or because it has not heard, is
//     rejected, with a number that cannot be its own. A node that the client
//     has acknowledged before does not take that number over: it gives the
//     client up and tells [Superseded]. It gets there at its next refresh, or
//     as soon as its data meets a Binding Error.
//   - To get past the fence it would have to send 256 updates and hear none of
//     the rejections; silence ends its attempts after a few.
//   - A node that was never acknowledged does take it over: it must, to follow
//     an owner that has died. Two such nodes at a time fight, until one is
//     acknowledged last. That there are not two is for those who call Bind: it
//     wants the client's ownership, and Abandon before it is passed on.
//
// The same holds for contacts and the home agent, except that the first number
// of a new contact always has to be learnt.
//
// # Limits
//
// Whatever comes in, no more than three messages of a type go to a client
// within a second (RFC 6275 section 11.8), and errors are limited in all. Only
// commands make entries; Config.MaxClients bounds them. A step allocates
// nothing except for new clients and timers.
//
// What RFC 6275 wants of a mobile node and we do otherwise is in
// docs/rfc6275.md.
package node
