package ds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
)

// life is a daemon's events, and how a stream of them ends.
type life struct {
	begin time.Time
	last  uint64 // event
	cut   int    // the stream ends after so many events
	err   error
}

// lives is a daemon of which there is one life after the other.
type lives struct {
	Daemon
	streams []life
}

// Watch gives what a real daemon would give; the first time, which is FromNow, all.
func (d *lives) Watch(ctx context.Context, o api.WatchOptions) iter.Seq2[api.Event, error] {
	return func(yield func(api.Event, error) bool) {
		if len(d.streams) == 0 {
			<-ctx.Done()
			yield(api.Event{}, ctx.Err())
			return
		}
		l := d.streams[0]
		d.streams = d.streams[1:]
		var events []api.Event
		if o.Since == api.FromNow {
			o.Since = 0
		} else if o.Since > l.last {
			events = append(events, api.Event{Kind: api.EventMissed, Time: l.begin})
			o.Since = 0
		}
		for seq := o.Since + 1; seq <= l.last; seq++ {
			events = append(events, api.Event{Seq: seq, Time: l.begin.Add(time.Duration(seq)), Kind: api.EventKind("d" + l.begin.Format("2"))})
		}
		for _, e := range events[:min(l.cut, len(events))] {
			if !yield(e, nil) {
				return
			}
		}
		yield(api.Event{}, l.err)
	}
}

// Events go on where they ended, none twice, none lost without word of it: whether a
// stream was cut, or the daemon was started anew and has had more events since, or
// less, or as many.
func TestWatchGoesOn(t *testing.T) {
	first := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	second := first.AddDate(0, 0, 1)
	no := api.Errorf(api.ErrUnsupported, "", "no")
	for _, tt := range []struct {
		name    string
		streams []life
		want    []string
		end     error // nil: it goes on until the context ends
	}{
		{"cut", []life{{first, 3, 2, io.EOF}, {first, 4, 9, io.EOF}}, []string{"d1 1", "d1 2", "d1 3", "d1 4"}, nil},
		{"cut twice", []life{{first, 3, 1, io.EOF}, {first, 3, 1, io.EOF}, {first, 3, 9, io.EOF}}, []string{"d1 1", "d1 2", "d1 3"}, nil},
		{"away", []life{{first, 1, 1, io.EOF}, {first, 1, 0, api.ErrNotRunning}, {first, 2, 9, io.EOF}}, []string{"d1 1", "d1 2"}, nil},
		{"busy", []life{{first, 1, 1, io.EOF}, {first, 1, 0, api.Errorf(api.ErrBusy, "", "stopping")}, {first, 2, 9, io.EOF}}, []string{"d1 1", "d1 2"}, nil},
		{"anew with less", []life{{first, 3, 3, io.EOF}, {second, 1, 9, io.EOF}, {second, 1, 9, io.EOF}}, []string{"d1 1", "d1 2", "d1 3", "missed 0", "d2 1"}, nil},
		{"anew with as many", []life{{first, 2, 2, io.EOF}, {second, 2, 9, io.EOF}, {second, 2, 9, io.EOF}}, []string{"d1 1", "d1 2", "missed 0", "d2 1", "d2 2"}, nil},
		{"anew with more", []life{{first, 1, 1, io.EOF}, {second, 2, 9, io.EOF}, {second, 2, 9, io.EOF}}, []string{"d1 1", "missed 0", "d2 1", "d2 2"}, nil},
		{"anew before anything was seen", []life{{first, 3, 0, io.EOF}, {second, 2, 9, io.EOF}}, []string{"missed 0", "d2 1", "d2 2"}, nil},
		{"refused", []life{{first, 1, 1, io.EOF}, {first, 1, 0, no}}, []string{"d1 1"}, no},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := &Node{daemon: &lives{streams: tt.streams}}
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			var got []string
			err := n.watch(ctx, func(e api.Event) bool {
				if got = append(got, fmt.Sprintf("%s %d", e.Kind, e.Seq)); len(got) == len(tt.want) && tt.end == nil {
					cancel()
				}
				return true
			})
			if !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if want := tt.end; want == nil && !errors.Is(err, context.Canceled) || want != nil && !errors.Is(err, want) {
				t.Errorf("it ends with %v", err)
			}
		})
	}
}

// Without a Daemon there is nobody to ask, and a status is what this process knows.
func TestNoDaemon(t *testing.T) {
	addr := netip.MustParseAddr("2001:db8:d::1")
	n, s := scripted(addr)
	defer s.Close()
	defer n.Close()
	st, err := n.Status(t.Context())
	if err != nil || st.Server != addr || st.Node != "b" || !st.Attached || st.Nodes != nil {
		t.Errorf("%+v, %v", st, err)
	}
	if _, err := n.Clients(t.Context()); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("clients: %v", err)
	}
	for _, err := range n.Watch(t.Context()) {
		if !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("watch: %v", err)
		}
	}
}
