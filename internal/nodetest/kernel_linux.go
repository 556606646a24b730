package nodetest

import (
	"encoding/binary"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/distributed-servers/ds/daemon/rawip"
	"github.com/distributed-servers/ds/mobility/node"
	"github.com/distributed-servers/ds/mobility/wire"
	"github.com/distributed-servers/ds/tun"
)

// NewKernel starts a node whose connections are the kernel's: what comes to the
// care-of address is translated and given back to the kernel, whose own address
// the home address is, super-packets whole. So the other end is as fast as can
// be when a role is measured.
func NewKernel(cfg Config) (*Node, error) {
	n := newNode(cfg)
	n.bound = make(map[netip.Addr]bool)
	err := cfg.Host.Do(func() (err error) {
		const table = 100
		n.dev, err = tun.Open(tun.Config{Routes: []netip.Prefix{netip.PrefixFrom(cfg.CareOf, 128)}, MTU: tun.MaxPacket, Offload: true})
		if err != nil {
			return err
		}
		link, err := netlink.LinkByName(n.dev.Name())
		if err != nil {
			return err
		}
		// Room for tunnel and Home Address option.
		err = netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Table: table, MTU: 1500 - wire.TunnelLen - wire.HomeAddressLen,
			Dst: &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}})
		if err != nil {
			return err
		}
		rule := netlink.NewRule()
		rule.Family, rule.Table, rule.Src = unix.AF_INET6, table, &net.IPNet{IP: cfg.Home.Addr().AsSlice(), Mask: net.CIDRMask(128, 128)}
		return netlink.RuleAdd(rule)
	})
	if err == nil {
		err = cfg.Host.AddAddr("lo", netip.PrefixFrom(cfg.Home.Addr(), 128))
	}
	if err == nil {
		err = n.startMachine()
	}
	if err != nil {
		if n.dev != nil {
			n.dev.Close()
		}
		return nil, err
	}
	go n.translate()
	l, err := cfg.Host.Listen("tcp", netip.AddrPortFrom(cfg.Home.Addr(), Port).String())
	if err != nil {
		n.dev.Close()
		return nil, err
	}
	n.listener = l
	go Serve(l)
	return n, nil
}

// translate does until Close what the shim of a netstack does.
func (n *Node) translate() {
	home, careOf := n.cfg.Home.Addr().As16(), n.cfg.CareOf.As16()
	b := make([]byte, tun.HeaderRoom+tun.MaxPacket)
	out := make([]byte, 0, 2*tun.MaxPacket)
	var cutter rawip.Cutter
	for {
		p, o, err := n.dev.ReadPacket(0, b, true)
		if err != nil {
			return
		}
		if len(p) < wire.HeaderLen || p[24] == 0xff {
			continue
		}
		toNode, fromNode := [16]byte(p[24:40]) == careOf, [16]byte(p[8:24]) == home
		switch {
		case toNode && wire.Protocol(p[6]) == wire.Routing && len(p) >= wire.HeaderLen+wire.RoutingLen && wire.Protocol(p[wire.HeaderLen]) != wire.Mobility:
			out = append(append(out[:0], p[:wire.HeaderLen]...), p[wire.HeaderLen+wire.RoutingLen:]...)
			out[6] = p[wire.HeaderLen]
			copy(out[24:], home[:])
			n.write(out, shift(o, -wire.RoutingLen))
		case toNode && wire.Protocol(p[6]) == wire.IPv6 && len(p) >= 2*wire.HeaderLen && wire.Protocol(p[wire.HeaderLen+6]) != wire.Mobility:
			n.write(p[wire.HeaderLen:], shift(o, -wire.HeaderLen))
		case toNode:
			n.Step(node.Received{Packet: p})
		case fromNode && n.isBound(netip.AddrFrom16([16]byte(p[24:40]))):
			out = append(out[:0], p[:wire.HeaderLen]...)
			out = append(out, p[6], 2, 1, 2, 0, 0, 0xc9, 16) // PadN, Home Address option
			out = append(append(out, home[:]...), p[wire.HeaderLen:]...)
			out[6] = byte(wire.DestOptions)
			copy(out[8:], careOf[:])
			n.write(out, shift(o, wire.HomeAddressLen))
		case fromNode:
			packets := [][]byte{p}
			if o.SegmentSize > 0 {
				packets = cutter.Cut(p, rawip.Cut{TCP: int(o.SumAt), Size: int(o.SegmentSize), Src: home, Dst: [16]byte(p[24:40])})
			} else if o.Partial {
				rawip.CompleteChecksum(p, int(o.SumAt), int(o.SumOffset))
			}
			for _, p := range packets {
				if out, err = wire.AppendTunnel(out[:0], n.cfg.CareOf, n.cfg.HomeAgent, p); err == nil {
					n.write(out, tun.Offload{})
				}
			}
		}
	}
}

// shift is o for a packet whose transport header is n octets further on.
func shift(o tun.Offload, n int) tun.Offload {
	if o.Partial {
		o.SumAt += uint16(n)
	}
	return o
}

func (n *Node) write(p []byte, o tun.Offload) {
	binary.BigEndian.PutUint16(p[4:], uint16(len(p)-wire.HeaderLen))
	if o.Partial {
		o.HeaderSize = o.SumAt + 4*uint16(p[o.SumAt+12]>>4)
	}
	_ = n.dev.WritePacket(0, o, [][]byte{p}) // lost, if the interface is down
}

func (n *Node) isBound(client netip.Addr) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.bound[client]
}
