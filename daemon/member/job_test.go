package member

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
)

// command gives one, and returns its answer.
func (w *world) command(at string, c Command) Answer {
	w.t.Helper()
	h := w.members[at]
	h.step(c)
	for range 20000 {
		if a, ok := h.answers[c.ID]; ok {
			return a
		}
		w.run(time.Millisecond)
	}
	w.fail("no answer to %+v", c)
	return Answer{}
}

// last is the last report to a command, after it has come.
func (w *world) last(at string, id uint64) Report {
	w.t.Helper()
	h := w.members[at]
	for range 60000 {
		if all := h.reports[id]; len(all) > 0 && all[len(all)-1].Done {
			return all[len(all)-1]
		}
		w.run(time.Millisecond)
	}
	w.fail("no last report: %+v", h.reports[id])
	return Report{}
}

// counts are how many clients the members own.
func (w *world) counts() (n [3]int) {
	for i, name := range names {
		n[i], _ = w.members[name].m.Count()
	}
	return n
}

var drain = Job{What: Drain}

func TestDrain(t *testing.T) {
	for _, by := range []string{"a", "c"} { // the node itself, another
		w := begin(t, 1, 20)
		if a := w.command(by, Command{ID: 1, Node: "a", Job: drain}); a.Err != nil {
			w.fail("by %s: %v", by, a.Err)
		}
		r := w.last(by, 1)
		if p := r.Progress; r.Error != "" || p.Moved != 20 || p.Left != 0 || len(p.To) != 2 || p.To[0].Clients != 10 {
			w.fail("by %s: %+v", by, r)
		}
		w.run(2 * time.Second)
		w.settled()
		if got := w.counts(); got != [3]int{0, 10, 10} {
			w.fail("by %s: %v", by, got)
		}
		// Nobody comes back, and the applications know.
		if a := w.handOff(clientAddr(0), "a"); a.Err == nil || !strings.HasSuffix(a.Err.Error(), "node a refuses: it is being drained") {
			w.fail("to a: %v", a.Err)
		}
		if got := w.members["b"].app.config.Nodes; !slices.Equal(got, []string{"c"}) {
			w.fail("nodes to hand off to: %q", got)
		}
		for name, m := range w.members["b"].m.Peers() {
			if m.Clients != map[string]int{"a": 0, "c": 10}[name] || m.Draining != (name == "a") {
				w.fail("b thinks of %s: %+v", name, m)
			}
		}
		if a := w.command(by, Command{ID: 2, Node: "a", Job: Job{What: Undrain}}); a.Err != nil {
			w.fail("%v", a.Err)
		}
		w.run(time.Second)
		if got := w.members["b"].app.config.Nodes; !slices.Equal(got, []string{"a", "c"}) {
			w.fail("nodes to hand off to: %q", got)
		}
		if a := w.handOff(clientAddr(0), "a"); a.Err != nil {
			w.fail("to a: %v", a.Err)
		}
		w.run(time.Second)
		w.settled()
	}
}

// What was interrupted goes on when it is asked for again.
func TestDrainInterrupted(t *testing.T) {
	for _, by := range []string{"a", "b"} {
		w := begin(t, 1, 30)
		slow := drain
		slow.Rate = 10
		w.command(by, Command{ID: 1, Node: "a", Job: slow})
		w.run(time.Second)
		if a := w.command("c", Command{ID: 7, Node: "a", Job: drain}); a.Err == nil || !strings.Contains(a.Err.Error(), "are being moved already") {
			w.fail("two at once: %v", a.Err)
		}
		w.members[by].step(Command{ID: 1, Node: "a", Job: Job{What: Cease}})
		w.run(time.Second)
		w.settled()
		n := w.counts()[0]
		if n < 15 || n > 22 || !w.members["a"].m.Draining() {
			w.fail("%d clients are left after a second", n)
		}
		if a := w.command(by, Command{ID: 2, Node: "a", Job: drain}); a.Err != nil {
			w.fail("%v", a.Err)
		}
		if r := w.last(by, 2); r.Error != "" || r.Progress.Moved != n {
			w.fail("%+v", r)
		}
		w.run(time.Second)
		w.settled()
	}
}

