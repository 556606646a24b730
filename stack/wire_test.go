package stack_test

import (
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/distributed-servers/ds/stack"
	"github.com/distributed-servers/ds/tun/tuntest"
)

// patience is how long a test waits for what must happen. Nothing takes that
// long; it only ends tests that fail.
const patience = time.Minute

// node is a stack and the device under it, which remembers what passed.
//
//	client ──device──┐ perfect link ┌──device── server
//	                 └──────────────┘
type node struct {
	*stack.Stack
	dev *device
}

// device is an end of an in-memory link that counts.
type device struct {
	*tuntest.End

	mu        sync.Mutex
	changed   sync.Cond
	arrived   int // packets that were put into the queue
	taken     int // that the stack has read
	processed int // and is done with
	in, out   [][]byte
}

func newDevice(name string, mtu int) *device {
	d := &device{End: tuntest.NewEnd(name, mtu, nil)}
	d.changed.L = &d.mu
	return d
}

// arrive queues a packet.
func (d *device) arrive(p []byte) {
	d.mu.Lock()
	d.arrived++
	d.mu.Unlock()
	d.End.Deliver(p)
}

// Read implements tun.Device. The stack comes back for more when it is done
// with the packet before.
func (d *device) Read(p []byte) (int, error) {
	d.mu.Lock()
	d.processed = d.taken
	d.changed.Broadcast()
	d.mu.Unlock()
	n, err := d.End.Read(p)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err == nil {
		d.taken++
		d.in = append(d.in, slices.Clone(p[:n]))
	}
	return n, err
}

// Write implements tun.Device.
func (d *device) Write(p []byte) (int, error) {
	d.mu.Lock()
	d.out = append(d.out, slices.Clone(p))
	d.changed.Broadcast()
	d.mu.Unlock()
	return d.End.Write(p)
}

// wait returns when ok does, which it asks under the lock, after each change.
func (d *device) wait(t testing.TB, what string, ok func() bool) {
	t.Helper()
	late := false
	guard := time.AfterFunc(patience, func() {
		d.mu.Lock()
		late = true
		d.mu.Unlock()
		d.changed.Broadcast()
	})
	defer guard.Stop()
	d.mu.Lock()
	defer d.mu.Unlock()
	for !ok() {
		if late {
			t.Fatalf("%s: waited in vain for %s", d.Name(), what)
		}
		d.changed.Wait()
	}
}

// settle returns when the stack is done with all that has arrived.
func (d *device) settle(t testing.TB) {
	t.Helper()
	d.wait(t, "silence", func() bool { return d.processed == d.arrived })
}

// quiet returns when the stacks have done, too, what follows from what has arrived: the
// acknowledgement of what an application has read may come after it, from a goroutine
// of netstack's.
func quiet(t testing.TB, nodes ...node) {
	t.Helper()
	arrived := func() (all int) {
		for _, n := range nodes {
			n.dev.mu.Lock()
			all += n.dev.arrived
			n.dev.mu.Unlock()
		}
		return all
	}
	for before := -1; before != arrived(); {
		before = arrived()
		for _, n := range nodes {
			n.dev.settle(t)
			n.Netstack().Pause() // what has arrived is processed when this returns
			n.Netstack().Resume()
		}
	}
}

// sent returns the packets written from number n on.
func (d *device) sent(n int) [][]byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.out[n:])
}

func (d *device) received(n int) [][]byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.in[n:])
}

func (d *device) counts() (in, out int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.in), len(d.out)
}

// waitSent waits for a packet like that, written from number n on.
func (d *device) waitSent(t testing.TB, what string, n int, like func([]byte) bool) {
	t.Helper()
	d.wait(t, what, func() bool { return slices.ContainsFunc(d.out[min(n, len(d.out)):], like) })
}

// newNodes returns two nodes on one link; cfg can be changed before.
func newNodes(t testing.TB, change func(client, server *stack.Config)) (client, server node) {
	t.Helper()
	c, s := newDevice("client", 1500), newDevice("server", 1500)
	c.Out, s.Out = s.arrive, c.arrive
	cc := stack.Config{Device: c, Addrs: []netip.Addr{client6, client4}}
	sc := stack.Config{Device: s, Addrs: []netip.Addr{server6, server4}}
	if change != nil {
		change(&cc, &sc)
	}
	start := func(cfg stack.Config, d *device) node {
		n, err := stack.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { n.Close() })
		return node{n, d}
	}
	return start(cc, c), start(sc, s)
}

// bothFamilies runs a test over IPv6 and IPv4.
func bothFamilies(t *testing.T, f func(t *testing.T, server, client netip.Addr)) {
	t.Run("IPv6", func(t *testing.T) { f(t, server6, client6) })
	t.Run("IPv4", func(t *testing.T) { f(t, server4, client4) })
}

// segmentOf is the TCP segment in a packet, nil if there is none.
func segmentOf(p []byte) header.TCP {
	switch {
	case len(p) >= 60 && p[0]>>4 == 6 && p[6] == 6:
		return header.TCP(p[40:])
	case len(p) >= 40 && p[0]>>4 == 4 && p[9] == 6:
		return header.TCP(p[int(p[0]&0xf)*4:])
	}
	return nil
}

func hasFlag(f header.TCPFlags) func([]byte) bool {
	return func(p []byte) bool { s := segmentOf(p); return s != nil && s.Flags().Contains(f) }
}

