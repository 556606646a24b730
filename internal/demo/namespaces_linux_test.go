package demo

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/distributed-servers/ds/internal/probe"
)

// daemons are options with everything that namespaces need. Temporary files are
// in the directory left.
func daemons(t *testing.T) (o Options, left string) {
	t.Helper()
	if testing.Short() {
		t.Skip("it takes seconds")
	}
	probe.Skip(t, probe.NetNS, probe.TUN, probe.NFQueue, probe.Program("ip6tables"))
	dir := t.TempDir()
	out, err := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(dir, "dsco"), "github.com/distributed-servers/ds/cmd/dsco").CombinedOutput()
	if err != nil {
		t.Fatalf("build dsco: %v\n%s", err, out)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(exe, filepath.Join(dir, "app")); err != nil {
		t.Fatal(err)
	}
	left = t.TempDir()
	t.Setenv("TMPDIR", left)
	return Options{Mode: Namespaces, Programs: dir, App: []string{"app", appArg}, Inside: []string{insideArg}}, left
}

func TestNamespaces(t *testing.T) {
	o, left := daemons(t)
	o.Size, o.Handoffs = 2<<20, 12
	if res := check(t, o); res.Mode != Namespaces {
		t.Errorf("mode %s", res.Mode)
	}
	nothing(t, left)

	// In the middle of it.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	o.Size = 1 << 30
	o.Progress = func(p Progress) {
		if p.Bytes > 1<<20 {
			cancel()
		}
	}
	if _, err := Run(ctx, o); !errors.Is(err, context.Canceled) {
		t.Errorf("a canceled run: error %v", err)
	}
	nothing(t, left)

	// A program that does not start makes it impossible, not wrong.
	if err := os.WriteFile(filepath.Join(o.Programs, "sh"), []byte("#!/bin/sh\necho this is why\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	o = Options{Programs: o.Programs, App: []string{"sh"}, Inside: o.Inside, Size: 256 << 10, Handoffs: 2}
	if res := check(t, o); res.Mode != Memory || !strings.Contains(res.Why, "no daemons in namespaces") || strings.Contains(res.Why, "\n") {
		t.Errorf("mode %s because of %q", res.Mode, res.Why)
	}
	nothing(t, left)
}

func nothing(t *testing.T, dir string) {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 0 {
		t.Errorf("left behind: %v, %v", files, err)
	}
}

func TestParseResets(t *testing.T) {
	const good = "Ip: Forwarding DefaultTTL\nIp: 1 64\nTcp: RtoAlgorithm EstabResets CurrEstab OutRsts\nTcp: 1 2 3 40\nUdp: InDatagrams\nUdp: 1\n"
	if n, ok := parseResets([]byte(good)); n != 42 || !ok {
		t.Errorf("%d, %t; want 42", n, ok)
	}
	for _, bad := range []string{"", "Tcp: EstabResets OutRsts\n", "Tcp: EstabResets OutRsts\nTcp: 1\n", "Tcp: EstabResets OutRsts\nTcp: x 1\n", "Tcp: a\nTcp: 1\n"} {
		if n, ok := parseResets([]byte(bad)); ok {
			t.Errorf("%q: %d", bad, n)
		}
	}
}
