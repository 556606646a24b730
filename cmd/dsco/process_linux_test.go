package main

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/daemon/filter"
	"github.com/distributed-servers/ds/internal/netns/netnstest"
	"github.com/distributed-servers/ds/internal/probe"
	"github.com/distributed-servers/ds/internal/testcert"
)

// daemonUser is nobody in particular.
const daemonUser = 4242

// place is a directory and a network namespace for a daemon without a user's
// privileges but those of the systemd units.
type place struct {
	t      *testing.T
	dir    string
	config string
	notify *net.UnixConn // what systemd would hear
}

const nodeFile = `[node]
name = "a"
address = "2001:db8:5::a"
interface = "lan0"
ca = "ca.pem"
cert = "a.pem"
key = "a.key"
socket = "%[1]s/run/s"
group = "4242"
state = "%[1]s/state"

[[server]]
address = "2001:db8:1::80/64"
home_agent = "2001:db8:1::1"
spi = 256
key_file = "server.key"
contact = "a"
users = ["%[2]s"]
nodes = { a = "2001:db8:5::80:a" }
`

func newPlace(t *testing.T) *place {
	t.Helper()
	dir, err := os.MkdirTemp("", "dsco")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	p := &place{t: t, dir: dir, config: filepath.Join(dir, "dsco.toml")}
	for _, sub := range []string{"state", "run"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	ca, err := testcert.New()
	if err == nil {
		err = ca.Write(dir, "a")
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "server.key"), []byte(hex.EncodeToString([]byte("sixteen octets!!"))), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	p.write("root")
	err = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Chown(path, daemonUser, daemonUser))
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, minor := range map[string]uint32{"tun": 200, "no-tun": 199} { // the second is no driver's
		path := filepath.Join(dir, name)
		if err := errors.Join(unix.Mknod(path, unix.S_IFCHR, int(unix.Mkdev(10, minor))), os.Chmod(path, 0o666)); err != nil {
			t.Fatal(err)
		}
	}
	exe, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "dsco"), exe, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	notify := filepath.Join(dir, "notify")
	p.notify, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notify})
	if err == nil {
		err = os.Chmod(notify, 0o666)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.notify.Close() })

	lan := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "lan0"}, PeerName: "lan1"}
	addr, err := netlink.ParseAddr("2001:db8:5::a/64")
	if err != nil {
		t.Fatal(err)
	}
	addr.Flags = unix.IFA_F_NODAD
	for _, err := range []error{netlink.LinkAdd(lan), netlink.LinkSetUp(lan), netlink.AddrAdd(lan, addr)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// write writes the configuration, with the user that may attach, and changes.
func (p *place) write(user string, change ...string) {
	p.t.Helper()
	text := strings.NewReplacer(change...).Replace(fmt.Sprintf(nodeFile, p.dir, user))
	if err := os.WriteFile(p.config, []byte(text), 0o644); err != nil {
		p.t.Fatal(err)
	}
}

// unit is what systemd does for the units of packaging/: a user, two
// capabilities, and a TUN device which that user may open.
const unit = `mount --bind "$TUN" /dev/net/tun || exit
exec setpriv --reuid 4242 --regid 4242 --clear-groups --no-new-privs --bounding-set -all$CAPS \
	--inh-caps -all$CAPS --ambient-caps -all$CAPS "$0" "$@"`

// start starts dsco.
func (p *place) start(args ...string) (*exec.Cmd, *log) {
	p.t.Helper()
	return p.startWith(filepath.Join(p.dir, "tun"), ",+net_admin,+net_raw", args...)
}

// startWith starts it with another TUN device, or other capabilities.
func (p *place) startWith(tun, caps string, args ...string) (*exec.Cmd, *log) {
	p.t.Helper()
	args = append(args, "--config", p.config)
	cmd := exec.CommandContext(p.t.Context(), "unshare", append([]string{"--mount", "sh", "-c", unit, filepath.Join(p.dir, "dsco")}, args...)...)
	cmd.Env = append(os.Environ(), dscoEnv+"=1", "TUN="+tun, "CAPS="+caps,
		"NOTIFY_SOCKET="+p.notify.LocalAddr().String(), "GORACE=atexit_sleep_ms=0")
	out := new(log)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		cmd.Process.Kill()
		if p.t.Failed() {
			p.t.Logf("dsco %s:\n%s", strings.Join(args, " "), out)
		}
	})
	return cmd, out
}

