// Package daemon is the node's role of dsco: what a machine needs beside its
// application to be a node of distributed servers.
//
// # Theory of operation
//
// For each distributed server there is a [member.Member], a machine that
// decides; this package is the driver around it. It brings it what comes in,
// and does what it says:
//
//	Netfilter queue ─┐ signalling                    ┌─► raw socket: packets out
//	raw socket 41 ───┼─────────────► member ─────────┼─► relay of the contact
//	sessions ────────┤ messages        ▲             ├─► sessions, other daemons
//	other daemons ───┤                 │ commands    ├─► file: the contact's epoch
//	API ─────────────┘─────────────────┘             └─► events
//
//	raw socket 41 ───► relay of the contact ───► raw socket     (data, in tunnels)
//
// Inputs of a member are taken one after another, and what it says is done before
// the next is taken, so that a Binding Update is out before the application
// hears that it may send. What comes in tunnels to the contact passes the relay,
// which has a lock of its own, and the member only if it is signalling.
package daemon
