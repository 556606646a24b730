// Package netnstest lets a test run in network namespaces of its own.
package netnstest

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/distributed-servers/ds/internal/netns"
	"github.com/distributed-servers/ds/internal/probe"
)

// Run makes the calling test run in fresh namespaces. Begin the test with
//
//	if !netnstest.Run(t) {
//		return
//	}
//
// In the original process Run starts the test binary again for just this test
// and its subtests, shows what it prints, fails or skips t with it and returns
// false. In the new process it sets loopback up and returns true. Where
// namespaces are not to be had it skips, see [probe.Skip].
//
// The package needs a TestMain that calls [probe.Main].
func Run(t *testing.T) (inside bool) {
	t.Helper()
	if netns.Inside() {
		if err := netns.UpLoopback(); err != nil {
			t.Fatal(err)
		}
		return true
	}
	probe.Skip(t, probe.NetNS)

	// Verbose, to hear of skips; the rest from scratch, so that profiles and
	// coverage files keep a single writer.
	args := []string{
		"-test.v", "-test.count=1",
		"-test.run=" + pattern(t.Name(), flagValue("test.run")),
		"-test.skip=" + flagValue("test.skip"),
		fmt.Sprintf("-test.short=%t", testing.Short()),
	}
	if deadline, ok := t.Deadline(); ok {
		// A little less, so that the child is the one to show its stacks.
		left := time.Until(deadline)
		args = append(args, "-test.timeout="+(left-left/10).String())
	}
	out := &output{w: t.Output(), skip: "--- SKIP: " + t.Name() + " "}
	// A race detector would wait a second at the end of each child.
	race := "GORACE=atexit_sleep_ms=50 " + os.Getenv("GORACE")
	cmd := netns.Reexec(t.Context(), []string{race}, args...)
	cmd.Stdout, cmd.Stderr = out, out
	err := cmd.Run()
	out.flush()
	switch {
	case err != nil:
		t.Fatalf("netnstest: %s in fresh namespaces: %v", t.Name(), err)
	case out.skipped:
		t.Skipf("netnstest: skipped in fresh namespaces: %s", out.reason)
	case !out.ran:
		t.Fatalf("netnstest: %s did not run in fresh namespaces: its name must not depend on the process", t.Name())
	}
	return false
}

func flagValue(name string) string {
	if f := flag.Lookup(name); f != nil {
		return f.Value.String()
	}
	return ""
}

// pattern selects exactly the test name, and of its subtests those that the
// pattern given by the user selects.
func pattern(name, user string) string {
	parts := strings.Split(name, "/")
	for i, p := range parts {
		parts[i] = "^" + regexp.QuoteMeta(p) + "$"
	}
	// Alternatives and slashes in brackets need the testing package's own
	// parser; then all subtests run.
	if !strings.ContainsAny(user, "|[(") {
		if more := strings.Split(user, "/"); len(more) > len(parts) {
			parts = append(parts, more[len(parts):]...)
		}
	}
	return strings.Join(parts, "/")
}

// output marks each line, so that nothing takes it for a report of this
// process, and notices whether the test ran or was skipped, and why.
type output struct {
	w            io.Writer
	skip         string
	line         []byte
	last, reason string
	skipped, ran bool
}

func (o *output) Write(p []byte) (int, error) {
	for rest := p; ; {
		i := bytes.IndexByte(rest, '\n')
		if i < 0 {
			o.line = append(o.line, rest...)
			return len(p), nil
		}
		o.line = append(o.line, rest[:i]...)
		o.flush()
		rest = rest[i+1:]
	}
}

func (o *output) flush() {
	if len(o.line) == 0 {
		return
	}
	s := strings.TrimSpace(string(o.line))
	switch {
	case strings.HasPrefix(s, o.skip):
		o.skipped, o.reason = true, o.last
	case strings.HasPrefix(s, "=== RUN"):
		o.ran = true
	}
	o.last = s
	fmt.Fprintf(o.w, "| %s\n", o.line)
	o.line = o.line[:0]
}
