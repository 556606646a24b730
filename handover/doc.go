// Package handover hands the TCP connections of a process to another one on the same
// machine that has the same link: the next version of a program, as a rule. Their
// peers see a pause of some tenths of a millisecond.
//
// # Theory of operation
//
// Package migrate moves the connections, and its doc says how. This package is the way
// between two processes, a UNIX socket, and the decision which of them has the
// connections: at any instant at most one.
//
//	donor                                     target
//	─────                                     ──────
//	Prepare  shares a word of memory;         Receive
//	         freezes, exports, thaws: ───────►   imports, discards
//	         a rehearsal                            │
//	            ◄─────────────────── ready ─────────┘
//	Pause, Freeze: nobody serves
//	Give     one message: snapshot, late
//	         packets, the application's ─────►   imports
//	                                          Activate takes the word
//	               ━━━━━━━━ point of no return ━━━━━━━━
//	                                          goes live, reads the link
//	            ◄────────────────── active ── Confirm
//	         discards
//
// The donor decides nothing while all goes well: the target takes the word as soon as it
// has rebuilt the connections, and is live. If it refuses them, ends, or says nothing
// until the deadline of the socket, the donor overrules: it takes the word itself, and
// goes on. Both take it with one compare-and-swap, so whoever is first has decided,
// also when the other has stopped in that moment, or has ended. A donor that ends
// with its message sent is not missed: the target has all it needs.
//
// The message is one, so that the target is woken once while nobody serves. The rehearsal
// before it shows whether the target can take the connections while they still are
// served, but for the moment in which they are frozen to be described.
//
// What the peers send while nobody serves waits in the link's queue, which both processes
// have, and is read by whoever goes on.
//
// # A handover
//
// The donor, whose application keeps nothing of its own:
//
//	d, err := handover.Prepare(conn, s)
//	if err != nil {
//		return err // nothing has happened
//	}
//	if err := s.Pause(); err != nil {
//		return err
//	}
//	donor := migrate.NewStackDonor(s)
//	donor.AllowEmpty()
//	if err := donor.Freeze(); err != nil {
//		return errors.Join(err, s.Resume())
//	}
//	if err := d.Give(donor, nil); err != nil {
//		return errors.Join(err, donor.Thaw(), s.Resume())
//	}
//
// The target, whose stack was paused before it read anything:
//
//	t, err := handover.Receive(conn, s)
//	if err != nil {
//		return err // the donor goes on
//	}
//	conns, err := t.Activate() // no way back
//	if err != nil {
//		return err
//	}
//	serve(conns)
//	if err := s.Resume(); err != nil {
//		return err
//	}
//	err = t.Confirm()
package handover
