package main

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/distributed-servers/ds/internal/bench"
	"github.com/distributed-servers/ds/internal/demo"
	"github.com/distributed-servers/ds/internal/evaluation"
	"github.com/distributed-servers/ds/internal/probe"
)

// The hidden commands are those of this binary, too.
func TestMain(m *testing.M) {
	probe.Main()
	if len(os.Args) > 1 && (os.Args[1] == "demo" || os.Args[1] == "bench") {
		os.Exit(run())
	}
	os.Exit(m.Run())
}

func ds(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	c := command()
	c.SetOut(&out)
	c.SetErr(&out)
	c.SetArgs(args)
	err := c.ExecuteContext(t.Context())
	return out.String(), err
}

func TestCheck(t *testing.T) {
	out, err := ds(t, "check")
	if err != nil {
		t.Fatal(err, out)
	}
	for _, name := range probe.Names {
		if !strings.Contains(out, " "+string(name)+" ") {
			t.Errorf("no %s in\n%s", name, out)
		}
		if about[name] == "" {
			t.Errorf("nothing is said about %s", name)
		}
	}
	out, err = ds(t, "check", "--json")
	var findings []finding
	if e := json.Unmarshal([]byte(out), &findings); err != nil || e != nil || len(findings) != len(probe.Names)+1 {
		t.Errorf("%v, %v: %s", err, e, out)
	}
	for _, f := range findings {
		if f.OK == (f.Cure != "") {
			t.Errorf("%s: ok %t with cure %q", f.Name, f.OK, f.Cure)
		}
	}
}

func TestDemo(t *testing.T) {
	out, err := ds(t, "demo", "--json", "--size", "1MiB", "--handoffs", "6", "--mode", "auto") // there is no dsco beside this program
	var res demo.Result
	if e := json.Unmarshal([]byte(out), &res); err != nil || e != nil || res.Handoffs != 6 || res.Bytes != 4<<20 || !strings.Contains(res.Why, "dsco") {
		t.Errorf("%v, %v: %s", err, e, out)
	}
	dir := t.TempDir()
	out, err = ds(t, "demo", "--size", "512KiB", "--handoffs", "3", "--mode", "memory",
		"--pcap", filepath.Join(dir, "demo.pcapng"), "--ladder", filepath.Join(dir, "ladder"))
	if err != nil || !strings.Contains(out, "correct: 3 handoffs, 2MiB in ") || !strings.Contains(out, "2 of 2, 2 of them optimised") {
		t.Errorf("%v:\n%s", err, out)
	}
	if _, err := ds(t, "demo", "--mode", "namespaces"); err == nil || !strings.Contains(err.Error(), "no dsco") {
		t.Errorf("namespaces without dsco: error %v", err)
	}
	for _, ext := range []string{"txt", "svg"} {
		if b, err := os.ReadFile(filepath.Join(dir, "ladder."+ext)); err != nil || !bytes.Contains(b, []byte("client-visible gap: ")) {
			t.Errorf("ladder.%s does not show the gap (%v)", ext, err)
		}
	}
	t.Run("captures", func(t *testing.T) { testCaptures(t, dir) })
}

