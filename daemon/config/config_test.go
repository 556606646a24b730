package config

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// small is a node with what it needs.
const small = `[node]
name = "a"
address = "2001:db8:5::a"
interface = "eth0"
ca = "ca.pem"
cert = "a.pem"
key = "a.key"
[node.peers]
b = "2001:db8:5::b"
[[server]]
address = "2001:db8:1::80/64"
home_agent = "2001:db8:1::1"
spi = 256
key_file = "server.key"
contact = "b"
[server.nodes]
a = "2001:db8:5::80:a"
b = "2001:db8:5::80:b"
`

const agent = `[home_agent]
address = "2001:db8:1::1"
prefixes = ["2001:db8:1::/64"]
[[home_agent.homes]]
address = "2001:db8:1::80"
spi = 256
key_file = "server.key"
`

func TestParse(t *testing.T) {
	c, d := parse("f", []byte(small+agent+"[correspondent]\n"), nil)
	if len(d.problems) > 0 {
		t.Fatal(d.sorted())
	}
	s := c.Servers[0]
	if c.Node.Name != "a" || c.Node.Peers["b"] != netip.MustParseAddr("2001:db8:5::b") || s.Address.Bits() != 64 ||
		s.Nodes["b"] != netip.MustParseAddr("2001:db8:5::80:b") || s.IdleTimeout != Duration(time.Minute) ||
		s.Users[0] != "root" || len(c.HomeAgent.Homes) != 1 || c.Correspondent.Permit[0].String() != "::/0" {
		t.Errorf("got %+v", c)
	}
	c, d = parse("f", []byte(strings.Replace(small, "contact", "user_groups = [\"www\"]\ncontact", 1)), nil)
	if len(d.problems) > 0 || len(c.Servers[0].Users) != 0 {
		t.Errorf("with a group: users %q, %v", c.Servers[0].Users, d.problems)
	}
}

