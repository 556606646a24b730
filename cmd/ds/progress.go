package main

import (
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/term"
)

// progress shows one line that changes on a terminal, elsewhere a line a
// second.
type progress struct {
	w    *os.File
	live bool

	mu   sync.Mutex
	last time.Time
}

func newProgress(w *os.File) *progress {
	return &progress{w: w, live: term.IsTerminal(int(w.Fd())), last: time.Now()}
}

// clearLine is CR, and CSI 0 K of ECMA-48: erase to the end of the line.
const clearLine = "\r\x1b[K"

func (p *progress) show(line string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.live {
		fmt.Fprint(p.w, clearLine, line)
		return
	}
	if now := time.Now(); now.Sub(p.last) >= time.Second {
		p.last = now
		fmt.Fprintln(p.w, line)
	}
}

func (p *progress) clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.live {
		fmt.Fprint(p.w, clearLine)
	}
}
