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
//	client ─┐                         ┌─ node a: ds.Node ═ session ═ daemon
//	client ─┼─ network ─── contact ───┤
//	client ─┘    └────────────────────┴─ node b: ds.Node ═ session ═ daemon
//	          optimised clients
//
// The contact watches what it relays: a node that sends to a client which
// another owns is reported by [Cluster.Faults], and so are resets.
package dstest