// Each mistake is told at its line, with a cure; and no other.
func TestMistakes(t *testing.T) {
	for _, tt := range []struct {
		old, new string // what is replaced in small; or "" and what is appended to it
		want     string
	}{
		// What is no TOML, or not of this schema.
		{`name = "a"`, `name = `, `f:2: `},
		{`name = "a"`, "name = \"a\"\nname = \"a\"", `f:3: `},
		{`name = "a"`, `nmae = "a"`, `f:1: node.name: missing; add name = "text" | f:2: node.nmae: no such key; is it name?`},
		{`name = "a"`, "name = \"a\"\nzzzzzz = 1", `f:3: node.zzzzzz: no such key; remove it`},
		{`name = "a"`, `name = 1`, `f:2: node.name: 1 is not a string; write "text"`},
		{`name = "a"`, "name = \"a\"\nqueue = \"x\"", `f:3: node.queue: "x" is not a whole number from 0 to 65535; write a number`},
		{`name = "a"`, "name = \"a\"\nqueue = 65536", `f:3: node.queue: 65536 is not a whole number`},
		{`name = "a"`, "name = \"a\"\nqueue = -1", `f:3: node.queue: -1 is not a whole number`},
		{`"2001:db8:5::a"`, `"2001:db8:5::g"`, `f:3: node.address: "2001:db8:5::g" is not an address; write "2001:db8::1"`},
		{`"2001:db8:5::a"`, `""`, `f:3: node.address: empty`},
		{`"2001:db8:1::80/64"`, `"2001:db8:1::80"`, `f:11: server[0].address: "2001:db8:1::80" is not an address with the length of its prefix; write "2001:db8::1/64"`},
		{`contact = "b"`, "contact = \"b\"\noffload = 1", `f:16: server[0].offload: 1 is not a boolean; write true or false`},
		{`contact = "b"`, "contact = \"b\"\nidle_timeout = 60", `f:16: server[0].idle_timeout: 60 is not a duration; write "1m0s"`},
		{`contact = "b"`, "contact = \"b\"\nusers = \"root\"", `f:16: server[0].users: "root" is not an array; write ["text"]`},
		{`contact = "b"`, "contact = \"b\"\nusers = [\n\"root\",\n1]", `f:18: server[0].users[1]: 1 is not a string`},
		{`b = "2001:db8:5::80:b"`, "b = \"2001:db8:5::80:b\"\n\"c.d\" = []", `f:19: server[0].nodes."c.d": an array is not an address`},
		{`[node.peers]`, `[node.peers.b]`, `f:8: node.peers.b: a table is not an address`},
		{"", "[server]\n", `f:19: `},
		{"", "[homeagent]\n", `f:19: homeagent: no such key; is it home_agent?`},

		// Names.
		{`name = "a"`, `name = ""`, `f:2: node.name: empty`},
		{`name = "a"`, `name = "c"`, `f:16: server[0].nodes: this node, c, is not one of them: a, b; add c, with its care-of address | f:17: server[0].nodes.a: where the daemon of a is, is not known; add a = "2001:db8::1" to [node.peers]`},
		{`contact = "b"`, `contact = "c"`, `f:15: server[0].contact: c is not one of the nodes: a, b`},
		{`b = "2001:db8:5::b"`, `a = "2001:db8:5::b"`, `f:9: node.peers.a: this node is not among the others; remove it | f:18: server[0].nodes.b: where the daemon of b`},
		{`b = "2001:db8:5::b"`, "b = \"2001:db8:5::b\"\n\"x y\" = \"2001:db8:5::d\"", `f:10: node.peers."x y": "x y" is not a name`},
		{`interface = "eth0"`, `interface = "a/b"`, `f:4: node.interface: "a/b" is not the name of an interface`},
		{`interface = "eth0"`, `interface = ""`, `f:4: node.interface: empty`},

		// Addresses.
		{`"2001:db8:5::a"`, `"192.0.2.1"`, `f:3: node.address: 192.0.2.1 is of IPv4`},
		{`"2001:db8:5::a"`, `"::ffff:192.0.2.1"`, `f:3: node.address: ::ffff:192.0.2.1 is of IPv4`},
		{`"2001:db8:5::a"`, `"fe80::1"`, `f:3: node.address: fe80::1 is valid on a link only`},
		{`"2001:db8:5::a"`, `"2001:db8::1%eth0"`, `f:3: node.address: 2001:db8::1%eth0 is valid on a link only`},
		{`"2001:db8:5::a"`, `"::1"`, `f:3: node.address: ::1 is not an address that others reach`},
		{`"2001:db8:5::a"`, `"ff02::1"`, `f:3: node.address: ff02::1 is`},
		{`"2001:db8:5::b"`, `"2001:db8:5::a"`, `f:9: node.peers.b: 2001:db8:5::a is that of node.address too`},
		{`"2001:db8:5::80:b"`, `"2001:db8:5::a"`, `f:18: server[0].nodes.b: 2001:db8:5::a is that of node.address too`},
		{`"2001:db8:5::80:b"`, `"2001:db8:1::5"`, `f:18: server[0].nodes.b: 2001:db8:1::5 is in the home prefix 2001:db8:1::/64`},
		{`"2001:db8:1::1"`, `"2001:db8:5::80:b"`, `f:18: server[0].nodes.b: 2001:db8:5::80:b is the home agent's`},
		{`"2001:db8:1::1"`, `"2001:db8:1::80"`, `f:12: server[0].home_agent: the same as the distributed server's`},
		{`"2001:db8:1::80/64"`, `"2001:db8:1::80/0"`, `f:11: server[0].address: every address has that prefix`},
		{"", strings.Replace(small[strings.Index(small, "[[server"):], "80:", "81:", 2), `f:20: server[1].address: 2001:db8:1::80 is that of server[0].address too`},

		// Numbers.
		{`name = "a"`, "name = \"a\"\ncontrol_port = 0", `f:3: node.control_port: 0 is not a port`},
		{`name = "a"`, "name = \"a\"\nqueue = 0", `f:3: node.queue: 0 is the queue that other programs take`},
		{`name = "a"`, "name = \"a\"\nsocket = \"dsco.sock\"", `f:3: node.socket: "dsco.sock" depends on where`},
		{`name = "a"`, "name = \"a\"\nsocket = \"/" + strings.Repeat("x", 107) + "\"", `f:3: node.socket: a path of 108 octets`},
		{`name = "a"`, "name = \"a\"\nstate = \"\"", `f:3: node.state: "" depends`},
		{`contact = "b"`, "contact = \"b\"\nmtu = 1319", `f:16: server[0].mtu: 1319: a tunnel of 1280 and its header do not fit`},
		{`contact = "b"`, "contact = \"b\"\nmtu = 65536", `f:16: server[0].mtu: 65536`},
		{`contact = "b"`, "contact = \"b\"\nqueues = 0", `f:16: server[0].queues: 0 queues`},
		{`contact = "b"`, "contact = \"b\"\nqueues = 65", `f:16: server[0].queues: 65 queues`},
		{`contact = "b"`, "contact = \"b\"\nidle_timeout = \"0s\"", `f:16: server[0].idle_timeout: 0s is too short`},
		{`contact = "b"`, "contact = \"b\"\nidle_timeout = \"25h\"", `f:16: server[0].idle_timeout: 25h0m0s is too`},
		{`contact = "b"`, "contact = \"b\"\nregister_timeout = \"1ms\"", `f:16: server[0].register_timeout: 1ms is too`},
		{"spi = 256\n", "", `f:10: server[0].spi: missing; add spi = 256`},
		{"spi = 256\n", "spi = 255\n", `f:13: server[0].spi: 255: the numbers to 255 are reserved; write 256`},
		{"key_file = \"server.key\"\n", "", `f:10: server[0].key_file: missing; add key_file`},
		{"spi = 256\nkey_file = \"server.key\"\n", "tunnel = \"mip6d\"\ntunnel_interface = \"ip6tnl1\"\n", ``},
		{`contact = "b"`, "contact = \"b\"\ntunnel = \"kernel\"", `f:16: server[0].tunnel: there is no tunnel "kernel"`},
		{`contact = "b"`, "contact = \"b\"\ntunnel = \"mip6d\"", `f:16: server[0].tunnel: which interface the tunnel is`},
		{`contact = "b"`, "contact = \"b\"\ntunnel_interface = \"ip6tnl1\"", `f:16: server[0].tunnel_interface: dsco has the tunnel itself`},
		{`contact = "b"`, "contact = \"b\"\nusers = [\"\"]", `f:16: server[0].users[0]: nobody is called that`},

		// Other roles.
		{"", strings.Replace(agent, "/64", "/48", 1), ``},
		{"", strings.Replace(agent, "1::/64", "2::/64", 1), `f:23: home_agent.homes[0].address: 2001:db8:1::80 has none of the prefixes`},
		{"", strings.Replace(agent, "1::/64", "1::1/64", 1), `f:21: home_agent.prefixes[0]: 2001:db8:1::1/64 is an address, not a prefix; write "2001:db8:1::/64"`},
		{"", strings.Replace(agent, "[\"2001:db8:1::/64\"]", "[]", 1), `f:21: home_agent.prefixes: none`},
		{"", strings.Replace(agent, "1::80\"", "1::1\"", 1), `f:23: home_agent.homes[0].address: 2001:db8:1::1 is that of home_agent.address too`},
		{"", strings.Replace(agent, "prefixes", "tunnel_mtu = 1000\nprefixes", 1), `f:21: home_agent.tunnel_mtu: 1000`},
		{"", strings.Replace(agent, "prefixes", "queue = 7846\nprefixes", 1), `f:21: home_agent.queue: the same as that of [node]`},
		{"", strings.Replace(agent, "prefixes", "socket = \"/run/dsco/dsco.sock\"\nprefixes", 1), `f:21: home_agent.socket: the same as that of [node]`},
		{"", strings.Replace(agent, "prefixes", "refresh_advice = \"1ms\"\nprefixes", 1), `f:21: home_agent.refresh_advice: 1ms is too`},
		{"", strings.Replace(agent, "prefixes", "min_prefix_interval = \"2h\"\nmax_prefix_interval = \"1h\"\nprefixes", 1), `f:21: home_agent.min_prefix_interval: 2h0m0s is more than 1h0m0s; write no more`},
		{"", strings.Replace(agent, "prefixes", "max_prefix_interval = \"25h\"\nprefixes", 1), `f:21: home_agent.max_prefix_interval: 25h0m0s is too`},
		{"", "[home_agent]\n", `f:19: home_agent.address: missing; add address = "2001:db8::1" | f:19: home_agent.prefixes: missing; add prefixes = ["2001:db8::1/64"] | f:19: home_agent.homes: missing`},
		{"", "[correspondent]\naddresses = [\"::1\"]\nmax_bindings = 0\n", `f:20: correspondent.addresses[0]: ::1 is not | f:21: correspondent.max_bindings: 0 bindings`},
		{"", "[correspondent]\npermit = [\"10.0.0.0/8\"]\n", `f:20: correspondent.permit[0]: 10.0.0.0/8 is of IPv4`},

		// All at once.
		{small, "", `f: no role; add [node], [home_agent] or [correspondent]`},
		{small, small[strings.Index(small, "[[server"):], `f:1: server[0]: a distributed server, but no node`},
		{small[strings.Index(small, "[[server"):], "", `f:1: node: a node of no distributed server`},
		{small, "x = 1\n[node]\nname = 1\n[[server]]\nmtu = true\n", `f:1: x: no such key | f:2: node.address: missing | f:2: node.interface: missing | f:2: node.ca: missing | f:2: node.cert: missing | f:2: node.key: missing | ` +
			`f:3: node.name: 1 is not a string | f:4: server[0].address: missing | f:4: server[0].home_agent: missing | f:4: server[0].contact: missing | f:4: server[0].spi: missing | f:4: server[0].key_file: missing | f:4: server[0].nodes: missing | f:5: server[0].mtu: true is not`},
	} {
		text := small + tt.new
		if tt.old != "" {
			text = strings.Replace(small, tt.old, tt.new, 1)
		}
		_, d := parse("f", []byte(text), nil)
		var want []string
		if tt.want != "" {
			want = strings.Split(tt.want, " | ")
		}
		got := d.sorted()
		ok := len(got) == len(want)
		for i := 0; ok && i < len(want); i++ {
			ok = strings.HasPrefix(got[i].Error(), want[i])
		}
		if !ok {
			t.Errorf("%q for %q: got\n%v\nwant\n%s", tt.new, tt.old, got, strings.Join(want, "\n"))
		}
		for _, p := range got {
			if p.Cure == "" {
				t.Errorf("no cure for %v", p)
			}
		}
	}
}

