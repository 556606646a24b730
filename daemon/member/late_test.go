package member

import (
	"crypto/rand"
	"testing"

	"github.com/distributed-servers/ds/daemon/api"
)

// What comes late goes to the application with the offer that it belongs to, as
// long as the client is not the application's; once it is taken it is the client's, whatever
// the application knows of it; and when it has gone back nobody hears of it.
func TestLate(t *testing.T) {
	m, err := New(Config{
		Name: "b", Home: home, HomeAgent: agentAddr, SPI: 256, Key: secret, Nodes: nodes(), Contact: Contact{Name: "a"}, Epoch: epoch, Words: api.NewDecisions(), Rand: rand.Reader,
	})
	if err != nil {
		t.Fatal(err)
	}
	m.Step(0, Start{})
	m.Step(0, App{&api.Message{Kind: api.Hello, Program: "p", AcceptsHandoffs: true}})
	m.Step(0, PeerUp{"a"})
	peer := func(msg *Message) Output {
		msg.Server = home.Addr()
		return m.Step(0, Peer{"a", msg})
	}
	peer(&Message{Kind: Hello, Version: Newest, Contact: "a"})
	for i, refuse := range []string{"", "not today"} {
		id, client := uint64(i+1), clientAddr(i)
		late := func(when string, want ...uint64) {
			t.Helper()
			out := peer(&Message{Kind: Late, ID: id, Client: client, Packets: [][]byte{[]byte("packet")}})
			if len(out.App) != len(want) || len(want) > 0 && (out.App[0].Kind != api.Late || out.App[0].ID != want[0] || out.App[0].Client != client) {
				t.Errorf("%s: the application gets %+v", when, out.App)
			}
		}
		out := peer(&Message{Kind: Prepare, ID: id, Client: client, Epoch: 2, Relayed: true})
		if len(out.App) != 1 || out.App[0].Kind != api.Expect {
			t.Fatalf("it is not expected: %+v", out.App)
		}
		offer := out.App[0].ID
		m.Step(0, App{&api.Message{Kind: api.Expected, ID: offer}})
		late("before it is given away")
		out = peer(&Message{Kind: Transfer, ID: id, Client: client, Epoch: 2, Relayed: true, Snapshot: []byte("connections")})
		if len(out.App) != 1 || out.App[0].Kind != api.Offer || out.App[0].ID != offer {
			t.Fatalf("no offer: %+v", out.App)
		}
		late("offered", offer)
		if out := m.Step(0, Recorded{}); len(out.App) != 1 || out.App[0].Kind != api.Activate {
			t.Fatalf("it is not to go live: %+v", out.App)
		}
		late("taken", 0)
		m.Step(0, App{&api.Message{Kind: api.Activated, ID: offer, Error: refuse}})
		if refuse != "" {
			late("given back")
			continue
		}
		late("live", 0)
		m.Step(0, App{&api.Message{Kind: api.Gone, Client: client}})
		late("without connections", 0)
	}
}
