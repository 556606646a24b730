package api

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"github.com/distributed-servers/ds/internal/sharedmem"
)

// MaxDecisions is how many words Decisions have: how many offers can wait for their
// decision at a time.
const MaxDecisions = 4096

// Decisions are words of memory, in which an application and its daemon decide who of
// them has the last word about an offer: whether its client goes live in the
// application (Take) or never does (Overrule). Whoever is first has decided; both
// see it at once, also when the other has stopped, or has ended.
//
//	                    ┌─ Take ─────► taken: the client is the application's
//	Put ─► undecided ───┤
//	                    └─ Overrule ─► overruled: it never will be
//
// The daemon chooses a word for each offer, puts the ID of the offer there, and only
// then sends Offer with ID and Word. The application takes the word after Activate, right
// before it lets the first packet out, and without having taken it lets none out. A
// daemon that wants the client back overrules: if it can, it may tell the donor that
// it has its client again. If it cannot, the application is live or about to be.
// The word can have another offer, by Put, once the daemon knows what was decided.
//
// All operations are atomic and sequentially consistent (package sync/atomic), between
// processes too: who takes a word sees what was written before its Put.
//
// To the daemon the memory is input that is not trusted. An application can write there
// what it likes, at any time. So the daemon reads nothing from it but whether it could
// overrule, and an application that lies does it about clients that it was
// offered: theirs are the only connections that suffer.
//
// Each process has its own Decisions, whose methods may be called from several
// goroutines. In nil ones nothing can be decided.
type Decisions struct {
	file   *os.File          // of ShareDecisions
	memory *sharedmem.Memory // nil: not shared

	mu    sync.RWMutex // held for writing while the words go away
	words []uint64     // nil: closed
}

// A word is an ID with what has become of its offer in the lowest bits, so that no ID
// can be mistaken for a decision, nor the decision about one offer for that about
// another.
const (
	undecided = iota + 1 // 0 is nothing: a word that was never put
	taken
	overruled

	decisionBits = 2
)

// maxDecisionID is the greatest ID that a word can have.
const maxDecisionID = 1<<(64-decisionBits) - 1

// NewDecisions returns Decisions in this process's own memory: for an application whose
// daemon is in the same process.
func NewDecisions() *Decisions { return &Decisions{words: make([]uint64, MaxDecisions)} }

// OtherEnd returns the same words for the other end, of [NewDecisions]: each end closes
// its own.
func (d *Decisions) OtherEnd() *Decisions { return &Decisions{words: d.words} }

// ShareDecisions returns Decisions in memory for another process, to which File is
// passed: the daemon's end. The memory is gone when both ends are.
func ShareDecisions() (*Decisions, error) {
	f, err := sharedmem.Create("dsco-decisions", MaxDecisions)
	if err != nil {
		return nil, fmt.Errorf("api: decisions: %w", err)
	}
	d, err := OpenDecisions(f)
	if err != nil {
		f.Close()
		return nil, err
	}
	d.file = f
	return d, nil
}

// OpenDecisions returns the Decisions that another process shares: the application's
// end. The descriptor stays the caller's, and may be closed. The error says what of it
// is not as [ShareDecisions] has made it.
func OpenDecisions(f *os.File) (*Decisions, error) {
	m, err := sharedmem.Map(f, MaxDecisions)
	if err != nil {
		return nil, fmt.Errorf("api: decisions: %w", err)
	}
	return &Decisions{memory: m, words: m.Words}, nil
}

// File is the descriptor of [ShareDecisions], nil of others. It can be closed once it
// has been passed; Close closes it in any case.
func (d *Decisions) File() *os.File { return d.file }

// Put begins: about the offer id nothing is decided from now on, and what the word was
// about before is forgotten. It is the daemon's. An ID is from 1 to 1<<62-1; without
// such an ID, or such a word, nothing happens.
func (d *Decisions) Put(word int, id uint64) {
	d.with(word, id, func(w *uint64) bool {
		atomic.StoreUint64(w, id<<decisionBits|undecided)
		return true
	})
}

// Take decides that the client of the offer id goes live, and tells whether it does:
// not if the word was overruled, taken already, or is about another offer. It is the
// application's.
func (d *Decisions) Take(word int, id uint64) bool {
	return d.with(word, id, func(w *uint64) bool {
		return atomic.CompareAndSwapUint64(w, id<<decisionBits|undecided, id<<decisionBits|taken)
	})
}

// Overrule decides that the client of the offer id never goes live, and tells whether
// that is so: then it is for any later call as well, until the word has another offer.
// It is the daemon's.
func (d *Decisions) Overrule(word int, id uint64) bool {
	return d.with(word, id, func(w *uint64) bool {
		return atomic.CompareAndSwapUint64(w, id<<decisionBits|undecided, id<<decisionBits|overruled) ||
			atomic.LoadUint64(w) == id<<decisionBits|overruled
	})
}

// with does something with a word, if there is that word and it can have that ID.
func (d *Decisions) with(word int, id uint64, do func(*uint64) bool) bool {
	if d == nil || id == 0 || id > maxDecisionID {
		return false
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	return word >= 0 && word < len(d.words) && do(&d.words[word])
}

// Close ends them: from then on nothing can be decided here, so that every method
// returns false. What was decided stays, and the other end its own.
func (d *Decisions) Close() error {
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.words == nil {
		return nil
	}
	d.words = nil
	if d.file != nil {
		d.file.Close() // unless the caller has
	}
	if d.memory == nil {
		return nil
	}
	if err := d.memory.Unmap(); err != nil {
		return fmt.Errorf("api: decisions: %w", err)
	}
	return nil
}
