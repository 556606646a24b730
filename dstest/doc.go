// Package dstest is a distributed server in memory: nodes with a daemon each, a
// contact that relays clients to their owners, and clients. It needs no
// privilege, and nothing of it leaves the process. Applications test with it
// what they do in a handoff, and that they survive one that fails.
//
//	c := dstest.New("a", "b")
//	defer c.Close()
//	a, b := c.Node("a"), c.Node("b")
//	// serve with a and b, as with any ds.Node
//	conn, err := c.Client(addr).Dial(ctx, c.Address(80))
//	_, err = a.Handoff(ctx, addr, "b", state)
//
// The topology:
//
//	client ─┐              ┌─ home agent ═ tunnel ═ contact: node a's daemon
//	client ─┼── network ───┤                             ║
//	client ─┘              ├─ node a: ds.Node ═ session ═ daemon
//	                       └─ node b: ds.Node ═ session ═ daemon
//
// The network, sessions and connections between daemons are in memory; all that
// decides is what decides in real ones: daemons are package daemon/member, around
// which there is a home agent, the relay of the contact, and clients with or
// without Mobile IPv6. So whatever may happen to an application in a handoff may
// happen here, when daemons end ([Cluster.Restart], [Cluster.SetDown]), when they
// lose each other ([Cluster.SetApart]), or at a chosen message
// ([Cluster.Intercept], [Cluster.Between]). The clock of the daemons is faster.
//
// What nodes send to clients is watched: [Cluster.Faults] reports a node that sends
// to a client which it has not, a reset, and two different octets at one place of
// a connection. [ds.Node.Status], Clients and Watch work as with real daemons.
package dstest
