package netns_test

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/distributed-servers/ds/internal/netns"
	"github.com/distributed-servers/ds/internal/netns/netnstest"
	"github.com/distributed-servers/ds/internal/probe"
)

func TestMain(m *testing.M) {
	probe.Main()
	os.Exit(m.Run())
}

func TestInsideIsNotFooledByAStraySetting(t *testing.T) {
	if netns.Inside() {
		t.Skip("this process is inside")
	}
	here, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Skip("probe netns:", err)
	}
	t.Setenv(netns.Env, here)
	if netns.Inside() {
		t.Error("inside, but the namespace is the one that the setting says was left")
	}
}

func TestCommandIsAlone(t *testing.T) {
	probe.Skip(t, probe.NetNS)
	here, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	const script = `readlink /proc/self/ns/net; id -u; echo $DS_NETNS $EXTRA; wc -l < /proc/net/if_inet6`
	cmd := netns.Command(t.Context(), "/bin/sh", "-c", script)
	cmd.Env = append(cmd.Env, "EXTRA=1")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) != 4 || lines[0] == here || lines[1] != "0" || lines[2] != here+" 1" || strings.TrimSpace(lines[3]) != "0" {
		t.Errorf("from %s, got %q", here, lines)
	}
}

func TestReexecOverridesEnvironment(t *testing.T) {
	t.Setenv("DS_TEST", "old")
	cmd := netns.Reexec(t.Context(), []string{"DS_TEST=new"}, "arg")
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if cmd.Path != exe || len(cmd.Args) != 2 || cmd.Args[1] != "arg" {
		t.Errorf("command is %s %q", cmd.Path, cmd.Args)
	}
	env := cmd.Environ()
	if got := env[len(env)-1]; got != "DS_TEST=new" {
		t.Errorf("environment ends with %s", got)
	}
}

func TestLoopback(t *testing.T) {
	if !netnstest.Run(t) {
		return
	}
	if err := netns.UpLoopback(); err != nil {
		t.Errorf("second time: %v", err)
	}
	for _, addr := range []string{"127.0.0.1:80", "[::1]:80"} { // a port for root
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
}

func TestSubtests(t *testing.T) {
	ran := false
	t.Run("one of (two)", func(t *testing.T) {
		if netnstest.Run(t) {
			ran = true
		}
	})
	t.Run("other", func(t *testing.T) {
		if netns.Inside() && ran {
			t.Error("the child for one subtest ran another")
		}
	})
}

// TestOutcome lets a test binary fail, skip and pass inside, and looks at what
// the process outside makes of it.
func TestOutcome(t *testing.T) {
	probe.Skip(t, probe.NetNS)
	for outcome, want := range map[string]string{
		"pass": "--- PASS: TestChild",
		"skip": "skipped in fresh namespaces: netns_test.go:",
		"fail": "--- FAIL: TestChild",
		"exit": "--- FAIL: TestChild",
	} {
		t.Run(outcome, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestChild$", "-test.v")
			cmd.Env = append(os.Environ(), "DS_TEST_OUTCOME="+outcome)
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if failed := errors.As(err, &exit); err != nil && !failed || failed != strings.Contains(want, "FAIL") {
				t.Errorf("ended with %v", err)
			}
			if !strings.Contains("\n"+string(out), want) || !strings.Contains(string(out), "| === RUN   TestChild") {
				t.Errorf("want %q in:\n%s", want, out)
			}
		})
	}
}

func TestChild(t *testing.T) {
	outcome := os.Getenv("DS_TEST_OUTCOME")
	if outcome == "" {
		return // TestOutcome has not asked for it
	}
	if !netnstest.Run(t) {
		return
	}
	switch outcome {
	case "skip":
		t.Skip("the reason")
	case "fail":
		t.Error("the error")
	case "exit":
		os.Exit(3)
	}
}
