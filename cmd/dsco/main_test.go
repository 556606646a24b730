package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/distributed-servers/ds/internal/cli"
	"github.com/distributed-servers/ds/internal/probe"
)

const dscoEnv = "DS_TEST_DSCO"

// The test binary is dsco too.
func TestMain(m *testing.M) {
	probe.Main()
	if os.Getenv(dscoEnv) != "" {
		os.Exit(run(os.Args[1:]))
	}
	os.Exit(m.Run())
}

func dsco(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	c := command()
	c.SetOut(&out)
	c.SetErr(&out)
	c.SetArgs(args)
	err := c.ExecuteContext(t.Context())
	return out.String(), err
}

const agentFile = `[home_agent]
address = "2001:db8:1::1"
prefixes = ["2001:db8:1::/64"]
[[home_agent.homes]]
address = "2001:db8:1::80"
spi = 256
key_file = "key"
`

// writeAgent writes a configuration and its key, and returns its name.
func writeAgent(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "dsco.toml")
	for name, text := range map[string]string{file: text, filepath.Join(dir, "key"): strings.Repeat("00", 16)} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return file
}

func TestCheck(t *testing.T) {
	file := writeAgent(t, agentFile)
	if out, err := dsco(t, "check", file); err != nil || !strings.HasSuffix(out, "nothing is wrong; for home agent of 1 addresses\n") {
		t.Errorf("%v: %s", err, out)
	}
	file = writeAgent(t, strings.Replace(agentFile, "/64", "/200", 1))
	_, err := dsco(t, "check", file)
	if want := file + `:3: home_agent.prefixes[0]: "2001:db8:1::/200" is not an address with the length of its prefix; write `; err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("got %v", err)
	}
	if status := run([]string{"check", file}); status != exitConfig {
		t.Errorf("exit status %d", status)
	}
	if status := run([]string{"check", file + "x"}); status != exitFailed {
		t.Errorf("exit status %d", status)
	}
}

func TestMistakes(t *testing.T) {
	file := writeAgent(t, agentFile)
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"node", "--config", file}, file + ": no table [node]; add it, or start the role that the file is for: dsco home-agent"},
		{[]string{"node", "--config", file + "x"}, "docs/dsco.toml is an example"},
		{[]string{"node", "--log-format", "xml"}, "want text or json"},
		{[]string{"node", "--log-level", "loud"}, "loud"},
		{[]string{"node", "more"}, "more"},
		{[]string{"nothing"}, "nothing"},
		{[]string{"check"}, "1 arg"},
	} {
		if out, err := dsco(t, tt.args...); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %v, want %s; %s", tt.args, err, tt.want, out)
		}
	}
}

func TestLog(t *testing.T) {
	var out bytes.Buffer
	for _, format := range []string{"text", "json"} {
		f := logFlags{format: format}
		log, err := f.logger(&out)
		if err != nil {
			t.Fatal(err)
		}
		log.Debug("not this")
		log.Info("this", "key", 1)
	}
	lines := strings.Split(out.String(), "\n")
	var v map[string]any
	if len(lines) != 3 || !strings.Contains(lines[0], "level=INFO msg=this key=1") || json.Unmarshal([]byte(lines[1]), &v) != nil || v["msg"] != "this" {
		t.Errorf("got\n%s", out.String())
	}
}

func TestHelp(t *testing.T) {
	for _, c := range command().Commands() {
		if c.IsAvailableCommand() && c.Name() != "version" && c.Example == "" {
			t.Errorf("%s: no example", c.Name())
		}
	}
	if out, err := dsco(t, "version"); err != nil || !strings.HasPrefix(out, "dsco ") {
		t.Errorf("%v: %s", err, out)
	}
	if err := cli.CheckMan(command(), "8", t.TempDir()); err != nil {
		t.Error(err)
	}
}

// Each role has a unit.
func TestUnits(t *testing.T) {
	for _, k := range kinds {
		b, err := os.ReadFile("../../packaging/dsco-" + k.name + ".service")
		if err != nil || !strings.Contains(string(b), "ExecStart=/usr/bin/dsco "+k.name+" --config ") {
			t.Errorf("%s: %v", k.name, err)
		}
	}
}