// Lines are found however the file is written.
func TestLines(t *testing.T) {
	const doc = `node.name = "a"
"node".address = '2001:db8:5::a'
server = [
  { address = "x", nodes = { a = 1,
      "b.c" = 2 } },

  { mtu = "y" },
]
[node.peers]
"q\"r" = 1
[home_agent]
[[home_agent.homes]]
spi = 1
[[home_agent.homes]]
spi = 2
`
	_, d := parse("f", []byte(doc), nil)
	for path, want := range map[string]int{
		"node.name": 1, "node.address": 2, "server": 3, "server[0].address": 4, "server[0].nodes.a": 4, `server[0].nodes."b.c"`: 5,
		"server[1].mtu": 7, "node.peers": 9, `node.peers."q\"r"`: 10, "home_agent": 11, "home_agent.homes[0]": 12, "home_agent.homes[0].spi": 13,
		"home_agent.homes[1]": 14, "home_agent.homes[1].spi": 15, "home_agent.homes[1].nothing": 14, "home_agent.nothing": 11, "nothing": 0,
	} {
		if got := d.line(path); got != want {
			t.Errorf("%s is at %d, want %d", path, got, want)
		}
	}
}

// What is deep, or much, takes no longer than it should.
func TestDeep(t *testing.T) {
	for _, doc := range []string{
		"x = " + strings.Repeat("[", 9000) + strings.Repeat("]", 9000),
		strings.Repeat("a.", 100_000) + "a = 1",
		"x = {a = " + strings.Repeat("{a = ", 5000) + "1" + strings.Repeat("}", 5001),
		strings.Repeat("[[server]]\n", 20_000),
	} {
		if _, d := parse("f", []byte(doc), nil); len(d.problems) == 0 || len(d.problems) > maxProblems {
			t.Errorf("%.20s: %d problems", doc, len(d.problems))
		}
	}
}

