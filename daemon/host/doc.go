// Package host is everything that a daemon changes on its host besides packet
// filter rules: addresses, routes, rules, neighbour proxy entries and sysctls.
// What it has changed it undoes, also after a crash, and it touches nothing
// that others made.
//
// # Theory of operation
//
// Routes, rules and proxy entries carry a number that says who made them (ip
// route show proto 78, and proto in ip rule and ip neigh show proxy): [Protocol].
// So they are found without any record. Addresses and sysctls cannot be marked
// like that; they are recorded in a journal, a small file in the state
// directory, before they are changed:
//
//	Open ─► journal ─► AddRoute, AddAddr, SetSysctl … ─► Close: undone in
//	          │                                           reverse, journal removed
//	          └── killed ─► next Open, or Cleanup: what the journal has and what
//	                        carries the number is undone, journal removed
//
// A journal exists exactly as long as something may be left. That of another
// boot or of another network namespace is out of date: what it tells of is gone.
//
// A sysctl goes back to its old value only if it still has the one that was set
// here; an address is removed only if it was not there before. Interfaces are
// named, and one that is gone has taken its own things with it.
//
// The daemons of one host have a number each ([ProtocolNode],
// [ProtocolHomeAgent], [ProtocolCorrespondent]), so that none cleans up what is
// another's, and a state directory each, which is locked.
package host
