package config

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/distributed-servers/ds/daemon/identity"
)

// clustered is small with a directory instead of certificates and nodes.
const clustered = `[node]
name = "a"
address = "2001:db8:5::a"
interface = "eth0"
cluster = "cluster"
[[server]]
address = "2001:db8:1::80/64"
home_agent = "2001:db8:1::1"
spi = 256
key_file = "server.key"
contact = "a"
`

var dsa = netip.MustParseAddr("2001:db8:1::80")

func person(addr, careOf string) identity.Member {
	return identity.Member{Address: netip.MustParseAddr(addr), Port: 7846, CareOf: map[netip.Addr]netip.Addr{dsa: netip.MustParseAddr(careOf)}}
}

// clusterDir has a configuration and an identity beside it.
func clusterDir(t *testing.T, text string) (file string, r *identity.Roster) {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "cluster"), 0o700); err != nil {
		t.Fatal(err)
	}
	r, err := identity.Create(filepath.Join(dir, "cluster"), "a", person("2001:db8:5::a", "2001:db8:5::80:a"), false)
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(dir, "dsco.toml")
	if err := errors.Join(os.WriteFile(file, []byte(text), 0o600),
		os.WriteFile(filepath.Join(dir, "server.key"), []byte(strings.Repeat("ab", 32)), 0o600)); err != nil {
		t.Fatal(err)
	}
	return file, r
}

// A directory with an identity stands for certificates and nodes.
func TestCluster(t *testing.T) {
	file, r := clusterDir(t, clustered)
	c, err := Load(file)
	if err != nil {
		t.Fatal(err)
	}
	pem := filepath.Join(filepath.Dir(file), "cluster", "node.pem")
	if c.Node.Cert != pem || c.Node.Key != pem || c.Servers[0].Nodes["a"] != netip.MustParseAddr("2001:db8:5::80:a") || len(c.Node.Peers) != 0 {
		t.Errorf("%+v", c.Node)
	}
	if c, err := Read(file); err != nil || c.Node.Cert != "" {
		t.Errorf("without the directory: %+v, %v", c, err)
	}

	// Others join; one moves.
	r.Nodes["b"] = person("2001:db8:5::b", "2001:db8:5::80:b")
	b, err := c.With(r)
	if err != nil || len(b.Node.Peers) != 1 || len(b.Servers[0].Nodes) != 2 || len(c.Node.Peers) != 0 || len(c.Servers[0].Nodes) != 1 {
		t.Fatalf("%+v, %v; before %+v", b, err, c)
	}
	r.Nodes["b"] = person("2001:db8:5::bb", "2001:db8:5::80:bb")
	if b, err = b.With(r); err != nil || b.Node.Peers["b"] != netip.MustParseAddr("2001:db8:5::bb") {
		t.Errorf("%+v, %v", b, err)
	}
	r.Nodes["b"] = person("2001:db8:5::b", "2001:db8:1::b")
	if _, err := b.With(r); err == nil || !strings.Contains(err.Error(), "is in the home prefix") {
		t.Errorf("a care-of address of the home prefix: %v", err)
	}
	r.Nodes["b"] = person("2001:db8:1::80", "2001:db8:5::80:b")
	if _, err := b.With(r); err == nil || !strings.Contains(err.Error(), "give each one of its own") {
		t.Errorf("the server's address: %v", err)
	}
}