var (
	isReset = hasFlag(header.TCPFlagRst)
	isFin   = hasFlag(header.TCPFlagFin)
)

func hasData(p []byte) bool { s := segmentOf(p); return s != nil && len(s.Payload()) > 0 }

// tooBig is an ICMP error about a packet: RFC 4443 §3.2 or RFC 1191 §4.
func tooBig(p []byte, mtu int) []byte {
	if p[0]>>4 == 6 {
		from := header.IPv6(p).SourceAddress()
		quote := p[:min(len(p), 1232)]
		b := make([]byte, 40+8+len(quote))
		header.IPv6(b).Encode(&header.IPv6Fields{
			PayloadLength: uint16(len(b) - 40), TransportProtocol: header.ICMPv6ProtocolNumber, HopLimit: 64, SrcAddr: header.IPv6(p).DestinationAddress(), DstAddr: from,
		})
		h := header.ICMPv6(b[40:])
		h.SetType(header.ICMPv6PacketTooBig)
		h.SetMTU(uint32(mtu))
		copy(h[8:], quote)
		h.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{Header: h, Src: header.IPv6(p).DestinationAddress(), Dst: from}))
		return b
	}
	quote := p[:min(len(p), 548)]
	b := make([]byte, 20+8+len(quote))
	ip := header.IPv4(b)
	ip.Encode(&header.IPv4Fields{
		TotalLength: uint16(len(b)), TTL: 64, Protocol: uint8(header.ICMPv4ProtocolNumber), SrcAddr: header.IPv4(p).DestinationAddress(), DstAddr: header.IPv4(p).SourceAddress(),
	})
	ip.SetChecksum(^ip.CalculateChecksum())
	h := header.ICMPv4(b[20:])
	h.SetType(header.ICMPv4DstUnreachable)
	h.SetCode(header.ICMPv4FragmentationNeeded)
	h.SetMTU(uint16(mtu))
	copy(h[8:], quote)
	h.SetChecksum(^checksum.Checksum(h, 0))
	return b
}

// syn is the first packet of a connection.
func syn(from, to netip.AddrPort) []byte { return segment(from, to, header.TCPFlagSyn) }

// segment is one without data.
func segment(from, to netip.AddrPort, flags header.TCPFlags) []byte {
	t := header.TCPFields{SrcPort: from.Port(), DstPort: to.Port(), SeqNum: 1000, DataOffset: 20, Flags: flags, WindowSize: 65535}
	src, dst := tcpip.AddrFrom16(from.Addr().As16()), tcpip.AddrFrom16(to.Addr().As16())
	b := make([]byte, 60)
	header.IPv6(b).Encode(&header.IPv6Fields{PayloadLength: 20, TransportProtocol: header.TCPProtocolNumber, HopLimit: 64, SrcAddr: src, DstAddr: dst})
	h := header.TCP(b[40:])
	h.Encode(&t)
	h.SetChecksum(^h.CalculateChecksum(header.PseudoHeaderChecksum(header.TCPProtocolNumber, src, dst, 20)))
	return b
}

// pattern is an endless stream whose octets tell where they belong.
func pattern(b []byte, offset int) {
	var word [8]byte
	for i := range b {
		o := offset + i
		if i == 0 || o&7 == 0 {
			binary.LittleEndian.PutUint64(word[:], uint64(o>>3+1)*0x9E3779B97F4A7C15)
		}
		b[i] = word[o&7]
	}
}

// send writes the pattern from offset on, and returns how much was taken.
func send(w io.Writer, offset, n int) (int, error) {
	b := make([]byte, min(n, 64<<10))
	done := 0
	for done < n {
		chunk := b[:min(len(b), n-done)]
		pattern(chunk, offset+done)
		m, err := w.Write(chunk)
		done += m
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// receive reads n octets of the pattern.
func receive(r io.Reader, offset, n int) error {
	b, want := make([]byte, 64<<10), make([]byte, 64<<10)
	for n > 0 {
		m, err := r.Read(b[:min(len(b), n)])
		pattern(want[:m], offset)
		for i := range m {
			if b[i] != want[i] {
				return fmt.Errorf("octet %d is %#x: want %#x", offset+i, b[i], want[i])
			}
		}
		offset += m
		n -= m
		if err != nil && n > 0 {
			return fmt.Errorf("at %d: %w", offset, err)
		}
	}
	return nil
}

// mustSend and mustReceive do it on this goroutine.
func mustSend(t testing.TB, w io.Writer, offset, n int) {
	t.Helper()
	if m, err := send(w, offset, n); m != n || err != nil {
		t.Fatalf("send: %d of %d, %v", m, n, err)
	}
}

func mustReceive(t testing.TB, c *stack.Conn, offset, n int) {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if err := receive(c, offset, n); err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
}

// pingPong checks that both directions work.
func pingPong(t testing.TB, a, b *stack.Conn) {
	t.Helper()
	mustSend(t, a, 5, 100)
	mustReceive(t, b, 5, 100)
	mustSend(t, b, 7, 100)
	mustReceive(t, a, 7, 100)
}

// result waits for what a goroutine has to say.
func result[T any](t testing.TB, what string, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatalf("waited in vain for %s", what)
		panic("unreachable")
	}
}
