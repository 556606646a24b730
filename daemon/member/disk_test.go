package member

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

const noRoom = "no space left on device"

// Each write of a handoff's records fails at the target, alone or with all that come
// after it, with or without what was written having come to the disk (in the middle of
// what is written together, a line may be whole); its daemon is
// killed then, or later, whatever the client does meanwhile. If the donor has not
// heard how it has ended, it has to ask the daemon that is started anew. One node has
// the client in the end, and nobody is in doubt.
func TestDiskFails(t *testing.T) {
	ends := make(map[string]int)
	for write := range 4 { // taken, activated, forgotten, none
		for whole := range 3 {
			for _, onward := range []bool{false, true} {
				for _, apart := range []bool{false, true} {
					for _, then := range []string{"at once", "later", "goes on", "goes away", "application too"} {
						name := fmt.Sprintf("write %d, %d whole, and all others %t, apart %t, %s", write, whole, onward, apart, then)
						t.Run(name, func(t *testing.T) { ends[diskFails(t, write, whole, onward, apart, then)]++ })
					}
				}
			}
		}
	}
	for _, end := range []string{"a", "b", "c", ""} {
		if ends[end] == 0 {
			t.Errorf("%q never has the client in the end: %v", end, ends)
		}
	}
}

func diskFails(t *testing.T, write, whole int, onward, apart bool, then string) (owner string) {
	w := begin(t, 1, 1)
	c := clientAddr(0)
	a, b := w.members["a"], w.members["b"]
	writes, killed := 0, false
	b.disk = func(recs []Record) (kept int, why string) {
		writes++
		if apart && writes == 1 {
			w.disconnect("a", "b", time.Minute) // Done is lost
		}
		if writes <= write || writes > write+1 && !onward {
			return len(recs), ""
		}
		if then == "at once" && !killed { // before anything is done about it
			killed = true
			w.after(0, b.restart)
			b.mute = true
		}
		if writes <= write+whole {
			return len(recs), noRoom
		}
		return 0, noRoom
	}
	a.app.handOff(c, "b", 0)
	w.run(10 * time.Millisecond)
	has := w.owner(c) == "b"
	switch then {
	case "goes on":
		if has {
			if answer := w.handOff(c, "c"); answer.Err != nil {
				w.fail("%v", answer.Err)
			}
		}
	case "goes away":
		if has {
			delete(b.app.live, c)
			b.step(App{gone(c)})
			delete(w.clients, c)
		}
	case "application too": // whose connections are lost, and a new one attaches
		w.lose(b.app)
		b.crash()
		w.run(10 * time.Millisecond)
	}
	if then != "at once" {
		b.restart()
	}
	b.disk = nil // there is room again, or it would not start
	w.run(2 * time.Minute)
	owner = w.owner(c)
	if then == "application too" {
		if owner == "" {
			w.reconnect()
		}
		w.run(25 * time.Minute)
	}
	if then != "goes away" || !has {
		w.settled()
	}
	w.certain()
	return owner
}

// A target that cannot record that it has taken a client refuses it, and lets no others
// come until there is room again.
func TestDiskFull(t *testing.T) {
	w := begin(t, 1, 2)
	first, second := clientAddr(0), clientAddr(1)
	a, b := w.members["a"], w.members["b"]
	b.disk = func([]Record) (int, string) { return 0, noRoom }
	for i, want := range []string{
		"node b: it cannot record handoffs: " + noRoom,
		"node b refuses: it cannot record handoffs: " + noRoom,
	} {
		a.app.handOff(first, "b", 0)
		w.run(10 * time.Millisecond)
		if why := a.app.ended[first]; why != want || w.owner(first) != "a" {
			w.fail("handoff %d: %s has the client: %q", i+1, w.owner(first), why)
		}
	}
	b.disk = nil
	b.step(Recorded{})
	a.app.handOff(second, "b", 0)
	w.run(time.Minute)
	if w.owner(second) != "b" {
		w.fail("refused although there is room again: %q", a.app.ended[second])
	}
	w.settled()
	w.certain()
}

// A donor that cannot record that the target has the client asks again after a start. The
// target remembers, and the donor's application goes on sending on what still comes to it;
// until there is room.
func TestDonorsDiskFull(t *testing.T) {
	w := begin(t, 1, 1)
	c := clientAddr(0)
	a, b := w.members["a"], w.members["b"]
	a.app.handOff(c, "b", 0)
	for a.m.outgoing[a.m.lastID] == nil {
		w.run(10 * time.Microsecond)
	}
	a.disk = func([]Record) (int, string) { return 0, noRoom }
	for range 2 {
		w.run(100 * time.Millisecond)
		if w.owner(c) != "b" || len(a.m.outgoing) > 0 {
			w.fail("%q has it, under way are %v", w.owner(c), a.m.outgoing)
		}
		a.restart()
		w.run(100 * time.Millisecond)
		if left := a.app.left[c]; left.to != "b" {
			w.fail("sent on to %q", left.to)
		}
		w.disconnect("a", "b", time.Millisecond)
		w.run(100 * time.Millisecond) // b has reminded a
	}
	if len(b.m.records.of) != 1 {
		w.fail("b remembers %v", b.m.records.of)
	}
	a.room()
	w.run(time.Minute)
	w.settled()
	w.certain()
}

// An application that ends, and one whose donor asks, in the very step in which
// the client is to be taken: it has not been. One that has taken it has.
func TestEndsWhileTaken(t *testing.T) {
	for _, tt := range []struct {
		name string
		then func(o *offer, c netip.Addr) Input
	}{
		{"asked", func(o *offer, c netip.Addr) Input {
			return Peer{"a", &Message{Kind: Query, ID: o.key.id, Client: c}}
		}},
		{"ended", func(*offer, netip.Addr) Input { return AppGone{Lost: true} }},
	} {
		for _, live := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, live %t", tt.name, live), func(t *testing.T) {
				w := begin(t, 1, 1)
				c := clientAddr(0)
				b := w.members["b"]
				w.members["a"].app.handOff(c, "b", 0)
				for len(b.m.incoming) == 0 || b.m.arrivals()[0].stage != ready {
					w.run(10 * time.Microsecond)
				}
				o := b.m.arrivals()[0]
				b.m.Step(w.now, Peer{"a", &Message{Kind: Transfer, ID: o.key.id, Client: c, Epoch: 2, Snapshot: []byte("connections")}})
				if live && !b.words.Take(o.word, o.id) {
					t.Fatal("not its to take")
				}
				out := b.m.Step(w.now, tt.then(o, c))
				var last *Message
				if n := len(out.Peers); n > 0 {
					last = out.Peers[n-1].Message
				}
				var state State
				if n := len(out.Record); n > 0 {
					state = out.Record[n-1].State
				}
				switch {
				case !live && (state != Forgotten || last == nil || last.Kind != Done || last.Error == ""):
					t.Errorf("not given back: %s, %+v", state, last)
				case live && tt.name == "asked" && (state != 0 || last != nil):
					t.Errorf("decided: %s, %+v", state, last)
				case live && tt.name == "ended" && (state != Activated || last == nil || last.Kind != Done || last.Error != ""):
					t.Errorf("not taken: %s, %+v", state, last)
				}
				if out := b.m.Step(w.now, Recorded{}); !live && len(out.Peers)+len(out.App)+len(out.Record) > 0 {
					t.Errorf("it is taken after all: %+v", out)
				}
				if b.words.Take(o.word, o.id) {
					t.Error("its to take after that")
				}
			})
		}
	}
}