// heard waits until systemd is told something.
func (p *place) heard(want string, out *log) {
	p.t.Helper()
	b := make([]byte, 1000)
	p.notify.SetReadDeadline(time.Now().Add(30 * time.Second))
	for {
		n, err := p.notify.Read(b)
		if err != nil {
			p.t.Fatalf("systemd is not told %q: %v\n%s", want, err, out)
		}
		if strings.HasPrefix(string(b[:n]), want) {
			return
		}
	}
}

// until waits for a condition.
func (p *place) until(what string, ok func() bool) {
	p.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			p.t.Fatalf("not in time: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// changed is what a daemon changes on a host.
func (p *place) changed() string {
	p.t.Helper()
	var out bytes.Buffer
	for _, args := range [][]string{
		{"ip", "-6", "route", "show", "table", "all"}, {"ip", "-6", "rule"}, {"ip", "-6", "neigh", "show", "proxy"},
		{"ip", "-o", "addr"}, {"ip6tables-save"}, {"cat", "/proc/sys/net/ipv6/conf/all/forwarding"},
	} {
		b, err := exec.CommandContext(p.t.Context(), args[0], args[1:]...).CombinedOutput()
		if err != nil {
			p.t.Fatalf("%q: %v: %s", args, err, b)
		}
		for line := range strings.Lines(string(b)) {
			if strings.HasPrefix(line, "#") || strings.HasPrefix(line, ":") || strings.HasPrefix(line, "*") || strings.HasPrefix(line, "COMMIT") {
				continue // what ip6tables shows as soon as it has been used at all
			}
			line, _, _ = strings.Cut(line, " expires ")
			out.WriteString(strings.TrimRight(line, "\n") + "\n")
		}
	}
	return out.String()
}

// An ordinary user with two capabilities is enough, as in packaging/. systemd is
// told all; what may not change is refused; nothing is left behind, not even by
// one that is killed.
func TestLeastPrivilege(t *testing.T) {
	if !netnstest.Run(t) {
		return
	}
	probe.Skip(t, probe.Users, probe.TUN, probe.NFQueue, probe.Program("ip"), probe.Program("setpriv"), probe.Program("unshare"), probe.Program("ip6tables-restore"))
	p := newPlace(t)
	p.until("the address is there", func() bool { return strings.Contains(p.changed(), "local 2001:db8:5::a dev lan0") })
	before := p.changed()
	cmd, out := p.start("node", "--log-level", "debug")
	p.heard("READY=1", out)
	client := &api.Client{Socket: filepath.Join(p.dir, "run", "s")}
	defer client.Close()
	st, err := client.Status(t.Context())
	if err != nil || st.Role != api.RoleNode || st.Node != "a" || st.PID != cmd.Process.Pid || len(st.Servers) != 1 || st.Version == "" {
		t.Errorf("status: %+v, %v", st, err)
	}
	if p.changed() == before {
		t.Error("nothing has changed on the host")
	}

	// A second one is told which process is in the way.
	second, out2 := p.start("node")
	if err := second.Wait(); err == nil || out2.String() == "" {
		t.Errorf("a second daemon: %v: %s", err, out2)
	}
	if cleanup, out := p.start("cleanup"); cleanup.Wait() == nil {
		t.Errorf("cleanup of a daemon that runs: %s", out)
	}

	hup := func(status string) {
		t.Helper()
		if err := cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		p.heard("RELOADING=1", out)
		p.heard("READY=1\nSTATUS="+status, out)
	}
	p.write("daemon")
	hup("running, configuration of")
	p.write("no-such-user")
	hup("running with an old configuration")
	p.until("the log has the mistake", func() bool {
		return strings.Contains(out.String(), p.config+":18: server[0].users[0]: ")
	})
	p.write("root")
	hup("running, configuration of")

	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.heard("STOPPING=1", out)
	if err := cmd.Wait(); err != nil {
		t.Errorf("stopped: %v", err)
	}
	if after := p.changed(); after != before {
		t.Errorf("before:\n%s\nafter it was stopped:\n%s", before, after)
	}

	cmd, out = p.start("node")
	p.heard("READY=1", out)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	cleanup, out := p.start("cleanup")
	if err := cleanup.Wait(); err != nil {
		t.Errorf("cleanup: %v: %s", err, out)
	}
	if after := p.changed(); after != before {
		t.Errorf("before:\n%s\nafter it was killed, and cleanup:\n%s", before, after)
	}
	if left, err := os.ReadDir(filepath.Join(p.dir, "run")); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// A correspondent is an ordinary user as well. With a third capability the kernel
// treats packets for it, without it does so itself. Nothing is left when it is killed.
func TestLeastPrivilegeCorrespondent(t *testing.T) {
	if !netnstest.Run(t) {
		return
	}
	probe.Skip(t, probe.Users, probe.TUN, probe.NFQueue, probe.BPF, probe.Program("ip"), probe.Program("setpriv"), probe.Program("unshare"), probe.Program("ip6tables-restore"))
	p := newPlace(t)
	socket := filepath.Join(p.dir, "run", "c")
	text := fmt.Sprintf("[correspondent]\nstate = %q\nsocket = %q\n", filepath.Join(p.dir, "state"), socket)
	if err := os.WriteFile(p.config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	p.until("the address is there", func() bool { return strings.Contains(p.changed(), "local 2001:db8:5::a dev lan0") })
	before := p.changed()
	client := &api.Client{Socket: socket}
	defer client.Close()
	for caps, kernel := range map[string]uint64{",+net_admin,+net_raw": 0, ",+net_admin,+net_raw,+bpf": 1} {
		cmd, out := p.startWith(filepath.Join(p.dir, "tun"), caps, "correspondent")
		p.heard("READY=1", out)
		st, err := client.Status(t.Context())
		if err != nil || st.Role != api.RoleCorrespondent || st.Counters["kernel_headers"] != kernel {
			t.Errorf("%s: status: %+v, %v", caps, st, err)
		}
		if p.changed() == before {
			t.Error("nothing has changed on the host")
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		cmd.Wait()
		cleanup, out := p.start("cleanup")
		if err := cleanup.Wait(); err != nil {
			t.Errorf("cleanup: %v: %s", err, out)
		}
		if after := p.changed(); after != before {
			t.Errorf("%s: before:\n%s\nafter it was killed, and cleanup:\n%s", caps, before, after)
		}
	}
}

// What cannot work is told, with its cure, and nothing has changed on the host.
func TestRefusals(t *testing.T) {
	if !netnstest.Run(t) {
		return
	}
	probe.Skip(t, probe.Users, probe.TUN, probe.NFQueue, probe.Program("ip"), probe.Program("setpriv"), probe.Program("unshare"), probe.Program("ip6tables-restore"))
	p := newPlace(t)
	p.until("the address is there", func() bool { return strings.Contains(p.changed(), "local 2001:db8:5::a dev lan0") })

	// Others have the port and the queue.
	l, err := net.Listen("tcp", "[2001:db8:5::a]:7000")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	queue, err := filter.Open(filter.Config{Queue: 7001, Handler: func(filter.Packet) filter.Verdict { return filter.Accept() }})
	if err != nil {
		t.Fatal(err)
	}
	defer queue.Close()
	file := filepath.Join(p.dir, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}

	const both = ",+net_admin,+net_raw"
	tun := filepath.Join(p.dir, "tun")
	before := p.changed()
	for _, tt := range []struct {
		name      string
		tun, caps string
		change    []string // of the configuration
		want      string   // with the cure in it
	}{
		{"no capability", tun, "", nil, "CAP_NET_ADMIN"},
		{"no raw sockets", tun, ",+net_admin", nil, "CAP_NET_RAW"},
		{"no TUN", filepath.Join(p.dir, "no-tun"), both, nil, "modprobe tun"},
		{"an address of no interface", tun, both, []string{`address = "2001:db8:5::a"`, `address = "2001:db8:5::b"`}, "2001:db8:5::b"},
		{"no such interface", tun, both, []string{`"lan0"`, `"nowhere0"`}, "nowhere0"},
		{"the port is taken", tun, both, []string{"[node]", "[node]\ncontrol_port = 7000"}, "7000"},
		{"the queue is taken", tun, both, []string{"[node]", "[node]\nqueue = 7001"}, "queue 7001"},
		{"the socket's place is taken", tun, both, []string{p.dir + "/run/s", file}, "not a socket"},
		{"no state directory", tun, both, []string{p.dir + "/state", "/proc/nowhere"}, "/proc/nowhere"},
		{"no such group", tun, both, []string{`group = "4242"`, `group = "no-such-group"`}, "groupadd"},
	} {
		p.write("root", tt.change...)
		cmd, out := p.startWith(tt.tun, tt.caps, "node")
		err := cmd.Wait()
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		last := lines[len(lines)-1]
		if err == nil || !strings.Contains(out.String(), "dsco: ") || !strings.Contains(out.String(), tt.want) || !strings.ContainsAny(last, ";?") {
			t.Errorf("%s: %v: %s", tt.name, err, out)
		}
		t.Logf("%s: %s", tt.name, last)
		if after := p.changed(); after != before {
			t.Errorf("%s: before:\n%s\nafter:\n%s", tt.name, before, after)
		}
	}
}
