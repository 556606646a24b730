package identity

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func admitted(*Roster) error { return nil }

// A node is removed: the others know it, refuse what it asks, and it hears why; and it
// may join again.
func TestRemove(t *testing.T) {
	w, a := newWorld(t)
	b, c := w.must("b", a), w.must("c", a)
	for _, n := range []*node{a, b, c} {
		n.until(t, "all", has("a", "b", "c"))
	}
	if _, err := Remove(a.dir, "b", admitted); err != nil {
		t.Fatal(err)
	}
	for _, n := range []*node{a, c} {
		n.until(t, "without b", has("a", "c"))
		if r, err := ReadRoster(n.dir); err != nil || !has("a", "c")(r) {
			t.Errorf("%s keeps %v, %v", n.name, r.names(), err)
		}
	}

	for range 2 {
		err := b.agent.Exchange(t.Context(), "c")
		if !errors.Is(err, ErrRemoved) || !strings.Contains(err.Error(), "is without b; if it is to be one again, run ds token at the authority, a,") {
			t.Errorf("b hears of c: %v", err)
		}
	}
	if err := <-b.faults; !errors.Is(err, ErrRemoved) {
		t.Errorf("b's operator hears %v", err)
	}
	select {
	case err := <-b.faults:
		t.Errorf("and again: %v", err)
	default:
	}
	if !has("a", "b", "c")(b.agent.Roster()) {
		t.Errorf("b has taken over a list without itself: %v", b.agent.Roster().names())
	}
	_, csr, err := newRequest("b")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.agent.ask(t.Context(), "a", &request{Kind: kindRenew, CSR: csr}); err == nil || !strings.Contains(err.Error(), `for members only, and "b" is none`) {
		t.Errorf("b gets a certificate: %v", err)
	}
	b.stop()

	// One that was away meanwhile hears it at its start.
	faults := make(chan error, 10)
	again := w.start("b", b.dir, func(c *Config) { c.Fault = func(err error) { faults <- err } })
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	select {
	case err := <-faults:
		if !errors.Is(err, ErrRemoved) {
			t.Error(err)
		}
	case <-ctx.Done():
		t.Error("b does not hear of it")
	}
	again.stop()

	if _, _, err := w.join("b", a.token(t, TokenOptions{}), func(c *JoinConfig) { c.Dir, c.Force = b.dir, true }); err != nil {
		t.Fatal(err)
	}
	w.start("b", b.dir)
	c.until(t, "b again", has("a", "b", "c"))
}

// What cannot be removed stays, and nothing changes.
func TestRemoveRefused(t *testing.T) {
	w, a := newWorld(t)
	b := w.must("b", a)
	a.stop()
	file := filepath.Join(a.dir, RosterFile)
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		dir, name, want string
		admit           error
	}{
		{a.dir, "a", "identity: remove: the authority of the cluster is on a", nil},
		{a.dir, "z", "there is no node z; there are a, b", nil},
		{a.dir, "b", "identity: remove: it has clients", errors.New("it has clients")},
		{b.dir, "a", "the authority of the cluster is not on this node", nil},
	} {
		if _, err := Remove(tt.dir, tt.name, func(*Roster) error { return tt.admit }); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
	if after, err := os.ReadFile(file); err != nil || string(after) != string(before) {
		t.Errorf("the list has changed: %v", err)
	}
}