func TestNearest(t *testing.T) {
	names := []string{"address", "interface", "queue", "queues"}
	for key, want := range map[string]string{"adress": "address", "adresse": "address", "queu": "queue", "ququeues": "queues", "mtu": "", "": "", strings.Repeat("q", 1000): ""} {
		if got := nearest(key, names); got != want {
			t.Errorf("%.10s: %q, want %q", key, got, want)
		}
	}
}

// FuzzParse: whatever a file holds, there is a configuration that passes its own
// checks, or at least one problem; each has a line that exists.
func FuzzParse(f *testing.F) {
	f.Add([]byte(small))
	f.Add([]byte(agent))
	for _, name := range examples {
		f.Add(readExample(f, name))
	}
	f.Add([]byte("[node]\nname=1\n[[server]]\n[server.nodes]\n\"\"=''\n"))
	f.Add([]byte("server = [{nodes={a=[{}]}}]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, d := parse("f", data, nil)
		ps := d.sorted()
		if c == nil && len(ps) == 0 {
			t.Fatal("nothing")
		}
		lines := strings.Count(string(data), "\n") + 1
		for _, p := range ps {
			if p.Line < 0 || p.Line > lines || p.What == "" {
				t.Errorf("of %d lines: %v", lines, p)
			}
		}
		if len(ps) > 0 {
			return
		}
		// What passes is complete.
		for i, s := range c.Servers {
			if c.Node == nil || !s.Address.IsValid() || !s.Nodes[c.Node.Name].IsValid() || !s.Nodes[s.Contact].IsValid() || s.MTU < minMTU || s.Offload == nil {
				t.Errorf("server %d: %+v", i, s)
			}
			for name := range s.Nodes {
				if name != c.Node.Name && !c.Node.Peers[name].IsValid() {
					t.Errorf("server %d: no daemon for %s", i, name)
				}
			}
		}
		if c.Node == nil && c.HomeAgent == nil && c.Correspondent == nil {
			t.Error("no role")
		}
	})
}

