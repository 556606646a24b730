// Package deadline keeps the deadlines of a protocol machine: one for each
// key, the earliest first. It reads no clock.
package deadline

import (
	"container/heap"
	"time"
)

// Queue holds at most one deadline for each key. The zero value is empty.
// Set, Remove and Pop take O(log n).
type Queue[K comparable] struct {
	items order[K]
	byKey map[K]*item[K]
	count uint64
}

type item[K comparable] struct {
	key   K
	at    time.Duration
	since uint64 // deadlines that are equal come in the order they were set
	index int
}

// Set replaces the deadline of k.
func (q *Queue[K]) Set(k K, at time.Duration) {
	q.count++
	if i := q.byKey[k]; i != nil {
		i.at, i.since = at, q.count
		heap.Fix(&q.items, i.index)
		return
	}
	if q.byKey == nil {
		q.byKey = make(map[K]*item[K])
	}
	i := &item[K]{key: k, at: at, since: q.count}
	q.byKey[k] = i
	heap.Push(&q.items, i)
}

// Remove removes the deadline of k, if it has one.
func (q *Queue[K]) Remove(k K) {
	if i := q.byKey[k]; i != nil {
		heap.Remove(&q.items, i.index)
		delete(q.byKey, k)
	}
}

// Next is the earliest deadline; ok is false if there is none.
func (q *Queue[K]) Next() (at time.Duration, ok bool) {
	if len(q.items) == 0 {
		return 0, false
	}
	return q.items[0].at, true
}

// Pop removes and returns a key whose deadline is not after now, the earliest
// first; ok is false if there is none.
func (q *Queue[K]) Pop(now time.Duration) (k K, ok bool) {
	if len(q.items) == 0 || q.items[0].at > now {
		return k, false
	}
	i := heap.Pop(&q.items).(*item[K])
	delete(q.byKey, i.key)
	return i.key, true
}

// Len is the number of deadlines.
func (q *Queue[K]) Len() int { return len(q.items) }

// order implements heap.Interface.
type order[K comparable] []*item[K]

func (o order[K]) Len() int { return len(o) }

func (o order[K]) Less(i, j int) bool {
	if o[i].at != o[j].at {
		return o[i].at < o[j].at
	}
	return o[i].since < o[j].since
}

func (o order[K]) Swap(i, j int) {
	o[i], o[j] = o[j], o[i]
	o[i].index, o[j].index = i, j
}

func (o *order[K]) Push(x any) {
	i := x.(*item[K])
	i.index = len(*o)
	*o = append(*o, i)
}

func (o *order[K]) Pop() any {
	old := *o
	i := old[len(old)-1]
	old[len(old)-1] = nil
	*o = old[:len(old)-1]
	return i
}
