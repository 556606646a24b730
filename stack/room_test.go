package stack_test

import (
	"testing"

	"github.com/distributed-servers/ds/stack"
)

// deep has the frames of a Write, roughly: 40 of them, 8 KiB together.
//
//go:noinline
func deep(frames int, b [176]byte) byte {
	if frames == 0 {
		return b[0]
	}
	b[frames]++
	return deep(frames-1, b) + b[1]
}

// BenchmarkRoom is a new goroutine that goes as deep as a Write does. What it costs in the
// middle of an answer is five times as much, since nothing of it is in a cache then.
func BenchmarkRoom(b *testing.B) {
	for name, first := range map[string]func(){"made": stack.MakeRoom, "as needed": func() {}} {
		b.Run(name, func(b *testing.B) {
			done := make(chan byte)
			for b.Loop() {
				go func() {
					first()
					done <- deep(40, [176]byte{})
				}()
				<-done
			}
		})
	}
	b.Run("there", func(b *testing.B) {
		for b.Loop() {
			stack.MakeRoom()
		}
	})
}
