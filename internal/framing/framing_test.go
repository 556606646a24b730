package framing

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestRead(t *testing.T) {
	for _, c := range []struct {
		in, want string
		err      error
	}{
		{"", "", io.EOF},
		{"\x00\x00", "", io.ErrUnexpectedEOF},
		{"\x00\x00\x00\x00", "", nil},
		{"\x00\x00\x00\x03abcd", "abc", nil},
		{"\x00\x00\x00\x03", "", io.ErrUnexpectedEOF},
		{"\x00\x00\x00\x03ab", "", io.ErrUnexpectedEOF},
		{"\x00\x00\x00\x04abcd", "", ErrTooLong},
		{"\xff\xff\xff\xff", "", ErrTooLong},
	} {
		if b, err := Read(strings.NewReader(c.in), 3); string(b) != c.want || !errors.Is(err, c.err) {
			t.Errorf("%q: %q, %v: want %q, %v", c.in, b, err, c.want, c.err)
		}
		for _, there := range []int{0, len(c.in)} {
			r := bufio.NewReader(strings.NewReader(c.in))
			r.Peek(there)
			if b, err := Next(r, 3); string(b) != c.want || !errors.Is(err, c.err) {
				t.Errorf("%q, next, %d octets there: %q, %v: want %q, %v", c.in, there, b, err, c.want, c.err)
			}
			if rest, _ := io.ReadAll(r); c.err == nil && string(rest) != c.in[4+len(c.want):] {
				t.Errorf("%q, next, %d octets there: %q is left", c.in, there, rest)
			}
		}
	}
}

func TestReady(t *testing.T) {
	const in = "\x00\x00\x00\x03abc"
	for n := range len(in) + 1 {
		r := bufio.NewReader(strings.NewReader(in[:n]))
		r.Peek(n)
		if got := Ready(r); got != (n == len(in)) {
			t.Errorf("of %d octets %d are there: ready %t", len(in), n, got)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 7})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		const limit = 1 << 30
		frame, err := Read(bytes.NewReader(b), limit)
		if err != nil {
			return
		}
		again := append(binary.BigEndian.AppendUint32(nil, uint32(len(frame))), frame...)
		if !bytes.HasPrefix(b, again) {
			t.Fatalf("%x is read as %x", b, frame)
		}
		if cap(frame) > 2*len(b)+1<<20 {
			t.Fatalf("%d octets of input took %d", len(b), cap(frame))
		}
	})
}
