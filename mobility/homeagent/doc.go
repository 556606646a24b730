// Package homeagent is the home agent of Mobile IPv6 (RFC 6275 section 10): it
// takes the packets that are sent to home addresses and tunnels them to the
// care-of addresses that are registered for them.
//
// # Theory of operation
//
// A mobile node, for us the contact node of a distributed server, tells its
// home agent with a Binding Update where it is. The home agent makes sure that
// nobody on the home link uses the home address (Duplicate Address Detection),
// speaks for it there from then on (proxy Neighbor Discovery), and answers with
// a Binding Acknowledgement. While the binding lasts, this is the path:
//
//	        home link                    home agent         care-of address
//	anyone ───────────► home address ─┐
//	                                  ├─► encapsulate ══════► mobile node
//	anyone ◄───────────────────────────── decapsulate ◄══════ mobile node
//
// When another node registers its care-of address for the same home address,
// with the key of the home address and a greater sequence number, the next
// packet goes there. That is how a distributed server's contact moves.
//
// A Binding Update is authentic if it carries the authentication option of
// RFC 4285, made with the key that is configured for its home address, and a
// timestamp that is about ours and later than all before. There is no IPsec.
//
// Where the home prefix is routed to the home agent instead of being on a link
// (Config.Link is nil), nobody else can use a home address. Then the first
// acknowledgement is immediate, and nothing is sent on a link.
//
// # Driving it
//
// A [HomeAgent] reads no clock and opens no socket. Around it goes a loop:
//
//	h, err := homeagent.New(homeagent.Config{Addr: addr, Prefixes: prefixes, Keys: keys, Epoch: start, Rand: rand.Reader})
//	for {
//		var in homeagent.Input = homeagent.Tick{}
//		select {
//		case p := <-routed: // to Addr, to an anycast address, to a home address
//			in = homeagent.Received{Packet: p}
//		case p := <-heard: // Neighbor Discovery on the home link
//			in = homeagent.OnLink{Packet: p}
//		case <-timer(h.NextDeadline()):
//		}
//		out := h.Step(time.Since(start), in)
//		join(out.Join)
//		record(out.Changes)
//		transmit(out.Link) // on the home link, whatever the routing table says
//		send(out.Send)
//		deliver(out.Local)
//		leave(out.Leave)
//	}
//
// # Starting anew
//
// Bindings are not stored. After a restart a machine has none, and until the
// mobile nodes register again, packets to their home addresses are dropped in
// silence: an ICMPv6 error would end connection attempts that succeed a second
// later. A first registration is accepted whatever its sequence number
// (RFC 6275 section 9.5.1). What was recorded before the restart is refused by
// its timestamp, which is earlier than Config.Start. Config.RefreshAdvice
// bounds how long it takes until the mobile nodes come back.
package homeagent
