// Package correspondent is the correspondent node of Mobile IPv6 (RFC 6275
// section 9) as a pure machine: it answers return routability tests, keeps the
// binding cache, and exchanges care-of and home addresses in the packets of
// its host. It reads no clock, opens no socket and starts no goroutine.
//
// # Theory of operation
//
// A mobile node is reached at its home address, at the price of a detour
// through its home agent. To be reached directly it must prove to the
// correspondent that it can be reached at both of its addresses: it asks for a
// keygen token through the home agent (HoTI, HoT) and for one directly (CoTI,
// CoT), and signs a Binding Update with both. The tokens are a keyed hash of
// the address they went to, so the correspondent remembers nothing until a
// Binding Update with the right signature is there: floods of tests cost no
// memory.
//
// From then on, for the lifetime of the binding, packets to the home address
// leave with the care-of address as destination and the home address in a
// type 2 routing header ([Transmit]); packets from the care-of address with a
// Home Address option reach the upper layers as if they came from the home
// address ([Received]). The upper layers never see a care-of address.
//
// What a machine can be talked into is bounded. Bindings come from signed
// updates alone; a sequence number that is not greater than the last is
// refused, also for as long after the end of the binding as tokens could be
// replayed; every kind of answer has a token bucket for each /64 and one for
// all; the cache has a limit, and a new binding only takes the place of one
// that is idle. No packet is answered by more than one, and that one is hardly
// larger than what it answers.
//
// # Use
//
//	c, err := correspondent.New(correspondent.Config{Local: host.Has, Rand: rand.Reader})
//	...
//	for {
//		var in correspondent.Input = correspondent.Tick{}
//		select {
//		case b := <-fromNetwork:
//			in = correspondent.Received{Packet: b}
//		case b := <-fromStack:
//			in = correspondent.Transmit{Packet: b}
//		case <-timer.C:
//		}
//		out := c.Step(time.Since(start), in)
//		for _, b := range out.Send {
//			network.Write(b)
//		}
//		for _, b := range out.Deliver {
//			stack.Write(b)
//		}
//		if at, ok := c.NextDeadline(); ok {
//			timer.Reset(at - time.Since(start))
//		}
//	}
//
// [Overhead] is what Transmit adds to a packet. The host's stack has to leave
// that much room, by the MTU of its link or of its route: the machine does not
// fragment.
package correspondent
