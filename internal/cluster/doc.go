// Package cluster is a whole distributed server with its clients, simulated:
// real netstacks and real protocol machines on a network in memory, whose time
// is the simulation's. The same seed gives the same run, packet by packet.
//
//	client 1 ── mobile IPv6 ──┐            ┌── home agent   home prefix, with the DSA
//	client 2 ── without ──────┤            ├── node 1       contact, care-of address 1
//	   …                      ├── network ─┤── node 2       care-of address 2
//	client n ─────────────────┘            └── node 3       care-of address 3
//
// On a client there is netstack with, if it speaks Mobile IPv6, a
// [correspondent.Correspondent] between it and the link. On a node there is a
// [stack.Stack] with its shim, a [node.Node] for signalling and, if it is the
// contact, a [relay.Relay] before both.
//
// What is simulated, beside the network, is the protocol between the nodes: a
// message is a delay, during which it cannot be lost. [System.Handoff] shows
// which messages a handoff needs.
package cluster

import (
	_ "github.com/distributed-servers/ds/mobility/correspondent" // for the links above
)
