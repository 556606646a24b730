// Package bedbench measures what takes a whole distributed server of real programs
// (internal/testbed): how long a client waits while it is handed off, what that costs
// the nodes, how long it takes to empty one, and how fast data goes by way of the
// contact. [Run] is a part of `ds bench net`, [Evaluate] is `ds bench handoff`, whose
// results package evaluation writes down.
//
// # Method
//
// A client's gap is measured where the client is, by a capture on its interface, with
// the kernel's time stamps. It asks and is answered, 64 octets each, one after the
// other, and every answer says which node gave it. The gap of a handoff is the time
// from the last answer of the donor to the first of the target, as in the report of
// 2009. Without a handoff that time is what an exchange takes, which is measured too.
//
// Where the way is long a client asks each millisecond instead, and waits for no
// answer: else the gap would be a round trip, handoff or not.
//
// No client is sent more than three Binding Updates in a second (RFC 6275 section
// 11.8), so many of them take turns: a host has as many addresses as that takes, and
// its correspondent binds them all.
//
// Processor time is that of a node's dsco and application, by the scheduler's own
// count, before and after many clients have gone from one node to another.
//
// The handoff within a machine is from one process to another that has the same TUN
// (local_linux.go), since a node has one application at a time.
//
// Everything is on one machine: hosts are network namespaces, and links have no delay.
// The programs of a node have processors of their own in [Evaluate], as those of a
// machine have: of two processors a donor has the one, its target the other. All else
// shares them, and so does what the kernel does for other hosts, which it counts as of
// the program that sent to them. In [Run] all programs have all processors, as the
// kernel's own TCP has that they are compared with.
package bedbench
