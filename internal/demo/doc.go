// Package demo hands live HTTP transfers over among three nodes, again and again,
// and lets ordinary clients check every octet.
//
// # Theory of operation
//
// Two clients download and upload at the same time. At equal steps of its
// transfers a client is handed to the next of three nodes, with both connections
// and in the middle of both bodies. One client's route is optimised: it sends to
// the node that has it. The other's packets are relayed by the contact node. The
// application on the nodes is package movable. There are two modes:
//
//	namespaces   home agent, three nodes with an application each, clients,
//	             router and switch in network namespaces (package testbed): the
//	             real daemons, clients with the kernel's TCP
//	memory       nodes and clients in this process (package dstest)
//
// In namespaces this program runs three times over:
//
//	ds demo ── stdin, stdout ── ds demo inside ──┬── dsco ...
//	(progress, result)          (clients)        └── ds demo app ... (on each node)
//	                                                 UNIX socket: hand off
//
// Whatever ends, what is right of it ends too, and the namespaces go away with
// their last process.
package demo
