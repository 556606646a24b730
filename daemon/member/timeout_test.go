package member

import (
	"strings"
	"testing"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
)

// An application hangs at each message of a handoff that it should act on. The client
// stays, or is had back, after a while, and the error says who took too long with what.
// When the application goes on it is too late.
func TestTimeouts(t *testing.T) {
	for _, tt := range []struct {
		node string
		at   api.Kind
		says string
	}{
		{"a", api.Prepared, "freeze has taken more than 30s"},
		{"b", api.Expect, "prepare has taken more than 30s"},
		{"b", api.Offer, "its application had not taken the client yet"},
		{"b", api.Activate, "its application had not taken the client yet"},
	} {
		t.Run(tt.at.String(), func(t *testing.T) {
			w := begin(t, 2, 1)
			c := clientAddr(0)
			a, hanging := w.members["a"], w.members[tt.node].app
			hanging.hangs = tt.at
			a.app.handOff(c, "b", 0)
			w.run(20 * time.Second)
			if why, over := a.app.ended[c]; over {
				t.Fatalf("it ends at once: %q", why)
			}
			w.run(20 * time.Second)
			failed := ""
			for _, e := range a.events {
				if e.Client == c && e.Kind == api.EventHandoffFailed {
					failed = e.Detail
				}
			}
			if !strings.Contains(failed, tt.says) {
				t.Errorf("a says %q, want %q", failed, tt.says)
			}
			hanging.goOn()
			w.run(time.Second)
			w.settled()
			if owner := w.owner(c); owner != "a" {
				t.Errorf("%s has the client", owner)
			}
			if got := w.handOff(c, "b"); got.Err != nil {
				t.Errorf("the next handoff: %v", got.Err)
			}
			w.run(time.Second)
			w.settled()
		})
	}
}

// An application hangs when it has gone live, and does not say so. The donor waits: the
// client is the target's.
func TestHangsLive(t *testing.T) {
	w := begin(t, 2, 1)
	c := clientAddr(0)
	a, b := w.members["a"], w.members["b"]
	a.app.handOff(c, "b", 0)
	for !b.app.live[c] {
		w.run(10 * time.Microsecond)
	}
	b.app.session += 2 // what it has said is not heard
	w.run(2 * time.Minute)
	if _, taken := b.m.Client(c); !taken || a.app.live[c] {
		t.Error("b does not have the client")
	}
	if _, over := a.app.ended[c]; over {
		t.Error("a knows how it has ended")
	}
	b.app.send(&api.Message{Kind: api.Activated, ID: b.m.coming[c].id})
	w.run(time.Second)
	w.settled()
}

// A target that does not hear from the client in time goes on without it: the client
// is relayed.
func TestPrepareTimeout(t *testing.T) {
	w := begin(t, 2, 1)
	c := clientAddr(0)
	w.clients[c].c = nil // it does not answer any more
	a, b := w.members["a"].app, w.members["b"]
	a.handOff(c, "b", 0)
	w.run(900 * time.Millisecond)
	if _, over := a.ended[c]; over {
		t.Error("it did not wait for the client")
	}
	w.run(time.Second)
	if why, over := a.ended[c]; !over || why != "" || w.owner(c) != "b" {
		t.Errorf("%s has the client; it has ended: %t, %q", w.owner(c), over, why)
	}
	if v, _ := b.m.Client(c); v.Bound {
		t.Error("it is bound without its answer")
	}
}
