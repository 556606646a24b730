package dstest

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/mobility/wire"
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

// What is sent again is the same, but for probes of a closed window.
func TestRepeats(t *testing.T) {
	for _, tt := range []struct {
		at    uint32
		data  string
		fault bool
	}{
		{0, "abcdef", false}, {2, "cd", false}, {2, "d", true}, {1, "bcx", true},
		{2, "\x00", false}, {5, "\x00", false}, {2, "\x00\x00", true}, {6, "\x00", false},
	} {
		w := new(watch)
		w.init()
		a := &application{daemon: &daemon{name: "a"}}
		send := func(at uint32, data string) {
			segment := make([]byte, 20, 20+len(data))
			binary.BigEndian.PutUint32(segment[4:], 100+at)
			segment[12], segment[13] = 5<<4, 0x10
			w.packet(a, &wire.Packet{Src: Server, Dst: netip.MustParseAddr("2001:db8:1::1"), Protocol: wire.TCP, Payload: append(segment, data...)})
		}
		send(0, "abcdef")
		send(tt.at, tt.data)
		if fault := len(w.found) > 0; fault != tt.fault {
			t.Errorf("%q at %d: %v", tt.data, tt.at, w.found)
		}
	}
}
