package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/distributed-servers/ds/daemon/config"
	"github.com/distributed-servers/ds/daemon/identity"
)

// cluster is ds init in a directory.
func cluster(t *testing.T, dir string, more ...string) (string, error) {
	t.Helper()
	return ds(t, append([]string{
		"init", "--config", filepath.Join(dir, "etc", "dsco.toml"), "--state", filepath.Join(dir, "state"), "--name", "a", "--interface", "eth0",
		"--address", "2001:db8:5::a", "--server", "2001:db8:1::80/64", "--home-agent", "2001:db8:1::1",
	}, more...)...)
}

func TestInit(t *testing.T) {
	dir := t.TempDir()
	out, err := cluster(t, dir, "--json")
	var m made
	if e := json.Unmarshal([]byte(out), &m); err != nil || e != nil {
		t.Fatalf("%v, %v: %s", err, e, out)
	}
	token, err := identity.ParseToken(m.Token)
	if err != nil || token.Authority != "a" || token.Address.String() != "[2001:db8:5::a]:7846" || time.Until(m.Expires) > time.Hour {
		t.Errorf("token %+v until %s, %v", token, m.Expires, err)
	}
	for _, file := range []string{m.Config, m.HomeAgent} {
		if _, err := config.Load(file); err != nil {
			t.Error(err)
		}
	}
	for file, want := range map[string]os.FileMode{
		m.Config: 0o640, m.Keys[0]: 0o640, m.HomeAgent: 0o640, filepath.Join(m.Identity, identity.AuthorityFile): 0o600,
		filepath.Join(m.Identity, identity.NodeFile): 0o600, m.Identity: 0o700 | os.ModeDir,
	} {
		if info, err := os.Stat(file); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v; want %v", file, info.Mode(), err, want)
		}
	}

	// Nothing is replaced but by force, and then a copy stays.
	if out, err := cluster(t, dir); err == nil || !strings.Contains(err.Error(), "is there already") || !strings.Contains(err.Error(), "--force") {
		t.Errorf("again: %v: %s", err, out)
	}
	before, err := os.ReadFile(m.Keys[0])
	if err != nil {
		t.Fatal(err)
	}
	out, err = cluster(t, dir, "--force", "--home-agent-key", m.Keys[0])
	if err != nil || !strings.Contains(out, "ds join dsjoin1.") || !strings.Contains(out, m.Config) || strings.Contains(out, m.Cluster) {
		t.Errorf("by force: %v: %s", err, out)
	}
	after, err := os.ReadFile(m.Keys[0])
	if err != nil || string(after) != string(before) {
		t.Errorf("the key that was given is not the one: %v", err)
	}
	if old, err := os.ReadFile(m.Keys[0] + ".old"); err != nil || string(old) != string(before) {
		t.Errorf("the old key: %v", err)
	}
}

func TestInitMistakes(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"--server", "2001:db8:1::80"}, "is not an address with the length of its home prefix, such as"},
		{[]string{"--home-agent", "x"}, `--home-agent: "x" is not an address`},
		{[]string{"--address", "2001:db8:1::80"}, "give each one of its own"},
		{[]string{"--care-of", "2001:db8:1::5"}, "is in the home prefix"},
		{[]string{"--care-of", "x=2001:db8:5::5"}, "--care-of"},
		{[]string{"--name", "a b"}, "is not a name that a certificate can have"},
		{[]string{"--home-agent-key", "/nowhere"}, "--home-agent-key: config: read key"},
		{[]string{"--user", "nobody-is-called-that"}, "--user nobody-is-called-that"},
		{[]string{"--interface", "", "--address", "2001:db8:ffff:ffff::1"}, "no interface of this host has the address"},
		{[]string{"--app-user", "nobody-is-called-that"}, "its configuration needs a change before dsco can start"},
	} {
		dir := t.TempDir()
		out, err := cluster(t, dir, tt.args...)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %v, want %q: %s", tt.args, err, tt.want, out)
		}
		if _, err := os.Stat(filepath.Join(dir, "etc", "dsco.toml")); err == nil && tt.args[0] != "--app-user" {
			t.Errorf("%q has left a configuration", tt.args)
		}
	}
}

