package member

import (
	"crypto/rand"
	"strings"
	"testing"

	"github.com/distributed-servers/ds/daemon/api"
)

func TestAgree(t *testing.T) {
	for _, tt := range []struct {
		oldest, newest int // theirs, as they say it
		want           int
		err            string
	}{
		{3, 0, 3, ""}, // a release that speaks one only
		{3, 3, 3, ""},
		{2, 3, 3, ""},
		{3, 4, 4, ""},
		{4, 6, 4, ""},
		{2, 9, 4, ""},
		{2, 0, 0, "it speaks version 2 of the protocol between members, this node versions 3 to 4; upgrade the other node"},
		{1, 2, 0, "it speaks versions 1 to 2 of"},
		{5, 6, 0, "upgrade this node, one release at a time"},
		{0, 0, 0, "upgrade the other node"},
	} {
		got, err := agree(&Message{Version: tt.oldest, Newest: tt.newest}, 3, 4)
		if got != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%d to %d: %d, %v", tt.oldest, tt.newest, got, err)
		}
	}
}

// A member of a release that is too far away is refused, and what it says does not
// count.
func TestVersionRefused(t *testing.T) {
	m, err := New(Config{
		Name: "a", Home: home, HomeAgent: agentAddr, SPI: 256, Key: secret, Nodes: nodes(), Contact: Contact{Name: "b"}, Epoch: epoch, Words: api.NewDecisions(), Rand: rand.Reader,
	})
	if err != nil {
		t.Fatal(err)
	}
	m.Step(0, Start{})
	m.Step(0, PeerUp{"c"})
	out := m.Step(0, Peer{"c", &Message{Kind: Hello, Server: home.Addr(), Version: Newest + 1, Newest: Newest + 2, Contact: "c", ContactEpoch: 9}})
	found := false
	for _, e := range out.Events {
		found = found || e.Kind == api.EventFault && e.Node == "c" && strings.Contains(e.Detail, "upgrade this node")
	}
	if c, _ := m.Contact(); !found || c.Name != "b" {
		t.Errorf("contact %v, events %+v", c, out.Events)
	}
	if out := m.Step(0, Peer{"c", &Message{Kind: SetContact, Server: home.Addr(), Contact: "c", ContactEpoch: 9}}); len(out.Events) > 0 {
		t.Errorf("it is listened to: %+v", out.Events)
	}
	m.Step(0, App{&api.Message{Kind: api.Hello, Program: "p"}})
	m.Step(0, App{&api.Message{Kind: api.Owned, Client: clientAddr(0), Connections: 1}})
	out = m.Step(0, App{&api.Message{Kind: api.Prepare, ID: 1, Client: clientAddr(0), To: "c"}})
	if len(out.App) != 1 || out.App[0].Kind != api.Prepared || !strings.HasPrefix(out.App[0].Error, "node c is not connected: it speaks versions ") || !strings.Contains(out.App[0].Error, "upgrade this node") {
		t.Errorf("a handoff to it: %+v", out.App)
	}
}

// Who does not know orders is not given any.
func TestFeatures(t *testing.T) {
	m, err := New(Config{
		Name: "a", Home: home, HomeAgent: agentAddr, SPI: 256, Key: secret, Nodes: nodes(), Contact: Contact{Name: "b"}, Epoch: epoch, Words: api.NewDecisions(), Rand: rand.Reader,
	})
	if err != nil {
		t.Fatal(err)
	}
	m.Step(0, Start{})
	m.Step(0, PeerUp{"c"})
	hello := &Message{Kind: Hello, Server: home.Addr(), Version: Oldest, Contact: "b"}
	m.Step(0, Peer{"c", hello})
	out := m.Step(0, Command{ID: 7, Node: "c", Job: Job{What: Drain}})
	if len(out.Peers) != 0 || len(out.Answers) != 1 || out.Answers[0].Err == nil || !strings.Contains(out.Answers[0].Err.Error(), "its release takes no orders") {
		t.Errorf("without the feature: %+v, %+v", out.Peers, out.Answers)
	}
	hello.Features = []Feature{"something else", FeatureOrders}
	m.Step(0, Peer{"c", hello})
	if out := m.Step(0, Command{ID: 8, Node: "c", Job: Job{What: Drain}}); len(out.Peers) != 1 {
		t.Errorf("with the feature: %+v, %+v", out.Peers, out.Answers)
	}
}
