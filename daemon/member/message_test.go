package member

import (
	"bytes"
	"errors"
	"math"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/distributed-servers/ds/daemon/plan"
	"github.com/distributed-servers/ds/mobility/node"
)

func samples() []*Message {
	c := clientAddr(0)
	g := newGrant(node.Grant{HomeNonce: 3, Remaining: time.Second, Sequence: 7, Binding: time.Minute})
	return []*Message{
		{Kind: Hello, Version: Oldest, Newest: Newest, Features: features, Contact: "a", ContactEpoch: 3, Clients: 5, Attached: true, Accepts: true},
		{Kind: SetContact, Contact: "b", ContactEpoch: 4},
		{Kind: TakeOver},
		{Kind: Owners, Owners: []Owned{{Client: c, Epoch: 1 << 60}}, Complete: true},
		{Kind: Stale, Owners: []Owned{{Client: c, Epoch: 2}}},
		{Kind: Gone, Client: c, Epoch: 9},
		{Kind: Prepare, ID: 1, Client: c, Epoch: 2, Grant: g},
		{Kind: Prepared, ID: 1, Optimised: true},
		{
			Kind: Transfer, ID: 1, Client: c, Snapshot: []byte("snapshot"), State: [][]byte{nil, []byte("state")}, Connections: 2,
			Epoch: 2, Grant: g, Relayed: true,
		},
		{Kind: Late, ID: 1, Client: c, Packets: [][]byte{[]byte("packet")}},
		{Kind: Done, ID: 1, Optimised: true},
		{Kind: Abort, ID: 1},
		{Kind: Query, ID: 1, Client: c},
		{Kind: Settled, ID: 1},
		{Kind: Order, ID: 1, Job: &Job{What: Move, To: []JobTarget{{Node: "b", Weight: 2, Most: 3}}, Rate: 0.5, Width: 7}},
		{Kind: Reported, ID: 1, Report: &Report{
			Progress: plan.Progress{Moved: 1, Moving: 2, Left: 3, Stuck: 4, Failed: 5, Rate: 6, ETA: 7, To: []plan.Count{{Node: "b", Clients: 1}}},
			Failures: []Failure{{Client: c, To: "b", Error: "no", GivenUp: true}}, Done: true, Error: "not all",
		}},
	}
}

func TestMessages(t *testing.T) {
	kinds := make(map[Kind]bool)
	for _, m := range samples() {
		m.Server = home.Addr()
		kinds[m.Kind] = true
		b, err := m.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Parse(b)
		if err != nil {
			t.Errorf("%s: %v", m.Kind, err)
			continue
		}
		again, err := got.Append(nil)
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("%s: %x\nagain %x, %v", m.Kind, b, again, err)
		}
		if m.Grant != nil && !reflect.DeepEqual(got.Grant.grant(), m.Grant.grant()) {
			t.Errorf("%s: grant %+v", m.Kind, got.Grant)
		}
		if _, err := Parse(b[:len(b)-1]); !errors.Is(err, ErrMessage) {
			t.Errorf("%s, cut: %v", m.Kind, err)
		}
	}
	for k := Kind(1); k < lastKind; k++ {
		if !kinds[k] {
			t.Errorf("no sample of %s", k)
		}
	}
}

const lastKind = Reported + 1

