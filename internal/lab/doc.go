// Package lab is a seeded IP network in memory, for tests and the demo.
//
// # Theory of operation
//
// A [Net] is one router. Each [Port] is a link to it and, for whoever holds
// the port, a [tun.Device]. A packet takes three steps:
//
//	Port.Write ─► up ─► route ─► down ─► queue ─► Port.Read
//	              │      │        │
//	              │      │        └ impairment of the destination's link
//	              │      └ longest prefix; MTU of the destination's link
//	              └ impairment of the sender's link
//
// Without impairment all of it happens in the writer's goroutine. An impaired
// direction first loses, then duplicates, then holds packets back (which is
// what reorders them), then delays them. The delay keeps the order; only
// Reorder changes it.
//
// What waits, waits in one queue for the whole network, ordered by time and
// then by arrival, behind a single timer of the clock. With gVisor's
// faketime.ManualClock a run therefore repeats exactly.
//
// Each direction decides by a random stream of its own, derived from the seed
// and the name of the port: the fate of the n-th packet that it sees while
// impaired does not depend on traffic elsewhere.
package lab
