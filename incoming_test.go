package ds

import (
	"net/netip"
	"testing"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/migrate"
)

// A target's application goes live with what it was offered, once, and with nothing else;
// what it refuses it says, and the client can be offered again.
func TestOfferRefused(t *testing.T) {
	server, client := netip.MustParseAddr("2001:db8:d::1"), netip.MustParseAddr("2001:db8:1::1")
	n, s := scripted(server)
	defer n.Close()
	arrivals, err := n.ListenHandoff()
	if err != nil {
		t.Fatal(err)
	}
	d := migrate.NewClientDonor(n.stack, client)
	d.AllowEmpty()
	if err := d.Freeze(); err != nil {
		t.Fatal(err)
	}
	snapshot, err := d.Export(nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Thaw(); err != nil {
		t.Fatal(err)
	}
	// says is the answer to a message.
	says := func(kind, answer api.Kind, id uint64, want string) {
		t.Helper()
		s.in <- &api.Message{Kind: kind, ID: id, Client: client, From: "a", CareOf: netip.MustParseAddr("2001:db8:c::3")}
		m := <-s.out
		for m.Kind != answer {
			m = <-s.out
		}
		if m.ID != id || m.Client != client || m.Error != want {
			t.Errorf("%s %d: %s %d of %s, %q; want %q", kind, id, m.Kind, m.ID, m.Client, m.Error, want)
		}
	}
	offer := func(id uint64) {
		s.words.Put(int(id), id)
		s.in <- &api.Message{Kind: api.Offer, ID: id, Word: int(id), Client: client, From: "a", Snapshot: snapshot}
	}

	says(api.Activate, api.Activated, 1, "there is no such handoff")
	says(api.Expect, api.Expected, 1, "")
	says(api.Expect, api.Expected, 1, "handoff 1 was announced before")
	says(api.Expect, api.Expected, 2, ErrBusy.Error())
	says(api.Activate, api.Activated, 1, "there is no such handoff") // nothing was offered
	offer(1)                                                         // and now it is too late
	says(api.Activate, api.Activated, 1, "there is no such handoff")

	says(api.Expect, api.Expected, 3, "")
	offer(3)
	if !s.words.Overrule(3, 3) {
		t.Fatal("it went live without being told to")
	}
	says(api.Activate, api.Activated, 3, "the daemon has withdrawn it")

	says(api.Expect, api.Expected, 4, "")
	if err := arrivals.Close(); err != nil {
		t.Fatal(err)
	}
	offer(4)
	says(api.Activate, api.Activated, 4, "the application accepts no handoffs any more")
	says(api.Expect, api.Expected, 5, "the application accepts no handoffs")
	if _, err = n.ListenHandoff(); err != nil {
		t.Fatal(err)
	}
	says(api.Expect, api.Expected, 6, "")
	offer(6)
	says(api.Activate, api.Activated, 6, "")
	if s.words.Overrule(6, 6) {
		t.Error("it was not its to take")
	}
	says(api.Activate, api.Activated, 6, "there is no such handoff")
}
