package plan

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func addr(i int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", i)) }

// clients are as many as there are numbers, of connections.
func clients(connections ...int) (all []Client) {
	for i, n := range connections {
		all = append(all, Client{addr(i), n})
	}
	return all
}

// A script is what is asked of a run, and what comes of it: "next" begins what is
// due and says who goes where; "moved 1", "failed 1" and "gone 1" end the handoff of
// client 1; "+500ms" lets time pass; "shut b", "open b"; "add 7"; "deadline", "done"
// and "progress" ask.
func play(t *testing.T, r *Run, script string) string {
	t.Helper()
	var now time.Duration
	var out []string
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	for _, line := range strings.Split(script, ", ") {
		word, rest, _ := strings.Cut(line, " ")
		var i int
		fmt.Sscan(rest, &i)
		switch word {
		case "next":
			var began []string
			for {
				c, to, ok := r.Next(now)
				if !ok {
					break
				}
				began = append(began, fmt.Sprintf("%d→%s", c.As16()[15], to))
			}
			say("%s", "["+strings.Join(began, " ")+"]")
		case "moved", "failed", "gone":
			if r.End(now, addr(i), map[string]Outcome{"moved": Moved, "failed": Failed, "gone": Gone}[word]) {
				say("stuck %d", i)
			}
		case "shut", "open":
			r.Set(rest, word == "open")
		case "add":
			r.Add(addr(i))
		case "done":
			say("%t", r.Done())
		case "deadline":
			at, ok := r.Deadline()
			say("%v %t", at-now, ok)
		case "progress":
			p := r.Progress(now)
			say("moved %d, moving %d, left %d, stuck %d, failed %d, %.0f/s, %v, %v", p.Moved, p.Moving, p.Left, p.Stuck, p.Failed, p.Rate, p.ETA, p.To)
		default:
			d, err := time.ParseDuration(word)
			if err != nil {
				t.Fatal(err)
			}
			now += d
		}
	}
	return strings.Join(out, " | ")
}

func TestRun(t *testing.T) {
	bc := []Target{{Name: "c"}, {Name: "b"}}
	for _, tt := range []struct {
		name    string
		clients []Client
		targets []Target
		opt     Options
		script  string
		want    string
	}{
		{"most connections first, by turns", clients(1, 5, 1), bc, Options{}, "next, deadline, done", "[1→b 0→c 2→b] | 0s false | false"},
		{"the emptier first", clients(1, 1, 1), []Target{{Name: "b", Clients: 9}, {Name: "c", Clients: 7}}, Options{}, "next", "[0→c 1→c 2→b]"},
		{"by weight", clients(1, 1, 1), []Target{{Name: "b", Weight: 2}, {Name: "c"}}, Options{}, "next", "[0→b 1→b 2→c]"},
		{"not too many at once", clients(1, 1, 1), bc, Options{Width: 2},
			"next, deadline, moved 0, deadline, next, moved 1, moved 2, done", "[0→b 1→c] | 0s false | 0s true | [2→b] | true"},
		{"not too fast", clients(1, 1, 1), bc, Options{Rate: 10},
			"next, deadline, +100ms, next, deadline, +99ms, next, +1ms, next", "[0→b] | 100ms true | [1→c] | 100ms true | [] | [2→b]"},
		{"several together", clients(1, 1, 1, 1, 1), bc, Options{Rate: 60},
			"next, deadline, +49ms, next, +1ms, next, deadline, +50ms, next", "[0→b] | 50ms true | [] | [1→c 2→b 3→c] | 50ms true | [4→b]"},
		{"but not all that was missed", clients(make([]int, 40)...), []Target{{Name: "b"}}, Options{Rate: 100},
			"next, +1h, moved 0, progress, next, progress", "[0→b] | moved 1, moving 0, left 39, stuck 0, failed 0, 0/s, 39h0m0s, [{b 1}] | [1→b 2→b 3→b 4→b 5→b 6→b 7→b 8→b 9→b 10→b 11→b] | moved 1, moving 11, left 39, stuck 0, failed 0, 0/s, 39h0m0s, [{b 1}]"},
		{"a failure is retried, elsewhere", clients(1), bc, Options{},
			"next, failed 0, done, next, deadline, +500ms, next, moved 0, done, progress",
			"[0→b] | false | [] | 500ms true | [0→c] | true | moved 1, moving 0, left 0, stuck 0, failed 1, 2/s, 0s, [{c 1}]"},
		{"or there, if nobody else is", clients(1), []Target{{Name: "b"}}, Options{}, "next, failed 0, +500ms, next", "[0→b] | [0→b]"},
		{"until it is given up", clients(1, 1), []Target{{Name: "b"}}, Options{Tries: 2},
			"next, moved 1, failed 0, +500ms, next, failed 0, done, next, progress",
			"[0→b 1→b] | [0→b] | stuck 0 | true | [] | moved 1, moving 0, left 0, stuck 1, failed 2, 2/s, 0s, [{b 1}]"},
		{"each time later", clients(1), []Target{{Name: "b"}}, Options{},
			"next, failed 0, deadline, +500ms, next, failed 0, deadline, +1s, next, failed 0, deadline", "[0→b] | 500ms true | [0→b] | 1s true | [0→b] | 2s true"},
		{"one that is gone is no failure", clients(1), bc, Options{}, "next, gone 0, done, progress",
			"[0→b] | true | moved 0, moving 0, left 0, stuck 0, failed 0, 0/s, 0s, []"},
		{"an end of nothing", clients(1), bc, Options{}, "moved 0, failed 7, next, moved 0, moved 0, progress",
			"[0→b] | moved 1, moving 0, left 0, stuck 0, failed 0, 0/s, 0s, [{b 1}]"},
		{"a target that takes no more", clients(1, 1, 1), bc, Options{Width: 1},
			"shut b, next, moved 0, open b, next, moved 1, shut b, shut c, next, deadline, done", "[0→c] | [1→b] | [] | 0s false | true"},
		{"one more has come", clients(1), bc, Options{}, "next, add 7, add 7, next, moved 0, done, moved 7, done", "[0→b] | [7→c] | false | true"},
		{"no more than so many, the cheapest", clients(5, 1, 2), []Target{{Name: "b", Most: 1}, {Name: "c", Most: 1}}, Options{},
			"progress, next, deadline, moved 1, moved 2, done",
			"moved 0, moving 0, left 2, stuck 0, failed 0, 0/s, 0s, [] | [1→b 2→c] | 0s false | true"},
		{"or as many as a target takes", clients(1, 1, 1), []Target{{Name: "b", Most: 2}}, Options{Width: 1},
			"next, shut b, moved 0, next, done, progress", "[0→b] | [] | true | moved 1, moving 0, left 1, stuck 0, failed 0, 0/s, 0s, [{b 1}]"},
		{"for one that fails another goes", clients(5, 1), []Target{{Name: "b", Most: 1}}, Options{},
			"next, failed 1, next, moved 0, done, progress", "[1→b] | [0→b] | true | moved 1, moving 0, left 0, stuck 0, failed 1, 0/s, 0s, [{b 1}]"},
	} {
		if got := play(t, NewRun(0, tt.clients, tt.targets, tt.opt), tt.script); got != tt.want {
			t.Errorf("%s:\n got %s\nwant %s", tt.name, got, tt.want)
		}
	}
}

// Whatever fails, a run ends, within its width and its rate, and every client is
// accounted for.
func TestRunEnds(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		n := 1 + rnd.IntN(200)
		all := make([]Client, n)
		for i := range all {
			all[i] = Client{addr(i), rnd.IntN(4)}
		}
		o := Options{Width: 1 + rnd.IntN(20), Rate: float64(rnd.IntN(3)) * 200}
		r := NewRun(0, all, []Target{{Name: "b"}, {Name: "c", Weight: 3}}, o)
		var now time.Duration
		going := make(map[netip.Addr]bool)
		moved, stuck, gone, begun := 0, 0, 0, 0
		for !r.Done() {
			for {
				c, _, ok := r.Next(now)
				if !ok {
					break
				}
				if going[c] {
					t.Fatalf("seed %d: %s goes twice", seed, c)
				}
				going[c] = true
				begun++
			}
			if len(going) > o.Width || o.Rate > 0 && float64(begun) > 2+o.Rate*(now+burst).Seconds() {
				t.Fatalf("seed %d: %d at once, %d begun in %v", seed, len(going), begun, now)
			}
			at, ok := r.Deadline()
			switch {
			case len(going) > 0 && (!ok || rnd.IntN(2) == 0):
				for c := range going { // any
					delete(going, c)
					o := Outcome(1 + rnd.IntN(3))
					if r.End(now, c, o) {
						stuck++
					}
					if o == Moved {
						moved++
					}
					if o == Gone {
						gone++
					}
					break
				}
			case ok:
				now = max(now, at)
			default:
				t.Fatalf("seed %d: nothing to wait for", seed)
			}
		}
		p := r.Progress(now)
		if moved+stuck+gone != n || p.Moved != moved || p.Stuck != stuck || p.Left != 0 {
			t.Fatalf("seed %d: %d moved, %d stuck, %d gone of %d: %+v", seed, moved, stuck, gone, n, p)
		}
	}
}
