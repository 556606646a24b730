package ds

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
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
	words   *api.Decisions
}

// scripted returns a node of such a daemon.
func scripted(server netip.Addr) (*Node, *script) {
	s := &script{in: make(chan *api.Message), out: make(chan *api.Message, 100), end: make(chan struct{}), answers: make(chan []byte, 100), words: api.NewDecisions()}
	return &Node{Attach: func(context.Context, *api.Message) (*Attachment, error) {
		return &Attachment{
			Session: s, Decisions: s.words.OtherEnd(),
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

// syn is the first packet of a connection; what else the client would send goes
// nowhere.
func syn(t *testing.T, client, server netip.Addr, port string) []byte {
	t.Helper()
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
	go s.Dial("tcp", net.JoinHostPort(server.String(), port)) // until Close
	return <-syns
}

// A client that does not end a handshake keeps itself here: the handoff says so.
func TestHalfOpen(t *testing.T) {
	defer func(d time.Duration) { handshakeTime = d }(handshakeTime)
	handshakeTime = 20 * time.Millisecond
	server, client := netip.MustParseAddr("2001:db8:d::1"), netip.MustParseAddr("2001:db8:1::1")
	n, s := scripted(server)
	defer n.Close()
	if _, err := n.Listen("tcp", ":80"); err != nil {
		t.Fatal(err)
	}
	n.stack.Inject(syn(t, client, server, "80"))
	<-s.answers // the SYN-ACK
	ended := make(chan error, 1)
	go func() {
		_, err := n.Handoff(t.Context(), client, "a", nil)
		ended <- err
	}()
	m := <-s.out
	for ; m.Kind != api.Prepare; m = <-s.out {
	}
	s.in <- &api.Message{Kind: api.Prepared, ID: m.ID}
	var he *HandoffError
	if err := <-ended; !errors.As(err, &he) || he.Stage != StageFreeze || he.Committed || !errors.Is(err, migrate.ErrHandshake) {
		t.Errorf("got %v, want ErrHandshake", err)
	}
	if m := <-s.out; m.Kind != api.Abort {
		t.Errorf("the daemon is told %s", m.Kind)
	}
	again := syn(t, client, server, "80")
	n.stack.Inject(again)
	const source, tunnelled = wire.HeaderLen, 2*wire.HeaderLen + 2 // where its port is, and that of the answer
	for p := <-s.answers; [2]byte(p[tunnelled:]) != [2]byte(again[source:]); p = <-s.answers {
	} // it is served here as before
}

// While a handoff waits for the end of a handshake, the client's other connections are
// served.
func TestServedDuringAHandshake(t *testing.T) {
	defer func(d time.Duration) { handshakeTime = d }(handshakeTime)
	handshakeTime = time.Minute
	server, client := netip.MustParseAddr("2001:db8:d::1"), netip.MustParseAddr("2001:db8:1::1")
	n, s := scripted(server)
	defer n.Close()
	n.Patience = time.Minute
	waits := make(chan struct{}, 1)
	n.Logger = slog.New(slog.NewTextHandler(writerFunc(func(line []byte) {
		if bytes.Contains(line, []byte("a handoff waits")) {
			waits <- struct{}{}
		}
	}), &slog.HandlerOptions{Level: slog.LevelDebug}))
	l, err := n.Listen("tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		if c, err := l.Accept(); err == nil {
			io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
		}
	}()
	peer, err := stack.New(stack.Config{
		Device: tuntest.NewEnd("client", 1500, func(p []byte) { n.stack.Inject(p) }), Addrs: []netip.Addr{client},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	halfOpen := syn(t, client, server, "80")
	answered := make(chan struct{}, 100)
	go func() {
		const source, destination = wire.HeaderLen, wire.HeaderLen + 2 // where the ports are
		for {
			var p []byte
			select {
			case p = <-s.answers:
			case <-t.Context().Done():
				return
			}
			if p = p[wire.HeaderLen:]; [2]byte(p[destination:]) == [2]byte(halfOpen[source:]) {
				answered <- struct{}{} // and the client says nothing to it
			} else {
				peer.Inject(p)
			}
		}
	}()
	c, err := peer.Dial("tcp", net.JoinHostPort(server.String(), "80"))
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(20 * time.Second))
	ping := func() {
		t.Helper()
		b := []byte("served")
		_, err := c.Write(b)
		if err == nil {
			_, err = io.ReadFull(c, b)
		}
		if err != nil {
			t.Error(err)
		}
	}
	ping()
	n.stack.Inject(halfOpen)
	<-answered
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := n.Handoff(ctx, client, "a", func(net.Conn) ([]byte, error) { return nil, nil })
		ended <- err
	}()
	m := <-s.out
	for ; m.Kind != api.Prepare; m = <-s.out {
	}
	s.in <- &api.Message{Kind: api.Prepared, ID: m.ID}
	<-waits
	ping()
	cancel()
	if err := <-ended; !errors.Is(err, migrate.ErrHandshake) && !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

type writerFunc func(b []byte)

func (f writerFunc) Write(b []byte) (int, error) { f(b); return len(b), nil }

// A SYN of a client without connections that came to its donor late is answered by
// the node that has the client now; one that belongs to an offer that has come to
// nothing is not: it may be of a connection that the donor goes on with.
func TestLateSYN(t *testing.T) {
	server := netip.MustParseAddr("2001:db8:d::1")
	clients := []netip.Addr{netip.MustParseAddr("2001:db8:1::1"), netip.MustParseAddr("2001:db8:1::2")}

	syn := func(client netip.Addr, port string) []byte { return syn(t, client, server, port) }

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
		say(&api.Message{Kind: api.Expect, ID: id, Client: client, From: "a", CareOf: netip.MustParseAddr("2001:db8:c::3")}, api.Expected)
		s.words.Put(int(id), id)
		say(&api.Message{Kind: api.Offer, ID: id, Word: int(id), Client: client, From: "a", Snapshot: snapshot}, 0)
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
