package filter

import (
	"bufio"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/distributed-servers/ds/internal/netns"
	"github.com/distributed-servers/ds/internal/probe"
	"github.com/distributed-servers/ds/mobility/wire"
)

// Somebody else's rules, around ours.
const others = `*raw
:THEIRS - [0:0]
:DSCO-78461 - [0:0]
-A PREROUTING -s 2001:db8:99::/64 -j ACCEPT
-A PREROUTING -j DSCO-78461
-A OUTPUT -j THEIRS
-A THEIRS -m comment --comment "-j DSCO-7846" -j RETURN
COMMIT
`

func TestRulesComeAndGo(t *testing.T) {
	if !own(t) {
		return
	}
	if _, _, err := runProgram(ipv6.restore, others, "--noflush"); err != nil {
		t.Fatal(err)
	}
	if err := ipv4.apply(1, []chain{{first: true}}); err != nil { // so that both versions have a table
		t.Fatal(err)
	}
	before := tables(t)
	f, _ := open(t, nodeRules, accepting)
	node := tables(t)
	if strings.Count(node, "-j NFQUEUE") != 10 || strings.Count(node, "-i ta -j DROP") != 1 {
		t.Errorf("with the rules of a node:\n%s", node)
	}
	// Ours are first.
	if !strings.Contains(node, "-A PREROUTING -m comment --comment dsco -j DSCO-7846\n-A PREROUTING -s 2001:db8:99::/64") {
		t.Errorf("order of the rules:\n%s", node)
	}

	if err := f.SetRules(CorrespondentRules(nil)); err != nil {
		t.Fatal(err)
	}
	if got := tables(t); strings.Contains(got, "-i ta") || strings.Count(got, "--comment dsco") != 2 {
		t.Errorf("with the rules of a correspondent:\n%s", got)
	}
	if err := f.SetRules(NodeRules(here, []NodeServer{{Address: service, CareOf: careOf, TUN: "t+"}})); err == nil {
		t.Error("an interface name with a wildcard was accepted")
	}
	if err := f.SetRules(nodeRules); err != nil {
		t.Fatal(err)
	}
	if got := tables(t); got != node {
		t.Errorf("the same rules again:\n%s\nwere\n%s", got, node)
	}
	for range 2 {
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if got := tables(t); got != before {
		t.Errorf("after Close:\n%s\nbefore\n%s", got, before)
	}
	if err := f.SetRules(nodeRules); err == nil {
		t.Error("rules set after Close")
	}
}

// TestDaemon is the daemon that others of these tests kill.
func TestDaemon(t *testing.T) {
	if os.Getenv("DS_TEST_DAEMON") == "" || !netns.Inside() {
		return
	}
	f, err := Open(Config{Queue: 7846, Rules: nodeRules, Logger: slog.New(slog.DiscardHandler), Handler: accepting})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("\nready")
	_, _ = bufio.NewReader(os.Stdin).ReadByte() // for ever
	f.Close()
}

// daemon starts TestDaemon and returns its end, by SIGKILL.
func daemon(t *testing.T) (kill func()) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestDaemon$")
	cmd.Env = append(os.Environ(), "DS_TEST_DAEMON=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var said []string
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if lines.Text() == "ready" {
			return func() {
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
			}
		}
		said = append(said, lines.Text())
	}
	t.Fatalf("the daemon did not start: %q", said)
	return nil
}

