package kernelro_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/ipv6"

	"github.com/distributed-servers/ds/internal/kernelro"
	"github.com/distributed-servers/ds/internal/netns/netnstest"
	"github.com/distributed-servers/ds/internal/probe"
	"github.com/distributed-servers/ds/mobility/correspondent"
	"github.com/distributed-servers/ds/mobility/wire"
	"github.com/distributed-servers/ds/stack"
	"github.com/distributed-servers/ds/tun"
)

const patience = 20 * time.Second

// bare is this host with an interface whose frames have no header, as WireGuard's: a TUN,
// whose other side is the test's. By it the care-of address is reached.
//
//	one:   kernel ◄── egress, ingress ──► up ◄──► test
//	two:   kernel ──► ro ── egress ─────► up ◄──► test    as in dsco correspondent
//	              ◄── ro ◄──── ingress ──
type bare struct {
	*testing.T
	up *tun.TUN
	k  *kernelro.Kernel
}

// bareWays runs a test on one interface and on two, in namespaces of its own.
func bareWays(t *testing.T, offload bool, test func(w *bare)) {
	if !netnstest.Run(t) {
		return
	}
	probe.Skip(t, probe.TUN, probe.BPF)
	for _, way := range []string{"one", "two"} {
		t.Run(way, func(t *testing.T) { test(newBare(t, offload, way == "two")) })
	}
}

func newBare(t *testing.T, offload, two bool) *bare {
	t.Helper()
	w := &bare{T: t}
	var err error
	w.k, err = kernelro.New(1)
	w.must(err)
	t.Cleanup(func() { w.must(w.k.Close()) })
	homes := []netip.Prefix{netip.PrefixFrom(home, 128)}
	cfg := tun.Config{
		Name: "up%d", Offload: offload,
		Addrs:  []netip.Prefix{netip.PrefixFrom(local, 128)},
		Routes: []netip.Prefix{netip.PrefixFrom(careOf, 128), netip.PrefixFrom(other, 128)},
	}
	if !two {
		cfg.Routes = append(cfg.Routes, homes...)
	}
	var up kernelro.Interface
	w.up, up = w.open(cfg)
	b := kernelro.Binding{CareOf: careOf, MTU: tun.DefaultMTU, Until: kernelro.Now() + time.Hour}
	if two {
		_, ro := w.open(tun.Config{Name: "ro%d", MTU: tun.MaxPacket, Offload: offload, Routes: homes})
		b.Out = up.Index
		w.must(w.k.AttachOut(ro))
		w.must(w.k.AttachIn(up, ro.Index))
	} else {
		w.must(w.k.AttachOut(up))
		w.must(w.k.AttachIn(up, 0))
	}
	w.must(w.k.Bind(local, home, b))
	return w
}

func (w *bare) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *bare) open(c tun.Config) (*tun.TUN, kernelro.Interface) {
	w.Helper()
	dev, err := tun.Open(c)
	w.must(err)
	w.Cleanup(func() { dev.Close() })
	l, err := netlink.LinkByName(dev.Name())
	w.must(err)
	i, err := kernelro.InterfaceOf(l)
	w.must(err)
	if i.L2 != 0 {
		w.Fatalf("%s has headers of %d octets", dev.Name(), i.L2)
	}
	return dev, i
}

// send has a packet come in.
func (w *bare) send(p wire.Packet) []byte {
	w.Helper()
	b, err := p.Append(nil)
	w.must(err)
	_, err = w.up.Write(b)
	w.must(err)
	return b
}

// read is the next packet to leave that is for dst.
func (w *bare) read(dst netip.Addr) []byte {
	w.Helper()
	w.up.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, tun.MaxPacket)
	for {
		n, err := w.up.Read(b)
		w.must(err)
		if p := b[:n]; n >= 40 && p[0]>>4 == 6 && netip.AddrFrom16([16]byte(p[24:40])) == dst {
			return p
		}
	}
}

// datagram is one of UDP with its checksum (RFC 8200 section 8.1).
func datagram(src netip.Addr, from uint16, dst netip.Addr, to uint16, payload string) []byte {
	b := binary.BigEndian.AppendUint16(nil, from)
	b = binary.BigEndian.AppendUint16(b, to)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
	b = append(append(b, 0, 0), payload...)
	s, d := src.As16(), dst.As16()
	sum := uint32(len(b) + 17)
	for _, part := range [][]byte{s[:], d[:], append(bytes.Clone(b), 0)} {
		for ; len(part) > 1; part = part[2:] {
			sum += uint32(binary.BigEndian.Uint16(part))
		}
	}
	sum = sum&0xffff + sum>>16
	sum += sum >> 16
	if sum = ^sum & 0xffff; sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(b[6:], uint16(sum))
	return b
}

