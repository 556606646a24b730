package dstest

import (
	"net/netip"
	"testing"

	"github.com/distributed-servers/ds/daemon/api"
)

// An application that was told to go live, and comes back before it has said so, says
// whether it has had the client, of which nothing need be left: then whoever gets a new
// connection may answer. Otherwise the client may still be its donor's alone.
func TestResumed(t *testing.T) {
	client := netip.MustParseAddr("2001:db8:1::1")
	for _, missed := range []bool{false, true} {
		w := new(watch)
		w.init()
		donor, target := &session{app: &application{daemon: &daemon{name: "a"}}}, &application{daemon: &daemon{name: "b"}}
		w.sent(donor, &api.Message{Kind: api.Prepare, ID: 1, Client: client, To: "b"})
		w.sent(donor, &api.Message{Kind: api.Transfer, ID: 1, Client: client})
		w.received(target, &api.Message{Kind: api.Activate, ID: 2, Client: client})
		hello := &api.Message{Kind: api.Hello, TellsMissed: true}
		if missed {
			hello.Missed = []api.Missed{{Client: client, From: "a"}}
		}
		w.resumed("b", hello)
		if holder, held := w.holders[client]; holder != "" || held != missed || (w.away[client] != nil) != missed {
			t.Errorf("missed %t: %q has it: %t, away %v", missed, holder, held, w.away[client])
		}
	}
}
