package ds

import (
	"context"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/migrate"
	"github.com/distributed-servers/ds/mobility/wire"
	"github.com/distributed-servers/ds/stack"
	"github.com/distributed-servers/ds/tun/tuntest"
)

// script is a session whose daemon is the test.
type script struct {
	in   chan *api.Message // to the application
	out  chan *api.Message // and of it
	once sync.Once
	end  chan struct{}

	answers chan []byte // packets of the application
}

// scripted returns a node of such a daemon.
func scripted(server netip.Addr) (*Node, *script) {
	s := &script{in: make(chan *api.Message), out: make(chan *api.Message, 100), end: make(chan struct{}), answers: make(chan []byte, 100)}
	return &Node{Attach: func(context.Context, *api.Message) (*Attachment, error) {
		return &Attachment{
			Session: s,
			Config: api.SessionConfig{
				Addr: server, CareOf: netip.MustParseAddr("2001:db8:c::1"), Via: netip.MustParseAddr("2001:db8:c::2"), Node: "b", MTU: 1500,
			},
			Device: tuntest.NewEnd("tun", 1500, func(p []byte) { s.answers <- p }),
		}, nil
	}}, s
}

func (s *script) Close() error { s.once.Do(func() { close(s.end) }); return nil }

func (s *script) Send(all ...*api.Message) error {
	for _, m := range all {
		select {
		case s.out <- m:
		case <-s.end:
			return net.ErrClosed
		}
	}
	return nil
}

func (s *script) Ready() bool { return false } // one by one

func (s *script) Receive() (*api.Message, error) {
	select {
	case m := <-s.in:
		return m, nil
	case <-s.end:
		return nil, io.EOF
	}
}

// A SYN of a client without connections that came to its donor late is answered by
// the node that has the client now; one that belongs to an offer that has come to
// nothing is not: it may be of a connection that the donor goes on with.
func TestLateSYN(t *testing.T) {
	server := netip.MustParseAddr("2001:db8:d::1")
	clients := []netip.Addr{netip.MustParseAddr("2001:db8:1::1"), netip.MustParseAddr("2001:db8:1::2")}

	// syn is the first packet of a connection; what else the client would send goes
	// nowhere.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	syn := func(client netip.Addr, port string) []byte {
		syns := make(chan []byte, 1)
		s, err := stack.New(stack.Config{Device: tuntest.NewEnd("client", 1500, func(p []byte) {
			select {
			case syns <- p:
			default:
			}
		}), Addrs: []netip.Addr{client}})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		go s.DialContext(ctx, "tcp", net.JoinHostPort(server.String(), port))
		return <-syns
	}

	n, s := scripted(server)
	answers := s.answers
	defer n.Close()
	if _, err := n.Listen("tcp", ":80"); err != nil {
		t.Fatal(err)
	}
	if _, err := n.ListenHandoff(); err != nil {
		t.Fatal(err)
	}
	say := func(m *api.Message, want api.Kind) {
		t.Helper()
		s.in <- m
		for want != 0 {
			if m := <-s.out; m.Kind == want {
				if m.Error != "" {
					t.Fatal(m.Error)
				}
				return
			}
		}
	}
	offer := func(id uint64, client netip.Addr) {
		t.Helper()
		d := migrate.NewClientDonor(n.stack, client)
		d.AllowEmpty()
		if err := d.Freeze(); err != nil {
			t.Fatal(err)
		}
		snapshot, err := d.Export(nil)
		if err == nil {
			err = d.Thaw()
		}
		if err != nil {
			t.Fatal(err)
		}
		say(&api.Message{Kind: api.Offer, ID: id, Client: client, From: "a", Snapshot: snapshot}, api.Accepted)
	}
	late := func(id uint64, client netip.Addr, packet []byte) {
		s.in <- &api.Message{Kind: api.Late, ID: id, Client: client, Packets: [][]byte{packet}}
	}
	// answered waits for the answer to a SYN. Others may come again.
	answered := func(syn []byte) {
		t.Helper()
		asked, err := wire.ParsePacket(syn)
		for late := time.After(20 * time.Second); err == nil; {
			var answer []byte
			select {
			case answer = <-answers:
			case <-late:
				t.Fatalf("no answer to %s", asked.Src)
			}
			var p wire.Packet
			if p, err = wire.ParsePacket(answer); err != nil {
				break
			}
			if answer, err = p.Inner(); err != nil {
				break
			}
			if p, err = wire.ParsePacket(answer); err != nil {
				break
			}
			const flags, synAck = 13, 0x12
			if p.Payload[flags] != synAck {
				t.Fatalf("an answer to %s with flags %#x", p.Dst, p.Payload[flags])
			}
			if p.Dst == asked.Src && [2]byte(p.Payload[2:]) == [2]byte(asked.Payload) {
				return
			}
		}
		t.Fatal(err)
	}

	first, second := syn(clients[0], "80"), syn(clients[0], "80")
	offer(1, clients[0])
	late(1, clients[0], first)
	say(&api.Message{Kind: api.Activate, ID: 1}, api.Activated)
	answered(first)
	offer(2, clients[1])
	say(&api.Message{Kind: api.Forget, ID: 2}, 0)
	late(2, clients[1], syn(clients[1], "81")) // whoever answers does so at once, with a reset
	late(0, clients[0], second)
	answered(second)
}
