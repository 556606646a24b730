//go:build linux

package topology_test

import (
	"encoding/binary"
	"math"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/distributed-servers/ds/internal/impair"
	"github.com/distributed-servers/ds/internal/netns/netnstest"
)

// datagrams has the client send count numbered datagrams of size octets to a,
// one each interval, and returns those that arrive, how long each took, and the last since
// the first was sent.
func datagrams(t *testing.T, w *network, count, size int, interval time.Duration) (numbers []uint32, took []time.Duration, whole time.Duration) {
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
	if err := server.SetReadBuffer(4 << 20); err != nil {
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
	done := make(chan error, 1)
	go func() {
		b := make([]byte, size)
		for i := range count {
			for until := time.Duration(i) * interval; time.Since(begun) < until; {
				// Sleeping would be too coarse, and is not needed for long.
			}
			binary.BigEndian.PutUint32(b, uint32(i))
			binary.BigEndian.PutUint64(b[4:], uint64(time.Since(begun)))
			if _, err := client.Write(b); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	b := make([]byte, 2048)
	for sent := false; ; {
		if !sent {
			select {
			case err := <-done:
				if err != nil {
					t.Fatal(err)
				}
				sent = true
			default:
			}
		}
		// After the last, silence for as long as no packet is under way.
		server.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		n, err := server.Read(b)
		if err != nil {
			if sent {
				return numbers, took, whole
			}
			continue
		}
		if n != size {
			t.Fatalf("%d octets instead of %d", n, size)
		}
		numbers = append(numbers, binary.BigEndian.Uint32(b))
		whole = time.Since(begun)
		took = append(took, whole-time.Duration(binary.BigEndian.Uint64(b[4:])))
	}
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
	ab, ba := w.link.Counters()
	// Without offload there is a frame for each segment.
	if ab.Received < 1<<20/1500 || ba.Received < 1<<20/1500 || ab.Received != ab.Sent || ba.Received != ba.Sent {
		t.Errorf("counters are %+v and %+v", ab, ba)
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
		numbers, took, _ := datagrams(t, w, 500, 100, time.Millisecond)
		if len(numbers) != 500 || !slices.IsSorted(numbers) {
			t.Errorf("%d of 500 arrived, in order: %t", len(numbers), slices.IsSorted(numbers))
		}
		p10, p50, p90 := quantile(took, .1), quantile(took, .5), quantile(took, .9)
		t.Logf("5 ms and up to 2 more: p10 %v, p50 %v, p90 %v", p10, p50, p90)
		// The lower bound is strict. A busy machine adds to most, but not to all.
		if quantile(took, 0) < s.Delay || p10 > s.Delay+s.Jitter+3*time.Millisecond {
			t.Errorf("least %v, a tenth up to %v", quantile(took, 0), p10)
		}
	})
	t.Run("loss, duplication, reordering", func(t *testing.T) {
		s := impair.Settings{Loss: .1, Duplicate: .1, Reorder: .1}
		w := build(t, true, none, none)
		echo(t, w, 16)
		before, _ := w.link.Counters()
		if err := w.link.Impair(s, none); err != nil {
			t.Fatal(err)
		}
		const count = 4000
		numbers, _, _ := datagrams(t, w, count, 100, 50*time.Microsecond)
		c, _ := w.link.Counters()
		seen := map[uint32]int{}
		late := 0
		var highest uint32
		for _, n := range numbers {
			seen[n]++
			if n < highest && seen[n] == 1 {
				late++
			}
			highest = max(highest, n)
		}
		lost, doubled := count-len(seen), len(numbers)-len(seen)
		t.Logf("of %d: %d lost, %d twice, %d overtaken; the link says %+v", count, lost, doubled, late, c)
		near := func(what string, n int, p float64) {
			if d := math.Abs(float64(n) - count*p); d > 5*math.Sqrt(count*p*(1-p)) {
				t.Errorf("%s: %d of %d, want about %v", what, n, count, p)
			}
		}
		near("lost", lost, .1)
		near("doubled", doubled, .1*.9)
		near("overtaken", late, .1*.9)
		// Neighbour discovery may have added a packet or two.
		if sent := c.Sent - before.Sent; sent < count || sent > count+8 || c.Overflows != 0 {
			t.Errorf("the link has carried %d of %d packets: %+v", sent, count, c)
		}
	})
	t.Run("rate", func(t *testing.T) {
		w := build(t, true, none, none)
		echo(t, w, 16)
		if err := w.link.Impair(impair.Settings{Bandwidth: 1_000_000, Queue: 1 << 20}, none); err != nil {
			t.Fatal(err)
		}
		// With the headers of UDP, IPv6 and Ethernet a frame has 1000 octets.
		numbers, _, took := datagrams(t, w, 300, 1000-8-40-14, 0)
		if len(numbers) != 300 {
			t.Fatalf("%d of 300 arrived", len(numbers))
		}
		t.Logf("300 frames of 1000 octets at 1 MB/s: %v", took)
		if took < 290*time.Millisecond || took > time.Second {
			t.Errorf("300 kB at 1 MB/s took %v", took)
		}
	})
	t.Run("cut", func(t *testing.T) {
		w := build(t, true, none, none)
		echo(t, w, 16)
		if err := w.link.Impair(impair.Settings{Loss: 1}, none); err != nil {
			t.Fatal(err)
		}
		if numbers, _, _ := datagrams(t, w, 10, 100, 0); len(numbers) != 0 {
			t.Errorf("%d of 10 arrived", len(numbers))
		}
	})
}
