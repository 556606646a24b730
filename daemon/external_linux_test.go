package daemon

import (
	"bytes"
	"context"
	"io"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/gopacket/gopacket/pcapgo"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/daemon/rawip"
	"github.com/distributed-servers/ds/internal/netns/netnstest"
	"github.com/distributed-servers/ds/internal/netns/topology"
	"github.com/distributed-servers/ds/internal/probe"
	"github.com/distributed-servers/ds/mobility/wire"
	"github.com/distributed-servers/ds/tun"
)

// The tunnel to the home agent is somebody else's interface: here a pair of
// virtual Ethernet interfaces stands in for what mip6d would have made, so that
// packets are on it as they would come out of the tunnel.
//
//	h (home agent, client) ── mip6 ══ mip6 ── a ── TUN: the test as application
func TestExternalTunnel(t *testing.T) {
	probe.Skip(t, probe.TUN)
	probe.Skip(t, probe.NFQueue)
	probe.Skip(t, probe.Program("ip6tables"))
	if !netnstest.Run(t) {
		return
	}
	s := newScene(t, `tunnel = "mip6d"`, `tunnel_interface = "mip6"`, `offload = false`)
	h, err := s.net.Host("h")
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.net.Connect(
		topology.End{Host: h, Name: "mip6", Addrs: []netip.Prefix{netip.MustParsePrefix("2001:db8:f::1/64")}},
		topology.End{Host: s.hosts["a"], Name: "mip6", Addrs: []netip.Prefix{netip.MustParsePrefix("2001:db8:f::2/64")}})
	if err != nil {
		t.Fatal(err)
	}
	dsa, client := netip.MustParseAddr("2001:db8:1::1"), netip.MustParseAddr("2001:db8:c::1")
	if err := h.Route(netip.PrefixFrom(dsa, 128), netip.MustParseAddr("2001:db8:f::2")); err != nil {
		t.Fatal(err)
	}
	// By an ip6tnl nothing would have to be resolved.
	if err := s.hosts["a"].Route(netip.PrefixFrom(client, 128), netip.MustParseAddr("2001:db8:f::1")); err != nil {
		t.Fatal(err)
	}
	s.start("a")
	s.until("a", api.EventStarted, "")

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	attached, err := api.Attach(ctx, s.api("a").Socket, dsa, &api.Message{Kind: api.Hello, Program: "test"})
	if err != nil {
		t.Fatal(err)
	}
	defer attached.Close()
	dev, err := tun.FromFiles(attached.TUN, attached.Welcome.Config.MTU)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	context.AfterFunc(ctx, func() { dev.Close() })

	var out *rawip.Sender
	if err := h.Do(func() (err error) { out, err = rawip.NewSender(); return err }); err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	question := wire.Packet{Src: client, Dst: dsa, HopLimit: 64, Protocol: wire.UDP, Payload: []byte{0, 7, 0, 9, 0, 12, 0, 0, 'a', 's', 'k', '!'}}
	b, err := question.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	careOf, daemon := netip.MustParseAddr("2001:db8:2:1::1"), netip.MustParseAddr("2001:db8:2::1")
	// Again and again: it may get lost on its way, as on any network.
	arrived, resent := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(resent)
		for again := time.NewTicker(time.Second); ; {
			out.Send(b)
			select {
			case <-again.C:
			case <-arrived:
				again.Stop()
				return
			}
		}
	}()
	stop := sync.OnceFunc(func() { close(arrived); <-resent })
	defer stop()
	var got wire.Packet
	for buf := make([]byte, 2000); ; {
		n, err := dev.Read(buf)
		if err != nil {
			t.Fatalf("the application's interface: %v", err)
		}
		if got, err = wire.ParsePacket(buf[:n]); err == nil && got.Protocol == wire.IPv6 {
			break
		}
	}
	stop()
	inner, err := got.Inner()
	if err != nil {
		t.Fatal(err)
	}
	p, err := wire.ParsePacket(inner)
	if err != nil || got.Src != daemon || got.Dst != careOf || p.Src != client || p.Dst != dsa || !bytes.Equal(p.Payload, question.Payload) {
		t.Fatalf("the application gets %+v in %+v, %v", p, got, err)
	}

	// And back.
	var file bytes.Buffer
	capture, err := h.Capture("mip6", &file)
	if err != nil {
		t.Fatal(err)
	}
	answer := wire.Packet{Src: dsa, Dst: client, HopLimit: 64, Protocol: wire.UDP, Payload: []byte{0, 9, 0, 7, 0, 12, 0, 0, 'y', 'e', 's', '.'}}
	if b, err = answer.Append(nil); err != nil {
		t.Fatal(err)
	}
	if b, err = wire.AppendTunnel(nil, careOf, daemon, b); err != nil {
		t.Fatal(err)
	}
	if _, err := dev.Write(b); err != nil {
		t.Fatal(err)
	}
	for found := false; !found; {
		if ctx.Err() != nil {
			t.Fatal("the answer does not leave by the tunnel")
		}
		if err := capture.Stop(); err != nil {
			t.Fatal(err)
		}
		found = captured(t, &file, answer)
		if !found {
			if capture, err = h.Capture("mip6", &file); err != nil {
				t.Fatal(err)
			}
			if _, err := dev.Write(b); err != nil {
				t.Fatal(err)
			}
		}
	}

	// Nobody registers.
	if st, err := s.api("a").Status(ctx); err != nil || !st.Servers[0].Registered.IsZero() {
		t.Errorf("status: %+v, %v", st, err)
	}
	if err := s.nodes["a"].Stop(patience); err != nil {
		t.Error(err)
	}
	rules, err := s.hosts["a"].Command(t.Context(), "ip", "-6", "rule").Output()
	if err != nil || bytes.Contains(rules, []byte("mip6")) {
		t.Errorf("left behind: %s, %v", rules, err)
	}
}

// captured tells whether a packet is in a capture.
func captured(t *testing.T, file io.Reader, want wire.Packet) bool {
	t.Helper()
	r, err := pcapgo.NewNgReader(file, pcapgo.DefaultNgReaderOptions)
	if err != nil {
		t.Fatal(err)
	}
	for {
		b, _, err := r.ReadPacketData()
		if err == io.EOF {
			return false
		}
		if err != nil {
			t.Fatal(err)
		}
		if p, err := wire.ParsePacket(b); err == nil && p.Src == want.Src && p.Dst == want.Dst && bytes.Equal(p.Payload, want.Payload) {
			return true
		}
	}
}
