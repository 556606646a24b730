// Package bedbench measures what takes a whole distributed server of real programs
// (internal/testbed): how long a client waits while it is handed off, and how fast
// data goes by way of the contact.
//
// # Method
//
// A client's gap is measured where the client is, by a capture on its interface.
// It asks and is answered, 64 octets each, one after the other, and every answer
// says which node gave it. The gap of a handoff is the time from the last answer
// of the donor to the first of the target, as in the report of 2009. Without a
// handoff that time is what an exchange takes, which is measured too.
//
// Everything is on one machine: hosts are network namespaces, links have no
// delay, and all programs share its processors.
package bedbench
