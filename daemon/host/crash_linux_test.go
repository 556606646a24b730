package host

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// left writes the journal of a daemon that was killed, changed by f.
func left(t *testing.T, f func(j *journal)) (state string) {
	t.Helper()
	j, err := whereabouts()
	if err != nil {
		t.Fatal(err)
	}
	j.Protocol = ProtocolNode
	j.Changes = []recorded{{Sysctl: "net/ipv6/conf/v0/accept_ra", Old: "1", New: "2"}}
	f(&j)
	state = t.TempDir()
	if err := j.write(state); err != nil {
		t.Fatal(err)
	}
	return state
}

// A journal of another boot or namespace tells of what is not here.
func TestJournalOfElsewhere(t *testing.T) {
	if !own(t) {
		return
	}
	const key = "net/ipv6/conf/v0/accept_ra"
	for _, tc := range []struct {
		name    string
		change  func(j *journal)
		cleanup string // what its error says; "": there is none
		after   string
	}{
		{"here", func(*journal) {}, "", "1"},
		{"another boot", func(j *journal) { j.Boot = "another" }, "", "2"},
		{"another namespace", func(j *journal) { j.Namespace = "net:[1]" }, "do it there, or, if that is gone, delete", "2"},
	} {
		for _, how := range []string{"Cleanup", "Open"} {
			if err := writeSysctl(key, "2"); err != nil {
				t.Fatal(err)
			}
			state := left(t, tc.change)
			if how == "Open" {
				h, err := Open(Config{State: state, Logger: slog.New(slog.DiscardHandler)})
				if err != nil {
					t.Fatalf("%s: %v", tc.name, err)
				}
				if err := h.Close(); err != nil {
					t.Error(err)
				}
			} else if err := Cleanup(state); tc.cleanup == "" && err != nil ||
				tc.cleanup != "" && (err == nil || !strings.Contains(err.Error(), tc.cleanup)) {
				t.Errorf("%s: %v, want %q", tc.name, err, tc.cleanup)
			}
			if v, err := readSysctl(key); v != tc.after || err != nil {
				t.Errorf("%s: after %s: %s, %v, want %s", tc.name, how, v, err, tc.after)
			}
			_, err := os.Stat(filepath.Join(state, journalName))
			if gone := errors.Is(err, fs.ErrNotExist); gone != (how == "Open" || tc.cleanup == "") {
				t.Errorf("%s: after %s the journal is gone: %t", tc.name, how, gone)
			}
		}
	}
}

// What a journal tells of may not have been done, or be gone since.
func TestJournalAhead(t *testing.T) {
	if !own(t) {
		return
	}
	before := everything(t)
	state := left(t, func(j *journal) {
		j.Changes = []recorded{
			{Interface: "v0", Address: address},
			{Interface: "eth9", Address: address},
			{Sysctl: "net/ipv6/conf/eth9/accept_ra", Old: "1", New: "2"},
			{Sysctl: "net/ipv6/conf/v0/accept_ra", Old: "1", New: "2"},
			{Sysctl: "net/ipv6/conf/all/forwarding", Old: "0", New: "1", With: map[string]string{"net/ipv6/conf/eth9/forwarding": "0"}},
		}
	})
	if err := Cleanup(state); err != nil {
		t.Error(err)
	}
	differ(t, "after the cleanup", everything(t), before)
}

// A damaged journal stops a daemon: what it told of must be looked at.
func TestJournalDamaged(t *testing.T) {
	state := t.TempDir()
	if err := os.WriteFile(filepath.Join(state, journalName), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(Config{State: state})
	for _, err := range []error{err, Cleanup(state)} {
		if err == nil || !strings.Contains(err.Error(), "undo by hand") {
			t.Errorf("got %v", err)
		}
	}
}

// A thread that gives its capabilities up, and ends with the test.
func TestNoPermission(t *testing.T) {
	if !own(t) {
		return
	}
	h := open(t, t.TempDir())
	if err := Require(NetAdmin, NetRaw, IPv6); err != nil {
		t.Errorf("with privilege: %v", err)
	}
	// Root may write sysctls without the capability.
	if err := h.AddProxy("v0", address.Addr()); err != nil {
		t.Fatal(err)
	}
	before := everything(t)
	runtime.LockOSThread()
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capset(&hdr, &data[0]); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"route":    h.AddRoute(service, "d0", 0),
		"rule":     h.AddRule(Rule{From: service, Table: 300}),
		"proxy":    h.AddProxy("v0", careOf),
		"address":  h.AddAddr("v0", address),
		"NetAdmin": Require(NetAdmin),
	} {
		if !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := Require(NetAdmin, NetRaw, IPv6); err == nil || !strings.Contains(err.Error(), "CAP_NET_ADMIN") || !strings.Contains(err.Error(), "CAP_NET_RAW") {
		t.Errorf("not all that is missing: %v", err)
	}
	differ(t, "without privilege", everything(t), before)
}
