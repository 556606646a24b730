package plan

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// nodes are written as "a 10, b 4 x2 full, c 3 away": clients, weight; full ones
// take none, those that are away neither give nor take.
func nodes(t *testing.T, s string) (all []Node) {
	t.Helper()
	for _, f := range strings.Split(s, ", ") {
		var n Node
		w := strings.Fields(f)
		if _, err := fmt.Sscan(w[0]+" "+w[1], &n.Name, &n.Clients); err != nil {
			t.Fatal(err)
		}
		n.Takes, n.Gives = true, true
		for _, x := range w[2:] {
			switch x {
			case "full":
				n.Takes = false
			case "away":
				n.Takes, n.Gives = false, false
			default:
				if _, err := fmt.Sscanf(x, "x%d", &n.Weight); err != nil {
					t.Fatal(err)
				}
			}
		}
		all = append(all, n)
	}
	return all
}

func text(moves []Move) string {
	var all []string
	for _, m := range moves {
		all = append(all, fmt.Sprintf("%s→%s %d", m.From, m.To, m.Clients))
	}
	return strings.Join(all, ", ")
}

func TestDrain(t *testing.T) {
	for _, tt := range []struct{ nodes, want string }{
		{"a 10, b 0, c 0", "a→b 5, a→c 5"},
		{"a 10, b 8, c 0", "a→b 1, a→c 9"},
		{"a 3, b 8, c 0", "a→c 3"},
		{"a 9, b 0 x2, c 0", "a→b 6, a→c 3"},
		{"a 9, b 0 full, c 0", "a→c 9"},
		{"a 9, b 0 away, c 100", "a→c 9"},
		{"a 0, b 0 away, c 0 full", ""},
		{"a 1, c 0, b 0", "a→b 1"}, // the name decides
		{"a 5 full, b 0", "a→b 5"}, // of course
		{"a 5, b 0 away", "!no node takes the clients of a"},
		{"b 1, c 2", `!there is no node "a"`},
	} {
		got, err := Drain("a", nodes(t, tt.nodes))
		if why, wrong := strings.CutPrefix(tt.want, "!"); wrong {
			if err == nil || !strings.Contains(err.Error(), why) {
				t.Errorf("%s: %s, %v", tt.nodes, text(got), err)
			}
		} else if err != nil || text(got) != tt.want {
			t.Errorf("%s: %s, %v; want %s", tt.nodes, text(got), err, tt.want)
		}
	}
}

func TestEven(t *testing.T) {
	for _, tt := range []struct{ nodes, want string }{
		{"a 10, b 0, c 0", "a→b 3, a→c 3"},
		{"a 10, b 10, c 10", ""},
		{"a 11, b 10, c 10", ""}, // it would only be another one
		{"a 12, b 10, c 10", "a→b 1"},
		{"a 0, b 9, c 9", "b→a 3, c→a 3"},
		{"a 8, b 0 x3", "a→b 6"},
		{"a 0 x3, b 8", "b→a 6"},
		{"a 9, b 0 full, c 0", "a→c 4"},
		{"a 9 full, b 0", "a→b 4"},
		{"a 9 away, b 0, c 4", "c→b 2"},
		{"a 9", ""},
		{"a 9, b 0 away", ""},
	} {
		if got := text(Even(nodes(t, tt.nodes))); got != tt.want {
			t.Errorf("%s: %s; want %s", tt.nodes, got, tt.want)
		}
	}
}

// Whatever the nodes are, nobody gets clients that does not take any, none are
// invented, and no single move more would make it better.
func FuzzEven(f *testing.F) {
	f.Add([]byte{10, 1, 3, 0, 1, 3, 0, 1, 3})
	f.Add([]byte{200, 7, 3, 0, 3, 1, 50, 1, 2, 1, 1, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		var before []Node
		for i := 0; i+2 < len(b) && i < 30; i += 3 {
			before = append(before, Node{
				Name: string(rune('a' + i/3)), Clients: int(b[i]), Weight: int(b[i+1]), Takes: b[i+2]&1 != 0, Gives: b[i+2]&2 != 0,
			})
		}
		after := slices.Clone(before)
		find := func(name string) *Node {
			return &after[slices.IndexFunc(after, func(n Node) bool { return n.Name == name })]
		}
		for _, m := range Even(before) {
			from, to := find(m.From), find(m.To)
			if m.Clients < 1 || from == to || !from.Gives || !to.Takes {
				t.Fatalf("%+v of %+v", m, before)
			}
			from.Clients -= m.Clients
			to.Clients += m.Clients
		}
		for i := range after {
			for j := range after {
				from, to := &after[i], &after[j]
				if from.Clients < 0 || i != j && from.Gives && from.Clients > 0 && to.Takes && less(to, 1, from, 0) {
					t.Fatalf("%+v became %+v", before, after)
				}
			}
		}
	})
}
