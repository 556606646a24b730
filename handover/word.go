//go:build linux

package handover

import (
	"os"
	"sync/atomic"

	"github.com/distributed-servers/ds/internal/sharedmem"
)

// word is the word of memory that donor and target share. It is zero until one of them has
// decided.
type word struct{ memory *sharedmem.Memory }

const (
	undecided = iota
	taken     // the connections are the target's
	overruled // they are the donor's
)

// newWord makes a word, and a descriptor of its memory for the target.
func newWord() (word, *os.File, error) {
	f, err := sharedmem.Create("handover", 1)
	if err != nil {
		return word{}, nil, err
	}
	w, err := openWord(f)
	if err != nil {
		f.Close()
	}
	return w, f, err
}

func openWord(f *os.File) (word, error) {
	m, err := sharedmem.Map(f, 1)
	if err != nil {
		return word{}, err
	}
	return word{m}, nil
}

// take decides that the connections are the target's, and tells whether they are. Only the
// first call can.
func (w *word) take() bool {
	return w.memory != nil && atomic.CompareAndSwapUint64(&w.memory.Words[0], undecided, taken)
}

// overrule decides that they never are, and tells whether that is so.
func (w *word) overrule() bool {
	return atomic.CompareAndSwapUint64(&w.memory.Words[0], undecided, overruled) ||
		atomic.LoadUint64(&w.memory.Words[0]) == overruled
}

func (w *word) close() {
	if w.memory != nil {
		w.memory.Unmap()
		w.memory = nil
	}
}
