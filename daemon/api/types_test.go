package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"testing"
	"time"
)

func TestSeconds(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0", time.Second: "1", 1234567 * time.Nanosecond: "0.001234567", -time.Minute: "-60", math.MaxInt64: "9223372036.854776",
	} {
		b, err := json.Marshal(Seconds(d))
		if err != nil || string(b) != want {
			t.Errorf("%s: %s, %v, want %s", d, b, err, want)
		}
		var back Seconds
		if err := json.Unmarshal(b, &back); d != math.MaxInt64 && (err != nil || back != Seconds(d)) {
			t.Errorf("%s came back as %s, %v", d, back, err)
		}
	}
	for _, bad := range []string{`"1s"`, "1e300", "-1e300", "9223372037", "{}"} {
		if err := json.Unmarshal([]byte(bad), new(Seconds)); err == nil {
			t.Errorf("%s is a duration", bad)
		}
	}
}

func TestError(t *testing.T) {
	e := Errorf(ErrNotFound, "see ds clients", "no client %d", 7)
	if e.Error() != "no client 7; see ds clients" || !errors.Is(e, ErrNotFound) || errors.Is(e, ErrConflict) || errors.Is(e, Errorf(ErrNotFound, "", "another")) {
		t.Errorf("got %v", e)
	}
	if ErrNotFound.Error() != "Not Found" {
		t.Errorf("got %v", ErrNotFound)
	}
	if got := AsError(fmt.Errorf("outer: %w", e)); got != e {
		t.Errorf("got %v", got)
	}
	if got := AsError(errors.New("it broke")); !errors.Is(got, ErrFailed) || got.Error() != "it broke" {
		t.Errorf("got %v", got)
	}
}

func TestMatch(t *testing.T) {
	e := Event{Kind: EventBound, Server: addr1, Client: addr2}
	for _, tt := range []struct {
		o    WatchOptions
		want bool
	}{
		{WatchOptions{}, true}, {WatchOptions{Server: addr1}, true}, {WatchOptions{Server: addr2}, false},
		{WatchOptions{Client: addr2}, true}, {WatchOptions{Server: addr1, Client: addr1}, false},
	} {
		if got := tt.o.Match(e); got != tt.want {
			t.Errorf("%+v: %t", tt.o, got)
		}
		if !tt.o.Match(Event{Kind: EventMissed}) {
			t.Errorf("%+v: what was missed is not told", tt.o)
		}
	}
}
