package member

import (
	"testing"

	"github.com/distributed-servers/ds/daemon/api"
)

// BenchmarkHandoff is what a handoff costs the two members: messages, tables and
// the Binding Update, without applications, TLS and the network.
func BenchmarkHandoff(b *testing.B) {
	t := new(testing.T)
	w := begin(t, 1, 1)
	client := clientAddr(0)
	a, c := w.members["a"].m, w.members["b"].m
	now := w.now
	var donor, target = a, c
	names := map[*Member]string{a: "a", c: "b"}
	// pass delivers what goes to a member, and returns what it says to the last.
	pass := func(to *Member, from string, out Output) (answer Output) {
		b.Helper()
		n := 0
		for _, p := range out.Peers {
			if p.To != names[to] {
				continue
			}
			frame, err := p.Message.Append(nil)
			if err != nil {
				b.Fatal(err)
			}
			msg, err := Parse(frame)
			if err != nil {
				b.Fatal(err)
			}
			answer = to.Step(now, Peer{from, msg})
			n++
		}
		if n == 0 {
			b.Fatalf("%s has nothing to say to %s", from, names[to])
		}
		return answer
	}
	id := uint64(0)
	for b.Loop() {
		id++
		from, to := names[donor], names[target]
		out := donor.Step(now, App{&api.Message{Kind: api.Prepare, ID: id, Client: client, To: to}})
		out = pass(target, from, out)
		offer := out.App[0].ID
		if answer := target.Step(now, App{&api.Message{Kind: api.Expected, ID: offer}}); len(answer.Peers) > 0 {
			out = answer
		}
		if len(out.Peers) == 0 { // the care-of test is under way: go on without
			now += 2e9
			out = target.Step(now, Tick{})
		}
		pass(donor, to, out)
		out = donor.Step(now, App{&api.Message{Kind: api.Transfer, ID: id, Client: client, Snapshot: make([]byte, 300)}})
		pass(target, from, out)
		target.Step(now, Recorded{})
		pass(donor, to, target.Step(now, App{&api.Message{Kind: api.Activated, ID: offer}}))
		donor.Step(now, App{&api.Message{Kind: api.Settled, ID: id}})
		donor, target = target, donor
	}
}
