package sharedmem

import (
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

func create(t *testing.T, words int) *os.File {
	t.Helper()
	f, err := Create("test", words)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// Two mappings are the same words, which outlive the descriptor and each other.
func TestShared(t *testing.T) {
	const words = 1000
	f := create(t, words)
	var maps [2]*Memory
	for i := range maps {
		var err error
		if maps[i], err = Map(f, words); err != nil {
			t.Fatal(err)
		}
	}
	f.Close()
	a, b := maps[0], maps[1]
	if len(a.Words) != words || len(b.Words) != words || &a.Words[0] == &b.Words[0] {
		t.Fatalf("%d and %d words", len(a.Words), len(b.Words))
	}
	for i := range words {
		if !atomic.CompareAndSwapUint64(&a.Words[i], 0, uint64(i+1)) {
			t.Fatalf("word %d is not zero", i)
		}
	}
	if err := a.Unmap(); err != nil || a.Words != nil {
		t.Errorf("unmapped: %d words, %v", len(a.Words), err)
	}
	for i := range words {
		if got := atomic.LoadUint64(&b.Words[i]); got != uint64(i+1) {
			t.Fatalf("word %d is %d", i, got)
		}
	}
	if err := b.Unmap(); err != nil {
		t.Error(err)
	}
}

// Whoever has the descriptor cannot take the memory away.
func TestSealed(t *testing.T) {
	f := create(t, 1000)
	for _, size := range []int64{0, 7999, 8001, 1 << 20} {
		if err := f.Truncate(size); err == nil {
			t.Errorf("it has %d octets now", size)
		}
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_FUTURE_WRITE); err == nil {
		t.Error("the other end could not map it any more")
	}
	if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("programs inherit it: %#x, %v", flags, err)
	}
}

func TestRefused(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	disk, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	fd, err := unix.MemfdCreate("unsealed", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	unsealed := os.NewFile(uintptr(fd), "unsealed")
	defer unsealed.Close()
	for _, f := range []*os.File{disk, unsealed} {
		if err := f.Truncate(8000); err != nil {
			t.Fatal(err)
		}
	}
	closed := create(t, 1000)
	closed.Close()
	for _, tt := range []struct {
		name, want string
		f          *os.File
	}{
		{"a pipe", "not memory of 8000 octets", r},
		{"too small", "7992 octets: not memory of 8000 octets", create(t, 999)},
		{"too large", "8008 octets: not memory of 8000 octets", create(t, 1001)},
		{"it may shrink", "may shrink", unsealed},
		{"closed", "closed", closed},
	} {
		if m, err := Map(tt.f, 1000); m != nil || err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
	// Where temporary files are in memory it has seals, of which none is the one.
	if m, err := Map(disk, 1000); m != nil || err == nil {
		t.Errorf("a file: %v", err)
	}
}
