package netbench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/distributed-servers/ds/internal/probe"
)

const workerArg = "netbench-worker"

func TestMain(m *testing.M) {
	probe.Main()
	if len(os.Args) == 3 && os.Args[1] == workerArg {
		if err := Worker(context.Background(), os.Args[2], os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// small is a run of some seconds.
func small() Options {
	return Options{Worker: []string{workerArg}, Rounds: 1, Duration: 20 * time.Millisecond, Idle: 30}
}

func TestRun(t *testing.T) {
	probe.Skip(t, probe.NetNS, probe.TUN)
	o := small()
	o.Profile = filepath.Join(t.TempDir(), "profile")
	seen := map[string]bool{}
	o.Progress = func(what string) {
		name, _, _ := strings.Cut(what, ":")
		seen[name] = true
	}
	res, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(res)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", b)
	want := Names()
	if !probe.Check(probe.BPF).OK {
		want = slices.DeleteFunc(want, func(name string) bool { return strings.HasPrefix(name, "ro_") })
		if !strings.Contains(strings.Join(res.Notes, "\n"), "no ro_ rows: ") {
			t.Errorf("notes are %q", res.Notes)
		}
	}
	var names []string
	for _, r := range res.Rows {
		names = append(names, r.Name)
		if r.Unit == "" || r.Kernel == nil || r.Ratio == nil || !seen[r.Name] {
			t.Errorf("row %+v, progress told: %v", r, seen[r.Name])
		}
		if r.Value <= 0 && r.Name != "idle_kb_per_conn" { // so few connections may need no page
			t.Errorf("%s is %g", r.Name, r.Value)
		}
	}
	if !slices.Equal(names, want) {
		t.Errorf("rows are %q, want %q", names, want)
	}
	if info, err := os.Stat(o.Profile); err != nil || info.Size() == 0 {
		t.Errorf("profile: %v, %v", info, err)
	}
}

func TestRunSome(t *testing.T) {
	probe.Skip(t, probe.NetNS, probe.TUN)
	o := small()
	o.Rows = []string{"rr64_per_s"}
	res, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if len(res.Rows) != 1 || res.Rows[0].Name != "rr64_per_s" {
		t.Errorf("rows are %+v", res.Rows)
	}
}

func TestInterrupted(t *testing.T) {
	probe.Skip(t, probe.NetNS, probe.TUN)
	ctx, cancel := context.WithCancel(t.Context())
	o := small()
	o.Rounds = 1000
	o.Progress = func(string) { cancel() }
	begin := time.Now()
	if _, err := Run(ctx, o); err != context.Canceled {
		t.Errorf("got %v", err)
	}
	if took := time.Since(begin); took > time.Minute { // all rounds take many
		t.Errorf("took %v to end", took)
	}
}

func TestOptions(t *testing.T) {
	for want, change := range map[string]func(*Options){
		"Worker":           func(o *Options) { o.Worker = nil },
		"-1 rounds":        func(o *Options) { o.Rounds = -1 },
		"samples of 1µs":   func(o *Options) { o.Duration = time.Microsecond },
		"30000 idle":       func(o *Options) { o.Idle = 30000 },
		`no row "upwards"`: func(o *Options) { o.Rows = []string{"upwards"} },
	} {
		o := small()
		change(&o)
		if _, err := Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

func TestWorkerRefuses(t *testing.T) {
	if err := Worker(t.Context(), roleServer, strings.NewReader(""), &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), "namespace of its own") {
		t.Errorf("outside: %v", err)
	}
}

func TestRowResult(t *testing.T) {
	more := row{name: "more"}.result([]float64{3, 1, 2}, []float64{4, 4, 8})
	less := row{name: "less", less: true}.result([]float64{5}, []float64{4})
	if more.Value != 2 || *more.Kernel != 4 || *more.Ratio != 0.5 || *less.Ratio != 0.8 {
		t.Errorf("%+v, %+v", more, less)
	}
}
