package api

import (
	"math"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/distributed-servers/ds/internal/sharedmem"
)

// Whoever is first decides, and a word is about one offer.
func TestDecisions(t *testing.T) {
	d := NewDecisions()
	defer d.Close()
	for _, word := range []int{0, 7, MaxDecisions - 1} {
		expect := func(what string, got, want bool) {
			t.Helper()
			if got != want {
				t.Errorf("word %d: %s: %t", word, what, got)
			}
		}
		expect("take what was never put", d.Take(word, 1), false)
		expect("overrule what was never put", d.Overrule(word, 1), false)

		d.Put(word, 1)
		expect("take another's", d.Take(word, 2), false)
		expect("overrule another's", d.Overrule(word, 2), false)
		expect("take", d.Take(word, 1), true)
		expect("take again", d.Take(word, 1), false)
		expect("overrule what is taken", d.Overrule(word, 1), false)

		d.Put(word, 2)
		expect("take the one before", d.Take(word, 1), false)
		expect("overrule the one before", d.Overrule(word, 1), false)
		expect("overrule", d.Overrule(word, 2), true)
		expect("overrule again", d.Overrule(word, 2), true)
		expect("overrule another's", d.Overrule(word, 1), false)
		expect("take what is overruled", d.Take(word, 2), false)
	}
	d.Put(1, maxDecisionID)
	if !d.Take(1, maxDecisionID) {
		t.Error("the greatest ID")
	}
}

// Where there is no word, and of what is no ID, nothing is decided: an ID that is too
// great is not one of those that it looks like.
func TestDecisionsRange(t *testing.T) {
	d := NewDecisions()
	for _, word := range []int{-1, MaxDecisions, math.MinInt, math.MaxInt} {
		d.Put(word, 1)
		if d.Take(word, 1) || d.Overrule(word, 1) {
			t.Errorf("word %d", word)
		}
	}
	for _, id := range []uint64{0, maxDecisionID + 1, maxDecisionID + 2, math.MaxUint64} {
		d.Put(0, id)
		if d.Take(0, id) || d.Overrule(0, id) {
			t.Errorf("ID %#x", id)
		}
	}
	d.Put(0, 1)
	if d.Take(0, 1+maxDecisionID+1) || d.Overrule(0, 1+maxDecisionID+1) {
		t.Error("an ID that is too great was taken for 1")
	}
	if !d.Take(0, 1) {
		t.Error("ID 1")
	}
}

// After Close, and in nil ones, nothing is decided.
func TestDecisionsClosed(t *testing.T) {
	daemon, application := sharedDecisions(t)
	for name, d := range map[string]*Decisions{"nil": nil, "in this process": NewDecisions(), "daemon": daemon, "application": application} {
		d.Put(0, 1)
		d.Put(1, 1)
		d.Overrule(1, 1)
		for range 2 {
			if err := d.Close(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		d.Put(0, 1)
		if d.Take(0, 1) || d.Overrule(0, 1) || d.Overrule(1, 1) {
			t.Errorf("%s: something was decided", name)
		}
	}
	if daemon.File().Close() == nil {
		t.Error("its descriptor was left open")
	}
}

// Close waits for who is deciding, and who comes later finds nothing.
func TestDecisionsCloseRace(t *testing.T) {
	for range 50 {
		daemon, _ := sharedDecisions(t)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for id := uint64(1); ; id++ {
					daemon.Put(0, id)
					if !daemon.Overrule(0, id) && !open(daemon) {
						return
					}
				}
			})
		}
		if err := daemon.Close(); err != nil {
			t.Error(err)
		}
		wg.Wait()
	}
}

func open(d *Decisions) bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.words != nil
}

// sharedDecisions are both ends.
func sharedDecisions(t *testing.T) (daemon, application *Decisions) {
	t.Helper()
	daemon, err := ShareDecisions()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { daemon.Close() })
	application, err = OpenDecisions(daemon.File())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { application.Close() })
	return daemon, application
}

// An end sees what the other decides, and what it has decided when that one is gone.
func TestDecisionsShared(t *testing.T) {
	daemon, application := sharedDecisions(t)
	if err := daemon.File().Close(); err != nil {
		t.Error(err)
	}
	for word := range MaxDecisions {
		id := uint64(word + 1)
		daemon.Put(word, id)
		if word%2 == 0 && !application.Take(word, id) {
			t.Fatalf("word %d cannot be taken", word)
		}
	}
	application.Close()
	for word := range MaxDecisions {
		if got := daemon.Overrule(word, uint64(word+1)); got != (word%2 == 1) {
			t.Fatalf("word %d is overruled: %t", word, got)
		}
	}
}

// What an application writes there does nothing to the daemon.
func TestDecisionsHostile(t *testing.T) {
	daemon, application := sharedDecisions(t)
	for _, w := range []uint64{0, 1, 2, 3, 1 << 2, 5 << 2, 1<<64 - 1} {
		daemon.Put(0, 1)
		daemon.Put(1, 1)
		atomic.StoreUint64(&application.words[0], w)
		if daemon.Overrule(0, 1) {
			t.Errorf("%#x is overruled", w)
		}
		if !daemon.Overrule(1, 1) {
			t.Errorf("%#x: the word beside it", w)
		}
		daemon.Put(0, 2)
		if !daemon.Overrule(0, 2) {
			t.Errorf("%#x: the next offer", w)
		}
	}
}

func TestOpenDecisionsRefuses(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	small, err := sharedmem.Create("test", MaxDecisions-1)
	if err != nil {
		t.Fatal(err)
	}
	defer small.Close()
	for _, f := range []*os.File{r, small} {
		if d, err := OpenDecisions(f); d != nil || err == nil || !strings.Contains(err.Error(), "api: decisions: ") || !strings.Contains(err.Error(), "not memory of 32768 octets") {
			t.Errorf("%s: %v", f.Name(), err)
		}
	}
}

// Of many who take and many who overrule, one side decides, and one who takes.
func TestDecisionsRace(t *testing.T) {
	for name, ends := range map[string]func() (daemon, application *Decisions){
		"one process": func() (daemon, application *Decisions) { d := NewDecisions(); return d, d },
		"shared":      func() (daemon, application *Decisions) { return sharedDecisions(t) },
	} {
		t.Run(name, func(t *testing.T) {
			daemon, application := ends()
			raceDecisions(t, daemon, application)
		})
	}
}

func raceDecisions(t *testing.T, daemon, application *Decisions) {
	t.Helper()
	const each, rounds = 4, 200
	won := [2]int{}
	for id := uint64(1); id <= rounds; id++ {
		word := int(id) % 3
		daemon.Put(word, id)
		var took, overruled atomic.Int32
		var wg sync.WaitGroup
		begin := make(chan struct{})
		for range each {
			wg.Go(func() {
				<-begin
				if application.Take(word, id) {
					took.Add(1)
				}
			})
			wg.Go(func() {
				<-begin
				if daemon.Overrule(word, id) {
					overruled.Add(1)
				}
			})
		}
		close(begin)
		wg.Wait()
		switch {
		case took.Load() == 1 && overruled.Load() == 0:
			won[0]++
		case took.Load() == 0 && overruled.Load() == each:
			won[1]++
		default:
			t.Fatalf("offer %d was taken by %d and overruled by %d", id, took.Load(), overruled.Load())
		}
	}
	t.Logf("%d taken, %d overruled", won[0], won[1])
}
