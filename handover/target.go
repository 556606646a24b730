//go:build linux

package handover

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/distributed-servers/ds/migrate"
	"github.com/distributed-servers/ds/stack"
)

// ErrOverruled means that the donor has taken its connections back, having waited for
// long enough, or having had an error.
var ErrOverruled = errors.New("the donor has taken its connections back")

// confirmAfter is how long a target serves before it says so: the donor's end, and
// whatever else comes of that, wants the processors that the first answers need.
const confirmAfter = time.Millisecond

// Target has received the connections from the process at the other end of a Conn.
//
//	Receive ──► Activate ──► Confirm
//	   └──────► Discard
type Target struct {
	State []byte     // of the donor's application
	Files []*os.File // that belong to it; they are the caller's

	conn   *Conn
	word   word
	target *migrate.Target
	late   [][]byte
}

// Receive waits for the connections of the process at the other end, and rebuilds them in
// s: silent, and out of reach. The stack is paused, and must have the addresses and
// listeners of the donor's. After an error the donor goes on, which it does at once
// if the Conn is refused or closed.
func Receive(c *Conn, s *stack.Stack) (t *Target, err error) {
	t = &Target{conn: c}
	if err = t.receive(s); err != nil {
		closeFiles(t.Files)
		t.Discard()
		return nil, failed("receive", err)
	}
	return t, nil
}

func (t *Target) receive(s *stack.Stack) error {
	if err := t.prepare(s); err != nil {
		return err
	}
	octets := 0
	for {
		f, files, err := t.conn.nextWith()
		if err != nil {
			return err
		}
		switch {
		case f.kind == kindState && t.State == nil:
			t.State, t.Files = f.body, files
			continue
		case len(files) > 0:
			closeFiles(files)
			return fmt.Errorf("frame of kind %d has %d descriptors", f.kind, len(files))
		case f.kind == kindLate:
			if octets += len(f.body); octets <= maxAllLate {
				t.late = append(t.late, f.body)
			}
		case f.kind == kindSnapshot && t.State != nil:
			t.target, err = migrate.Import(s, f.body)
			return err
		default:
			return fmt.Errorf("frame of kind %d out of order", f.kind)
		}
	}
}

// prepare is the other end of the donor's Prepare.
func (t *Target) prepare(s *stack.Stack) error {
	f, memory, err := t.conn.nextWith()
	if err != nil {
		return err
	}
	defer closeFiles(memory)
	if f.kind != kindWord || len(memory) != 1 {
		return fmt.Errorf("frame of kind %d with %d descriptors: want %d with one", f.kind, len(memory), kindWord)
	}
	if t.word, err = openWord(memory[0]); err != nil {
		return err
	}
	if f, err = t.conn.want(kindRehearsal); err != nil {
		return err
	}
	if len(f.body) > 0 {
		rehearsed, err := migrate.Import(s, f.body)
		if err != nil {
			return err
		}
		if err := rehearsed.Discard(); err != nil {
			return err
		}
	}
	return t.conn.send(kindReady, nil)
}

// Len is the number of connections.
func (t *Target) Len() int { return t.target.Len() }

// Activate takes the connections for this process, and makes them live: once it has,
// the donor never gets them back. It returns them as [migrate.Target.Activate] does, after
// an error, too, as far as they are live. If the donor was first, the error is
// [ErrOverruled], and everything is as after Discard.
func (t *Target) Activate() ([]*stack.Conn, error) {
	if !t.word.take() {
		t.Discard()
		return nil, failed("activate", ErrOverruled)
	}
	// ━━━ Point of no return: from here on this process has the connections. ━━━
	conns, err := t.target.Activate(t.late...)
	t.target = nil
	if err != nil {
		t.word.close() // otherwise Confirm does
	}
	return conns, failed("activate", err)
}

// Confirm tells the donor that this process serves, and gives back what the two shared for
// the decision. It waits for a moment before.
func (t *Target) Confirm() error {
	time.Sleep(confirmAfter)
	t.word.close() // which was not urgent: whoever unmaps memory waits for all processors
	return failed("confirm", t.conn.send(kindActive, nil))
}

// Discard gives the connections up, with nothing on the wire: the donor goes on once the
// Conn is refused or closed.
func (t *Target) Discard() {
	if t.target != nil {
		t.target.Discard()
		t.target = nil
	}
	t.word.close()
}
