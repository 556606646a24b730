package bench

import (
	"math/rand"
	"time"
)

const (
	// paceSteps and paceWalk make a tenth of a millisecond each, or so.
	paceSteps = 50_000
	paceWalk  = 500
	// walkSize is that of the memory to walk through, in octets: more than a
	// processor has to itself.
	walkSize = 4 << 20
	lineSize = 64
)

// walk is the memory: a round through all of its lines, in no order. It is none of
// the heap, whose size says how often there is garbage collection.
var walk [walkSize / 4]uint32

// pacer does something that is always the same, so that the time it takes tells
// about the machine.
type pacer struct {
	at   uint32
	sum  uint64
	took []time.Duration
}

func newPacer() *pacer {
	const words = lineSize / 4
	round := rand.New(rand.NewSource(1)).Perm(walkSize / lineSize)
	for i, line := range round {
		walk[line*words] = uint32(round[(i+1)%len(round)] * words)
	}
	return new(pacer)
}

// measure computes, with nothing to wait for but the processor, and then goes
// from one line of memory to the next, where the address of each is in the one
// before. The first shows who shares the core, another virtual machine say, the
// second who shares its caches.
func (p *pacer) measure() {
	start := time.Now()
	a, b, c, d := p.sum, uint64(2), uint64(3), uint64(4)
	for range paceSteps {
		a = a*0x9e3779b97f4a7c15 + 1
		b = b*0x9e3779b97f4a7c15 ^ 3
		c = (c ^ c>>7) + 5
		d = (d ^ d<<9) + 7
	}
	p.sum = a ^ b ^ c ^ d // or the compiler would leave it out
	for range paceWalk {
		p.at = walk[p.at]
	}
	p.took = append(p.took, time.Since(start))
}

// Pace is how fast the machine was while rows were measured, in microseconds for
// something that is always the same. Figures of different runs compare as far as
// their paces do, even those of one program; ratios within a run do in any case.
type Pace struct {
	Best float64 `json:"best"`
	P50  float64 `json:"p50"`
	P90  float64 `json:"p90"`
}

func (p *pacer) pace() Pace {
	return Pace{Best: micros(quantile(p.took, 0)), P50: micros(quantile(p.took, 0.5)), P90: micros(quantile(p.took, 0.9))}
}
