package stack

import (
	"encoding/binary"
	"runtime"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	gstack "gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"github.com/distributed-servers/ds/tun"
)

// A packet's way in:
//
//	device ─► shim ─► filter ─► coalescer ─► netstack
//	                    │
//	                    └─ cut up, with whole checksums ─► a hold, another node
//
// A super-packet goes it as it is: it is cut up again only for a hold and for
// other nodes, on whose way its segments must fit.

// arrived is a packet from the device.
type arrived struct {
	p []byte
	worth
}

// worth is what is known of a packet and its segments.
type worth struct {
	late     bool // a peer has forwarded it
	early    bool // it came by a binding that the shim has not been told of
	direct   bool // it came by a binding
	partial  bool // the TCP checksum has only the pseudo-header's part, which may be wrong: nobody is to look
	verified bool // the TCP checksum is right
	size     int  // if not 0, a super-packet: the payload of each segment but the last
}

const (
	// maxBatch is how many packets a reader takes before it passes them on.
	maxBatch = 64
	// trainSize is the size from which a packet is probably one of a train, so
	// that it is worth to look for others.
	trainSize = 1000
)

// reader moves the packets of a queue of the device inward.
type reader struct {
	link   *link
	queue  int
	room   int // for one packet
	arena  []byte
	batch  []arrived
	merger coalescer
}

func newReader(l *link, queue int) *reader {
	r := &reader{link: l, queue: queue, room: tun.HeaderRoom + l.dev.MTU(), batch: make([]arrived, 0, maxBatch)}
	size := maxBatch * r.room
	switch _, simple := l.dev.(*simpleDevice); {
	case simple:
		size = r.room
	case l.dev.Offloads():
		r.room = tun.HeaderRoom + tun.MaxPacket
		size = max(size, 2*r.room)
	}
	r.arena = make([]byte, size)
	return r
}

// run ends when the device does, or when its deadline has passed.
func (r *reader) run() {
	for r.read(true) == nil {
		r.pass()
	}
}

// more passes on what can be read without waiting.
func (r *reader) more() {
	if r.read(false) == nil {
		r.pass()
	}
}

// pass passes a batch on.
func (r *reader) pass() {
	small := len(r.batch) == 1 && len(r.batch[0].p) < trainSize
	r.link.arrive(r.batch, &r.merger)
	if small {
		// A request may be answered before we look for the next one, which
		// then is there: else we would look in vain and have to be woken.
		runtime.Gosched()
	}
}

// read takes a packet, waiting for it if wait is set, and those that came close behind
// it, which may belong together. The batch may be empty if not.
func (r *reader) read(wait bool) error {
	free := r.arena
	r.batch = r.batch[:0]
	for {
		p, o, err := r.link.dev.ReadPacket(r.queue, free, wait && len(r.batch) == 0)
		switch {
		case err != nil && len(r.batch) == 0:
			return err
		case err != nil || p == nil: // an error comes again
			return nil
		}
		r.batch = append(r.batch, arrived{p, worthOf(p, o)})
		free = free[tun.HeaderRoom+len(p):]
		if len(p) < trainSize || o.SegmentSize != 0 || len(r.batch) == maxBatch || len(free) < r.room {
			return nil
		}
	}
}

// worthOf takes over what the device knows of a packet. Checksums other than
// TCP's it completes.
func worthOf(p []byte, o tun.Offload) worth {
	if o.Partial && o.SumOffset != header.TCPChecksumOffset {
		if at := int(o.SumAt); at+int(o.SumOffset)+2 <= len(p) {
			binary.BigEndian.PutUint16(p[at+int(o.SumOffset):], ^checksum.Checksum(p[at:], 0))
		}
		o.Partial = false
	}
	return worth{partial: o.Partial, verified: o.Verified, size: int(o.SegmentSize)}
}

