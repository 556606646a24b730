// Package e2e tests the real programs: dsco in its three roles, ds, and an
// application (e2e/service), on hosts with the kernel's own TCP/IP, and with
// clients that know nothing of all this: curl, socat, redis-cli.
//
// Each test has a network of its own, in network namespaces
// (internal/netns/topology):
//
//	client c1 ══ 2001:db8:c1::/64 ══╗
//	client c2 ══ 2001:db8:c2::/64 ══╬══ router ══ 2001:db8:a::/64 ══ home agent h
//	client c3 ══ 2001:db8:c3::/64 ══╝     ║
//	                                      ║
//	                      switch, 2001:db8:5::/64
//	                        ║         ║         ║
//	                     node a    node b    node c
//
// A client is ::2 of its network, the router ::1 of each network, the home agent
// ::2 of its own; nodes are ::a, ::b and ::c. Care-of addresses of the first
// distributed server are 2001:db8:5::1:a and so on, those of the second
// 2001:db8:5::2:a. The distributed servers themselves, ::d1 and ::d2, are in
// 2001:db8:d::/64, which the router sends to the home agent, or on the home
// agent's own link, where it has to defend them.
//
// What the tests need of the machine is found out by probes (internal/probe):
// they skip without it, or fail if DS_REQUIRE says so. Programs are built once.
//
//	make e2e                            all of them
//	go test ./e2e -run Optimised -v     one, with what is measured
//	DS_E2E_KEEP=/tmp/e2e go test ./e2e  keep logs, configurations and captures
//	DS_E2E_RACE=1 go test ./e2e         the programs with the race detector, slower
package e2e