func ExampleLoad() {
	_, err := Load("testdata/mistakes.toml")
	fmt.Println(err)
	// Output:
	// testdata/mistakes.toml:3: node.address: missing; add address = "2001:db8::1"
	// testdata/mistakes.toml:3: node.key: missing; add key = "text", or make it with ds init or ds join
	// testdata/mistakes.toml:5: node.adress: no such key; is it address?
	// testdata/mistakes.toml:7: node.ca: open testdata/nowhere/ca.pem: no such file or directory; put it there, readable for the daemon's user, or name another
	// testdata/mistakes.toml:8: node.cert: empty; write "text"
	// testdata/mistakes.toml:9: node.mtu: no such key; remove it
	// testdata/mistakes.toml:11: server[0].spi: missing; add spi = 256, or another from there on, the same at both ends
	// testdata/mistakes.toml:11: server[0].key_file: missing; add key_file = "server.key" (openssl rand -hex 32), the same at both ends
	// testdata/mistakes.toml:13: server[0].home_agent: 192.0.2.1 is of IPv4; write an IPv6 address, such as "2001:db8::1"
	// testdata/mistakes.toml:14: server[0].contact: b is not one of the nodes: a; name one of them, or add it
	// testdata/mistakes.toml:15: server[0].users[0]: user: unknown user nobody-is-called-that; add the user, or name another
	// testdata/mistakes.toml:16: server[0].nodes.a: 2001:db8:1::a is in the home prefix 2001:db8:1::/64, where nodes are not; take one of the server network
}
