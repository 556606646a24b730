package rawip

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// Sender sends whole IPv6 packets, headers included, from any source. They go
// where their destination is routed; nothing in them is changed. Several
// goroutines may use it.
//
// A packet that cannot be sent is counted and gone, as on a network.
type Sender struct {
	conn *net.IPConn
	pc   *ipv6.PacketConn
	pool sync.Pool // *[BatchSize]ipv6.Message

	bySource bool // the messages have control messages with the source

	stats struct{ sent, octets, tooBig, unreachable, full, denied, failed atomic.Uint64 }
}

// NewSender opens a Sender. It needs CAP_NET_RAW.
func NewSender() (*Sender, error) {
	// Of IPPROTO_RAW, so that headers are ours and nothing is received.
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return nil, openError("open sender", os.NewSyscallError("socket", err))
	}
	f := os.NewFile(uintptr(fd), "rawip")
	pc, err := net.FilePacketConn(f) // of a duplicate
	f.Close()
	if err != nil {
		return nil, fmt.Errorf("rawip: open sender: %w", err)
	}
	conn, ok := pc.(*net.IPConn)
	if !ok {
		pc.Close()
		return nil, fmt.Errorf("rawip: open sender: a raw socket is a %T", pc)
	}
	if err := setQueue(conn, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF); err != nil {
		conn.Close()
		return nil, fmt.Errorf("rawip: open sender: %w", err)
	}
	s := &Sender{conn: conn, pc: ipv6.NewPacketConn(conn)}
	s.pool.New = func() any {
		m := new([BatchSize]ipv6.Message)
		for i := range m {
			m[i] = ipv6.Message{Buffers: make([][]byte, 1), Addr: &net.IPAddr{IP: make(net.IP, net.IPv6len)}}
			if s.bySource {
				m[i].OOB = (&ipv6.ControlMessage{Src: net.IPv6unspecified}).Marshal()
			}
		}
		return m
	}
	return s, nil
}

// sourceAt is where the source is in a control message of that alone (IPV6_PKTINFO).
var sourceAt = unix.CmsgLen(0)

// BySource has packets routed by their source, too, as those of the host's own
// programs are: by rules that look at it. The kernel routes them as packets of no source
// otherwise, and looks for one among all addresses that the host has, which with a hundred
// of them takes half of a packet's time. It must be called before anything is sent.
func (s *Sender) BySource() error {
	err := control(s.conn, func(fd int) error {
		// For sources that are not the host's.
		return os.NewSyscallError("IPV6_FREEBIND", unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1))
	})
	if err != nil {
		return openError("send by source", err)
	}
	s.bySource = true
	return nil
}

// SetMark makes all packets carry a mark, which routing rules and packet filters
// see (SO_MARK). It needs CAP_NET_ADMIN.
func (s *Sender) SetMark(mark uint32) error {
	err := control(s.conn, func(fd int) error {
		return os.NewSyscallError("SO_MARK", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark)))
	})
	if err != nil {
		return openError(fmt.Sprintf("set mark %#x", mark), err)
	}
	return nil
}

// SetInterface makes all packets leave by an interface, whatever other routes
// there are: destinations must be on its link, or reached through it. Packets to
// multicast groups are not heard by this host itself.
func (s *Sender) SetInterface(name string) error {
	err := control(s.conn, func(fd int) error {
		if err := unix.BindToDevice(fd, name); err != nil {
			return os.NewSyscallError("SO_BINDTODEVICE", err)
		}
		return os.NewSyscallError("IPV6_MULTICAST_LOOP", unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_LOOP, 0))
	})
	if err != nil {
		return openError("send by "+name, err)
	}
	return nil
}

// Send sends packets in order. It does not keep them. It waits while the
// socket's own queue is full.
func (s *Sender) Send(packets ...[]byte) {
	for len(packets) > 0 {
		n := min(len(packets), BatchSize)
		s.sendBatch(packets[:n])
		packets = packets[n:]
	}
}

