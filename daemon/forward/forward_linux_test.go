package forward_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/distributed-servers/ds/daemon/forward"
	"github.com/distributed-servers/ds/daemon/host"
	"github.com/distributed-servers/ds/daemon/rawip"
	"github.com/distributed-servers/ds/internal/netns/netnstest"
	"github.com/distributed-servers/ds/internal/probe"
	"github.com/distributed-servers/ds/mobility/wire"
	"github.com/distributed-servers/ds/tun"
)

func TestMain(m *testing.M) {
	probe.Main()
	os.Exit(m.Run())
}

var (
	here    = netip.MustParseAddr("2001:db8:5::a") // of the daemon, or of the home agent
	agent   = netip.MustParseAddr("2001:db8:1::1")
	home    = netip.MustParseAddr("2001:db8:1::80")
	client  = netip.MustParseAddr("2001:db8:9::1")
	unknown = netip.MustParseAddr("2001:db8:9::2")
	careOf  = netip.MustParseAddr("2001:db8:5::1a")
	owner   = netip.MustParseAddr("2001:db8:5::1b")
	owner2  = netip.MustParseAddr("2001:db8:5::1c")
	nowhere = netip.MustParseAddr("2001:db8:ffff::")
)

const queue = 99

// A rig is a host whose only link is a TUN: what the kernel forwards comes out of
// it again, what is for the daemon out of its raw socket. Both happen before a
// write returns.
type rig struct {
	*testing.T
	host   *host.Host
	dev    *tun.TUN
	tunnel *rawip.Tunnel
}

// newRig makes a rig; nil outside of the test's own namespaces.
func newRig(t *testing.T) *rig {
	if !netnstest.Run(t) {
		return nil
	}
	probe.Skip(t, probe.TUN, probe.NFTables, probe.Seg6)
	r := &rig{T: t}
	var err error
	r.host, err = host.Open(host.Config{State: t.TempDir()})
	r.must(err)
	t.Cleanup(func() { r.must(r.host.Close()) })
	r.must(r.host.Forward())
	r.dev, err = tun.Open(tun.Config{
		Name: "rig0", MTU: 9000, Addrs: []netip.Prefix{netip.PrefixFrom(here, 128)},
		Routes: []netip.Prefix{netip.MustParsePrefix("2000::/3")},
	})
	r.must(err)
	t.Cleanup(func() { r.dev.Close() })
	r.tunnel, err = rawip.Listen(here)
	r.must(err)
	t.Cleanup(func() { r.tunnel.Close() })
	const table = 99
	r.must(r.host.AddExit(forward.Exit(queue), "rig0", table))
	r.must(r.host.AddRule(host.Rule{To: netip.PrefixFrom(forward.Exit(queue), 128), Table: table, Priority: 99}))
	return r
}

