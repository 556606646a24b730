// Package sharedmem has words of memory that processes share: one creates it and passes
// its descriptor to the other, and both map it. What is done with the words is for
// package sync/atomic; it works between processes as it does between goroutines.
package sharedmem

// Memory is shared memory as it is mapped in this process.
type Memory struct {
	Words []uint64 // not to be touched after Unmap

	octets []byte // the same
}

const wordSize = 8 // octets
