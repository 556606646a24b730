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

// A reset is nobody's fault once the client has reset the connection itself: that one, not
// another, nor by its answer to what it has not asked for.
func TestResets(t *testing.T) {
	client := netip.MustParseAddr("2001:db8:1::1")
	segment := func(from, to uint16, seq uint32, flags byte) []byte {
		b := make([]byte, 20)
		binary.BigEndian.PutUint32(b[4:], seq)
		binary.BigEndian.PutUint16(b, from)
		binary.BigEndian.PutUint16(b[2:], to)
		b[12], b[13] = 5<<4, flags
		return b
	}
	for _, tt := range []struct {
		port  uint16 // of the client's
		flags byte
		fault bool
	}{{1000, rst | ack, false}, {1001, rst | ack, true}, {1000, rst, true}, {1000, ack, true}} {
		w := new(watch)
		w.init()
		a := &application{daemon: &daemon{name: "a"}}
		send := func(seq uint32, flags byte) {
			w.packet(a, &wire.Packet{Src: Server, Dst: client, Protocol: wire.TCP, Payload: segment(7, 1000, seq, flags)})
		}
		send(100, syn|ack)
		p := wire.Packet{Src: client, Dst: Server, HopLimit: 64, Protocol: wire.TCP, Payload: segment(tt.port, 7, 1, tt.flags)}
		b, err := p.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		w.fromClient(b)
		send(101, rst)
		if fault := len(w.found) > 0; fault != tt.fault {
			t.Errorf("port %d, flags %#x: %v", tt.port, tt.flags, w.found)
		}
		send(200, syn|ack) // the port is used again
		send(201, rst)
		if len(w.found) == 0 {
			t.Errorf("port %d, flags %#x, and again: no fault", tt.port, tt.flags)
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
