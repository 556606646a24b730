package member

import (
	"crypto/rand"
	"net/netip"
	"slices"
	"testing"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/mobility/relay"
)

// A node that joins is one of all from then on: for the relay, the application, and
// who connects.
func TestSetNodes(t *testing.T) {
	all := nodes()
	two := map[string]Addrs{"a": all["a"], "b": all["b"]}
	m, err := New(Config{
		Name: "a", Home: home, HomeAgent: agentAddr, SPI: 256, Key: secret, Nodes: two, Contact: Contact{Name: "b"}, Epoch: epoch, Words: api.NewDecisions(), Rand: rand.Reader,
	})
	if err != nil {
		t.Fatal(err)
	}
	m.Step(0, SetNodes{all}) // before the start: not a thing
	m.Step(0, Start{})
	m.Step(0, App{&api.Message{Kind: api.Hello, Program: "p"}})
	if out := m.Step(0, PeerUp{"c"}); len(out.Peers) != 0 {
		t.Errorf("to who is no node: %+v", out.Peers)
	}
	m.Step(0, Takeover{ID: 1, Force: true})

	config := func(out Output) *api.SessionConfig {
		t.Helper()
		if len(out.App) != 1 || out.App[0].Kind != api.ConfigChanged {
			t.Fatalf("to the application: %+v", out.App)
		}
		return out.App[0].Config
	}
	out := m.Step(0, SetNodes{all})
	if c := config(out); !slices.Equal(c.Nodes, []string{"b", "c"}) || !slices.Contains(c.Peers, all["c"].CareOf) {
		t.Errorf("the application knows %+v", c)
	}
	relayed := func(out Output) []netip.Addr {
		for _, in := range out.Relay {
			if s, ok := in.(relay.SetNodes); ok {
				return s.Nodes
			}
		}
		return nil
	}
	if !slices.Contains(relayed(out), all["c"].CareOf) {
		t.Errorf("the relay: %+v", out.Relay)
	}
	if out := m.Step(0, PeerUp{"c"}); len(out.Peers) != 1 || out.Peers[0].To != "c" || out.Peers[0].Message.Kind != Hello {
		t.Errorf("c is up: %+v", out.Peers)
	}
	if out := m.Step(0, SetNodes{all}); len(out.App) != 0 || len(out.Relay) != 0 {
		t.Errorf("the same again: %+v", out)
	}

	// b is not told of any more, and has moved: nobody is forgotten, and what is
	// this member's own stays.
	moved := map[string]Addrs{"c": {Daemon: netip.MustParseAddr("2001:db8:77::c"), CareOf: netip.MustParseAddr("2001:db8:77::1:c")}, "a": {}}
	if c := config(m.Step(0, SetNodes{moved})); !slices.Equal(c.Nodes, []string{"b", "c"}) || !slices.Contains(c.Peers, moved["c"].CareOf) || slices.Contains(c.Peers, all["c"].CareOf) || c.CareOf != all["a"].CareOf {
		t.Errorf("the application knows %+v", c)
	}

	// The contact has another address.
	m.Step(0, Peer{"c", &Message{Kind: SetContact, Server: home.Addr(), Contact: "c", ContactEpoch: 99}})
	moved["c"] = Addrs{Daemon: netip.MustParseAddr("2001:db8:78::c"), CareOf: netip.MustParseAddr("2001:db8:78::1:c")}
	if c := config(m.Step(0, SetNodes{moved})); c.Via != moved["c"].Daemon {
		t.Errorf("the application sends by way of %s", c.Via)
	}
}
