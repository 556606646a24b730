package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"testing"

	"github.com/distributed-servers/ds/internal/probe"
)

const workerArg = "bench-worker"

func TestMain(m *testing.M) {
	probe.Main()
	if len(os.Args) == 2 && os.Args[1] == workerArg {
		if err := Worker(context.Background(), os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// small is a run of a second, the race detector included.
var small = Options{Moves: 60, Connections: 40, Rounds: 2, Octets: 1 << 20, Pairs: 2, TrafficMoves: 12}

func run(t *testing.T, o Options) (*Result, map[string]any) {
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
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	return res, m
}

func TestRun(t *testing.T) {
	res, m := run(t, small)
	if len(res.Rows) != 3 || res.BatchImportsPerS <= 0 || res.TrafficRatio <= 0 {
		t.Errorf("got %+v", res)
	}
	if p := res.Pace; p.Best <= 0 || p.P50 < p.Best || p.P90 < p.P50 {
		t.Errorf("pace is %+v", p)
	}
	for _, key := range []string{"rows", "pace_us", "batch_imports_per_s", "traffic_ratio"} {
		if _, ok := m[key]; !ok {
			t.Errorf("no %q in the result", key)
		}
	}
	for i, name := range []string{"idle", "unsent64k", "unread64k"} {
		row := m["rows"].([]any)[i].(map[string]any)
		if row["name"] != name {
			t.Errorf("row %d is %v, want %s", i, row["name"], name)
		}
		for _, key := range []string{"p50_us", "p99_us", "bytes", "allocs"} {
			if v, ok := row[key].(float64); !ok || v <= 0 {
				t.Errorf("%s: %s is %v", name, key, row[key])
			}
		}
		for _, key := range []string{"tcp_repair_p50_us", "ratio"} {
			if v, ok := row[key]; !ok || v != nil {
				t.Errorf("%s: %s is %v, want null: the kernel was not asked", name, key, v)
			}
		}
		if want := 0.0; i > 0 {
			if want = queued; row["bytes"].(float64) < want {
				t.Errorf("%s: a snapshot of %v octets cannot hold %v", name, row["bytes"], want)
			}
		}
	}
}

func TestKernel(t *testing.T) {
	probe.Skip(t, probe.NetNS, probe.TCPRepair)
	o := small
	o.Worker = []string{workerArg}
	res, _ := run(t, o)
	for _, r := range res.Rows {
		if r.KernelP50 == nil || r.Ratio == nil || *r.KernelP50 <= 0 || *r.Ratio <= 0 {
			t.Errorf("%s: no comparison with the kernel: %s", r.Name, res.Kernel)
		}
	}
}

func TestCanceled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Run(ctx, small); err == nil {
		t.Error("a canceled run succeeded")
	}
}

func TestOptions(t *testing.T) {
	if _, err := Run(t.Context(), Options{Moves: -1}); err == nil {
		t.Error("no error for -1 moves")
	}
}
