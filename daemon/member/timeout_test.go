package member

import (
	"strings"
	"testing"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
)

// An application hangs at each message of a handoff that it should act on. Up to the
// point of no return the client stays, or is had back, after a while, and the error
// says who took too long with what; afterwards its donor waits for the target, whose
// client it is, until that is known.
func TestTimeouts(t *testing.T) {
	for _, tt := range []struct {
		node string
		at   api.Kind
		says string
	}{
		{"a", api.Prepared, "freeze has taken more than 30s"},
		{"b", api.Offer, "its application had not taken the client yet"},
		{"b", api.Activate, ""},
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
				if e.Client == c && (e.Kind == api.EventHandoffFailed || e.Kind == api.EventFault) {
					failed = e.Detail
				}
			}
			if tt.says == "" {
				if !strings.Contains(failed, "no word for 30s since the client was given away") {
					t.Errorf("a says %q", failed)
				}
				if _, taken := w.members["b"].m.Client(c); !taken || a.app.live[c] {
					t.Error("b does not have the client")
				}
				hanging.hangs = 0
				hanging.receive(&api.Message{Kind: api.Activate, ID: w.members["b"].m.coming[c].id, Client: c, Optimised: true}) // it goes on
				w.run(time.Second)
			} else if !strings.Contains(failed, tt.says) {
				t.Errorf("a says %q, want %q", failed, tt.says)
			}
			hanging.hangs = 0
			if tt.at == api.Prepared { // it goes on too, and hears that it is too late
				for id, mv := range a.app.moving {
					hanging.receive(&api.Message{Kind: api.Prepared, ID: id, Client: mv.client, Handoff: 1})
				}
				w.run(time.Second)
			}
			w.settled()
			owner, to := "a", "b"
			if tt.says == "" {
				owner, to = to, owner
			}
			if w.owner(c) != owner || !w.members[owner].app.live[c] {
				t.Errorf("%s has the client, want %s", w.owner(c), owner)
			}
			if got := w.handOff(c, to); got.Err != nil {
				t.Errorf("the next handoff: %v", got.Err)
			}
			w.run(time.Second)
			w.settled()
		})
	}
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
