package host

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/distributed-servers/ds/internal/netns"
	"github.com/distributed-servers/ds/internal/netns/netnstest"
	"github.com/distributed-servers/ds/internal/probe"
)

// Each test that changes something owns this network, with somebody's things in
// it:
//
//	v0 ══ v1   d0 ══ d1   e0 ══ e0.100
var (
	careOf  = netip.MustParseAddr("2001:db8:c::1")
	service = netip.MustParsePrefix("2001:db8:d::1/128")
	address = netip.MustParsePrefix("2001:db8:1::7/64")
)

const theirs = `
link add v0 type veth peer name v1
link set v0 up
link set v1 up
link add d0 type veth peer name d1
link set d0 up
link set d1 up
link add e0 type veth peer name e0.100
link set e0 up
link set e0.100 up
-6 addr add 2001:db8:1::1/64 dev v0 nodad
-6 route add 2001:db8:77::/64 dev d0 proto bird
-6 route add 2001:db8:d::1/128 dev d0 table 100 proto static
-6 rule add from 2001:db8:77::/64 table 100 priority 1000
-6 neigh add proxy 2001:db8:1::99 dev v0
`

func TestMain(m *testing.M) {
	probe.Main()
	os.Exit(m.Run())
}

// own reports whether the test is inside the network above.
func own(t *testing.T) bool {
	t.Helper()
	if !netnstest.Run(t) {
		return false
	}
	probe.Skip(t, probe.Program("ip"))
	if err := writeSysctl("net/ipv6/conf/default/accept_dad", "0"); err != nil { // it takes a second
		t.Fatal(err)
	}
	for line := range strings.Lines(strings.TrimSpace(theirs)) {
		ip(t, strings.Fields(line)...)
	}
	// What comes of links that have come up.
	for deadline := time.Now().Add(time.Minute); ; {
		now := everything(t)
		ready := strings.Count(now, "state UP") == 6 && strings.Contains(now, "local 2001:db8:1::1 ")
		for _, name := range []string{"v0", "v1", "d0", "d1", "e0", "e0.100"} {
			ready = ready && strings.Contains(now, "multicast ff00::/8 dev "+name+" ")
		}
		if ready {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the links do not come up:\n%s", now)
		}
	}
	// An interface that forwards although the host does not.
	if err := writeSysctl("net/ipv6/conf/d0/forwarding", "1"); err != nil {
		t.Fatal(err)
	}
	return true
}

func ip(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("ip %v: %v: %s", args, err, out)
	}
	return string(out)
}

