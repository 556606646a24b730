//go:build linux

package handover

import (
	"errors"
	"slices"
	"syscall"

	"github.com/distributed-servers/ds/migrate"
	"github.com/distributed-servers/ds/stack"
)

// Donor gives the connections of a stack to the process at the other end of a Conn.
//
//	Prepare ──► Give ──► over, whatever has come of it
//	   └──────► Cancel
type Donor struct {
	conn *Conn
	word word
}

// Prepare gets both processes ready, while the connections are served. What can be rehearsed
// of the handover is; without a connection, with one in a handshake, or where the
// snapshot has more than a MiB, that is less. After an error nothing has happened, and
// nothing will.
func Prepare(c *Conn, s *stack.Stack) (d *Donor, err error) {
	w, memory, err := newWord()
	if err != nil {
		return nil, failed("prepare", err)
	}
	defer memory.Close()
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	snap, err := rehearsal(s)
	if err == nil {
		err = c.put(kindWord, nil, memory)
	}
	if err == nil {
		err = c.send(kindRehearsal, snap)
	}
	if err == nil {
		_, err = c.want(kindReady)
	}
	if err != nil {
		return nil, failed("prepare", err)
	}
	return &Donor{c, w}, nil
}

// rehearsal is a snapshot of connections that go on.
func rehearsal(s *stack.Stack) ([]byte, error) {
	donor := migrate.NewStackDonor(s)
	donor.AllowEmpty()
	switch err := donor.Freeze(); {
	case errors.Is(err, migrate.ErrHandshake), errors.Is(err, migrate.ErrBusy):
		return nil, nil // that may be over in time
	case err != nil:
		return nil, err
	}
	snap, err := donor.Export(nil)
	if len(snap) > maxRehearsal {
		snap = nil
	}
	return snap, errors.Join(err, donor.Thaw())
}

// Cancel ends a handover for which there will be no Give.
func (d *Donor) Cancel(reason error) {
	d.conn.Refuse(reason)
	d.word.close()
}

// Give hands over what donor has frozen, all of a stack's, which is paused; and with
// it the application's state, opaque octets and descriptors, which stay the caller's. It
// returns nil once the connections are the target's, discarded here, whether the
// target still lives or not. After an error they are the donor's, to be thawed, and the
// target never gets them. That is decided within the deadline of the Conn.
func (d *Donor) Give(donor *migrate.Donor, state []byte, files ...syscall.Conn) error {
	defer d.word.close()
	err := d.give(donor, state, files)
	if err != nil && d.word.overrule() {
		d.conn.Refuse(err)
		return failed("give", err)
	}
	// ━━━ The target is past the point of no return. ━━━
	_, err = donor.Discard(nil, 0)
	return failed("give", err) // it was exported: cannot be
}

// give sends everything, and waits for the target to be live.
func (d *Donor) give(donor *migrate.Donor, state []byte, files []syscall.Conn) error {
	snap, err := donor.Export(nil)
	if err != nil {
		return err
	}
	var late [][]byte // all there will be, since nobody reads the link
	err = donor.Copy(func(p []byte) bool {
		late = append(late, slices.Clone(p))
		return true
	})
	if err != nil {
		return err
	}
	for _, p := range late {
		if err := d.conn.put(kindLate, p); err != nil {
			return err
		}
	}
	if err := d.conn.putWith(kindState, state, files); err != nil {
		return err
	}
	if err := d.conn.send(kindSnapshot, snap); err != nil {
		return err
	}
	_, err = d.conn.want(kindActive)
	return err
}
