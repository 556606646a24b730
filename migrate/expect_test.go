package migrate_test

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/distributed-servers/ds/migrate"
)

// A client hears of the target before its connections are there, which must not be
// answered: with a reset. When they are, they go on with what it has sent; when they
// never come, what it has sent goes back.
func TestExpect(t *testing.T) {
	for _, comes := range []bool{true, false} {
		w := newWorld(t, options{})
		c, s := w.connect(service6)
		client := s.Tuple().Remote.Addr()
		target, err := migrate.Expect(w.node[1], client)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := migrate.Expect(w.node[1], client); !errors.Is(err, migrate.ErrBusy) {
			t.Errorf("expected twice: %v", err)
		}
		if _, err := target.Activate(); !errors.Is(err, migrate.ErrOrder) {
			t.Errorf("activated with nothing: %v", err)
		}
		d, snap := exported(t, w, client)
		w.route(1)
		if _, err := c.Write([]byte("early")); err != nil {
			t.Fatal(err)
		}
		if err := target.Import([]byte("nonsense")); !errors.Is(err, migrate.ErrFormat) {
			t.Errorf("nonsense: %v", err)
		}
		if err := target.Import(snap); err != nil { // it is still expected
			t.Fatal(err)
		}
		if err := target.Import(snap); !errors.Is(err, migrate.ErrOrder) {
			t.Errorf("imported twice: %v", err)
		}
		live := s
		if comes {
			late, err := d.Discard(w.node[1].Inject, time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			conns, err := target.Activate(late...)
			if err != nil {
				t.Fatal(err)
			}
			live = conns[0]
		} else {
			if err := d.Thaw(); err != nil {
				t.Fatal(err)
			}
			late, err := target.Return(w.node[0].Inject, time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range late {
				w.node[0].Inject(p)
			}
			if _, err := target.Return(nil, 0); !errors.Is(err, migrate.ErrOrder) {
				t.Errorf("returned twice: %v", err)
			}
		}
		// What comes by way of the target goes on to the donor.
		b := make([]byte, 16)
		for _, want := range []string{"early", "later"} {
			if n, err := live.Read(b); err != nil || string(b[:n]) != want {
				t.Errorf("comes %t: %q, %v", comes, b[:n], err)
			}
			if _, err := c.Write([]byte("later")); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// The connections of another client are not those that are expected.
func TestExpectAnother(t *testing.T) {
	w := newWorld(t, options{})
	_, s := w.connect(service6)
	client := s.Tuple().Remote.Addr()
	target, err := migrate.Expect(w.node[1], client.Next())
	if err != nil {
		t.Fatal(err)
	}
	d, snap := exported(t, w, client)
	if err := target.Import(snap); !errors.Is(err, migrate.ErrFormat) {
		t.Errorf("got %v", err)
	}
	if err := errors.Join(target.Discard(), d.Thaw()); err != nil {
		t.Error(err)
	}
}

// exported freezes a client at the first node, and describes it.
func exported(t *testing.T, w *world, client netip.Addr) (*migrate.Donor, []byte) {
	t.Helper()
	d := migrate.NewClientDonor(w.node[0], client)
	if err := d.Freeze(); err != nil {
		t.Fatal(err)
	}
	snap, err := d.Export(nil)
	if err != nil {
		t.Fatal(err)
	}
	return d, snap
}
