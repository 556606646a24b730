//go:build linux

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/distributed-servers/ds/internal/netns"
	"github.com/distributed-servers/ds/internal/netns/netnstest"
	"github.com/distributed-servers/ds/internal/probe"
)

// raceEnv, if set, has the programs built with the race detector.
const raceEnv = "DS_E2E_RACE"

// programsEnv names the directory of the programs. The process outside builds
// them, unless they are there.
const programsEnv = "DS_E2E_PROGRAMS"

func TestMain(m *testing.M) {
	probe.Main()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if netns.Inside() || os.Getenv(programsEnv) != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "ds-e2e-programs")
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // the application is another user's
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	os.Setenv(programsEnv, dir)
	return m.Run()
}

// inside reports whether the test is in namespaces of its own, where it goes on.
// In the process outside it has the programs built, and skips the test where a
// probe fails.
func inside(t *testing.T, needs ...probe.Name) bool {
	t.Helper()
	if !netns.Inside() {
		if testing.Short() {
			t.Skip("it takes seconds")
		}
		probe.Skip(t, needs...)
		build(t)
	}
	return netnstest.Run(t)
}

// build builds the programs, the first time.
func build(t *testing.T) {
	t.Helper()
	buildTagged(t, "", "./cmd/dsco", "./cmd/ds", "./e2e/service")
}

// buildTagged builds programs with a build tag, in a directory of that name.
func buildTagged(t *testing.T, tag string, packages ...string) {
	t.Helper()
	dir := filepath.Join(os.Getenv(programsEnv), tag)
	args := []string{"build", "-tags=" + tag, "-o", dir + "/"}
	if os.Getenv(raceEnv) != "" {
		args = append(args, "-race")
	}
	missing := false
	for _, pkg := range packages {
		if _, err := os.Stat(filepath.Join(dir, filepath.Base(pkg))); err != nil {
			missing = true
		}
	}
	if !missing {
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", append(args, packages...)...)
	cmd.Dir = ".."
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the programs: %v\n%s", err, out)
	}
}

// program is the path of a program that was built.
func program(name string) string { return filepath.Join(os.Getenv(programsEnv), name) }
