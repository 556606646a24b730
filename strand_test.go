package ds

import (
	"context"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/migrate"
	"github.com/distributed-servers/ds/mobility/wire"
)

// The daemon is lost over a client that is expected, or offered. When it is back, what
// the client has sent here meanwhile is not sent on any more, also not to where an
// earlier application has given it; what it sends from then on goes to the donor.
func TestStranded(t *testing.T) {
	for _, offered := range []bool{false, true} {
		name := "expected"
		if offered {
			name = "offered"
		}
		t.Run(name, func(t *testing.T) { testStranded(t, offered) })
	}
}

func testStranded(t *testing.T, offered bool) {
	defer func(d time.Duration) { strandTimeLeft = d }(strandTimeLeft)
	strandTimeLeft = 0
	server, client := netip.MustParseAddr("2001:db8:d::1"), netip.MustParseAddr("2001:db8:1::1")
	before, donor := netip.MustParseAddr("2001:db8:c::3"), netip.MustParseAddr("2001:db8:c::4")
	n, s := scripted(server)
	attach, back := n.Attach, make(chan struct{})
	n.Attach = func(ctx context.Context, hello *api.Message) (*Attachment, error) {
		if hello.HasTUN {
			<-back
		}
		a, err := attach(ctx, hello)
		if hello.HasTUN {
			a.Session = &script{in: make(chan *api.Message), out: make(chan *api.Message, 100), end: make(chan struct{})}
		}
		a.Config.Peers = []netip.Addr{before, donor}
		a.Config.Away = []api.Away{{Client: client, CareOf: before}}
		return a, err
	}
	defer n.Close()
	if _, err := n.ListenHandoff(); err != nil {
		t.Fatal(err)
	}
	// forwarded tells where to a packet is sent on.
	forwarded := func(p []byte) (to netip.Addr) {
		t.Helper()
		n.stack.Inject(p)
		got, err := wire.ParsePacket(<-s.answers)
		if err != nil {
			t.Fatal(err)
		}
		inner, err := got.Inner()
		if err != nil || [4]byte(inner[wire.HeaderLen:]) != [4]byte(p[wire.HeaderLen:]) {
			t.Fatalf("another packet is forwarded: %x, %v", inner, err)
		}
		return got.Destination()
	}
	if to := forwarded(syn(t, client, server, "80")); to != before {
		t.Fatalf("sent on to %s", to)
	}
	s.in <- &api.Message{Kind: api.Expect, ID: 1, Client: client, From: "a", CareOf: donor}
	for m := <-s.out; m.Kind != api.Expected; m = <-s.out {
	}
	if offered {
		d := migrate.NewClientDonor(n.stack, netip.MustParseAddr("2001:db8:1::2"))
		d.AllowEmpty()
		if err := d.Freeze(); err != nil {
			t.Fatal(err)
		}
		snapshot, err := d.Export(nil)
		if err != nil {
			t.Fatal(err)
		}
		s.in <- &api.Message{Kind: api.Offer, ID: 1, Client: client, From: "a", Snapshot: snapshot}
		s.in <- &api.Message{Kind: api.Late, ID: 1, Client: client} // after which it was offered
	}
	s.Close()
	held := syn(t, client, server, "81")
	n.stack.Inject(held)
	close(back)
	for _, free := n.clients.claim(client); !free; _, free = n.clients.claim(client) { // until it is dropped
		runtime.Gosched()
	}
	if to := forwarded(syn(t, client, server, "82")); to != donor {
		t.Errorf("sent on to %s", to)
	}
}