// What goes by way of a binding is changed, both ways; what is not for the programs the
// kernel gets as it came.
func TestWithoutFrames(t *testing.T) {
	bareWays(t, false, func(w *bare) {
		c, err := net.ListenUDP("udp6", net.UDPAddrFromAddrPort(netip.AddrPortFrom(local, 0)))
		w.must(err)
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		const port = 7
		here := c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
		pc := ipv6.NewPacketConn(c)
		w.must(pc.SetControlMessage(ipv6.FlagTrafficClass|ipv6.FlagHopLimit, true))
		hears := func(src netip.Addr, hopLimit int, payload string) {
			w.Helper()
			b := make([]byte, tun.MaxPacket)
			n, cm, from, err := pc.ReadFrom(b)
			w.must(err)
			if got := from.(*net.UDPAddr).AddrPort(); got != netip.AddrPortFrom(src, port) || string(b[:n]) != payload || cm.HopLimit != hopLimit || cm.TrafficClass != 0xa8 {
				w.Errorf("from %v, hop limit %d, class %#x: %q; want %q from %v, hop limit %d, class 0xa8", got, cm.HopLimit, cm.TrafficClass, b[:n], payload, src, hopLimit)
			}
		}
		counts := func(out, in uint64) {
			w.Helper()
			if o, i := w.k.Packets(); o != out || i != in {
				w.Errorf("%d packets changed on their way out, %d in: want %d and %d", o, i, out, in)
			}
		}
		from := func(src, homeOption netip.Addr, payload string) wire.Packet {
			p := wire.Packet{
				Src: src, Dst: local, Home: homeOption, TrafficClass: 0xa8, FlowLabel: 0x12345, HopLimit: 33, Protocol: wire.UDP,
			}
			of := src
			if homeOption.IsValid() {
				of = homeOption
			}
			p.Payload = datagram(of, port, local, here, payload)
			return p
		}

		for i, payload := range []string{"in", "", "odd", string(make([]byte, 1000))} {
			w.send(from(careOf, home, payload))
			hears(home, 33, payload)
			counts(0, uint64(i+1))
		}
		w.send(from(other, netip.Addr{}, "as it is"))
		hears(other, 33, "as it is")

		// One from elsewhere the kernel does not know what to do with, and says so of the
		// packet as it came (RFC 6275 section 9.3.1 has the machine say so better).
		b := w.send(from(other, home, "forged"))
		p, err := wire.ParsePacket(w.read(other))
		w.must(err)
		m, err := wire.ParseICMP(&p)
		w.must(err)
		if e, ok := m.(*wire.ICMPError); !ok || e.Kind != wire.ParameterProblem || !bytes.Equal(e.Quoted, b) {
			w.Errorf("answer to\n%x\n%+v", b, m)
		}
		counts(0, 4)

		machine := machine(t)
		for i, payload := range []string{"out", "", string(make([]byte, 1000))} {
			_, err := c.WriteToUDPAddrPort([]byte(payload), netip.AddrPortFrom(home, port))
			w.must(err)
			got := w.read(careOf)
			plain, err := (&wire.Packet{
				Src: local, Dst: home, FlowLabel: binary.BigEndian.Uint32(got) & 0xfffff, HopLimit: got[7],
				Protocol: wire.UDP, Payload: datagram(local, here, home, port, payload),
			}).Append(nil)
			w.must(err)
			want := machine.Step(time.Second, correspondent.Transmit{Packet: plain}).Send
			if len(want) != 1 || !bytes.Equal(got, want[0]) {
				w.Errorf("of        %x\nthe kernel made\n          %x\nthe machine\n          %x", plain, got, want)
			}
			counts(uint64(i+1), 4)
		}
	})
}

// Kernel TCP has a connection with a mobile node, super-packets and all.
func TestStreamsWithoutFrames(t *testing.T) {
	bareWays(t, true, func(w *bare) {
		node, err := stack.New(stack.Config{
			Device: w.up, Addrs: []netip.Addr{home}, Mobile: &stack.Mobile{Home: home, CareOf: careOf},
		})
		w.must(err)
		defer node.Close()
		node.Bind(local)
		l, err := node.Listen("tcp", ":7")
		w.must(err)
		const octets = 2 << 20
		stream := make([]byte, octets)
		for i := range stream {
			stream[i] = byte(i * i >> 9)
		}
		// Both send it at once.
		exchange := func(c net.Conn) error {
			defer c.Close()
			c.SetDeadline(time.Now().Add(patience))
			written := make(chan error, 1)
			go func() {
				_, err := c.Write(stream)
				written <- err
			}()
			got := make([]byte, octets)
			_, err := io.ReadFull(c, got)
			if err == nil && !bytes.Equal(got, stream) {
				err = errors.New("what came is not what was sent")
			}
			return errors.Join(err, <-written)
		}
		done := make(chan error, 1)
		go func() {
			c, err := l.Accept()
			if err == nil {
				err = exchange(c)
			}
			done <- err
		}()
		c, err := net.DialTimeout("tcp", netip.AddrPortFrom(home, 7).String(), patience)
		w.must(err)
		if got := c.LocalAddr().(*net.TCPAddr).AddrPort().Addr(); got != local {
			w.Errorf("from %v", got)
		}
		w.must(errors.Join(exchange(c), <-done))
		const wires = octets / tun.DefaultMTU
		if out, in := w.k.Packets(); out == 0 || in == 0 || out+in > wires {
			w.Errorf("%d packets out and %d in, of %d as long as the wire's each way", out, in, wires)
		}
	})
}