// arrive takes packets from the device. It uses up the slice.
func (l *link) arrive(batch []arrived, merger *coalescer) {
	if l.shim != nil {
		kept := batch[:0]
		for _, a := range batch {
			q, is := l.shim.inbound(a.p)
			if is == signal && l.shim.signalling != nil {
				l.shim.signalling(a.p)
			}
			if q != nil {
				a.late, a.early, a.direct = is == late, is == early, is == early || is == direct
				kept = append(kept, arrived{q, a.worth})
			}
		}
		batch = kept
	}
	l.receive(batch, merger)
}

// receive takes packets from the shim. It uses up the slice.
func (l *link) receive(batch []arrived, merger *coalescer) {
	var away []func()
	kept := batch[:0]
	l.filter.deliver.RLock()
	for _, a := range batch {
		taken, forward := l.filter.inbound(a)
		switch {
		case taken:
		case a.late && l.strayed(a.p):
			l.shim.dropped.late.Add(1)
		case a.early && !l.serves(a.p) && !l.welcomes(a.p):
			l.shim.dropped.unbound.Add(1)
		default:
			kept = append(kept, a)
		}
		if forward != nil {
			// Not with the lock: it may end in another stack's, and call us.
			away = append(away, func() {
				a.each(func(p []byte) {
					if p = hop(p); p != nil {
						forward(p)
					}
				})
			})
		}
	}
	for _, a := range merger.merge(kept) {
		l.pass(a)
	}
	l.filter.deliver.RUnlock()
	for _, forward := range away {
		forward()
	}
}

// strayed tells whether a packet is a segment that the netstack would answer with
// a reset: it is for no connection here. Of a peer's stragglers we cannot tell
// whether a connection has ended or lives elsewhere: those that were here before
// an application was started anew may have moved on, and only their filters knew.
func (l *link) strayed(p []byte) bool {
	ep, ok := l.endpoint(p)
	if !ok {
		return false // nor does it answer that: ICMP errors, fragments but the first
	}
	return ep == nil || listens(ep) && !begins(p) // a listener knows of none under way
}

// serves tells whether a packet is a segment of a connection that is here. When a client
// has accepted our Binding Update, what it sends may be faster than the word that it
// was sent.
func (l *link) serves(p []byte) bool {
	t, ok := InboundTuple(p)
	return ok && l.lives(t)
}

// welcomes tells whether a packet begins a connection that somebody here waits for. A
// client keeps its binding for minutes, also when application and daemon have ended
// meanwhile, and nobody here knows of it any more.
func (l *link) welcomes(p []byte) bool {
	ep, _ := l.endpoint(p)
	return ep != nil && listens(ep) && begins(p)
}

// lives tells whether a connection is here, perhaps in the middle of its handshake.
func (l *link) lives(t Tuple) bool {
	ep := l.endpointOf(t)
	return ep != nil && !listens(ep)
}

// endpoint is which endpoint a segment is for, nil if there is none; ok is false if the
// packet is none.
func (l *link) endpoint(p []byte) (ep gstack.TransportEndpoint, ok bool) {
	t, ok := InboundTuple(p)
	if !ok {
		return nil, false
	}
	return l.endpointOf(t), true
}

func (l *link) endpointOf(t Tuple) gstack.TransportEndpoint {
	return l.ns.FindTransportEndpoint(protocolOf(t.Local.Addr()), tcp.ProtocolNumber, gstack.TransportEndpointID{
		LocalPort: t.Local.Port(), LocalAddress: toAddress(t.Local.Addr()),
		RemotePort: t.Remote.Port(), RemoteAddress: toAddress(t.Remote.Addr()),
	}, nicID)
}

func listens(ep gstack.TransportEndpoint) bool {
	e, ok := ep.(*tcp.Endpoint)
	return ok && e.EndpointState() == tcp.StateListen
}

// begins tells whether a TCP segment is the first of a connection.
func begins(p []byte) bool {
	_, _, _, segment, _, _ := parseIP(p)
	if len(segment) < header.TCPMinimumSize {
		return false
	}
	const mask = header.TCPFlagSyn | header.TCPFlagAck | header.TCPFlagRst
	return header.TCP(segment).Flags()&mask == header.TCPFlagSyn
}

