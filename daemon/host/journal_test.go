package host

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

var sample = journal{
	Version: journalVersion, Boot: "6e4c…", Namespace: "net:[4026531840]", Protocol: ProtocolNode,
	Changes: []recorded{
		{Interface: "eth0", Address: netip.MustParsePrefix("2001:db8::1/64")},
		{Sysctl: "net/ipv6/conf/all/forwarding", Old: "0", New: "1", With: map[string]string{"net/ipv6/conf/eth0/forwarding": "0"}},
	},
}

func TestJournal(t *testing.T) {
	dir := t.TempDir()
	if j, err := readJournal(dir); j != nil || err != nil {
		t.Fatalf("in an empty directory: %v, %v", j, err)
	}
	if err := sample.write(dir); err != nil {
		t.Fatal(err)
	}
	j, err := readJournal(dir)
	if err != nil || !reflect.DeepEqual(*j, sample) {
		t.Errorf("read %+v, %v", j, err)
	}
	for range 2 {
		if err := removeJournal(dir); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, journalName)); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the journal is still there")
	}
	if err := sample.write(filepath.Join(dir, "none")); err == nil || !strings.Contains(err.Error(), "writable") {
		t.Errorf("written to nowhere: %v", err)
	}
}

// A journal that somebody has written to does not make a daemon write elsewhere.
func TestParseJournalRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"nothing":                ``,
		"no JSON":                `journal`,
		"another version":        `{"version":2,"protocol":78}`,
		"no protocol":            `{"version":1}`,
		"unknown field":          `{"version":1,"protocol":78,"command":"rm"}`,
		"two":                    `{"version":1,"protocol":78}{}`,
		"a change of nothing":    `{"version":1,"protocol":78,"changes":[{}]}`,
		"no address":             `{"version":1,"protocol":78,"changes":[{"interface":"eth0"}]}`,
		"sysctl elsewhere":       `{"version":1,"protocol":78,"changes":[{"sysctl":"kernel/core_pattern","old":"|sh","new":"core"}]}`,
		"sysctl that leads away": `{"version":1,"protocol":78,"changes":[{"sysctl":"net/../kernel/core_pattern"}]}`,
		"another along with it":  `{"version":1,"protocol":78,"changes":[{"sysctl":"net/a","with":{"/etc/passwd":""}}]}`,
	} {
		if j, err := parseJournal([]byte(text)); !errors.Is(err, errJournal) {
			t.Errorf("%s: %+v, %v", name, j, err)
		}
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, journalName), []byte("?"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readJournal(dir); err == nil || !strings.Contains(err.Error(), "undo by hand") {
		t.Errorf("no cure in %v", err)
	}
}

func FuzzParseJournal(f *testing.F) {
	b, err := json.Marshal(sample)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"version":1,"protocol":78,"changes":[{"sysctl":"net/../kernel/panic"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		j, err := parseJournal(b)
		if err != nil {
			return
		}
		for _, c := range j.Changes {
			if c.Sysctl == "" {
				if c.Interface == "" || !c.Address.IsValid() {
					t.Errorf("a change of nothing: %+v", c)
				}
				continue
			}
			for name := range c.With {
				inside(t, name)
			}
			inside(t, c.Sysctl)
		}
		again, err := json.Marshal(j)
		if err != nil {
			t.Fatal(err)
		}
		k, err := parseJournal(again)
		if err != nil {
			t.Fatalf("%s: %v", again, err)
		}
		if b, err := json.Marshal(k); err != nil || !bytes.Equal(again, b) {
			t.Errorf("%s is read again as %s, %v", again, b, err)
		}
	})
}

func inside(t *testing.T, sysctl string) {
	t.Helper()
	if p := filepath.Join("/proc/sys", sysctl); !strings.HasPrefix(p, "/proc/sys/net/") || strings.ContainsAny(sysctl, "\x00\n") {
		t.Errorf("%q leads to %s", sysctl, p)
	}
}