func TestKilled(t *testing.T) {
	if !own(t) {
		return
	}
	s := newScene(t)
	f, _ := open(t, nodeRules, accepting) // so that all tables are there
	f.Close()
	before := tables(t)

	kill := daemon(t)
	with := tables(t)
	_, err := Open(Config{Queue: 7846, Rules: Rules{}, Handler: accepting})
	if !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), "process") || !strings.Contains(err.Error(), "choose another queue") {
		t.Errorf("second daemon: %v", err)
	}
	if err := Cleanup(7846); !errors.Is(err, unix.EBUSY) {
		t.Errorf("cleanup while it runs: %v", err)
	}
	if err := Usable(7846)(); !errors.Is(err, unix.EBUSY) {
		t.Errorf("usable while it runs: %v", err)
	}
	if got := tables(t); got != with {
		t.Errorf("the rules changed:\n%s\nwere\n%s", got, with)
	}
	kill()
	if got := tables(t); got != with {
		t.Errorf("rules after its death:\n%s\nwere\n%s", got, with)
	}

	// Signalling goes nowhere now; errors go on to the application, and data.
	signal := mobility(t, wire.Packet{Src: away, Dst: careOf}, &wire.CareOfTest{})
	tooBig := icmpError(t, away, careOf, wire.PacketTooBig, 0, udp(t, careOf, away, "1"))
	s.net.send(signal)
	s.net.send(tooBig)
	s.tun.receive(func(b []byte) bool {
		if is(signal)(b) {
			t.Error("signalling passed while there was no daemon")
		}
		return is(tooBig)(b)
	})

	// A successor works with it.
	f, q := open(t, nodeRules, accepting)
	s.net.send(signal)
	q.next(t)
	if got := tables(t); got != with {
		t.Errorf("with a successor:\n%s\nwere\n%s", got, with)
	}
	f.Close()
	if got := tables(t); got != before {
		t.Errorf("after its Close:\n%s\nwere\n%s", got, before)
	}

	// And so does the cleanup.
	kill = daemon(t)
	kill()
	for range 2 {
		if err := Cleanup(7846); err != nil {
			t.Error(err)
		}
		if got := tables(t); got != before {
			t.Errorf("after the cleanup:\n%s\nwere\n%s", got, before)
		}
	}
	if err := Usable(7846)(); err != nil {
		t.Error(err)
	}
}

// What is wrong is said before anything has changed.
func TestOpenRefused(t *testing.T) {
	if !own(t) {
		return
	}
	before := tables(t)
	for _, tc := range []struct {
		name string
		cfg  Config
		path string
		want string
	}{
		{"no handler", Config{}, "", "no Handler"},
		{"wrong address", Config{Handler: accepting, Rules: NodeRules(here, []NodeServer{{Address: netip.MustParseAddr("fe80::1"), CareOf: careOf}})}, "", "fe80::1"},
		{"no iptables", Config{Handler: accepting}, t.TempDir(), "install the package iptables"},
		{"iptables fails", Config{Handler: accepting, Rules: nodeRules}, failing(t, "Permission denied (you must be root)"), "CAP_NET_ADMIN"},
		{"no match", Config{Handler: accepting, Rules: nodeRules}, failing(t, "Couldn't load match `mh'"), "xt_NFQUEUE"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := os.Getenv("PATH")
			if tc.path != "" {
				old := systemDirs
				systemDirs = nil
				defer func() { systemDirs = old }()
				t.Setenv("PATH", tc.path)
			}
			f, err := Open(tc.cfg)
			if err == nil {
				f.Close()
			}
			t.Setenv("PATH", path)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want it to say %q", err, tc.want)
			}
		})
	}
	if got := tables(t); got != before {
		t.Errorf("rules:\n%s\nwere\n%s", got, before)
	}
	if err := Usable(0)(); err != nil {
		t.Errorf("the queue is still bound: %v", err)
	}
}

// failing makes programs that complain.
func failing(t *testing.T, complaint string) (dir string) {
	dir = t.TempDir()
	for _, name := range []string{ipv6.save, ipv4.save} {
		writeProgram(t, dir+"/"+name, "exit 0")
	}
	for _, name := range []string{ipv6.restore, ipv4.restore} {
		writeProgram(t, dir+"/"+name, "echo \""+strings.ReplaceAll(complaint, "`", "\\`")+"\" >&2; exit 2")
	}
	return dir
}

func writeProgram(t *testing.T, path, script string) {
	t.Helper()
	probe.Skip(t, probe.Program("/bin/sh"))
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
}

// A thread that gives the capability up, and ends with the test.
func TestNoPermission(t *testing.T) {
	if !own(t) {
		return
	}
	runtime.LockOSThread()
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		t.Fatal(err)
	}
	data[0].Effective &^= 1 << unix.CAP_NET_ADMIN
	if err := unix.Capset(&hdr, &data[0]); err != nil {
		t.Fatal(err)
	}
	_, err := Open(Config{Queue: 7846, Rules: nodeRules, Handler: accepting})
	if !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Errorf("got %v", err)
	}
}
