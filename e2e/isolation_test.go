//go:build linux

package e2e

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/e2e/watch"
	"github.com/distributed-servers/ds/internal/testbed"
	"github.com/distributed-servers/ds/mobility/wire"
	"github.com/distributed-servers/ds/tun"
)

// Two distributed servers on the same nodes know nothing of each other: a client
// of both is at one node here, at another there.
func TestTwoServers(t *testing.T) {
	if !inside(t, everything...) {
		return
	}
	c := launchAll(t, setup{Clients: 2, Servers: 2}, 0)
	one, two := c.Servers[0], c.Servers[1]
	var captures []*capture
	var lines []*dialogue
	var jobs []*job
	for _, cl := range c.clients {
		captures = append(captures, c.capture(cl.Host, "eth0"))
		for _, d := range c.Servers {
			l := cl.socat(d.Addr.Addr())
			l.expect("hello", "1 a hello")
			lines = append(lines, l)
			jobs = append(jobs, cl.download(d.Addr.Addr(), 2<<20, 1<<20))
		}
	}
	for i, cl := range c.clients {
		c.handoff(one, cl, c.Nodes[1])
		c.handoff(two, cl, c.Nodes[2])
		lines[2*i].expect("there", "2 b there")
		lines[2*i+1].expect("there", "2 c there")
	}
	c.takeOver(two, c.Nodes[1], false)
	for i := range c.clients {
		lines[2*i].expect("still", "3 b still")
		lines[2*i+1].expect("still", "3 c still")
	}
	c.wait(jobs...)
	for _, l := range lines {
		l.bye()
	}
	for _, k := range captures {
		for _, d := range c.Servers {
			k.check(d.Addr.Addr(), watch.Limits{Handoffs: 4, Again: 1 << 20})
		}
	}
}

// An application can send from its own addresses only, by trying: it writes to
// its TUN what it likes.
func TestAnApplicationCannotSendAsAnother(t *testing.T) {
	if !inside(t, everything...) {
		return
	}
	c := start(t, setup{Servers: 2})
	c.ok(c.Configure())
	c.startHomeAgent()
	n, cl := c.Nodes[0], c.clients[0]
	c.startDaemon(n)
	one, two := c.Servers[0], c.Servers[1]
	c.registered(n, one)
	device := c.attach(n, one)

	none := netip.Addr{}
	tries := []struct {
		from, tunnel netip.Addr // tunnel: the packet is in one, from there to the contact
		arrives      bool
	}{
		{n.CareOf(one), none, true},
		{n.CareOf(two), none, false},
		{two.Addr.Addr(), none, false},
		{c.Nodes[1].CareOf(one), none, false},
		{n.Addr, none, false},
		{c.Nodes[1].Addr, none, false},
		{testbed.At(testbed.ServerNet, "::1"), none, false},
		{cl.Addr, none, false},
		{netip.MustParseAddr("2001:db8:ffff::1"), none, false},
		{one.Addr.Addr(), n.CareOf(one), true},
		{two.Addr.Addr(), n.CareOf(one), false},
		{two.Addr.Addr(), n.CareOf(two), false},
		{cl.Addr, n.CareOf(one), false},
		{one.Addr.Addr(), n.CareOf(one), true}, // at last: all before have had their time
	}
	heard := c.listen(cl)
	for i, try := range tries {
		p := datagram(try.from, cl.Addr, firstPort+uint16(i))
		if try.tunnel.IsValid() {
			p = ipv6(try.tunnel, n.Addr, wire.IPv6, p)
		}
		if _, err := device.Write(p); err != nil {
			t.Fatalf("from %s: %v", try.from, err)
		}
	}
	got := make([]bool, len(tries))
	for !got[len(tries)-1] {
		select {
		case port := <-heard:
			if i := int(port) - firstPort; i >= 0 && i < len(got) {
				got[i] = true
			}
		case <-c.ctx.Done():
			t.Fatalf("the last of %d datagrams has not arrived: %v", len(tries), got)
		}
	}
	for i, try := range tries {
		if got[i] != try.arrives {
			t.Errorf("from %s, in a tunnel from %s: arrives %t, want %t", try.from, try.tunnel, got[i], try.arrives)
		}
	}
}

const (
	firstPort   = 1000
	discardPort = 9
)

// listen reports the source ports of datagrams that come to a client.
func (c *cluster) listen(cl *client) <-chan uint16 {
	c.t.Helper()
	var conn *net.UDPConn
	c.ok(cl.Do(func() (err error) {
		conn, err = net.ListenUDP("udp6", &net.UDPAddr{Port: discardPort})
		return err
	}))
	c.t.Cleanup(func() { conn.Close() })
	ports := make(chan uint16, 100)
	go func() {
		b := make([]byte, 100)
		for {
			_, from, err := conn.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			ports <- from.Port()
		}
	}()
	return ports
}

// attach attaches this process to a server, as an application.
func (c *cluster) attach(n *node, d *server) *tun.TUN {
	c.t.Helper()
	ctx, cancel := c.within(patience)
	defer cancel()
	a, err := api.Attach(ctx, n.Socket, d.Addr.Addr(), &api.Message{Kind: api.Hello, Program: "e2e"})
	c.ok(err)
	c.t.Cleanup(a.Close)
	device, err := tun.FromFiles(a.TUN, a.Welcome.Config.MTU)
	c.ok(err)
	c.t.Cleanup(func() { device.Close() })
	return device
}

func ipv6(src, dst netip.Addr, next wire.Protocol, payload []byte) []byte {
	b := append([]byte{6 << 4, 0, 0, 0}, byte(len(payload)>>8), byte(len(payload)), byte(next), 64)
	b = append(b, src.AsSlice()...)
	b = append(b, dst.AsSlice()...)
	return append(b, payload...)
}

// datagram is an empty UDP datagram (RFC 768) to the discard port.
func datagram(src, dst netip.Addr, port uint16) []byte {
	const protoUDP, size = 17, 8
	udp := binary.BigEndian.AppendUint16(nil, port)
	udp = append(udp, 0, discardPort, 0, size, 0, 0)
	sum := uint32(protoUDP + size)
	for _, part := range [][]byte{src.AsSlice(), dst.AsSlice(), udp} {
		for i := 0; i < len(part); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(udp[6:], ^uint16(sum))
	return ipv6(src, dst, protoUDP, udp)
}
