// Package lab is a seeded IP network in memory, for tests and the demo, and a
// world of hosts on such networks that runs by itself.
//
// # The network
//
// A [Net] is one switch or router. Each [Port] is a link to it and, for whoever
// holds the port, a [tun.Device]. A packet takes three steps:
//
//	Port.Write ─► up ─► route ─► down ─► queue ─► Port.Read
//	              │      │        │
//	              │      │        └ impairment of the destination's link
//	              │      └ hop limit; longest prefix; partitions; MTU of the
//	              │        destination's link
//	              └ impairment of the sender's link
//
// Without impairment all of it happens in the writer's goroutine. An impaired
// direction first loses, then duplicates, then holds packets back (which is
// what reorders them), then queues them for its bandwidth, then delays them.
// The queue and the delay keep the order; only Reorder changes it.
//
// [Join] plugs a port of one network into one of another, which makes routers
// of both: they count hops and send ICMP errors. Links can go down, sets of
// ports can be cut off from one another, and a port can be replaced by another
// as when a host restarts.
//
// What waits, waits in one queue for the whole network, ordered by time and
// then by arrival, behind a single timer of the clock. With a manual clock a
// run therefore repeats exactly.
//
// Each direction decides by a random stream of its own, derived from the seed
// and the name of the port: the fate of the n-th packet that it sees while
// impaired does not depend on traffic elsewhere.
//
// # The world
//
// A [Sim] owns networks, hosts and time. It takes one event after another from
// an agenda (a packet arrives, a machine's deadline is due, a netstack's timer
// fires, the script of a test goes on), and lets the host concerned come to
// rest before the next:
//
//	event ─► program ─► netstack's goroutines ─► device ─► link
//	            ▲                                             │
//	            └────── processes, as long as any is ready ◄──┘
//
// Time moves only between events, and nothing sleeps.
//
//	s := lab.NewSim(seed)
//	defer s.Close()
//	n := s.NewNet("net")
//	server, err := s.NewHost("server", n, 1500, func(h *lab.Host) (lab.Program, error) {
//		d := h.Device(1500, nil)
//		st, err := stack.New(stack.Config{Device: d, Addrs: addrs, Clock: h.Clock(), Rand: h.Rand("stack")})
//		if err != nil {
//			return nil, err
//		}
//		d.Watch(st.Netstack())
//		return program{st}, nil // Receive: st.Arrive; no deadline; Close
//	})
//	n.Route(netip.PrefixFrom(addr, 128), server.Port())
//	server.Go("echo", func(p *lab.Proc) { ... p.Wait(func() bool { c, err = l.TryAccept(); return err == nil }) ... })
//	s.At(3*time.Second, server.Crash)
//	s.Run(time.Hour)
//
// # Why a run repeats
//
// The same seed gives the same run, to the octet and the nanosecond, on any
// number of processors ([Sim.Hash] compares runs):
//
//   - One event at a time. A netstack processes segments in goroutines; they
//     are paused while an event happens and run, to the end, after it.
//   - What they send is collected and goes out flow by flow.
//   - Their timers are events; those of a host that are due together fire
//     together, so that the order in which goroutines set them does not count.
//   - All random numbers come from streams named by host and purpose
//     ([Host.Rand]), and so do the clocks' skews.
//   - A process is a coroutine; it runs when the Sim lets it.
//
// What would break it: time.Now (deadlines of net.Conn are the system's), a
// goroutine or a map's order in a program, and a connection from a host to
// itself where netstack has several processors.
package lab