func TestIncompleteMessages(t *testing.T) {
	c := clientAddr(0)
	for _, m := range []*Message{
		{Kind: 0}, {Kind: lastKind}, {Kind: 255},
		{Kind: Hello}, {Kind: SetContact}, {Kind: Gone}, {Kind: Prepare, ID: 1}, {Kind: Prepare, Client: c},
		{Kind: Prepared}, {Kind: Transfer, ID: 1}, {Kind: Transfer, Client: c}, {Kind: Late, ID: 1}, {Kind: Done}, {Kind: Query, ID: 1},
		{Kind: Gone, Client: netip.MustParseAddr("fe80::1")}, {Kind: Gone, Client: netip.MustParseAddr("192.0.2.1")},
		{Kind: Owners, Owners: []Owned{{Client: netip.IPv6Unspecified()}}},
		{Kind: Owners, Owners: make([]Owned, MaxOwners+1)},
		{Kind: Order, ID: 1}, {Kind: Order, Job: &Job{What: Drain}}, {Kind: Order, ID: 1, Job: &Job{}}, {Kind: Order, ID: 1, Job: &Job{What: tasks}},
		{Kind: Order, ID: 1, Job: &Job{What: Drain, Rate: -1}}, {Kind: Order, ID: 1, Job: &Job{What: Drain, Rate: math.NaN()}},
		{Kind: Order, ID: 1, Job: &Job{What: Drain, Width: plan.MaxWidth + 1}}, {Kind: Order, ID: 1, Job: &Job{What: Drain, To: make([]JobTarget, maxTargets+1)}},
		{Kind: Order, ID: 1, Job: &Job{What: Drain, To: []JobTarget{{Node: "b", Weight: -1}}}},
		{Kind: Reported, ID: 1}, {Kind: Reported, ID: 1, Report: &Report{Progress: plan.Progress{Rate: math.Inf(1)}}},
		{Kind: Reported, Report: &Report{}},
	} {
		m.Server = home.Addr()
		b, err := m.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Parse(b); !errors.Is(err, ErrMessage) {
			t.Errorf("%+v: %v", m, err)
		}
	}
	m := &Message{Kind: TakeOver}
	b, err := m.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Parse(b); !errors.Is(err, ErrMessage) {
		t.Errorf("no server: %v", err)
	}
}

// A token of the wrong size, or times that cannot be, are not believed.
func TestGrants(t *testing.T) {
	g := node.Grant{HomeNonce: 3, Remaining: time.Second, Sequence: 7, Binding: time.Minute}
	g.HomeToken[0] = 1
	if got := newGrant(g).grant(); got != g {
		t.Errorf("%+v", got)
	}
	if got := newGrant(node.Grant{}); got != nil {
		t.Errorf("%+v", got)
	}
	if got := (&Grant{Token: []byte{1, 2}, Remaining: time.Second, Sequence: 7, Binding: -1}).grant(); got != (node.Grant{Sequence: 7}) {
		t.Errorf("%+v", got)
	}
}

func FuzzParse(f *testing.F) {
	for _, m := range samples() {
		m.Server = home.Addr()
		b, err := m.Append(nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Parse(b)
		if err != nil {
			return
		}
		given := bytes.Clone(b)
		for i := range b {
			b[i] ^= 0xff // it is another message's by now
		}
		again, err := m.Append(nil)
		copy(b, given)
		if err != nil {
			t.Fatal(err)
		}
		if m, err = Parse(again); err != nil {
			t.Fatalf("%x is written as %x: %v", b, again, err)
		}
		if third, err := m.Append(nil); err != nil || !bytes.Equal(third, again) {
			t.Fatalf("%x is written as %x, then as %x, %v", b, again, third, err)
		}
	})
}

// A message that is read into one that was another has nothing of that, and leaves to it
// what it referred to.
func TestReadAgain(t *testing.T) {
	var m, before Message
	var wanted *Message
	for _, s := range samples() {
		s.Server = home.Addr()
		b, err := s.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		want, err := Parse(b)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Read(b); err != nil || !reflect.DeepEqual(&m, want) {
			t.Errorf("%s: %+v, %v, want %+v", s.Kind, m, err, want)
		}
		if wanted != nil && !reflect.DeepEqual(&before, wanted) {
			t.Errorf("%s: the one before is %+v, want %+v", s.Kind, before, wanted)
		}
		before, wanted = m, want
	}
}

// Whatever a member is sent, in whatever order, it goes on.
func FuzzStep(f *testing.F) {
	f.Add([]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15})
	f.Add([]byte{7, 7, 9, 9, 11, 11, 14, 14, 13, 13, 12})
	f.Fuzz(func(t *testing.T, script []byte) {
		if len(script) > 200 {
			return
		}
		w := begin(t, 1, 2)
		w.lax = true
		h := w.members["b"]
		all := samples()
		for i, b := range script {
			m := *all[int(b)%len(all)]
			m.Server = home.Addr()
			m.ID = uint64(i%3) + 1
			m.Client = clientAddr(int(b>>4) % 3)
			from := []string{"a", "c", "x"}[int(b>>6)%3]
			h.step(Peer{from, &m})
			w.run(time.Duration(b) * time.Millisecond)
		}
	})
}
