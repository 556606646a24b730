package watch

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"

	"github.com/gopacket/gopacket/pcapgo"
)

// Key names one direction of a connection.
type Key struct{ Src, Dst netip.AddrPort }

func (k Key) String() string { return k.Src.String() + " → " + k.Dst.String() }

// Flow is one direction of a connection, as seen at one place.
type Flow struct {
	Key
	Packets         int
	Resets, FINs    int      // resets that end something: not those behind the FIN
	Octets          int64    // of payload, those sent again too
	Unique          int64    // of the sequence space that they fill
	Senders         []Sender // in the order of their first packets
	TimestampsBack  int      // packets with new data whose clock was behind
	FirstAt, LastAt time.Time

	begun  bool
	next   uint32 // the end of what was sent
	tsHigh uint32
	tsAt   time.Time // when tsHigh was seen
	hasTS  bool
	ended  bool   // there was a FIN
	fin    uint32 // behind it
}

// Sender is who sent a flow for a time. What comes out of order within
// [Reordering] does not end its time.
type Sender struct {
	CareOf      netip.Addr // invalid: without a Home Address option
	First, Last time.Time
	Packets     int
}

// Reordering is for how long packets of two senders may be mixed, which reach
// one place on different ways.
const Reordering = 50 * time.Millisecond

// Flows are what a capture has, by direction.
type Flows map[Key]*Flow

// Read reads a capture file (pcapng) of IPv6 packets.
func Read(r io.Reader) (Flows, error) {
	file, err := pcapgo.NewNgReader(r, pcapgo.DefaultNgReaderOptions)
	if err != nil {
		return nil, fmt.Errorf("watch: read capture: %w", err)
	}
	flows := make(Flows)
	for {
		p, info, err := file.ZeroCopyReadPacketData()
		if errors.Is(err, io.EOF) {
			return flows, nil
		}
		if err != nil {
			return nil, fmt.Errorf("watch: read capture: %w", err)
		}
		if pkt, ok := Decode(p, info.Length); ok {
			pkt.At = info.Timestamp
			flows.Add(pkt)
		}
	}
}

// Add adds a packet, in the order of the capture.
func (f Flows) Add(p Packet) {
	key := Key{p.Src, p.Dst}
	flow := f[key]
	// The same ports may serve one connection after another.
	if flow == nil {
		flow = &Flow{Key: key, FirstAt: p.At}
		f[key] = flow
	}
	flow.add(p)
}

func (f *Flow) add(p Packet) {
	f.Packets++
	f.LastAt = p.At
	if p.Flags&RST != 0 {
		// One that answers an acknowledgement of the FIN, or an older one that comes
		// late, ends nothing: the sender has nothing left of the connection by then,
		// which means that the other end had finished too (RFC 9293 section 3.10.7.1).
		if p.Flags&ACK != 0 || !f.ended || int32(p.Seq-f.fin) > 0 {
			f.Resets++
		}
		return
	}
	if p.Flags&SYN != 0 {
		f.begun, f.hasTS, f.ended = false, false, false // a new connection
	}
	f.sender(p)
	f.sequence(p)
}

// sender notes who has sent a packet.
func (f *Flow) sender(p Packet) {
	for i := len(f.Senders) - 1; i >= 0; i-- {
		s := &f.Senders[i]
		if s.CareOf == p.CareOf {
			s.Last = p.At
			s.Packets++
			return
		}
		if p.At.Sub(s.First) > Reordering {
			break // s has been the one for a while
		}
	}
	f.Senders = append(f.Senders, Sender{CareOf: p.CareOf, First: p.At, Last: p.At, Packets: 1})
}

// sequence notes what part of the sequence space a packet fills, and when its
// sender says that it was.
func (f *Flow) sequence(p Packet) {
	length := uint32(p.Payload)
	if p.Flags&SYN != 0 {
		length++
	}
	if p.Flags&FIN != 0 {
		f.FINs++
		length++
		f.ended, f.fin = true, p.Seq+length
	}
	f.Octets += int64(p.Payload)
	end := p.Seq + length
	if !f.begun {
		f.begun, f.next = true, p.Seq
	}
	fresh := int32(end-f.next) > 0
	if fresh {
		// From a hole on, all counts as filled: what fills it later is counted
		// as sent again, as it mostly is.
		f.Unique += min(int64(end-f.next), int64(p.Payload))
		f.next = end
	}
	if !p.HasTSVal {
		return
	}
	switch {
	case !f.hasTS || int32(p.TSVal-f.tsHigh) >= 0:
		f.hasTS, f.tsHigh, f.tsAt = true, p.TSVal, p.At
	case fresh && p.At.Sub(f.tsAt) > Reordering:
		f.TimestampsBack++
	}
}

// Limits are what is expected of a flow.
type Limits struct {
	// Handoffs is how often the sender may have changed. Negative: any number.
	Handoffs int

	// Again is how many octets may be sent twice.
	Again int64
}

// Problems says what is wrong with a flow, if anything.
func (f *Flow) Problems(l Limits) (problems []string) {
	add := func(format string, args ...any) {
		problems = append(problems, f.String()+": "+fmt.Sprintf(format, args...))
	}
	if f.Resets > 0 {
		add("%d resets", f.Resets)
	}
	if again := f.Octets - f.Unique; again > l.Again {
		add("%d of %d octets were sent again, more than %d: two senders?", again, f.Octets, l.Again)
	}
	if changes := len(f.Senders) - 1; l.Handoffs >= 0 && changes > l.Handoffs {
		add("the sender changed %d times in %d handoffs: %v", changes, l.Handoffs, f.Senders)
	}
	if f.TimestampsBack > 0 {
		add("%d packets with new data have old timestamps: two senders?", f.TimestampsBack)
	}
	return problems
}

func (s Sender) String() string {
	who := "home"
	if s.CareOf.IsValid() {
		who = s.CareOf.String()
	}
	return fmt.Sprintf("%s %s–%s (%d)", who, s.First.Format("05.000"), s.Last.Format("05.000"), s.Packets)
}

// Of are the flows that have the address as source or destination, in the order
// of their first packets.
func (f Flows) Of(a netip.Addr) (of []*Flow) {
	for _, flow := range f {
		if flow.Src.Addr() == a || flow.Dst.Addr() == a {
			of = append(of, flow)
		}
	}
	slices.SortFunc(of, func(a, b *Flow) int { return a.FirstAt.Compare(b.FirstAt) })
	return of
}
