// Package packaging has what a distribution installs beside the commands; this
// tests it.
package packaging

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/distributed-servers/ds/internal/probe"
	"github.com/distributed-servers/ds/internal/testbed"
)

func TestMain(m *testing.M) {
	probe.Main()
	os.Exit(m.Run())
}

// systemd finds nothing wrong with the units.
func TestUnits(t *testing.T) {
	probe.Skip(t, probe.Program("systemd-analyze"))
	files, err := filepath.Glob("*.service")
	if err != nil || len(files) != 3 {
		t.Fatalf("%q, %v", files, err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		// A program must be there; where ours will be, nothing is yet.
		text := strings.ReplaceAll(string(b), "/usr/bin/dsco", exe)
		copied := filepath.Join(dir, file)
		if err := os.WriteFile(copied, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.CommandContext(t.Context(), "systemd-analyze", "verify", "--man=no", copied).CombinedOutput()
		if err != nil || len(out) > 0 {
			t.Errorf("%s: %v\n%s", file, err, out)
		}
	}
}

// The units differ in their role, configuration and state, in a device that the node's
// has, and in BPF, which the correspondent's has, and in nothing else.
func TestUnitsAlike(t *testing.T) {
	const awake = "# Processors stay awake during handoffs: root's alone, unless dsco.rules is installed.\nDeviceAllow=/dev/cpu_dma_latency w\n"
	const bpf = "# For kernel_headers: the kernel treats packets of bindings, which this daemon does\n# without.\n" +
		"CapabilityBoundingSet=CAP_BPF\nAmbientCapabilities=CAP_BPF\nSystemCallFilter=bpf\n"
	var first string
	for _, u := range []struct{ role, description, config, state string }{
		{"node", "server node", "dsco", "dsco"},
		{"home-agent", "home agent", "home-agent", "dsco/home-agent"},
		{"correspondent", "Mobile IPv6 correspondent", "correspondent", "dsco/correspondent"},
	} {
		b, err := os.ReadFile("dsco-" + u.role + ".service")
		if err != nil {
			t.Fatal(err)
		}
		text := string(b)
		switch u.role {
		case "node":
			text = strings.Replace(text, awake, "", 1)
		case "correspondent":
			text = strings.Replace(text, bpf, "", 1)
		}
		for _, line := range []string{
			"Description=Distributed Servers: " + u.description,
			"Documentation=man:dsco-" + u.role + "(8)",
			"ExecStart=/usr/bin/dsco " + u.role + " --config /etc/dsco/" + u.config + ".toml",
			"ExecReload=/usr/bin/dsco check /etc/dsco/" + u.config + ".toml",
			"StateDirectory=" + u.state,
			fmt.Sprintf("TimerSlackNSec=%v", testbed.TimerSlack), // what tests and benchmarks run with
		} {
			if strings.Count(text, line+"\n") != 1 {
				t.Errorf("%s: no line %q", u.role, line)
			}
			text = strings.Replace(text, line+"\n", "", 1)
		}
		if first == "" {
			first = text
		}
		if text != first {
			t.Errorf("the unit of %s differs", u.role)
		}
	}
}
