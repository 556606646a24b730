package rawip

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"

	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

const (
	protoIPv6   = unix.IPPROTO_IPV6
	socketQueue = 4 << 20 // octets that wait in the kernel for us, or for the link
)

// Tunnel receives the packets of protocol 41, IPv6 in IPv6, that come to a
// local address.
type Tunnel struct {
	conn  *net.IPConn
	pc    *ipv6.PacketConn
	local [16]byte

	messages []ipv6.Message
	buffers  [][]byte // each with room for the header before the payload
	packets  [][]byte
	split    splitter

	stats struct{ packets, octets, coalesced, malformed atomic.Uint64 }
}

// Listen opens the end of tunnels at a local address. It needs CAP_NET_RAW.
func Listen(local netip.Addr) (*Tunnel, error) {
	if !local.Is6() || local.Is4In6() || !local.IsGlobalUnicast() || local.Zone() != "" {
		return nil, fmt.Errorf("rawip: listen: %v is not a global IPv6 address", local)
	}
	conn, err := net.ListenIP("ip6:41", &net.IPAddr{IP: local.AsSlice()})
	if err != nil {
		return nil, openError("listen at "+local.String(), err)
	}
	t := &Tunnel{conn: conn, pc: ipv6.NewPacketConn(conn), local: local.As16()}
	if err := t.configure(); err != nil {
		conn.Close()
		return nil, fmt.Errorf("rawip: listen at %v: %w", local, err)
	}
	return t, nil
}

func (t *Tunnel) configure() error {
	if err := t.pc.SetControlMessage(ipv6.FlagHopLimit|ipv6.FlagTrafficClass, true); err != nil {
		return err
	}
	if err := setQueue(t.conn, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF); err != nil {
		return err
	}
	const oob = 64 // two control messages of 24 octets
	t.messages = make([]ipv6.Message, BatchSize)
	for i := range t.messages {
		b := make([]byte, headerLen+maxPayload)
		t.buffers = append(t.buffers, b)
		t.messages[i] = ipv6.Message{Buffers: [][]byte{b[headerLen:]}, OOB: make([]byte, oob)}
	}
	return nil
}

// ReadBatch waits for packets and returns those that there are: whole, the
// outer header first, which has the flow label 0 whatever it was. They are
// valid until the next call. There may be none. After Close it returns an error
// that is [net.ErrClosed]; any other error is for good too.
//
// Only one goroutine may read.
func (t *Tunnel) ReadBatch() ([][]byte, error) {
	n, err := t.pc.ReadBatch(t.messages, 0)
	if err != nil {
		return nil, fmt.Errorf("rawip: read: %w", err)
	}
	t.packets = t.packets[:0]
	t.split.reset()
	for i := range t.messages[:n] {
		t.take(&t.messages[i], t.buffers[i])
	}
	return t.packets, nil
}

// take makes the packet in buffer whole again.
func (t *Tunnel) take(m *ipv6.Message, buffer []byte) {
	from, ok := m.Addr.(*net.IPAddr)
	if !ok || len(from.IP) != net.IPv6len || m.N < headerLen || m.Flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		t.stats.malformed.Add(1)
		return
	}
	hopLimit, class := controls(m.OOB[:m.NN])
	b := buffer[:headerLen+m.N]
	binary.BigEndian.PutUint32(b, 6<<28|uint32(class)<<20)
	binary.BigEndian.PutUint16(b[4:], uint16(m.N))
	b[6], b[7] = protoIPv6, hopLimit
	copy(b[8:24], from.IP)
	copy(b[24:40], t.local[:])

	t.stats.octets.Add(uint64(len(b)))
	var cut bool
	n := len(t.packets)
	if t.packets, cut = t.split.appendSegments(t.packets, b); cut {
		t.stats.coalesced.Add(1)
	}
	t.stats.packets.Add(uint64(len(t.packets) - n))
}

// controls finds hop limit and traffic class among control messages; what is
// not there is 0.
func controls(oob []byte) (hopLimit, class uint8) {
	for len(oob) >= unix.CmsgLen(0) {
		h, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			return hopLimit, class
		}
		if h.Level == unix.IPPROTO_IPV6 && len(data) >= 4 {
			v := uint8(binary.NativeEndian.Uint32(data))
			switch h.Type {
			case unix.IPV6_HOPLIMIT:
				hopLimit = v
			case unix.IPV6_TCLASS:
				class = v
			}
		}
		oob = rest
	}
	return hopLimit, class
}

// Stats returns what has been received since Listen.
func (t *Tunnel) Stats() TunnelStats {
	return TunnelStats{
		Packets: t.stats.packets.Load(), Octets: t.stats.octets.Load(),
		Coalesced: t.stats.coalesced.Load(), Malformed: t.stats.malformed.Load(),
	}
}

// Close ends the tunnel; a blocked ReadBatch returns. A second call does nothing.
func (t *Tunnel) Close() error { return closeConn(t.conn) }
