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
	pass := func(to *Member, from string, out Output) Output {
		frame, err := out.Peers[0].Message.Append(nil)
		if err != nil {
			b.Fatal(err)
		}
		msg, err := Parse(frame)
		if err != nil {
			b.Fatal(err)
		}
		return to.Step(now, Peer{from, msg})
	}
	id := uint64(0)
	names := map[*Member]string{a: "a", c: "b"}
	for b.Loop() {
		id++
		from, to := names[donor], names[target]
		out := donor.Step(now, App{&api.Message{Kind: api.Prepare, ID: id, Client: client, To: to}})
		out = pass(target, from, out)
		if len(out.Peers) == 0 { // the care-of test is under way: go on without
			now += 2e9
			out = target.Step(now, Tick{})
		}
		pass(donor, to, out)
		out = donor.Step(now, App{&api.Message{Kind: api.Transfer, ID: id, Client: client, Snapshot: make([]byte, 300)}})
		out = pass(target, from, out)
		offer := out.App[0].ID
		target.Step(now, App{&api.Message{Kind: api.Accepted, ID: offer}})
		out = target.Step(now, App{&api.Message{Kind: api.Activated, ID: offer}})
		for i, p := range out.Peers {
			if p.Message.Kind == Done {
				out.Peers = out.Peers[i:]
				break
			}
		}
		pass(donor, to, out)
		donor, target = target, donor
	}
}
