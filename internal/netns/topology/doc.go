// Package topology builds networks of hosts on one machine, for tests, the demo
// and benchmarks that run real programs.
//
// # Theory of operation
//
// A [Host] is a network namespace that has no name: a descriptor of this process
// keeps it, so that it goes with the process, and all of its interfaces, routes
// and rules with it, however the process ends. What runs in a host are programs
// ([Host.Start], [Host.Command]), which the kernel kills when this process ends,
// and functions of this process ([Host.Do]), on a thread that is in the
// namespace meanwhile.
//
// Hosts are connected by pairs of virtual Ethernet interfaces ([Net.Connect]), or
// to a switch ([Net.Switch], a bridge in a namespace of its own). The kernel then
// carries whole super-packets. A link with an [impair.Settings], on the other hand,
// has a thread of this process between its ends, which passes each frame on as
// late, as often and in the order that the impairment says ([Link.Impair]).
// Interfaces there have no offload, so that a frame is a packet of the wire.
//
// No address goes through duplicate address detection and nobody solicits
// routers: a host is ready as soon as it is configured. Programs that detect
// duplicates by themselves still can.
//
//	client 2001:db8:c::2 ── eth0 ═══ eth0 ── router ── eth1 ═══ eth0 ── server
//
// in code, in a process that [netns.Command] has started:
//
//	n, err := topology.New()
//	defer n.Close()
//	client, err := n.Host("client")
//	router, err := n.Host("router")
//	link, err := n.Connect(
//		topology.End{Host: client, Name: "eth0", Addrs: prefixes("2001:db8:c::2/64")},
//		topology.End{Host: router, Name: "eth0", Addrs: prefixes("2001:db8:c::1/64")})
//	err = router.Forward()
//	err = client.Route(netip.MustParsePrefix("::/0"), netip.MustParseAddr("2001:db8:c::1"))
//	capture, err := client.Capture("eth0", file)
//	out, err := client.Command(ctx, "curl", "-sS", "http://[2001:db8:5::a]/").Output()
//
// Nothing here needs privilege beyond what netns.Command gives, except that
// programs may want to: a TUN is not to be had everywhere ([probe.TUN]).
package topology
