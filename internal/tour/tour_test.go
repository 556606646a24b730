package tour

import (
	"bytes"
	"flag"
	"os"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite the diagrams in docs")

func run(t *testing.T, o Options) *Result {
	t.Helper()
	res, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// The tour ends as it should, the same twice, and the diagrams in docs are
// those of this tour.
func TestTour(t *testing.T) {
	res := run(t, Options{})
	if err := res.Err(); err != nil {
		t.Error(err)
	}
	if len(res.Handoffs) != 8 {
		t.Errorf("%d handoffs, want 8", len(res.Handoffs))
	}
	for _, h := range res.Handoffs {
		if want := map[string]string{"client 1": "route-optimised", "client 2": "relayed"}[h.Client]; h.Redirect != want {
			t.Errorf("%+v: want %s", h, want)
		}
	}
	for _, d := range res.Delays {
		t.Logf("%+v", d)
		if d.Gap > d.OneWay+1 {
			t.Errorf("%v ms one way: gap %v ms with tokens fetched beforehand", d.OneWay, d.Gap)
		}
		if d.GapRR > d.ExchangeRR+1 {
			t.Errorf("%v ms one way: gap %v ms without, more than the exchange of %v ms", d.OneWay, d.GapRR, d.ExchangeRR)
		}
		if d.Direct > d.OneWay+1 || d.DirectRR > d.ExchangeRR+1 {
			t.Errorf("%v ms one way: direct after %v and %v ms, the exchange takes %v ms", d.OneWay, d.Direct, d.DirectRR, d.ExchangeRR)
		}
	}
	if !raceDetector { // it has seen all of it
		if again := run(t, Options{}); again.Trace != res.Trace {
			t.Errorf("the same tour again has trace %s, not %s", again.Trace, res.Trace)
		}
	}
	for file, got := range map[string][]byte{
		"../../docs/handoff.txt": []byte(res.Ladder.Text()),
		"../../docs/handoff.svg": res.Ladder.SVG(),
	} {
		if *update {
			if err := os.WriteFile(file, got, 0o666); err != nil {
				t.Fatal(err)
			}
		}
		if want, err := os.ReadFile(file); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not what the tool makes (%v); go test ./internal/tour -update", file, err)
		}
	}
}

func TestOptions(t *testing.T) {
	if _, err := Run(t.Context(), Options{OneWay: time.Hour}); err == nil {
		t.Error("no error for a delay of an hour")
	}
}
