package daemon

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/daemon/config"
	"github.com/distributed-servers/ds/internal/netns/netnstest"
	"github.com/distributed-servers/ds/internal/netns/topology"
	"github.com/distributed-servers/ds/internal/probe"
	"github.com/distributed-servers/ds/internal/testcert"
)

// roleEnv makes the test binary a node: its value is the directory with the
// configuration.
const roleEnv = "DS_TEST_NODE"

// patience is longer than a busy machine stands still.
const patience = time.Minute

func TestMain(m *testing.M) {
	if dir := os.Getenv(roleEnv); dir != "" {
		if err := runNode(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	probe.Main()
	os.Exit(m.Run())
}

func runNode(dir string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	cfg, err := config.Load(filepath.Join(dir, "dsco.toml"))
	if err != nil {
		return err
	}
	n, err := NewNode(cfg, slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err != nil {
		return err
	}
	return n.Run(ctx)
}

// The network of these tests. The home agent's place is empty.
//
//	a 2001:db8:2::1 ──┐
//	b 2001:db8:2::2 ──┼── switch
//	c 2001:db8:2::3 ──┘
type scene struct {
	t     *testing.T
	net   *topology.Net
	dir   string
	hosts map[string]*topology.Host
	nodes map[string]*topology.Process
}

var nodeNames = []string{"a", "b", "c"}

func newScene(t *testing.T, server ...string) *scene {
	n, err := topology.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	s := &scene{t: t, net: n, dir: t.TempDir(), hosts: make(map[string]*topology.Host), nodes: make(map[string]*topology.Process)}
	ca, err := testcert.New()
	if err != nil {
		t.Fatal(err)
	}
	if err := ca.Write(s.dir, nodeNames...); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.dir, "home.key"), []byte(hex.EncodeToString([]byte("sixteen octets!!"))), 0o600); err != nil {
		t.Fatal(err)
	}
	sw, err := n.Switch("lan")
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range nodeNames {
		h, err := n.Host(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := sw.Plug(topology.End{Host: h, Name: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("2001:db8:2::%d/64", i+1))}}); err != nil {
			t.Fatal(err)
		}
		s.hosts[name] = h
		if err := os.Mkdir(filepath.Join(s.dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		var toml bytes.Buffer
		fmt.Fprintf(&toml, `[node]
name = %q
address = "2001:db8:2::%d"
interface = "eth0"
ca = "%[3]s/ca.pem"
cert = "%[3]s/%[1]s.pem"
key = "%[3]s/%[1]s.key"
socket = "%[3]s/%[1]s/sock"
state = "%[3]s/%[1]s"
[node.peers]
`, name, i+1, s.dir)
		for j, other := range nodeNames {
			if j != i {
				fmt.Fprintf(&toml, "%s = \"2001:db8:2::%d\"\n", other, j+1)
			}
		}
		fmt.Fprintf(&toml, `[[server]]
address = "2001:db8:1::1/64"
home_agent = "2001:db8:1::ff"
spi = 256
key_file = "%s/home.key"
contact = "a"
%s
[server.nodes]
`, s.dir, strings.Join(server, "\n"))
		for j, other := range nodeNames {
			fmt.Fprintf(&toml, "%s = \"2001:db8:2:%d::1\"\n", other, j+1)
		}
		if err := os.WriteFile(filepath.Join(s.dir, name, "dsco.toml"), toml.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func (s *scene) start(name string) {
	s.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		s.t.Fatal(err)
	}
	cmd := s.hosts[name].Command(s.t.Context(), exe)
	cmd.Env = append(os.Environ(), roleEnv+"="+filepath.Join(s.dir, name))
	p, err := cmd.Background()
	if err != nil {
		s.t.Fatal(err)
	}
	s.nodes[name] = p
	s.t.Cleanup(func() {
		if s.t.Failed() {
			s.t.Logf("%s:\n%s", name, p.Log)
		}
	})
}

func (s *scene) api(name string) *api.Client {
	return &api.Client{Socket: filepath.Join(s.dir, name, "sock")}
}

// until waits until a node has had an event.
func (s *scene) until(name string, kind api.EventKind, about string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	for ctx.Err() == nil {
		for e, err := range s.api(name).Watch(ctx, api.WatchOptions{}) {
			if err != nil {
				break // it is not there yet
			}
			if e.Kind == kind && e.Node == about {
				return
			}
		}
		runtime.Gosched()
	}
	s.t.Fatalf("%s has had no event %s about %q", name, kind, about)
}

// normal leaves out what is another one each time: counters, numbers of
// interfaces, link-local addresses of a TUN.
const normal = ` | sed -E '/^[#:]/d; s/^[0-9]+: //; /fe80.* ds[0-9a-f]{8}/d; /ds[0-9a-f]{8} .*fe80/d'`

// footprint is everything that a daemon may change on a host.
func (s *scene) footprint(name string) string {
	s.t.Helper()
	var all strings.Builder
	for _, cmd := range []string{
		"ip -6 route show table all", "ip -6 rule", "ip -6 neigh show proxy", "ip -o link", "ip -6 -o addr",
		"ip6tables-save -t raw", "sysctl net.ipv6.conf.all.forwarding net.ipv6.conf.eth0.proxy_ndp", "ss -lnx -f unix src " + s.dir + "/*",
	} {
		out, err := s.hosts[name].Command(s.t.Context(), "sh", "-c", cmd+normal).Output()
		if err != nil {
			s.t.Fatal(err)
		}
		fmt.Fprintf(&all, "%s\n%s\n", cmd, out)
	}
	return all.String()
}

// becomes waits until the footprint of a daemon is what it should be.
func (s *scene) becomes(name, what, want string) {
	s.t.Helper()
	got := s.footprint(name)
	for late := time.Now().Add(patience); got != want; got = s.footprint(name) {
		if time.Now().After(late) {
			s.t.Errorf("%s:\n%s\nbefore:\n%s", what, got, want)
			return
		}
	}
}

// Three nodes find each other; one that is stopped leaves nothing behind, one
// that is killed leaves nothing that the next start does not mend.
func TestNodes(t *testing.T) {
	probe.Skip(t, probe.TUN)
	probe.Skip(t, probe.NFQueue)
	for _, p := range []string{"ip", "ss", "sysctl", "ip6tables-save"} {
		probe.Skip(t, probe.Program(p))
	}
	if !netnstest.Run(t) {
		return
	}
	s := newScene(t)
	before := s.footprint("b")
	for strings.Contains(before, "linkdown") || !strings.Contains(before, "local fe80") {
		before = s.footprint("b") // the links are coming up
	}
	for _, n := range nodeNames {
		s.start(n)
	}
	for i, n := range nodeNames {
		s.until(n, api.EventPeerUp, nodeNames[(i+1)%3])
		s.until(n, api.EventPeerUp, nodeNames[(i+2)%3])
	}
	// A connection may have ended since, on a machine that stood still: there is another.
	for late := time.Now().Add(patience); ; {
		st, err := s.api("b").Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(st.Servers) != 1 || st.Servers[0].Contact.Node != "a" || len(st.Peers) != 2 {
			t.Fatalf("status of b: %+v", st)
		}
		nodes, err := s.api("b").Nodes(t.Context(), st.Servers[0].Address)
		if err != nil || len(nodes) != 3 || !nodes[1].Local || !nodes[0].Contact {
			t.Fatalf("nodes as b sees them: %+v, %v", nodes, err)
		}
		if st.Peers[0].Connected && nodes[2].Connected {
			break
		}
		if time.Now().After(late) {
			t.Fatalf("b is not connected: %+v, %+v", st, nodes)
		}
	}
	running := s.footprint("b")
	if running == before {
		t.Error("a node that runs leaves no traces: this test sees nothing")
	}

	s.nodes["b"].Kill()
	s.until("a", api.EventPeerDown, "b")
	s.start("b")
	s.until("b", api.EventPeerUp, "a")
	s.becomes("b", "killed and started again", running)

	if err := s.nodes["b"].Stop(patience); err != nil {
		t.Error(err)
	}
	s.becomes("b", "stopped", before)
}