// What the file says of a node counts.
func TestClusterAndFile(t *testing.T) {
	file, r := clusterDir(t, clustered+"nodes = { b = \"2001:db8:5::80:bbbb\" }\n[node.peers]\nb = \"2001:db8:5::bbbb\"\n")
	c, err := Load(file)
	if err != nil {
		t.Fatal(err)
	}
	r.Nodes["b"] = person("2001:db8:5::b", "2001:db8:5::80:b")
	c, err = c.With(r)
	if err != nil || c.Node.Peers["b"] != netip.MustParseAddr("2001:db8:5::bbbb") || c.Servers[0].Nodes["b"] != netip.MustParseAddr("2001:db8:5::80:bbbb") {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestClusterMistakes(t *testing.T) {
	for _, tt := range []struct{ old, new, want string }{
		{`name = "a"`, `name = "z"`, "2: node.name: node z is not a member of the cluster; have it join (ds join)"},
		{`5::a"`, `5::aa"`, "3: node.address: the other nodes know it as 2001:db8:5::a; write 2001:db8:5::a"},
		{`cluster = "cluster"`, `cluster = "elsewhere"`, "5: node.cluster: identity: open "},
		{`cluster = "cluster"`, `cluster = ""`, "5: node.cluster: empty"},
		{`cluster = "cluster"`, "cluster = \"cluster\"\nca = \"ca.pem\"", "6: node.ca: that is in the directory cluster already; remove one of the two"},
		{`cluster = "cluster"`, "cluster = \"cluster\"\ncontrol_port = 1", "6: node.control_port: the other nodes know it at port 7846"},
		{`contact = "a"`, `contact = "b"`, "11: server[0].contact: b is not one of the nodes: a"},
	} {
		file, _ := clusterDir(t, strings.Replace(clustered, tt.old, tt.new, 1))
		_, err := Load(file)
		if err == nil || !strings.Contains(err.Error(), file+":"+tt.want) {
			t.Errorf("%s: %v, want %s", tt.new, err, tt.want)
		}
	}
}

// What is formatted is read as the same.
func TestFormat(t *testing.T) {
	nodes := map[string]netip.Addr{"a": netip.MustParseAddr("2001:db8:5::80:a"), "b.c": netip.MustParseAddr("2001:db8:5::80:b")}
	full := &Config{
		Node: &Node{
			Name: "a", Address: netip.MustParseAddr("2001:db8:5::a"), Interface: "eth0", CA: "ca.pem", Cert: "a.pem", Key: `a"\.key`,
			ControlPort: 1, Socket: "/s", Group: "g", State: "/t", Queue: 2, Peers: map[string]netip.Addr{"b.c": netip.MustParseAddr("2001:db8:5::b")},
		},
		Servers: []Server{{
			Address: netip.MustParsePrefix("2001:db8:1::80/64"), HomeAgent: netip.MustParseAddr("2001:db8:1::1"), SPI: 256, KeyFile: "k", Contact: "a",
			Users: []string{"root", "www"}, UserGroups: []string{"g"}, MTU: 1400, DirectReturn: true, IdleTimeout: Duration(time.Hour), Nodes: nodes,
		}},
	}
	lean := &Config{
		Node: &Node{Name: "a", Address: full.Node.Address, Interface: "eth0", Cluster: "/c"},
		Servers: []Server{
			{Address: full.Servers[0].Address, HomeAgent: full.Servers[0].HomeAgent, SPI: 256, KeyFile: "k", Contact: "a", Nodes: nodes},
			{Address: netip.MustParsePrefix("2001:db8:1::81/64"), HomeAgent: full.Servers[0].HomeAgent, Contact: "a", Tunnel: TunnelMIP6D, TunnelInterface: "t0",
				Nodes: map[string]netip.Addr{"a": netip.MustParseAddr("2001:db8:5::81:a")}},
		},
	}
	agent := &Config{HomeAgent: &HomeAgent{
		Address: netip.MustParseAddr("2001:db8:1::1"), Prefixes: []netip.Prefix{netip.MustParsePrefix("2001:db8:1::/64")},
		Homes: []Home{{netip.MustParseAddr("2001:db8:1::80"), 256, "k"}},
	}}
	for i, c := range []*Config{full, lean, agent} {
		text, err := Format(c)
		if err != nil {
			t.Fatal(err)
		}
		got, d := parse("f", text, nil)
		if len(d.problems) > 0 {
			t.Fatalf("%v\n%s", d.sorted(), text)
		}
		c.SetDefaults()
		got.file = c.file
		if !reflect.DeepEqual(got, c) {
			t.Errorf("%d: got %+v, want %+v\n%s", i, got, c, text)
		}
		for n, l := range strings.Split(string(text), "\n") {
			if len(l) > 130 || strings.HasSuffix(l, " ") {
				t.Errorf("%d: line %d: %q", i, n+1, l)
			}
		}
	}
}
