package member

import (
	"testing"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
)

// The contact has no connection to the target of a handoff. The donor tells it, within
// the time in which its application sends on what still comes to it; and what it
// told of clients that have come back since does not count.
func TestPassed(t *testing.T) {
	w := begin(t, 1, 2)
	for i := range 2 {
		if a := w.handOff(clientAddr(i), "b"); a.Err != nil {
			w.fail("%v", a.Err)
		}
	}
	w.run(2 * passTime)
	w.down("a", "c")
	for i := range 2 {
		if a := w.handOff(clientAddr(i), "c"); a.Err != nil {
			w.fail("%v", a.Err)
		}
		w.expect("a", i, ack, "b")
	}
	w.members["c"].app.handOff(clientAddr(1), "b", 0)
	w.run(passTime / 2)
	w.expect("a", 0, ack, "b") // it will be sent on
	w.run(passTime)
	w.expect("a", 0, ack, "c")
	w.expect("a", 0, syn, "c")
	w.expect("a", 1, ack, "b")
	w.run(2 * passTime)
	w.expect("a", 1, ack, "b")
	w.reconnected("a", "c")
	w.run(time.Minute)
	w.settled()
	w.certain()
}

// The application of the donor ends before that.
func TestPassedByAnApplicationThatEnds(t *testing.T) {
	w := begin(t, 1, 1)
	if a := w.handOff(clientAddr(0), "b"); a.Err != nil {
		w.fail("%v", a.Err)
	}
	w.run(time.Second)
	w.down("a", "c")
	if a := w.handOff(clientAddr(0), "c"); a.Err != nil {
		w.fail("%v", a.Err)
	}
	w.members["b"].crash()
	w.run(time.Millisecond)
	w.expect("a", 0, ack, "c")
}

// A new contact has heard all of the target before that had the client, and of the
// donor afterwards, which tells of it at once; so does one that is the donor itself.
func TestPassedBeforeTakeover(t *testing.T) {
	for _, self := range []bool{false, true} {
		w := begin(t, 1, 1)
		c, donor := clientAddr(0), "b"
		if self {
			donor = "a"
		} else if a := w.handOff(c, "b"); a.Err != nil {
			w.fail("%v", a.Err)
		}
		w.members["b"].step(Takeover{ID: 1, To: "c"})
		w.run(time.Second)
		if !self {
			w.down("a", "b")
			w.members["a"].step(Takeover{ID: 1})
			w.run(10 * time.Millisecond)
			w.down("a", "c")
		}
		w.members[donor].app.handOff(c, "c", 0)
		w.run(10 * time.Millisecond)
		if self {
			w.down("a", "c")
			w.members["a"].step(Takeover{ID: 1, Force: true})
			w.run(10 * time.Millisecond) // b may have it as well, until it has told
		} else {
			w.reconnected("a", "b")
		}
		for _, flags := range []byte{syn, ack} {
			w.expect("a", 0, flags, "c")
		}
		w.reconnected("a", "c")
		w.run(time.Minute)
		w.settled()
		w.certain()
	}
}

// A donor whose daemon was started anew tells that the contact has a client, which has gone
// on from there since. Application and daemon of the contact have ended, too, and know nothing
// of it; who has the client is not connected yet. What the client sends waits for that one.
func TestPassedLongAgo(t *testing.T) {
	w := begin(t, 1, 1)
	c := clientAddr(0)
	a, b := w.members["a"], w.members["b"]
	w.move(c, "a", "b")
	w.run(2 * passTime)
	w.move(c, "b", "a")
	w.run(10 * time.Millisecond)
	w.move(c, "a", "c")
	w.run(passTime * 9 / 10)
	b.restart()
	w.run(passTime / 2)
	if len(a.m.donated) != 0 || len(b.m.donated) != 1 {
		t.Fatalf("a remembers %v, and b %v", a.m.donated, b.m.donated)
	}
	w.down("a", "c")
	w.lose(a.app)
	a.app = nil
	a.restart()
	a.attach()
	b.restart()
	w.run(10 * time.Millisecond)
	w.expect("a", 0, ack, "")
	w.reconnected("a", "c")
	w.expect("a", 0, ack, "c")
	w.run(time.Minute)
	w.settled()
	w.certain()
}

// A donor has been in doubt for long, and its client has connected anew, at another node, when
// the contact is started anew, which hears of it from the donor first: what the client sends
// is not for the donor.
func TestGivenLongAgo(t *testing.T) {
	w := begin(t, 1, 1)
	client := clientAddr(0)
	a, b, c := w.members["a"], w.members["b"], w.members["c"]
	w.move(client, "a", "b")
	w.run(2 * passTime)
	b.app.handOff(client, "c", 0)
	for b.m.giving[client] == nil {
		w.run(10 * time.Microsecond)
	}
	w.disconnect("b", "c", 24*time.Hour)
	w.run(10 * time.Millisecond)
	w.lose(b.app)
	b.crash()
	c.app.live[client] = true
	c.step(App{&api.Message{Kind: api.Owned, Client: client, Connections: 1}})
	w.run(10 * time.Millisecond)
	w.expect("a", 0, ack, "c")
	w.down("a", "c")
	a.restart()
	w.run(10 * time.Millisecond)
	if len(b.m.outgoing) != 1 {
		t.Fatalf("%d handoffs are in doubt", len(b.m.outgoing))
	}
	w.expect("a", 0, ack, "")
	w.reconnected("a", "c")
	w.expect("a", 0, ack, "c")
	w.reconnected("b", "c")
	w.run(time.Minute)
	w.settled()
	w.certain()
}

// The daemon of the contact a is started anew after b has taken over without its
// knowing. It does not know how late its application's client is, and guesses; that
// is not held against it.
func TestRestartOfContactThatIsNone(t *testing.T) {
	w := begin(t, 1, 1)
	c := clientAddr(0)
	for _, to := range []string{"b", "c", "b"} {
		if a := w.handOff(c, to); a.Err != nil {
			w.fail("%v", a.Err)
		}
	}
	w.run(time.Second)
	w.members["b"].app.handOff(c, "a", 0)
	for w.owner(c) != "a" {
		w.run(10 * time.Microsecond)
	}
	w.down("a", "b", "c") // b is in doubt
	w.members["b"].step(Takeover{ID: 1, Force: true})
	w.run(time.Second)
	w.expect("b", 0, ack, "b")
	a := w.members["a"]
	a.boot()
	a.app.detached()
	a.attach()
	w.run(time.Second)
	w.expect("a", 0, ack, "a")
	w.reconnected("a", "b")
	w.expect("b", 0, ack, "a")
	w.reconnected("a", "c")
	w.run(time.Minute)
	w.settled()
	w.certain()
}

// An application that has connections of a client of which the contact's has some
// as well does not get the others: that client is split, which is said.
func TestClaimOfBoth(t *testing.T) {
	w := begin(t, 1, 1)
	w.lax = true
	w.members["a"].step(Peer{"b", &Message{Kind: Owners, Server: home.Addr(), Owners: []Owned{{Client: clientAddr(0), Epoch: 1}}}})
	w.expect("a", 0, ack, "a")
	events := w.members["a"].events
	if e := events[len(events)-1]; e.Node != "b" || e.Client != clientAddr(0) {
		w.fail("said is %+v", e)
	}
}
