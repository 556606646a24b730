package probe_test

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/distributed-servers/ds/internal/netns/netnstest"
	"github.com/distributed-servers/ds/internal/probe"
)

func TestMain(m *testing.M) {
	probe.Main()
	os.Exit(m.Run())
}

func TestAllHasEveryProbeInOrder(t *testing.T) {
	all := probe.All()
	if len(all) != len(probe.Names) {
		t.Fatalf("%d results for %d probes", len(all), len(probe.Names))
	}
	for i, r := range all {
		t.Log(r)
		if r.Name != probe.Names[i] {
			t.Errorf("result %d is %q, want %q", i, r.Name, probe.Names[i])
		}
		if r.Detail == "" {
			t.Errorf("%s: no detail", r.Name)
		}
		if r.OK == (r.Cure != "") {
			t.Errorf("%s: ok %t with cure %q", r.Name, r.OK, r.Cure)
		}
		if strings.Contains(r.Detail, "probe.Main") {
			t.Errorf("%s: the child did not run: %s", r.Name, r.Detail)
		}
		if got := probe.Check(r.Name); got != r {
			t.Errorf("Check(%s) = %v, All has %v", r.Name, got, r)
		}
	}
}

// Whoever started the process, inside it is root of its network.
func TestInside(t *testing.T) {
	if !netnstest.Run(t) {
		return
	}
	for _, name := range []probe.Name{probe.Arch, probe.Kernel, probe.NetNS, probe.NetAdmin} {
		if r := probe.Check(name); !r.OK {
			t.Error(r)
		}
	}
}

func TestUnknownProbe(t *testing.T) {
	if r := probe.Check("telepathy"); r.OK || r.Cure == "" {
		t.Errorf("got %+v", r)
	}
}

// fakeTB records how a test would end.
type fakeTB struct{ outcome string }

func (*fakeTB) Helper() {}
func (f *fakeTB) Skipf(format string, args ...any) {
	f.outcome = "skip: " + fmt.Sprintf(format, args...)
	runtime.Goexit()
}
func (f *fakeTB) Fatalf(format string, args ...any) {
	f.outcome = "fail: " + fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func TestProgram(t *testing.T) {
	if r := probe.Check(probe.Program("no-such-program")); r.OK || r.Cure == "" || !strings.Contains(r.Detail, "no-such-program") {
		t.Errorf("got %v", r)
	}
	if r := probe.Check(probe.Program("/proc/self/exe")); !r.OK {
		t.Errorf("got %v", r)
	}
}

func TestSkip(t *testing.T) {
	for _, tc := range []struct{ require, want string }{
		{"", "skip: probe telepathy: no such probe; use one of"},
		{"tun", "skip: "},
		{"tun, telepathy", "fail: probe telepathy: no such probe; use one of"},
		{"all", "fail: "},
	} {
		t.Run(tc.require, func(t *testing.T) {
			t.Setenv(probe.RequireEnv, tc.require)
			var f fakeTB
			done := make(chan struct{})
			go func() {
				defer close(done)
				probe.Skip(&f, probe.Arch, "telepathy")
			}()
			<-done
			if !strings.HasPrefix(f.outcome, tc.want) {
				t.Errorf("test ended with %q, want %q", f.outcome, tc.want)
			}
		})
	}
}