func (s *Sender) sendBatch(packets [][]byte) {
	m := s.pool.Get().(*[BatchSize]ipv6.Message)
	defer s.pool.Put(m)
	n := 0
	for _, p := range packets {
		if len(p) < headerLen || p[0]>>4 != 6 {
			s.stats.failed.Add(1)
			continue
		}
		m[n].Buffers[0] = p
		copy(m[n].Addr.(*net.IPAddr).IP, p[24:40])
		if s.bySource {
			copy(m[n].OOB[sourceAt:], p[8:24])
		}
		n++
	}
	for rest := m[:n]; len(rest) > 0; {
		sent, err := s.pc.WriteBatch(rest, 0)
		if sent > 0 {
			s.sent(rest[:sent])
			rest = rest[sent:]
			continue
		}
		s.count(err)
		rest = rest[1:]
	}
	for i := range m[:n] {
		m[i].Buffers[0] = nil
	}
}

func (s *Sender) sent(messages []ipv6.Message) {
	octets := 0
	for i := range messages {
		octets += len(messages[i].Buffers[0])
	}
	s.stats.sent.Add(uint64(len(messages)))
	s.stats.octets.Add(uint64(octets))
}

// count counts a packet that could not be sent.
func (s *Sender) count(err error) {
	c := &s.stats.failed
	switch {
	case errors.Is(err, unix.EMSGSIZE):
		c = &s.stats.tooBig
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EADDRNOTAVAIL),
		errors.Is(err, unix.ENETDOWN), errors.Is(err, unix.ENODEV):
		c = &s.stats.unreachable
	case errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ENOMEM):
		c = &s.stats.full
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		c = &s.stats.denied
	}
	c.Add(1)
}

// Stats returns what has become of all packets so far.
func (s *Sender) Stats() SenderStats {
	return SenderStats{
		Sent: s.stats.sent.Load(), Octets: s.stats.octets.Load(),
		TooBig: s.stats.tooBig.Load(), Unreachable: s.stats.unreachable.Load(),
		Full: s.stats.full.Load(), Denied: s.stats.denied.Load(), Failed: s.stats.failed.Load(),
	}
}

// Close closes the socket. What is sent afterwards is counted as failed. A
// second call does nothing.
func (s *Sender) Close() error { return closeConn(s.conn) }

// Batch collects packets for a [Sender], copying them, until there are enough
// for a system call: machines' packets are theirs until the next step. It is
// for one goroutine.
type Batch struct {
	s       *Sender
	arena   []byte
	packets [][]byte
}

// arenaLen has room for a batch of packets of usual length; one that does not
// fit goes by itself.
const arenaLen = BatchSize * 2048

// NewBatch returns an empty batch.
func (s *Sender) NewBatch() *Batch {
	return &Batch{s: s, arena: make([]byte, 0, arenaLen), packets: make([][]byte, 0, BatchSize)}
}

// Add adds copies of packets. A full batch is sent.
func (b *Batch) Add(packets ...[]byte) {
	for _, p := range packets {
		if !b.room(len(p)) {
			b.s.Send(p)
			continue
		}
		n := len(b.arena)
		b.arena = append(b.arena, p...)
		b.packets = append(b.packets, b.arena[n:])
	}
}

// AddCut adds a copy of the super-packet p as packets of the wire. What cannot be
// cut is counted as failed.
func (b *Batch) AddCut(p []byte, c Cut) {
	cutter, ok := c.of(p)
	if !ok {
		b.s.stats.failed.Add(1)
		return
	}
	for n := cutter.next(); n > 0; n = cutter.next() {
		if !b.room(n) {
			b.s.stats.tooBig.Add(1)
			return
		}
		at := len(b.arena)
		b.arena = cutter.append(b.arena)
		b.packets = append(b.packets, b.arena[at:])
	}
}

// room makes room for one more packet of n octets; false: there is none even in
// an empty batch.
func (b *Batch) room(n int) bool {
	if len(b.packets) == BatchSize || len(b.arena)+n > cap(b.arena) {
		b.Flush()
	}
	return n <= cap(b.arena)
}

// Flush sends what has been added.
func (b *Batch) Flush() {
	b.s.Send(b.packets...)
	b.packets, b.arena = b.packets[:0], b.arena[:0]
}
