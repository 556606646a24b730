package pattern

import (
	"bytes"
	"io"
	"testing"
)

// Whatever the pieces, the stream is the same.
func TestPieces(t *testing.T) {
	whole := make([]byte, 1000)
	Fill(whole, 0)
	for size := 1; size < 40; size++ {
		var got []byte
		r := &Reader{End: int64(len(whole))}
		b := make([]byte, size)
		for {
			n, err := r.Read(b)
			got = append(got, b[:n]...)
			if err == io.EOF {
				break
			}
		}
		if !bytes.Equal(got, whole) {
			t.Fatalf("in pieces of %d the stream differs", size)
		}
		var c Checker
		for p := got; len(p) > 0; p = p[min(size, len(p)):] {
			c.Write(p[:min(size, len(p))])
		}
		if c.Wrong != 0 || c.Offset != int64(len(whole)) {
			t.Fatalf("in pieces of %d: %d wrong of %d", size, c.Wrong, c.Offset)
		}
	}
}

// One octet lost or doubled makes nearly all that follow wrong.
func TestCheckerSees(t *testing.T) {
	b := make([]byte, 4000)
	Fill(b, 0)
	var lost, doubled, changed Checker
	lost.Write(b[:100])
	lost.Write(b[101:])
	doubled.Write(b[:100])
	doubled.Write(b[99:])
	b[7] ^= 1
	changed.Write(b)
	if lost.Wrong < 3000 || doubled.Wrong < 3000 || changed.Wrong != 1 {
		t.Errorf("wrong octets: %d of one lost, %d of one doubled, %d of one changed", lost.Wrong, doubled.Wrong, changed.Wrong)
	}
}
