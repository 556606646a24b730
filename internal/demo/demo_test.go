package demo

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/distributed-servers/ds"
	"github.com/distributed-servers/ds/internal/probe"
)

const (
	insideArg = "demo-inside"
	appArg    = "demo-app"
)

// This program is also the one inside the namespaces, and the application on each
// node there.
func TestMain(m *testing.M) {
	probe.Main()
	var err error
	switch {
	case len(os.Args) > 1 && os.Args[1] == insideArg:
		err = Inside(context.Background(), os.Stdin, os.Stdout)
	case len(os.Args) > 1 && os.Args[1] == appArg:
		err = testApp(os.Args[2:])
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func testApp(args []string) error {
	f := flag.NewFlagSet(appArg, flag.ContinueOnError)
	socket, addr := f.String("socket", "", ""), f.String("addr", "", "")
	if err := f.Parse(args); err != nil {
		return err
	}
	a, err := netip.ParseAddr(*addr)
	if err != nil {
		return err
	}
	return App(context.Background(), *socket, a, os.Stdout)
}

// late tells whether a target may not have had an answer of the client in time, and have
// had it relayed at first: it waits for a second (package member).
func late(c *Client) bool {
	return slices.ContainsFunc(c.Stages, func(s Stage) bool { return s.Stage == string(ds.StagePrepare) && s.Took.P99 > 1000 })
}

// check runs a demo and looks at its result.
func check(t *testing.T, o Options) *Result {
	t.Helper()
	res, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(res)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", b)
	if err := res.Err(); err != nil {
		t.Error(err)
	}
	if res.Handoffs != o.Handoffs || o.Size > 0 && res.Bytes != 4*o.Size || res.Why == "" {
		t.Errorf("got %+v", res)
	}
	for i, c := range res.Clients {
		if want := c.Handoffs * (1 - i); c.Optimised != want && (want == 0 || !late(c)) {
			t.Errorf("%s: %d of %d handoffs are optimised, want %d", c.Name, c.Optimised, c.Handoffs, want)
		}
		if (c.Seen > 0) != (c.Gap.P50 > 0) || c.Seen > c.Handoffs {
			t.Errorf("%s: gap %v of %d handoffs", c.Name, c.Gap, c.Seen)
		}
		if len(c.Stages) != 6 || c.Frozen.P50 <= 0 || c.Carried.P50 <= 0 {
			t.Errorf("%s: got %+v", c.Name, c)
		}
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"mode", "handoffs", "bytes", "bytes_wrong", "resets", "gap_ms"} {
		if _, ok := m[key]; !ok {
			t.Errorf("no %q in the result", key)
		}
	}
	return res
}

func TestMemory(t *testing.T) {
	check(t, Options{Mode: Memory, Size: 1 << 20, Handoffs: 10})
}

// Far more handoffs than data between them.
func TestManyHandoffs(t *testing.T) {
	check(t, Options{Mode: Memory, Size: 512 << 10, Handoffs: 100})
}

func TestFit(t *testing.T) {
	for _, tt := range []struct {
		o    Options
		took time.Duration
		want int64
	}{
		{Options{Duration: 10 * time.Second}, time.Second, 40 << 20},
		{Options{Duration: 10 * time.Second}, 3 * time.Second, 13 << 20}, // whole MiB
		{Options{Duration: time.Second}, time.Minute, smallest},
		{Options{Duration: time.Second, Handoffs: 4000}, time.Minute, 8 << 20},
		{Options{Duration: time.Hour}, 0, largest},
		{Options{Duration: time.Second, Size: 1234567}, time.Minute, 1234567},
	} {
		if got := tt.o.fit(4<<20, tt.took); got != tt.want {
			t.Errorf("%+v, 4 MiB in %v: %d octets, want %d", tt.o, tt.took, got, tt.want)
		}
	}
}

// What is missing is said, and the next mode taken; but not if a mode was asked
// for.
func TestFallsBack(t *testing.T) {
	var said []string
	o := Options{Size: 256 << 10, Handoffs: 2, Say: func(s string) { said = append(said, s) }}
	o.Programs, o.App, o.Inside = t.TempDir(), []string{"app"}, []string{"inside"}
	res := check(t, o)
	if res.Mode != Memory || len(said) != 1 || said[0] != res.Why || !strings.Contains(res.Why, "no dsco") || strings.Contains(res.Why, "\n") {
		t.Errorf("mode %s because of %q; said: %q", res.Mode, res.Why, said)
	}
	o.Mode = Namespaces
	if err := o.Check(); !errors.As(err, new(impossible)) {
		t.Errorf("check: error %v", err)
	}
	if _, err := Run(t.Context(), o); !errors.As(err, new(impossible)) {
		t.Errorf("namespaces without dsco: error %v", err)
	}
}

func TestCanceled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	o := Options{Mode: Memory, Size: 1 << 30, Progress: func(Progress) { cancel() }}
	if _, err := Run(ctx, o); !errors.Is(err, context.Canceled) {
		t.Errorf("a canceled run: error %v", err)
	}
}

func TestOptions(t *testing.T) {
	for _, o := range []Options{{Mode: "magic"}, {Handoffs: -1}, {Handoffs: 1}, {Size: -1}, {Duration: -1}, {Size: 1000, Handoffs: 40}} {
		if _, err := Run(t.Context(), o); err == nil || !strings.HasPrefix(err.Error(), "demo: ") {
			t.Errorf("%+v: error %v", o, err)
		}
	}
}

// What goes wrong shows.
func TestErr(t *testing.T) {
	good := func() *Result {
		body := Body{Bytes: 5, Checked: true}
		return &Result{Handoffs: 4, Asked: 4, Clients: []*Client{
			{Want: "optimised", Handoffs: 2, Optimised: 2, Down: body, Up: body},
			{Want: "relayed", Handoffs: 2, Down: body, Up: body},
		}}
	}
	if err := good().Err(); err != nil {
		t.Error(err)
	}
	for what, spoil := range map[string]func(*Result){
		"too few":       func(r *Result) { r.Handoffs = 3 },
		"wrong":         func(r *Result) { r.Wrong = 1 },
		"checksum":      func(r *Result) { r.Clients[1].Up.Checked = false },
		"reset":         func(r *Result) { r.Resets = 1 },
		"not optimised": func(r *Result) { r.Clients[0].Optimised = 0 },
		"not relayed":   func(r *Result) { r.Clients[1].Optimised = 1 },
		"problem":       func(r *Result) { r.Problems = []string{"two senders"} },
	} {
		r := good()
		spoil(r)
		if r.Err() == nil {
			t.Errorf("%s: no error for %+v", what, r)
		}
	}
}

func TestSilence(t *testing.T) {
	as := arrivals{{0, 10, false}, {10, 12, false}, {12, 30, false}, {30, 31, false}, {50, 60, true}, {60, 61, false}}
	for _, tt := range []struct {
		from, to, want int64
		ok             bool
	}{
		{11, 11, 2, true}, {11, 13, 18, true}, {5, 5, 10, true}, {30, 40, 18, true}, {31, 40, 1, true}, {32, 40, 0, false},
		{40, 50, 0, false}, {55, 56, 0, false}, {61, 61, 1, true},
	} {
		if got, ok := as.silence(tt.from, tt.to); got != tt.want || ok != tt.ok {
			t.Errorf("from %d to %d: %d, %t; want %d, %t", tt.from, tt.to, got, ok, tt.want, tt.ok)
		}
	}
}
