package server

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
)

func publish(l *Events, n int) {
	for range n {
		l.Publish(api.Event{Kind: api.EventOwned, Server: dsa, Client: client1})
	}
}

func TestEventsNext(t *testing.T) {
	other := netip.MustParseAddr("2001:db8:1::2")
	for _, tt := range []struct {
		name         string
		events       int
		since        uint64
		o            api.WatchOptions
		missed, from uint64 // of the missed event, and the first number after it
		n            int
		position     uint64
	}{
		{"nothing yet", 0, 0, api.WatchOptions{}, 0, 0, 0, 0},
		{"all", 3, 0, api.WatchOptions{}, 0, 1, 3, 3},
		{"some", 3, 2, api.WatchOptions{}, 0, 3, 1, 3},
		{"none", 3, 3, api.WatchOptions{}, 0, 0, 0, 3},
		{"just all of a full ring", 8, 0, api.WatchOptions{}, 0, 1, 8, 8},
		{"one too many", 9, 0, api.WatchOptions{}, 1, 2, 8, 9},
		{"once round", 16, 3, api.WatchOptions{}, 5, 9, 8, 16},
		{"many", 1000, 3, api.WatchOptions{}, 989, 993, 8, 1000},
		{"of another server", 9, 1, api.WatchOptions{Server: other}, 0, 0, 0, 9},
		{"of the client", 4, 0, api.WatchOptions{Server: dsa, Client: client1}, 0, 1, 4, 4},
		{"of another client", 4, 0, api.WatchOptions{Client: other}, 0, 0, 0, 4},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := &Events{Size: 8}
			publish(l, tt.events)
			got, position, more := l.next(tt.since, tt.o)
			if tt.missed > 0 {
				if e := got[0]; e.Kind != api.EventMissed || e.Missed != tt.missed || e.Seq != tt.from-1 {
					t.Errorf("first is %+v", e)
				}
				got = got[1:]
			}
			if len(got) != tt.n || position != tt.position {
				t.Fatalf("%d events up to %d: %+v", len(got), position, got)
			}
			for i, e := range got {
				if e.Seq != tt.from+uint64(i) || e.Time.IsZero() {
					t.Errorf("number %d is %+v", i, e)
				}
			}
			select {
			case <-more:
				t.Error("more, already")
			default:
			}
			publish(l, 1)
			<-more
		})
	}
}

func TestEventsOfAnEarlierLife(t *testing.T) {
	l := new(Events)
	publish(l, 2)
	got, position, _ := l.next(100, api.WatchOptions{})
	if len(got) != 3 || got[0].Kind != api.EventMissed || got[0].Detail == "" || got[1].Seq != 1 || position != 2 {
		t.Errorf("got %+v, %d", got, position)
	}
}

func TestAbout(t *testing.T) {
	l := &Events{Size: 8}
	for i := range 12 {
		e := api.Event{Kind: api.EventBound, Server: dsa, Client: client1}
		if i%2 == 1 {
			e.Client = dsa
		}
		l.Publish(e)
	}
	for n, want := range map[int]string{0: "[]", 2: "[9 11]", 9: "[5 7 9 11]"} {
		var seqs []uint64
		for _, e := range l.About(api.WatchOptions{Server: dsa, Client: client1}, n) {
			seqs = append(seqs, e.Seq)
		}
		if got := fmt.Sprint(seqs); got != want {
			t.Errorf("%d: got %s, want %s", n, got, want)
		}
	}
}

// The history of a client, and the number from which to watch.
func TestHistory(t *testing.T) {
	l := new(Events)
	publish(l, 60)
	_, c := serve(t, Config{Events: l})
	v, err := c.Client(t.Context(), dsa, client1)
	if err != nil || len(v.History) != maxHistory || v.History[maxHistory-1].Seq != 60 {
		t.Errorf("got %v, %v", v, err)
	}
	if st, err := c.Status(t.Context()); err != nil || st.LastEvent != 60 {
		t.Errorf("got %+v, %v", st, err)
	}
}

