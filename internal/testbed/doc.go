// Package testbed is a distributed server on one machine, with the real programs:
// dsco in its three roles and an application on each node, on hosts with the
// kernel's own TCP/IP, for the end-to-end tests, the demo and benchmarks.
//
//	client c1 ══ 2001:db8:c1::/64 ══╗
//	client c2 ══ 2001:db8:c2::/64 ══╬══ router ══ 2001:db8:a::/64 ══ home agent h
//	client c3 ══ 2001:db8:c3::/64 ══╝     ║
//	                                      ║
//	                      switch, 2001:db8:5::/64
//	                        ║         ║         ║
//	                     node a    node b    node c
//
// Each host is a network namespace (internal/netns/topology). A client is ::2 of
// its network, the router ::1 of each network, the home agent ::2 of its own;
// nodes are ::a, ::b and ::c. Care-of addresses of the first distributed server
// are 2001:db8:5::1:a and so on, those of the second 2001:db8:5::2:a. The
// distributed servers themselves, ::d1 and ::d2, are in 2001:db8:d::/64, which the
// router sends to the home agent, or on the home agent's own link, where it has to
// defend them.
//
// A process makes one in namespaces of its own (internal/netns). Everything ends
// with Close, and with the process.
package testbed

import "time"

// TimerSlack is how late timers of a daemon may be, as systemd's units have it
// (TimerSlackNSec=), and of an application, as docs/operate.md has it.
const TimerSlack = time.Millisecond
