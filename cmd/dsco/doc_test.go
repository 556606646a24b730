package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/distributed-servers/ds/internal/probe"
)

// The commands of docs/operate.md make the keys and certificates that the
// examples of the configuration want.
func TestOperate(t *testing.T) {
	probe.Skip(t, probe.Program("openssl"), probe.Program("sh"))
	b, err := os.ReadFile("../../docs/operate.md")
	if err != nil {
		t.Fatal(err)
	}
	script := regexp.MustCompile("(?s)```sh\n(openssl .*?)```").FindSubmatch(b)
	if script == nil {
		t.Fatal("no commands with openssl")
	}
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "sh", "-e", "-c", string(script[1]))
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, name := range []string{"dsco.toml", "home-agent.toml", "correspondent.toml"} {
		b, err := os.ReadFile(filepath.Join("../../docs", name))
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, b, 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := dsco(t, "check", file); err != nil || !strings.Contains(out, "nothing is wrong") {
			t.Errorf("%v\n%s", err, out)
		}
	}
}