func TestMove(t *testing.T) {
	w := begin(t, 1, 10)
	to := func(node string, n int) Job { return Job{What: Move, To: []JobTarget{{Node: node, Most: n}}} }
	if a := w.command("b", Command{ID: 1, Node: "a", Job: to("c", 4)}); a.Err != nil {
		w.fail("%v", a.Err)
	}
	if r := w.last("b", 1); r.Error != "" || r.Progress.Moved != 4 {
		w.fail("%+v", r)
	}
	w.run(time.Second)
	w.settled()
	if got := w.counts(); got != [3]int{6, 0, 4} || w.members["a"].m.Draining() {
		w.fail("%v", got)
	}
	for _, tt := range []struct {
		node string
		job  Job
		want string
	}{
		{"x", drain, `there is no node "x"`},
		{"a", to("x", 1), `there is no node "x"`},
		{"c", to("x", 1), `node c: there is no node "x"`},
		{"a", to("a", 1), "node a has its clients already"},
		{"a", to("b", 0), "how many clients go to node b is not said"},
		{"a", Job{What: Drain, To: []JobTarget{{Node: "b"}, {Node: "b"}}}, "node b is named twice"},
	} {
		delete(w.members["a"].answers, 9)
		if a := w.command("a", Command{ID: 9, Node: tt.node, Job: tt.job}); a.Err == nil || !strings.Contains(a.Err.Error(), tt.want) {
			t.Errorf("%+v: %v, want %s", tt.job, a.Err, tt.want)
		}
	}
}

// A client whose handoff fails stays served, is told about, and tried again.
func TestDrainFailures(t *testing.T) {
	w := begin(t, 1, 6)
	w.members["b"].app.fails = "full"
	w.command("a", Command{ID: 1, Node: "a", Job: drain})
	r := w.last("a", 1)
	if p := r.Progress; r.Error != "" || p.Moved != 6 || p.Failed != 3 || w.counts() != [3]int{0, 0, 6} {
		w.fail("%+v", r)
	}
	var failed []Failure
	for _, r := range w.members["a"].reports[1] {
		failed = append(failed, r.Failures...)
	}
	if len(failed) != 3 || failed[0].To != "b" || failed[0].Error != "node b: full" || failed[0].GivenUp {
		w.fail("%+v", failed)
	}
	w.run(time.Second)
	w.settled()

	w.members["a"].app.refuses = "full"
	w.command("c", Command{ID: 2, Node: "c", Job: drain})
	r = w.last("c", 2)
	if p := r.Progress; p.Stuck != 6 || p.Moved != 0 || !strings.Contains(r.Error, "served here as before: 6") {
		w.fail("%+v", r)
	}
	w.run(time.Second)
	w.settled()
}