// testCaptures has tshark dissect what ds demo --pcap has written: TCP and Mobile
// IPv6, whatever is around them, and nothing malformed.
func testCaptures(t *testing.T, dir string) {
	probe.Skip(t, probe.Program("tshark"))
	const tcp, mobility = "tcp", "mipv6"
	for host, want := range map[string][]string{
		"client-1":   {"ipv6.routing:" + tcp, "ipv6.dstopts:" + tcp, "ipv6.routing:" + mobility, "ipv6.dstopts:" + mobility, mobility},
		"client-2":   {tcp, mobility, "icmpv6:ipv6:" + mobility},
		"home-agent": {tcp, "ipv6:" + tcp, mobility, "ipv6:" + mobility, "ipv6.routing:" + mobility, "ipv6.dstopts:" + mobility},
		"node-1":     {"ipv6:" + tcp, "ipv6.routing:" + tcp, "ipv6.dstopts:" + tcp, "ipv6:" + mobility, "ipv6.dstopts:" + mobility},
		"node-2":     {"ipv6:" + tcp, "ipv6.routing:" + tcp, "ipv6.dstopts:" + tcp, mobility, "ipv6.dstopts:" + mobility},
		"node-3":     {"ipv6:" + tcp, "ipv6.routing:" + tcp, "ipv6.dstopts:" + tcp, mobility, "ipv6.dstopts:" + mobility},
	} {
		name := filepath.Join(dir, "demo-"+host+".pcapng")
		out, err := exec.Command("tshark", "-n", "-r", name, "-T", "fields", "-E", "separator=|",
			"-e", "frame.protocols", "-e", "_ws.malformed", "-e", "_ws.expert.message").Output()
		if err != nil {
			t.Errorf("%s: %v", host, err)
			continue
		}
		seen := make(map[string]bool)
		for i, line := range strings.Split(strings.TrimSpace(string(out)), "\n") {
			f := strings.Split(line, "|")
			protocols, ok := strings.CutPrefix(strings.TrimSuffix(f[0], ":data"), "raw:ipv6:")
			last := protocols[strings.LastIndexByte(protocols, ':')+1:]
			seen[protocols] = true
			if !ok || last != tcp && last != mobility || f[1] != "" || last == mobility && f[2] != "" {
				t.Errorf("%s, packet %d: %s", host, i+1, line)
			}
		}
		for _, w := range want {
			if !seen[w] {
				t.Errorf("%s: no packet is %s; there are %v", host, w, slices.Sorted(maps.Keys(seen)))
			}
		}
	}
}

func TestBenchTable(t *testing.T) {
	v := 2.0
	var out bytes.Buffer
	if err := benchTable(&out, &bench.Result{Rows: []bench.Row{{Name: "idle"}, {Name: "other", KernelP50: &v, Ratio: &v}}}); err != nil {
		t.Fatal(err)
	}
	if s := out.String(); !strings.Contains(s, "–") || !strings.Contains(s, "2.00") {
		t.Errorf("got\n%s", s)
	}
}

// What cannot be measured here is said, and written down all the same.
func TestBenchHandoffWithout(t *testing.T) {
	file := filepath.Join(t.TempDir(), "evaluation.md")
	out, err := ds(t, "bench", "handoff", "--json", "--quick", "--markdown", file) // there is no dsco beside this program
	var res evaluation.Result
	if e := json.Unmarshal([]byte(out), &res); err != nil || e != nil || len(res.Rows) != 0 || len(res.Missing) != 1 || !strings.Contains(res.Missing[0].Why, "dsco") {
		t.Errorf("%v, %v: %s", err, e, out)
	}
	if b, err := os.ReadFile(file); err != nil || !strings.Contains(string(b), "no dsco beside ds") || !strings.Contains(string(b), "--markdown evaluation.md --quick\n") {
		t.Errorf("%v: %s", err, b)
	}
	out, err = ds(t, "bench", "handoff")
	if err != nil || !strings.Contains(out, "without any row: there is no dsco") {
		t.Errorf("%v: %s", err, out)
	}
}

func TestMistakes(t *testing.T) {
	for _, args := range [][]string{
		{"demo", "--size", "many"}, {"demo", "--size", "-1"}, {"demo", "--mode", "magic"}, {"demo", "--handoffs", "0"},
		{"demo", "--size", "1KiB"}, {"demo", "more"}, {"bench", "migrate", "--moves", "0"}, {"nothing"},
	} {
		if out, err := ds(t, args...); err == nil {
			t.Errorf("%q succeeded: %s", args, out)
		}
	}
}

func TestOctets(t *testing.T) {
	for in, want := range map[string]string{
		"256MiB": "256MiB", "1024": "1KiB", "5000 B": "4.9KiB", "1GiB": "1GiB", "0": "0B", "100000KiB": "97MiB", "1023": "1023B",
	} {
		var o octets
		if err := o.Set(in); err != nil || o.String() != want {
			t.Errorf("%s became %s, %v; want %s", in, o, err, want)
		}
	}
	for _, in := range []string{"", "x", "1TiB", "-1B", "9999999999999999GiB", "1.5MiB"} {
		var o octets
		if err := o.Set(in); err == nil {
			t.Errorf("%q became %s", in, o)
		}
	}
}
