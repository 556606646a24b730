package snapshot

import (
	"bytes"
	"errors"
	"slices"
	"testing"
)

// FuzzParse: whatever comes from the network, Parse does not panic, takes
// memory in proportion, and accepts one form only of what it accepts.
func FuzzParse(f *testing.F) {
	for name := range samples() {
		b := readGolden(f, name)
		f.Add(b)
		for _, field := range dissect(b) {
			for _, x := range []byte{1, 0x80, 0xff} {
				m := slices.Clone(b)
				m[field.off] ^= x
				if len(m) < 400 || x == 0xff { // the rich ones are long
					f.Add(m)
				}
			}
		}
		if len(b) > 8 {
			f.Add(b[:len(b)/2])
		}
	}
	f.Add(manyShort()[:1024])
	f.Fuzz(func(t *testing.T, b []byte) {
		var s *Snapshot
		var err error
		parse := func() { s, err = Parse(b) }
		if n := allocatedOnce(parse); n > bound(len(b)) && allocated(parse) > bound(len(b)) {
			t.Errorf("%d octets took %d", len(b), n)
		}
		if err != nil {
			if !errors.Is(err, ErrFormat) && !errors.Is(err, ErrVersion) {
				t.Errorf("%v is neither ErrFormat nor ErrVersion", err)
			}
			return
		}
		again, err := Append(nil, s)
		if err != nil {
			t.Fatalf("accepted, but cannot be appended: %v", err)
		}
		if b[4] == Version {
			if !bytes.Equal(again, b) {
				t.Fatalf("appended again:\n%x\nwant\n%x", again, b)
			}
			dissect(b)
			return
		}
		// A newer version loses what we do not know, once.
		s, err = Parse(again)
		if err != nil {
			t.Fatal(err)
		}
		if third := appendTo(t, s); !bytes.Equal(again, third) {
			t.Fatalf("appended a third time:\n%x\nwant\n%x", third, again)
		}
	})
}