func (r *rig) must(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

// packet is an IPv6 packet.
func packet(src, dst netip.Addr, protocol wire.Protocol, hops byte, payload []byte) []byte {
	b := make([]byte, wire.HeaderLen, wire.HeaderLen+len(payload))
	b[0], b[4], b[5], b[6], b[7] = 6<<4, byte(len(payload)>>8), byte(len(payload)), byte(protocol), hops
	copy(b[8:], src.AsSlice())
	copy(b[24:], dst.AsSlice())
	return append(b, payload...)
}

func tunnelled(src, dst netip.Addr, inner []byte) []byte {
	return packet(src, dst, wire.IPv6, 60, inner)
}

// pass sends a packet, and returns what comes of it, the daemon's packets with a
// mark before them.
func (r *rig) pass(p []byte) (out [][]byte) {
	r.Helper()
	_, err := r.dev.Write(p)
	r.must(err)
	end := packet(nowhere, nowhere.Next(), wire.UDP, 64, []byte("end"))
	_, err = r.dev.Write(end)
	r.must(err)
	last := tunnelled(nowhere, here, end)
	_, err = r.dev.Write(last)
	r.must(err)
	b := make([]byte, 9000)
	for {
		n, err := r.dev.Read(b)
		r.must(err)
		if bytes.HasSuffix(b[:n], []byte("end")) {
			break
		}
		if p := b[:n]; netip.AddrFrom16([16]byte(p[8:24])).IsGlobalUnicast() { // none of the kernel's own
			out = append(out, slices.Clone(p))
		}
	}
	for {
		batch, err := r.tunnel.ReadBatch()
		r.must(err)
		for _, p := range batch {
			if bytes.HasSuffix(p, []byte("end")) {
				return out
			}
			out = append(out, append([]byte("daemon"), p...))
		}
	}
}

// expect checks what comes of a packet: nil is the daemon's, as it was.
func (r *rig) expect(what string, p, want []byte) {
	r.Helper()
	got := r.pass(p)
	if want == nil {
		p[7]-- // nothing but the way here
		want = append([]byte("daemon"), p...)
		p[7]++
		if len(got) == 1 && bytes.HasPrefix(got[0], []byte("daemon")) && bytes.Equal(got[0][6+wire.HeaderLen:], p[wire.HeaderLen:]) {
			return
		}
	}
	if len(got) != 1 || !bytes.Equal(got[0], want) {
		r.Errorf("%s: got %x, want %x", what, got, want)
	}
}

func payload() []byte { return []byte(strings.Repeat("data", 8)) }

func inner(src, dst netip.Addr, hops byte) []byte { return packet(src, dst, wire.TCP, hops, payload()) }

func reached(p []byte, hops byte) []byte {
	p[7] = hops
	return p
}

// Clients' packets go to their owners, and answers to the home agent; everything
// else is for the daemon.
func TestRelay(t *testing.T) {
	r := newRig(t)
	if r == nil {
		return
	}
	n, err := forward.OpenNode(forward.NodeConfig{Queue: queue, Daemon: here, Servers: []forward.Server{
		{Home: home, CareOf: careOf, HomeAgent: agent, Senders: []netip.Addr{here, owner}},
	}})
	r.must(err)
	toOwner := tunnelled(agent, here, inner(client, home, 60))
	r.expect("nobody knows the client", toOwner, nil)
	r.must(n.Change(home, forward.Change{Reset: true, Members: []netip.Addr{owner}, Owners: []forward.Owner{{client, owner}}}))

	// The kernel has taken a hop off the outer header.
	relayed := func(to netip.Addr) []byte { return reached(tunnelled(here, to, inner(client, home, 59)), 63) }
	r.expect("a client's", toOwner, relayed(owner))
	r.expect("the answer", tunnelled(owner, here, inner(home, client, 60)),
		reached(tunnelled(here, agent, inner(home, client, 59)), 63))
	for what, p := range map[string][]byte{
		"another client's":         tunnelled(agent, here, inner(unknown, home, 60)),
		"from a stranger":          tunnelled(nowhere, here, inner(client, home, 60)),
		"from a node, to a client": tunnelled(owner, here, inner(client, home, 60)),
		"to another home address":  tunnelled(agent, here, inner(client, agent, 60)),
		"answer of a stranger":     tunnelled(nowhere, here, inner(home, client, 60)),
		"answer of nobody's":       tunnelled(owner, here, inner(nowhere, client, 60)),
		"answer to itself":         tunnelled(owner, here, inner(home, home, 60)),
		"answer to a group":        tunnelled(owner, here, inner(home, netip.IPv6LinkLocalAllNodes(), 60)),
		"the last hop":             tunnelled(agent, here, inner(client, home, 1)),
		"the last hop back":        tunnelled(owner, here, inner(home, client, 1)),
		"signalling":               tunnelled(agent, here, packet(client, home, wire.Mobility, 60, payload())),
		"an error":                 tunnelled(agent, here, packet(client, home, wire.ICMPv6, 60, payload())),
		"not IPv6":                 tunnelled(agent, here, append([]byte{4 << 4}, inner(client, home, 60)[1:]...)),
	} {
		r.expect(what, p, nil)
	}

	r.must(n.Change(home, forward.Change{Owners: []forward.Owner{{client, owner2}, {unknown, owner}}}))
	r.expect("handed off", toOwner, relayed(owner2))
	r.must(n.Change(home, forward.Change{Owners: []forward.Owner{{client, owner}, {client, owner}, {unknown, netip.Addr{}}, {nowhere, netip.Addr{}}}}))
	r.expect("handed back", toOwner, relayed(owner))
	r.must(n.Change(nowhere, forward.Change{Reset: true})) // of no server here
	r.must(n.Change(home, forward.Change{Reset: true, Members: []netip.Addr{owner2}, Owners: []forward.Owner{{client, careOf}}}))
	r.expect("not of a member any more", tunnelled(owner, here, inner(home, client, 60)), nil)

	// The contact's own client: relayed, and out of the tunnel. The kernel takes a
	// hop as it forwards.
	r.expect("own", toOwner, inner(client, home, 58))

	relayedTo, delivered, err := n.Counts(home)
	r.must(err)
	// To owners four times, from one once; out of the tunnel once.
	octets := uint64(len(toOwner))
	if want := (forward.Count{Packets: 5, Octets: 5 * octets}); relayedTo != want {
		t.Errorf("relayed: %v are counted, want %v", relayedTo, want)
	}
	if want := (forward.Count{Packets: 1, Octets: octets}); delivered != want {
		t.Errorf("delivered: %v are counted, want %v", delivered, want)
	}
	if a, b, err := n.Counts(nowhere); a != b || err != nil {
		t.Errorf("of a server that is not here: %v, %v, %v", a, b, err)
	}

	r.must(n.Close())
	r.must(n.Close())
	r.expect("closed", toOwner, nil)
	if _, _, err := n.Counts(home); !errors.Is(err, forward.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if err := n.Change(home, forward.Change{Owners: []forward.Owner{{client, owner}}}); !errors.Is(err, forward.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// Tunnels to a care-of address end in the kernel, if they are from nodes; others go
// to the application as they are.
func TestCareOf(t *testing.T) {
	r := newRig(t)
	if r == nil {
		return
	}
	n, err := forward.OpenNode(forward.NodeConfig{Queue: queue, Daemon: here, Servers: []forward.Server{
		{Home: home, CareOf: careOf, Senders: []netip.Addr{here, owner, owner}},
	}})
	r.must(err)
	defer n.Close()
	r.expect("from a node", tunnelled(owner, careOf, inner(client, home, 60)), inner(client, home, 59))
	r.must(n.Change(home, forward.Change{Senders: []netip.Addr{owner, owner2}, Owners: []forward.Owner{{client, owner}}}))
	r.expect("from one that has joined", tunnelled(owner2, careOf, inner(client, home, 60)), inner(client, home, 59))
	marked := tunnelled(owner, careOf, inner(client, home, 60))
	marked[1] |= 3 << 4
	for what, p := range map[string][]byte{
		"from a stranger":   tunnelled(nowhere, careOf, inner(client, home, 60)),
		"to somebody else":  tunnelled(owner, careOf, inner(client, nowhere, 60)),
		"from home":         tunnelled(owner, careOf, inner(home, home, 60)),
		"from the care-of":  tunnelled(owner, careOf, inner(careOf, home, 60)),
		"from a group":      tunnelled(owner, careOf, inner(netip.IPv6LinkLocalAllNodes(), home, 60)),
		"the last hop":      tunnelled(owner, careOf, inner(client, home, 1)),
		"congestion":        marked,
		"route optimised":   packet(owner, careOf, wire.Routing, 60, payload()),
		"signalling inside": tunnelled(owner, careOf, packet(client, home, wire.Mobility, 60, payload())),
	} {
		r.expect(what, p, reached(slices.Clone(p), 59))
	}
	if got := r.pass(tunnelled(owner, forward.Exit(queue), inner(client, home, 60))); got != nil {
		t.Errorf("a stranger's way to the exit: %x", got)
	}
}

// What contacts send leaves the tunnel, if it is from their home address.
func TestAgent(t *testing.T) {
	r := newRig(t)
	if r == nil {
		return
	}
	a, err := forward.OpenAgent(forward.AgentConfig{Queue: queue, Address: here, Prefixes: []netip.Prefix{netip.MustParsePrefix("2001:db8:1::/64")}})
	r.must(err)
	answer := tunnelled(owner, here, inner(home, client, 60))
	r.expect("no binding", answer, nil)
	r.must(a.Bind(home, owner))
	r.must(a.Bind(home, owner))
	r.expect("with a binding", answer, inner(home, client, 59))
	for what, p := range map[string][]byte{
		"of another contact":      tunnelled(owner2, here, inner(home, client, 60)),
		"of another home address": tunnelled(owner, here, inner(agent, client, 60)),
		"to a home address":       tunnelled(owner, here, inner(home, home.Next(), 60)),
		"to the home agent":       tunnelled(owner, here, inner(home, here, 60)),
		"to a group":              tunnelled(owner, here, inner(home, netip.IPv6LinkLocalAllNodes(), 60)),
		"signalling":              tunnelled(owner, here, packet(home, client, wire.Mobility, 60, payload())),
	} {
		r.expect(what, p, nil)
	}
	// A hop of what is routed into a tunnel is counted too: here one of the rule, one
	// of the route, which has no tunnel.
	r.expect("to a home address", inner(client, home, 60), inner(client, home, 58))
	r.must(a.Bind(home, owner2))
	r.expect("the contact has changed", answer, nil)
	r.expect("the new one", tunnelled(owner2, here, inner(home, client, 60)), inner(home, client, 59))
	r.must(a.Bind(home, netip.Addr{}))
	r.expect("deregistered", tunnelled(owner2, here, inner(home, client, 60)), nil)
	to, from, err := a.Counts()
	r.must(err)
	if plain := uint64(len(inner(client, home, 60))); to != (forward.Count{Packets: 1, Octets: plain}) {
		t.Errorf("to home addresses: %v are counted", to)
	}
	if octets := uint64(len(answer)); from != (forward.Count{Packets: 2, Octets: 2 * octets}) {
		t.Errorf("from home addresses: %v are counted", from)
	}
	r.must(a.Close())
	if err := a.Bind(home, owner); !errors.Is(err, forward.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// A table that cannot be made is an error, and a process's table is its own.
func TestTableInUse(t *testing.T) {
	r := newRig(t)
	if r == nil {
		return
	}
	probe.Skip(t, probe.Program("nft"))
	config := forward.NodeConfig{Queue: queue, Daemon: here}
	n, err := forward.OpenNode(config)
	r.must(err)
	if other, err := forward.OpenNode(config); err == nil {
		other.Close()
		t.Error("a table has two owners")
	}
	name := fmt.Sprintf("dsco-%d", queue)
	if err := exec.CommandContext(t.Context(), "nft", "delete", "table", "ip6", name).Run(); err == nil {
		t.Error("somebody else may delete it")
	}
	r.must(n.Close())
	out, err := exec.CommandContext(t.Context(), "nft", "list", "ruleset").Output()
	r.must(err)
	if strings.Contains(string(out), name) {
		t.Errorf("left: %s", out)
	}
}

// Many changes at once are one.
func TestManyClients(t *testing.T) {
	r := newRig(t)
	if r == nil {
		return
	}
	n, err := forward.OpenNode(forward.NodeConfig{Queue: queue, Daemon: here, Servers: []forward.Server{{Home: home, CareOf: careOf, HomeAgent: agent}}})
	r.must(err)
	defer n.Close()
	var owners []forward.Owner
	a := client
	for range 5000 {
		owners = append(owners, forward.Owner{Client: a, CareOf: owner})
		a = a.Next()
	}
	r.must(n.Change(home, forward.Change{Owners: owners}))
	last := owners[len(owners)-1].Client
	r.expect("the last", tunnelled(agent, here, inner(last, home, 60)), reached(tunnelled(here, owner, inner(last, home, 59)), 63))
	r.must(n.Change(home, forward.Change{Reset: true}))
	r.expect("none", tunnelled(agent, here, inner(last, home, 60)), nil)
}