// each calls f with the packets that a is on a wire: its segments, with whole
// checksums. f must not keep what it gets.
func (a arrived) each(f func(p []byte)) {
	if !a.partial && a.size == 0 {
		f(a.p)
		return
	}
	size := a.size
	if size == 0 {
		size = len(a.p)
	}
	var g segmenter
	if !g.start(append(make([]byte, shimHeadroom, shimHeadroom+len(a.p)), a.p...), size) {
		return // nothing but TCP can be one
	}
	for q := g.next(); q != nil; q = g.next() {
		f(q[shimHeadroom:])
	}
}

// fitting is a packet that may be larger than others on the link, such as one
// that the netstack had received whole and not looked at, so that each cuts it up.
func (l *link) fitting(p []byte) arrived {
	a := arrived{p: p}
	if mtu := int(l.MTU()); len(p) > mtu {
		a.size = mtu - ip6Size - header.TCPHeaderMaximumSize
	}
	return a
}

// pass hands a packet to the netstack, past the filter, whose acknowledgement can wait if
// it is something small.
func (l *link) pass(a arrived) {
	if l.acks != nil && a.size == 0 {
		l.acks.arrived(a.p)
	}
	l.deliver(a)
}

// deliver hands a packet to the netstack.
func (l *link) deliver(a arrived) {
	p := a.p
	if len(p) == 0 || l.deliverSmallMTU(p) {
		return
	}
	version := p[0] >> 4
	if a.partial || a.verified {
		if isTCP(p) {
			pkt := gstack.NewPacketBuffer(gstack.PacketBufferOptions{Payload: chunks(p)})
			pkt.RXChecksumValidated = true
			// Not through the interface, for which either all checksums are
			// checked or none.
			l.network[int(6-version)/2].HandlePacket(pkt)
			pkt.DecRef()
			return
		}
		if a.partial {
			a.each(func(q []byte) { l.deliver(arrived{p: q}) })
			return
		}
	}
	var proto tcpip.NetworkProtocolNumber
	switch version {
	case 6:
		proto = ipv6.ProtocolNumber
	case 4:
		proto = ipv4.ProtocolNumber
	default:
		return
	}
	pkt := gstack.NewPacketBuffer(gstack.PacketBufferOptions{Payload: chunks(p)})
	l.dispatcher.DeliverNetworkPacket(proto, pkt)
	pkt.DecRef()
}

// isTCP tells whether a packet is a TCP segment and nothing but, so that a
// check of the TCP checksum is all that the netstack may leave out.
func isTCP(p []byte) bool {
	switch p[0] >> 4 {
	case 6:
		return len(p) >= ip6Size+header.TCPMinimumSize && p[6] == nextTCP
	case 4:
		if len(p) < header.IPv4MinimumSize+header.TCPMinimumSize || p[9] != nextTCP {
			return false
		}
		h := header.IPv4(p)
		return int(h.HeaderLength()) <= len(p) && h.IsChecksumValid() && !h.More() && h.FragmentOffset() == 0
	}
	return false
}

// The netstack's buffers have sizes of powers of two, up to 64 KiB, and are zeroed
// before use.
const (
	// chunkSize is the size of the largest: in a single one, a packet of 33 KiB
	// would cost as much as one of 64.
	chunkSize = 32 << 10
	// headerSize is that of the first, with the headers: the netstack copies the
	// buffer in which it looks at them, since it has two owners by then.
	headerSize = 128
)

// chunks copies a packet to the netstack's memory.
func chunks(p []byte) (b buffer.Buffer) {
	n := len(p)
	if n > 2*headerSize {
		n = headerSize
	}
	for len(p) > 0 {
		b.Append(buffer.NewViewWithData(p[:n]))
		p = p[n:]
		n = min(len(p), chunkSize)
	}
	return b
}
