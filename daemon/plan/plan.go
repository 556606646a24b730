// Package plan decides who goes where when a node is drained or the nodes are
// evened out, in what order and how fast. It hands nobody off and reads no clock:
// [Drain] and [Even] say how many clients go from which node to which, and a [Run]
// says which of a node's clients goes next.
//
//	run := plan.NewRun(now, clients, targets, plan.Options{Rate: 100})
//	for !run.Done() {
//		for {
//			client, to, ok := run.Next(now)
//			if !ok {
//				break
//			}
//			begin(client, to) // a handoff; when it ends: run.End(now, client, …)
//		}
//		wait(run.Deadline()) // or until one ends
//	}
package plan

import (
	"cmp"
	"fmt"
	"slices"
)

// Node is a node, as it is now.
type Node struct {
	Name    string
	Clients int // that it owns

	// Weight is its share of all clients, relative to the others'. Default 1.
	Weight int

	Takes bool // clients of others
	Gives bool // its own, when it is asked
}

// MaxWeight is the greatest weight of a node.
const MaxWeight = 1000

func (n *Node) weight() int { return min(max(n.Weight, 1), MaxWeight) }

// Move is that so many clients of one node go to another.
type Move struct {
	From, To string
	Clients  int
}

// less tells whether a with some more clients has less of what it can bear than b.
func less(a *Node, more int, b *Node, bMore int) bool {
	return compare(a, more, b, bMore) < 0
}

func compare(a *Node, more int, b *Node, bMore int) int {
	return cmp.Compare((a.Clients+more)*b.weight(), (b.Clients+bMore)*a.weight())
}

// emptiest is the node for which one more client is least; nil: none takes any.
func emptiest(nodes []*Node) (best *Node) {
	for _, n := range nodes {
		if n.Takes && (best == nil || less(n, 1, best, 1)) {
			best = n
		}
	}
	return best
}

// byName are copies of nodes, so that what is equal is decided by name.
func byName(nodes []Node) []*Node {
	var all []*Node
	for _, n := range nodes {
		all = append(all, &n)
	}
	slices.SortFunc(all, func(a, b *Node) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// moves adds up.
type moves []Move

func (m *moves) add(from, to string) {
	i := slices.IndexFunc(*m, func(v Move) bool { return v.From == from && v.To == to })
	if i < 0 {
		i = len(*m)
		*m = append(*m, Move{From: from, To: to})
	}
	(*m)[i].Clients++
}

func (m moves) sorted() []Move {
	slices.SortFunc(m, func(a, b Move) int { return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To)) })
	return m
}

// Drain spreads all clients of a node over the others, such that those are as even
// afterwards as they can be without moving any of their own.
func Drain(node string, nodes []Node) ([]Move, error) {
	all := byName(nodes)
	i := slices.IndexFunc(all, func(n *Node) bool { return n.Name == node })
	if i < 0 {
		return nil, fmt.Errorf("plan: there is no node %q", node)
	}
	from := all[i]
	all = slices.Delete(all, i, i+1)
	var m moves
	for range from.Clients {
		to := emptiest(all)
		if to == nil {
			return nil, fmt.Errorf("plan: no node takes the clients of %s: another one must be connected, with an application that takes clients, and not being drained", node)
		}
		to.Clients++
		m.add(from.Name, to.Name)
	}
	return m.sorted(), nil
}

// Even evens the nodes out, by their weights, with as few moves as that takes. What
// a node has that neither gives nor takes does not count.
func Even(nodes []Node) []Move {
	all := byName(nodes)
	var m moves
	for {
		to := emptiest(all)
		var from *Node
		for _, n := range all {
			if n.Gives && n.Clients > 0 && n != to && (from == nil || less(from, 0, n, 0)) {
				from = n
			}
		}
		if to == nil || from == nil || !less(to, 1, from, 0) {
			return m.sorted()
		}
		from.Clients--
		to.Clients++
		m.add(from.Name, to.Name)
	}
}
