//go:build linux

package topology_test

import (
	"encoding/binary"
	"fmt"
	"math"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/distributed-servers/ds/internal/impair"
	"github.com/distributed-servers/ds/internal/netns/netnstest"
)

// At most window datagrams are under way, so that who reads them may come late. Behind
// them follow tail more, which nobody reads: more than there are packets of neighbour
// discovery. When the link has had as many packets as all these it has had the former.
const window, tail = 100, 16

// mark is the number of a datagram that is none of those.
const mark = math.MaxUint32

// flight is what becomes of datagrams.
type flight struct {
	numbers []uint32        // of those that arrive
	took    []time.Duration // how long each took
	whole   time.Duration   // from the first to be sent to the last to arrive
	packets int             // that were put on the link
	over    uint64          // that the link had no room for
}

// datagrams has the client send count numbered datagrams of size octets to a, one each
// interval or later.
func datagrams(t *testing.T, w *network, count, size int, interval time.Duration) (f flight) {
	t.Helper()
	var server, client *net.UDPConn
	err := w.a.Do(func() (err error) {
		server, err = net.ListenUDP("udp6", &net.UDPAddr{IP: net.ParseIP(serverAddr), Port: 9})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if err := server.SetReadBuffer(4 << 20); err != nil { // an unprivileged user gets less, and enough
		t.Fatal(err)
	}
	err = w.client.Do(func() (err error) {
		client, err = net.DialUDP("udp6", nil, &net.UDPAddr{IP: net.ParseIP(serverAddr), Port: 9})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()

	begun := time.Now()
	send := func(number uint32) error {
		b := make([]byte, size)
		binary.BigEndian.PutUint32(b, number)
		binary.BigEndian.PutUint64(b[4:], uint64(time.Since(begun)))
		_, err := client.Write(b)
		return err
	}
	before, _ := w.link.Counters()
	var read atomic.Int64
	underWay := func(sent int) int {
		c, _ := w.link.Counters()
		gone := c.Lost - before.Lost + c.Overflows - before.Overflows
		return sent + int(c.Duplicated-before.Duplicated) - int(gone) - int(read.Load())
	}
	done := make(chan error, 1)
	go func() {
		done <- func() error {
			for i := range count + tail {
				// Sleeping would be too coarse, and is not needed for long.
				for time.Since(begun) < time.Duration(i)*interval || underWay(i) > window {
					if t.Context().Err() != nil {
						return t.Context().Err()
					}
				}
				if err := send(uint32(i)); err != nil {
					return err
				}
			}
			sent := before.Sent + uint64(count+tail)
			drained := func() bool {
				c, _ := w.link.Counters()
				f.packets, f.over = int(c.Sent-before.Sent)-tail, c.Overflows-before.Overflows
				return c.Sent >= sent && c.Received == c.Sent-c.Lost+c.Duplicated-c.Overflows
			}
			if err := eventually("nothing is on the link", drained); err != nil {
				return err
			}
			if err := w.link.Impair(impair.Settings{}, impair.Settings{}); err != nil {
				return err
			}
			return send(mark)
		}()
	}()
	b := make([]byte, 2048)
	for marked := false; ; {
		wait := patience
		if marked {
			wait = 200 * time.Millisecond // of two processors, one may be behind the other
		}
		server.SetReadDeadline(time.Now().Add(wait))
		n, err := server.Read(b)
		switch {
		case err != nil && marked:
			return f
		case err != nil:
			select {
			case err = <-done:
			default:
			}
			t.Fatalf("the last of %d datagrams does not come: %v", count, err)
		case n != size:
			t.Fatalf("%d octets instead of %d", n, size)
		}
		switch number := binary.BigEndian.Uint32(b); {
		case number == mark:
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			marked = true
		case number < uint32(count):
			f.numbers = append(f.numbers, number)
			f.whole = time.Since(begun)
			f.took = append(f.took, f.whole-time.Duration(binary.BigEndian.Uint64(b[4:])))
			fallthrough
		default:
			read.Add(1)
		}
	}
}

// eventually waits until something is so.
func eventually(what string, ok func() bool) error {
	deadline, look := time.After(patience), time.NewTicker(time.Millisecond)
	defer look.Stop()
	for !ok() {
		select {
		case <-look.C:
		case <-deadline:
			return fmt.Errorf("not so after %v: %s", patience, what)
		}
	}
	return nil
}

func quantile(d []time.Duration, q float64) time.Duration {
	s := slices.Clone(d)
	slices.Sort(s)
	return s[int(q*float64(len(s)-1))]
}

func TestImpairedLinkCarriesTCP(t *testing.T) {
	if !netnstest.Run(t) {
		return
	}
	w := build(t, true, impair.Settings{}, impair.Settings{})
	echo(t, w, 1<<20)
	// Without offload there is a frame for each segment. The last may be on the link.
	if err := eventually("all frames have come out of the link, at least as many as segments", func() bool {
		ab, ba := w.link.Counters()
		return ab.Received >= 1<<20/1500 && ba.Received >= 1<<20/1500 && ab.Received == ab.Sent && ba.Received == ba.Sent
	}); err != nil {
		ab, ba := w.link.Counters()
		t.Errorf("%v: counters are %+v and %+v", err, ab, ba)
	}
	if err := w.link.Impair(impair.Settings{Loss: .02, Reorder: .02, Duplicate: .02}, impair.Settings{Loss: .02, Delay: time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	echo(t, w, 1<<18)
}

func TestImpairedLinkIsWhatItSays(t *testing.T) {
	if !netnstest.Run(t) {
		return
	}
	none := impair.Settings{}
	t.Run("delay and jitter", func(t *testing.T) {
		s := impair.Settings{Delay: 5 * time.Millisecond, Jitter: 2 * time.Millisecond}
		w := build(t, true, s, none)
		echo(t, w, 16) // neighbours know each other
		f := datagrams(t, w, 500, 100, time.Millisecond)
		if len(f.numbers) != 500 || !slices.IsSorted(f.numbers) {
			t.Errorf("%d of 500 arrived, in order: %t", len(f.numbers), slices.IsSorted(f.numbers))
		}
		least, p50, p90 := quantile(f.took, 0), quantile(f.took, .5), quantile(f.took, .9)
		t.Logf("5 ms and up to 2 more: least %v, p50 %v, p90 %v", least, p50, p90)
		// The lower bound is strict. A busy machine adds to any, but not that much to all:
		// package impair's tests have its delays to the nanosecond.
		if least < s.Delay || least > s.Delay+s.Jitter+time.Second {
			t.Errorf("least %v", least)
		}
	})
	t.Run("loss, duplication, reordering", func(t *testing.T) {
		s := impair.Settings{Loss: .1, Duplicate: .1, Reorder: .1}
		w := build(t, true, none, none)
		echo(t, w, 16)
		if err := w.link.Impair(s, none); err != nil {
			t.Fatal(err)
		}
		const count = 4000
		f := datagrams(t, w, count, 100, 50*time.Microsecond)
		seen := map[uint32]int{}
		late := 0
		var highest uint32
		for _, n := range f.numbers {
			seen[n]++
			if n < highest && seen[n] == 1 {
				late++
			}
			highest = max(highest, n)
		}
		lost, doubled := count-len(seen), len(f.numbers)-len(seen)
		t.Logf("of %d: %d lost, %d twice, %d overtaken", count, lost, doubled, late)
		near := func(what string, n int, p float64) {
			if d := math.Abs(float64(n) - count*p); d > 5*math.Sqrt(count*p*(1-p)) {
				t.Errorf("%s: %d of %d, want about %v", what, n, count, p)
			}
		}
		near("lost", lost, .1)
		near("doubled", doubled, .1*.9)
		near("overtaken", late, .1*.9)
		// Neighbour discovery may have added a packet or two.
		if f.packets < count || f.packets > count+8 || f.over != 0 {
			t.Errorf("the link had %d packets instead of %d, %d of them without room", f.packets, count, f.over)
		}
	})
	t.Run("rate", func(t *testing.T) {
		w := build(t, true, none, none)
		echo(t, w, 16)
		if err := w.link.Impair(impair.Settings{Bandwidth: 1_000_000, Queue: 1 << 20}, none); err != nil {
			t.Fatal(err)
		}
		// With the headers of UDP, IPv6 and Ethernet a frame has 1000 octets.
		f := datagrams(t, w, 300, 1000-8-40-14, 0)
		if len(f.numbers) != 300 {
			t.Fatalf("%d of 300 arrived", len(f.numbers))
		}
		t.Logf("300 frames of 1000 octets at 1 MB/s: %v", f.whole)
		// A busy machine takes longer, but the link is no slower by far than it says.
		if f.whole < 290*time.Millisecond || f.whole > patience {
			t.Errorf("300 kB at 1 MB/s took %v", f.whole)
		}
	})
	t.Run("cut", func(t *testing.T) {
		w := build(t, true, none, none)
		echo(t, w, 16)
		if err := w.link.Impair(impair.Settings{Loss: 1}, none); err != nil {
			t.Fatal(err)
		}
		if f := datagrams(t, w, 10, 100, 0); len(f.numbers) != 0 {
			t.Errorf("%d of 10 arrived", len(f.numbers))
		}
	})
}