// everything is what there is to be changed.
func everything(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, what := range []string{"addr show", "route show table all", "rule show", "neigh show proxy"} {
		fmt.Fprintf(&b, "# %s\n", what)
		for line := range strings.Lines(ip(t, append([]string{"-6"}, strings.Fields(what)...)...)) {
			// Kernel link-local addresses come when a link has come up.
			if !strings.Contains(line, "fe80::") && !strings.Contains(line, "valid_lft") {
				fmt.Fprintln(&b, strings.TrimSpace(line))
			}
		}
	}
	err := filepath.WalkDir(procSys+"net", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.Contains(name, "/conf/") && !strings.HasSuffix(name, "forward") && !strings.HasSuffix(name, "proxy_delay") {
			return nil
		}
		if v, err := readSysctl(strings.TrimPrefix(name, procSys)); err == nil {
			fmt.Fprintf(&b, "%s = %s\n", name, v)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// differ reports what is in one and not in the other.
func differ(t *testing.T, what, got, want string) {
	t.Helper()
	lines := func(s string) map[string]bool {
		m := make(map[string]bool)
		for l := range strings.Lines(s) {
			m[l] = true
		}
		return m
	}
	g, w := lines(got), lines(want)
	for l := range g {
		if !w[l] {
			t.Errorf("%s: too much: %s", what, l)
		}
	}
	for l := range w {
		if !g[l] {
			t.Errorf("%s: missing: %s", what, l)
		}
	}
}

func open(t *testing.T, state string) *Host {
	t.Helper()
	h, err := Open(Config{State: state, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

// change makes a change of every kind.
func change(h *Host) error {
	return errors.Join(
		h.Forward(),
		h.AddProxy("v0", careOf),
		h.AddRoute(netip.PrefixFrom(careOf, 128), "d0", 0),
		h.AddRoute(service, "d0", 300),
		h.AddRoute(netip.MustParsePrefix("::/0"), "v0", 300),
		h.AddRule(Rule{From: service, Table: 300, Priority: 500}),
		h.AddRule(Rule{To: netip.MustParsePrefix("2001:db8:e::/48"), Iif: "d0", Table: 300}),
		h.AddAddr("v0", address),
		h.SetSysctl("net.ipv6.conf.e0/100.accept_ra", "0"),
		h.SetSysctl("net/ipv4/conf/d0/rp_filter", "1"),
		h.SetSysctl("net.ipv4.ip_forward", "1"),
	)
}

func TestChangesComeAndGo(t *testing.T) {
	if !own(t) {
		return
	}
	before := everything(t)
	state := filepath.Join(t.TempDir(), "new", "state")
	h := open(t, state)
	for range 2 { // the second time nothing is to be done
		if err := change(h); err != nil {
			t.Fatal(err)
		}
	}
	with := everything(t)
	for _, want := range []string{
		"2001:db8:c::1 dev d0 proto 78", "2001:db8:d::1 dev d0 table 300 proto 78", "default dev v0 table 300 proto 78",
		"500:\tfrom 2001:db8:d::1 lookup 300 proto 78", "to 2001:db8:e::/48 iif d0 lookup 300 proto 78",
		"2001:db8:c::1 dev v0 proxy proto 78", "inet6 2001:db8:1::7/64 scope global",
		"ipv6/conf/all/forwarding = 1", "ipv6/conf/v0/forwarding = 1", "ipv6/conf/v0/accept_ra = 2", "ipv6/conf/v0/proxy_ndp = 1", "ipv6/neigh/v0/proxy_delay = 0",
		"ipv6/conf/e0.100/accept_ra = 0", "ipv4/ip_forward = 1", "ipv4/conf/v0/forwarding = 1", "ipv4/conf/d0/rp_filter = 1",
	} {
		if !strings.Contains(with, want) {
			t.Errorf("missing: %s", want)
		}
	}
	if t.Failed() {
		t.Log(with)
	}

	// What is removed one by one.
	for range 2 {
		if err := errors.Join(
			h.RemoveProxy("v0", careOf), h.RemoveRoute(service, "d0", 300), h.RemoveAddr("v0", address),
			h.RemoveRule(Rule{From: service, Table: 300, Priority: 500}),
			h.RemoveRoute(netip.MustParsePrefix("2001:db8:77::/64"), "d0", 0), // theirs
		); err != nil {
			t.Fatal(err)
		}
	}
	now := everything(t)
	for _, gone := range []string{"2001:db8:c::1 dev v0 proxy proto 78", "2001:db8:d::1 dev d0 table 300", "2001:db8:1::7", "from 2001:db8:d::1 lookup 300"} {
		if strings.Contains(now, gone) {
			t.Errorf("still there: %s", gone)
		}
	}
	if err := change(h); err != nil {
		t.Fatal(err)
	}

	for range 2 {
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
	}
	differ(t, "after Close", everything(t), before)
	if names := files(t, state); names != lockName {
		t.Errorf("files left: %s", names)
	}
	if err := h.AddRoute(service, "d0", 0); err == nil {
		t.Error("a route added after Close")
	}
}

func files(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

// TestDaemon is the daemon that others of these tests kill.
func TestDaemon(t *testing.T) {
	state := os.Getenv("DS_TEST_STATE")
	if state == "" || !netns.Inside() {
		return
	}
	h := open(t, state)
	if err := change(h); err != nil {
		t.Fatal(err)
	}
	fmt.Println("\nready")
	_, _ = bufio.NewReader(os.Stdin).ReadByte() // for ever
}

// daemon starts TestDaemon and returns its end, by SIGKILL.
func daemon(t *testing.T, state string) (pid int, kill func()) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestDaemon$")
	cmd.Env = append(os.Environ(), "DS_TEST_STATE="+state)
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
			return cmd.Process.Pid, func() {
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
			}
		}
		said = append(said, lines.Text())
	}
	t.Fatalf("the daemon did not start: %q", said)
	return 0, nil
}

func TestKilled(t *testing.T) {
	if !own(t) {
		return
	}
	before := everything(t)
	state := t.TempDir()
	if err := errors.Join(Cleanup(state), Cleanup(filepath.Join(state, "none"))); err != nil {
		t.Errorf("nothing to clean up: %v", err)
	}

	pid, kill := daemon(t, state)
	with := everything(t)
	for name, err := range map[string]error{
		"second daemon": func() error { _, err := Open(Config{State: state}); return err }(),
		"cleanup":       Cleanup(state),
	} {
		if !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), fmt.Sprintf("process %d uses it", pid)) {
			t.Errorf("%s while it runs: %v", name, err)
		}
	}
	kill()
	differ(t, "after its death", everything(t), with)

	// Another daemon of this host has its own number and directory.
	third, err := Open(Config{State: t.TempDir(), Protocol: ProtocolHomeAgent})
	if err != nil {
		t.Fatal(err)
	}
	if err := third.AddRoute(netip.MustParsePrefix("2001:db8:aa::/64"), "d0", 0); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := Cleanup(state); err != nil {
			t.Fatal(err)
		}
	}
	const route = "2001:db8:aa::/64 dev d0 proto 79 metric 1024 pref medium\n"
	if got := everything(t); !strings.Contains(got, route) {
		t.Error("the other daemon's route is gone")
	} else {
		differ(t, "after the cleanup", strings.Replace(got, route, "", 1), before)
	}
	third.Close()

	// The next start does it too.
	_, kill = daemon(t, state)
	kill()
	h := open(t, state)
	differ(t, "after the next start", everything(t), before)
	if err := change(h); err != nil {
		t.Error(err)
	}
	h.Close()
	differ(t, "after its Close", everything(t), before)
}

// What others do meanwhile stays as they want it.
func TestOthersAreLeftAlone(t *testing.T) {
	if !own(t) {
		return
	}
	before := everything(t)
	h := open(t, t.TempDir())
	if err := change(h); err != nil {
		t.Fatal(err)
	}
	ip(t, "-6", "route", "replace", "2001:db8:c::1", "dev", "d0", "proto", "static")
	ip(t, "-6", "neigh", "replace", "proxy", careOf.String(), "dev", "v0", "proto", "bird")
	for key, value := range map[string]string{"net/ipv6/conf/v0/accept_ra": "0", "net/ipv6/conf/v1/forwarding": "0", "net/ipv4/conf/d0/rp_filter": "2"} {
		if err := writeSysctl(key, value); err != nil {
			t.Fatal(err)
		}
	}
	ip(t, "link", "del", "e0.100")
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	after := everything(t)
	for _, want := range []string{"2001:db8:c::1 dev d0 proto static", "2001:db8:c::1 dev v0 proxy proto bird",
		"ipv6/conf/v0/accept_ra = 0", "ipv6/conf/v1/forwarding = 0", "ipv4/conf/d0/rp_filter = 2", "ipv6/conf/d0/forwarding = 1"} {
		if !strings.Contains(after, want) {
			t.Errorf("missing: %s", want)
		}
	}
	ip(t, "-6", "route", "del", "2001:db8:c::1", "dev", "d0")
	ip(t, "-6", "neigh", "del", "proxy", careOf.String(), "dev", "v0")
	for key, value := range map[string]string{"net/ipv6/conf/v0/accept_ra": "1", "net/ipv4/conf/d0/rp_filter": "0"} {
		if err := writeSysctl(key, value); err != nil {
			t.Fatal(err)
		}
	}
	var rest strings.Builder
	for line := range strings.Lines(before) {
		if !strings.Contains(line, "e0") {
			rest.WriteString(line)
		}
	}
	differ(t, "the rest", everything(t), rest.String())
}

// An interface that goes takes its own things along.
func TestInterfaceGone(t *testing.T) {
	if !own(t) {
		return
	}
	h := open(t, t.TempDir())
	if err := change(h); err != nil {
		t.Fatal(err)
	}
	ip(t, "link", "del", "v0")
	ip(t, "link", "del", "d0")
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	if got := everything(t); strings.Contains(got, "proto 78") {
		t.Error(got)
	}
}