func TestDrainWhere(t *testing.T) {
	w := begin(t, 1, 6)
	accept := func(name string, yes bool) {
		w.members[name].step(App{&api.Message{Kind: api.Hello, Program: "test", AcceptsHandoffs: yes}})
		w.run(time.Second)
	}
	accept("b", false)
	accept("c", false)
	if a := w.command("a", Command{ID: 1, Node: "a", Job: drain}); a.Err == nil || !strings.Contains(a.Err.Error(), "no other node takes the clients of node a") || w.members["a"].m.Draining() {
		w.fail("nowhere to go: %v", a.Err)
	}
	w.command("a", Command{ID: 5, Node: "a", Job: Job{What: Move, To: []JobTarget{{Node: "b", Most: 2}}}})
	if r := w.last("a", 5); r.Error != "no node takes clients any more" || r.Progress.Moved != 0 || r.Progress.Left != 2 {
		w.fail("to a node that takes none: %+v", r)
	}
	accept("c", true)
	slow := drain
	slow.Rate = 2
	w.command("a", Command{ID: 2, Node: "a", Job: slow})
	w.run(time.Second)
	accept("c", false)
	if r := w.last("a", 2); !strings.Contains(r.Error, "no node takes clients any more") || r.Progress.Moved == 0 || r.Progress.Left == 0 {
		w.fail("%+v", r)
	}
	w.run(time.Second)
	w.settled()
	accept("b", true)
	w.command("a", Command{ID: 3, Node: "a", Job: drain})
	if r := w.last("a", 3); r.Error != "" {
		w.fail("%+v", r)
	}
	if got := w.counts(); got[1] == 0 || got[0] != 0 {
		w.fail("%v", got)
	}
	// A node with nobody has nothing to do, application or not.
	w.members["a"].step(AppGone{Lost: true})
	w.command("a", Command{ID: 4, Node: "a", Job: drain})
	if r := w.last("a", 4); r.Error != "" || r.Progress.Moved != 0 {
		w.fail("%+v", r)
	}
}

// Whoever gave the command hears why it does not go on.
func TestDrainLost(t *testing.T) {
	slow := drain
	slow.Rate = 2
	for _, tt := range []struct {
		name string
		what func(w *world)
		want string
	}{
		{"connection", func(w *world) { w.disconnect("a", "c", time.Second) }, "the connection to node a is lost"},
		{"daemon", func(w *world) { w.members["a"].restart() }, "the connection to node a is lost"},
		{"application", func(w *world) {
			w.members["a"].app = nil
			w.members["a"].step(AppGone{Lost: true})
		}, "the application has gone"},
		{"undrain", func(w *world) { w.command("b", Command{ID: 5, Node: "a", Job: Job{What: Undrain}}) }, "taken back into service"},
	} {
		w := begin(t, 1, 10)
		w.command("c", Command{ID: 1, Node: "a", Job: slow})
		w.run(time.Second)
		tt.what(w)
		if r := w.last("c", 1); !strings.Contains(r.Error, tt.want) {
			w.fail("%s: %+v", tt.name, r)
		}
		if tt.name == "application" {
			continue
		}
		w.run(5 * time.Second)
		w.settled()
		if a := w.command("c", Command{ID: 2, Node: "a", Job: drain}); a.Err != nil {
			w.fail("%s: again: %v", tt.name, a.Err)
		}
		if r := w.last("c", 2); r.Error != "" || w.counts()[0] != 0 {
			w.fail("%s: again: %+v", tt.name, r)
		}
	}
}

// One of a release that knows no orders does not answer, and that is said.
func TestDrainUnanswered(t *testing.T) {
	w := begin(t, 1, 0)
	h := w.members["c"]
	h.m.Step(w.now, Command{ID: 1, Node: "a", Job: drain}) // and the order is lost
	w.run(errandTimeout + time.Second)
	if a := h.answers[1]; a.Err == nil || !strings.Contains(a.Err.Error(), "node a has not answered") {
		w.fail("%v", a.Err)
	}
}

// Connections break in the middle, again and again: in the end everybody has gone,
// and is served by one node.
func TestDrainChaos(t *testing.T) {
	for seed := range uint64(20) {
		w := begin(t, seed, 12)
		fast := drain
		fast.Rate = 20
		id := uint64(0)
		for range 40 {
			id++
			w.command("c", Command{ID: id, Node: "a", Job: fast})
			w.run(time.Duration(w.rand.IntN(400)) * time.Millisecond)
			w.disconnect([]string{"a", "a", "b"}[id%3], []string{"b", "c", "c"}[id%3], time.Duration(w.rand.IntN(300))*time.Millisecond)
			w.run(2 * time.Second)
			if w.counts()[0] == 0 {
				break
			}
		}
		w.run(time.Minute)
		w.settled()
		if got := w.counts(); got[0] != 0 {
			w.fail("seed %d: %v after %d commands", seed, got, id)
		}
	}
}
