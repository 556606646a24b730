// Package migrate moves live TCP connections from one stack to another: to
// another process, or to another machine that takes over the address. The peer
// sees neither a reset nor a lost or doubled octet, nor does it start slowly
// again.
//
// # Theory of operation
//
// A [Donor] gives one connection, or all of one client, or all that a stack
// has, and a [Target] receives them. Between the two travels a snapshot, a slice of
// octets (package snapshot, docs/snapshot-format.md), by whatever way the
// caller has.
//
//	donor                                    target
//	─────                                    ──────
//	Drain    (optional) wait until the send
//	         buffers are acknowledged
//	Freeze   hold the packets at the link,
//	         then stop the connections
//	Export   describe them ───────────────►  Import    rebuild them: silent
//	                                                   and out of reach
//	            ── point of no return ──
//	Discard  drop the copies, forward        Activate  go on, then process
//	         stragglers                                what had arrived
//
// Until the point of no return, Thaw on the donor undoes everything and the
// connections go on there as if no time had passed; the target's half-built
// ones are Discarded. At every instant at most one side can send. Which side
// crosses the point of no return, and how both learn of it, is up to the
// caller: this package moves connections, it does not decide.
//
// What was on its way to the donor when the route changed should have arrived
// there before Discard: word of the change that comes the same way, behind it,
// is a sure sign. Stragglers that are forwarded reach the target behind later
// packets; TCP puts them in order, but the peer may take them for lost first.
//
// The connection's clock stands still between Freeze and Activate or Thaw.
// Ages and remaining times travel, not instants, so the two hosts need no
// common clock, and the timestamps the peer sees go on without a jump.
//
// # The application
//
// From Freeze on, calls on the donor's [stack.Conn] wait, within their
// deadlines. After Discard they fail with [ErrMoved], which is also a
// [net.ErrClosed]; after Thaw they go on. The target's Activate returns fresh
// connections. What an application had written is in the snapshot; what it had
// read is not.
//
// An application with state of its own to move, such as how far into a file it
// is, must know exactly how much it has read and written before that state is
// saved. A call that waits at a frozen connection cannot say. So interrupt the
// calls first: set a deadline in the past, wait for them to return, which tells
// how far they got, then Freeze, save the state, and Export. Package
// examples/hotswap does it, with package handover between its two processes.
//
// A client may hear of the target before its connections are there: [Expect] holds what
// it sends, and [Target.Return] sends that back if they never come.
//
// # A move within one process
//
//	donor := migrate.NewClientDonor(a, client)
//	if err := donor.Freeze(); err != nil {
//		return err // nothing has happened
//	}
//	snap, err := donor.Export(nil)
//	if err != nil {
//		return errors.Join(err, donor.Thaw())
//	}
//	target, err := migrate.Import(b, snap)
//	if err != nil {
//		return errors.Join(err, donor.Thaw())
//	}
//	late, err := donor.Discard(b.Inject, time.Minute) // no way back
//	if err != nil {
//		return err
//	}
//	conns, err := target.Activate(late...)
package migrate
