package deadline

import (
	"math/rand/v2"
	"testing"
	"time"
)

// A queue gives what a plain map with a search for the minimum gives.
func TestAgainstMap(t *testing.T) {
	const seed = 1
	r := rand.New(rand.NewPCG(seed, seed))
	var q Queue[int]
	want := map[int]time.Duration{}
	for step := range 20000 {
		k, at := r.IntN(50), time.Duration(r.IntN(1000))
		switch r.IntN(4) {
		case 0, 1:
			q.Set(k, at)
			want[k] = at
		case 2:
			q.Remove(k)
			delete(want, k)
		case 3:
			k, ok := q.Pop(at)
			if !ok {
				for k, v := range want {
					if v <= at {
						t.Fatalf("seed %d, step %d: nothing due at %d, but %d is since %d", seed, step, at, k, v)
					}
				}
				break
			}
			for other, v := range want {
				if v < want[k] || want[k] > at {
					t.Fatalf("seed %d, step %d: popped %d (%d), but %d is due at %d", seed, step, k, want[k], other, v)
				}
			}
			delete(want, k)
		}
		if q.Len() != len(want) {
			t.Fatalf("seed %d, step %d: %d deadlines, want %d", seed, step, q.Len(), len(want))
		}
	}
}

func TestEqualDeadlinesInOrder(t *testing.T) {
	var q Queue[string]
	for _, k := range []string{"c", "a", "b"} {
		q.Set(k, 5)
	}
	for _, want := range []string{"c", "a", "b"} {
		if at, ok := q.Next(); !ok || at != 5 {
			t.Fatalf("next is %d, %t", at, ok)
		}
		if k, ok := q.Pop(5); !ok || k != want {
			t.Fatalf("got %q, %t; want %q", k, ok, want)
		}
	}
	if _, ok := q.Next(); ok {
		t.Error("an empty queue has a deadline")
	}
}