func TestWatch(t *testing.T) {
	l := new(Events)
	publish(l, 5)
	s, c := serve(t, Config{Events: l})
	want := uint64(3)
	for e, err := range c.Watch(t.Context(), api.WatchOptions{Since: 2, Server: dsa}) {
		if err != nil || e.Seq != want {
			t.Fatalf("got %+v, %v, want number %d", e, err, want)
		}
		if want == 5 { // it was remembered; these have not happened yet
			l.Publish(api.Event{Kind: api.EventPeerUp, Node: "b"}) // of no server
			publish(l, 2000)
			want++
		}
		if want++; want > 2006 {
			break
		}
	}

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for _, err := range c.Watch(ctx, api.WatchOptions{Since: 2005}) {
		if err != nil {
			if !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
			break
		}
		cancel()
	}

	n := 0
	for e, err := range c.Watch(t.Context(), api.WatchOptions{Since: 2005}) {
		if n++; n == 1 {
			if err != nil || e.Seq != 2006 {
				t.Errorf("got %+v, %v", e, err)
			}
			go s.Close()
			continue
		}
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("after the end: got %+v, %v", e, err)
		}
	}
	if n != 2 {
		t.Errorf("%d turns", n)
	}
}

func TestWatchFromNow(t *testing.T) {
	l := new(Events)
	publish(l, 5)
	s, _ := serve(t, Config{Events: l})
	conn := dialRaw(t, s)
	fmt.Fprint(conn, "GET /v1/watch HTTP/1.1\r\nHost: x\r\n\r\n")
	r := bufio.NewReader(conn)
	for line := ""; line != "\r\n"; { // from now on it watches
		var err error
		if line, err = r.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	publish(l, 1)
	r.ReadString('\n') // size of the chunk
	if line, err := r.ReadString('\n'); err != nil || !strings.HasPrefix(line, `{"seq":6,`) {
		t.Errorf("got %s, %v", line, err)
	}
}

func TestWatchMistakes(t *testing.T) {
	s, _ := serve(t, Config{})
	for _, query := range []string{"since=x", "since=-1", "server=1.2.3.4", "client=x", "sinse=1"} {
		conn := dialRaw(t, s)
		fmt.Fprintf(conn, "GET /v1/watch?%s HTTP/1.1\r\nHost: x\r\n\r\n", query)
		if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || !strings.Contains(line, "400") {
			t.Errorf("%s: got %s, %v", query, line, err)
		}
	}
}

// A reader that does not read holds nobody up, and is told what it has missed.
func TestWatchSlowly(t *testing.T) {
	l := &Events{Size: 1000}
	s, _ := serve(t, Config{Events: l})
	conn := dialRaw(t, s)
	fmt.Fprint(conn, "GET /v1/watch?since=0 HTTP/1.0\r\n\r\n")
	r := bufio.NewReader(conn)
	if _, err := r.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	const all = 100_000
	begin := time.Now()
	publish(l, all) // more than fits in the socket
	t.Logf("%v for an event", time.Since(begin)/all)

	seen, missed := uint64(0), uint64(0)
	for seen+missed < all {
		line, err := r.ReadString('\n')
		if err != nil {
			t.Fatalf("%v after %d seen and %d missed", err, seen, missed)
		}
		switch {
		case strings.Contains(line, `"missed":`):
			var n uint64
			fmt.Sscanf(line[strings.Index(line, `"missed":`):], `"missed":%d`, &n)
			missed += n
		case strings.HasPrefix(line, `{"seq"`):
			seen++
		}
	}
	if missed == 0 || seen == 0 {
		t.Errorf("%d seen, %d missed", seen, missed)
	}
}

func TestWatchSignsOfLife(t *testing.T) {
	l := new(Events)
	signs := 0
	enough := errors.New("enough")
	err := l.Watch(t.Context(), api.WatchOptions{}, time.Millisecond, func(e []api.Event) error {
		if signs++; len(e) != 0 {
			t.Errorf("got %+v", e)
		}
		if signs == 3 {
			return enough
		}
		return nil
	})
	if err != enough {
		t.Errorf("got %v", err)
	}
}
