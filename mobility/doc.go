// Package mobility is Mobile IPv6 (RFC 6275) turned round: to the client, a
// correspondent node, the server is the mobile node. The nodes of a
// distributed server share its home address, the distributed server address,
// and each has a care-of address of its own. A client is moved by telling it
// of another care-of address.
//
// This package is its own documentation; the code is below:
//
//	wire           messages, options, headers
//	node           a server node, in the role of the mobile node
//	correspondent  the client
//	homeagent      tunnels first contact to the contact node
//	relay          the contact node's rules for what is others'
//
// # Theory of operation
//
// All but wire are machines. A machine reads no clock, opens no socket, starts
// no goroutine and draws no random number. It is told the time and what
// happened, and answers what is to be done:
//
//	for {
//		var in node.Input
//		select {
//		case p := <-packets:
//			in = node.Received{Packet: p}
//		case in = <-commands:
//		case <-timer(n.NextDeadline()):
//			in = node.Tick{}
//		}
//		out := n.Step(now(), in)
//		for _, p := range out.Send {
//			send(p)
//		}
//		for _, e := range out.Events {
//			tell(e)
//		}
//	}
//
// What a Step returns is valid until the next one.
//
// A client's packets take one of these ways:
//
//	first contact     client ─► home agent ═► contact ═► owner     ═: tunnel
//	                  client ◄─ home agent ◄═ contact ◄═ owner
//	route optimised   client ─► owner      type 2 routing header
//	                  client ◄─ owner      Home Address option
//
// Any node proves to the client that it is reachable at the home address, with
// HoTI and HoT through contact and home agent, and at its care-of address,
// with CoTI and CoT directly. The two tokens it gets are the key of the Binding
// Update. When a client is handed off, the token of the home address goes along,
// and the new owner has fetched the other one beforehand: the Binding Update
// is then the first packet that it sends. Its sequence number is the fence: the
// client itself refuses an owner that is out of date.
package mobility
