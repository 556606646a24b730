// Package pattern is an endless stream of octets that tell where they belong,
// so that one lost, doubled or out of place shows.
package pattern

import (
	"bytes"
	"encoding/binary"
	"io"
)

// word returns the 8 octets at offset 8*i: SplitMix64.
func word(i uint64) uint64 {
	x := i * 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// Fill sets b to the octets of the stream from offset on.
func Fill(b []byte, offset int64) {
	var w [8]byte
	for len(b) > 0 {
		i, within := uint64(offset)/8, int(offset%8)
		if within == 0 && len(b) >= 8 {
			binary.LittleEndian.PutUint64(b, word(i))
			b, offset = b[8:], offset+8
			continue
		}
		binary.LittleEndian.PutUint64(w[:], word(i))
		n := copy(b, w[within:])
		b, offset = b[n:], offset+int64(n)
	}
}

// Checker compares octets with the stream, in order from Offset on.
type Checker struct {
	Offset int64 // of the next octet
	Wrong  int64 // octets that differed

	want []byte
}

// Write implements [io.Writer]. It never fails; look at Wrong.
func (c *Checker) Write(p []byte) (int, error) {
	if cap(c.want) < len(p) {
		c.want = make([]byte, len(p))
	}
	want := c.want[:len(p)]
	Fill(want, c.Offset)
	if !bytes.Equal(p, want) {
		for i := range p {
			if p[i] != want[i] {
				c.Wrong++
			}
		}
	}
	c.Offset += int64(len(p))
	return len(p), nil
}

// Reader reads the octets from Offset up to End.
type Reader struct{ Offset, End int64 }

// Read implements [io.Reader].
func (r *Reader) Read(p []byte) (int, error) {
	if r.Offset >= r.End {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), r.End-r.Offset)]
	Fill(p, r.Offset)
	r.Offset += int64(len(p))
	return len(p), nil
}
