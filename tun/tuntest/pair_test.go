package tuntest

import (
	"errors"
	"os"
	"testing"
	"time"
)

// Who has dupped an end reads the same packets, each once, until its own deadline or Close.
func TestDup(t *testing.T) {
	far, a := Pair(1500)
	b := a.Dup()
	read := func(e *End, want string) {
		t.Helper()
		p := make([]byte, 1500)
		if n, err := e.Read(p); err != nil || string(p[:n]) != want {
			t.Fatalf("got %q, %v: want %q", p[:n], err, want)
		}
	}
	fails := func(e *End, want error) {
		t.Helper()
		if _, err := e.Read(nil); !errors.Is(err, want) {
			t.Fatalf("got %v: want %v", err, want)
		}
	}
	send := func(e *End, packets ...string) {
		t.Helper()
		for _, p := range packets {
			if _, err := e.Write([]byte(p)); err != nil {
				t.Fatal(err)
			}
		}
	}

	send(far, "1", "2", "3")
	read(a, "1")
	read(b, "2")
	a.SetReadDeadline(time.Unix(1, 0))
	fails(a, os.ErrDeadlineExceeded)
	read(b, "3")

	// Both wait: one packet is for one of them, and the other waits on.
	a.SetReadDeadline(time.Time{})
	got := make(chan *End)
	for _, e := range []*End{a, b} {
		go func() {
			if _, err := e.Read(make([]byte, 1500)); err == nil {
				got <- e
			}
		}()
	}
	send(far, "4")
	<-got
	send(far, "5")
	<-got

	send(a, "from a")
	read(far, "from a")
	b.Out = func(p []byte) { far.Deliver(append([]byte("b: "), p...)) }
	send(b, "from b")
	read(far, "b: from b")

	send(far, "6")
	a.Close()
	a.Close()
	fails(a, os.ErrClosed)
	fails(a.Dup(), os.ErrClosed)
	if _, err := a.Write([]byte("late")); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a write: %v", err)
	}
	read(b, "6")
	b.Close()
	send(far, "7")
	if n := a.Drops(); n != 1 {
		t.Errorf("%d packets dropped when nobody has the end any more: want 1", n)
	}
}