func TestToken(t *testing.T) {
	dir := t.TempDir()
	if _, err := cluster(t, dir); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "etc", "dsco.toml")
	out, err := ds(t, "token", "--config", file, "--uses", "3", "--for", "2h", "--json")
	var k ticket
	if e := json.Unmarshal([]byte(out), &k); err != nil || e != nil || k.Uses != 3 || time.Until(k.Expires) < time.Hour {
		t.Errorf("%v, %v: %s", err, e, out)
	}
	if out, err := ds(t, "token", "--config", file); err != nil || !strings.HasPrefix(out, "ds join dsjoin1.") {
		t.Errorf("%v: %s", err, out)
	}
	if _, err := ds(t, "token", "--config", file, "--replace", "z"); err == nil || !strings.Contains(err.Error(), `no node "z"`) {
		t.Error(err)
	}
	if _, err := ds(t, "token", "--config", "../../docs/dsco.toml"); err == nil || !strings.Contains(err.Error(), "node.cluster is not set") {
		t.Error(err)
	}
	if err := os.Remove(filepath.Join(dir, "state", "cluster", identity.AuthorityFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := ds(t, "token", "--config", file); err == nil || !strings.Contains(err.Error(), "run this where ds init was run") {
		t.Error(err)
	}
}

func TestJoinMistakes(t *testing.T) {
	dir := t.TempDir()
	out, err := cluster(t, dir, "--json")
	var m made
	if e := json.Unmarshal([]byte(out), &m); err != nil || e != nil {
		t.Fatalf("%v, %v", err, e)
	}
	join := func(token string, more ...string) error {
		_, err := ds(t, append([]string{
			"join", token, "--name", "b", "--address", "2001:db8:5::b", "--interface", "eth0",
			"--config", filepath.Join(dir, "b", "dsco.toml"), "--state", filepath.Join(dir, "b", "state"),
		}, more...)...)
		return err
	}
	for _, tt := range []struct {
		token string
		more  []string
		want  string
	}{
		{"what", nil, "copy all of what ds token has printed"},
		{m.Token[:50], nil, "it is not whole"},
		{m.Token, []string{"--state", filepath.Join(dir, "state")}, "this machine is a node of a cluster"},
		{m.Token, []string{"--config", m.Config}, "is there already; move it away"},
		{m.Token, []string{"--care-of", "b"}, `--care-of: "b" is not an address`},
	} {
		if err := join(tt.token, tt.more...); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%.20s %q: %v, want %q", tt.token, tt.more, err, tt.want)
		}
	}
}

// The authority is rotated and retired with commands alone.
func TestCA(t *testing.T) {
	dir := t.TempDir()
	if _, err := cluster(t, dir); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "etc", "dsco.toml")
	for _, step := range []struct {
		args  []string
		count int
		fails string
	}{
		{[]string{"show"}, 1, ""},
		{[]string{"retire"}, 0, "ds ca rotate makes another"},
		{[]string{"rotate"}, 2, ""},
		{[]string{"rotate"}, 0, "end it with ds ca retire"},
		{[]string{"retire"}, 1, ""},
	} {
		out, err := ds(t, append([]string{"ca"}, append(step.args, "--json", "--config", file)...)...)
		if step.fails != "" {
			if err == nil || !strings.Contains(err.Error(), step.fails) {
				t.Errorf("%q: %v", step.args, err)
			}
			continue
		}
		var s caSeen
		if e := json.Unmarshal([]byte(out), &s); err != nil || e != nil || len(s.Authorities) != step.count || s.Nodes[0].Issuer != s.Authorities[0].Fingerprint {
			t.Errorf("%q: %v, %v: %s", step.args, err, e, out)
		}
	}
	if out, err := ds(t, "ca", "show", "--config", file); err != nil || !strings.Contains(out, "CERTIFICATE BY") {
		t.Errorf("%v: %s", err, out)
	}
}
