package homeagent

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/distributed-servers/ds/daemon/filter"
	"github.com/distributed-servers/ds/daemon/rawip"
	"github.com/distributed-servers/ds/mobility/homeagent"
	"github.com/distributed-servers/ds/mobility/wire"
	"github.com/distributed-servers/ds/tun"
)

// step gives the machine an input and does what it says; what is to be sent, and
// what is for this host, is for then, which may not keep it.
func (r *Role) step(in homeagent.Input, then func(homeagent.Output)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return
	}
	out := r.machine.Step(time.Since(r.start), in)
	if r.link != nil {
		r.link.join(out.Join, r.log)
	}
	for _, c := range out.Changes {
		r.changed(c)
	}
	if r.link != nil && len(out.Link) > 0 {
		r.link.sender.Send(out.Link...)
	}
	then(out)
	if r.link != nil {
		r.link.leave(out.Leave, r.log)
	}
	if at, ok := r.machine.NextDeadline(); ok && at != r.due {
		r.due = at
		r.timer.Reset(max(0, at-time.Since(r.start)))
	}
}

// send sends what is to be routed, and what is for this host: that comes back to
// it.
func (r *Role) send(out homeagent.Output) {
	if len(out.Send) > 0 {
		r.sender.Send(out.Send...)
	}
	if len(out.Local) > 0 {
		r.sender.Send(out.Local...)
	}
}

// tick is for the timer. It may come too early, when a deadline has been moved:
// then the timer is set anew.
func (r *Role) tick() {
	r.mu.Lock()
	r.due = -1
	r.mu.Unlock()
	r.step(homeagent.Tick{}, r.send)
}

// queued decides on a packet of the Netfilter queue: to our address.
func (r *Role) queued(p filter.Packet) filter.Verdict {
	switch filter.Classify(filter.HomeAgent, p.Payload) {
	case filter.Pass:
		return filter.Accept()
	case filter.Discard:
		return filter.Drop()
	}
	verdict := filter.Drop()
	if careOf, ok := narrow(p.Payload); ok {
		r.mu.Lock()
		r.kernel.narrow(careOf, r.log)
		r.mu.Unlock()
	}
	r.step(homeagent.Received{Packet: p.Payload}, func(out homeagent.Output) {
		if len(out.Send) > 0 {
			r.sender.Send(out.Send...)
		}
		for i, b := range out.Local {
			switch {
			case i > 0:
				r.sender.Send(b)
			case bytes.Equal(b, p.Payload):
				verdict = filter.Accept()
			default:
				verdict = filter.Replace(bytes.Clone(b))
			}
		}
	})
	return verdict
}

// readTUN takes packets to home addresses. Super-packets are cut first: what is
// in a tunnel nobody would cut.
func (r *Role) readTUN() error {
	b := make([]byte, tun.HeaderRoom+tun.MaxPacket)
	batch := r.sender.NewBatch()
	collect := func(out homeagent.Output) {
		r.counts.packets++
		batch.Add(out.Send...)
		batch.Add(out.Local...)
	}
	var cutter rawip.Cutter
	for wait := true; ; {
		p, o, err := r.dev.ReadPacket(0, b, wait)
		switch {
		case err != nil:
			return unlessClosed(err)
		case p == nil: // no more for now
			batch.Flush()
			wait = true
			continue
		case !forwarded(p):
			continue
		case o.SegmentSize > 0:
			cut := rawip.Cut{TCP: int(o.SumAt), Size: int(o.SegmentSize), Src: [16]byte(p[8:24]), Dst: [16]byte(p[24:40])}
			for _, p := range cutter.Cut(p, cut) {
				r.step(homeagent.Received{Packet: p}, collect)
			}
		default:
			if o.Partial {
				rawip.CompleteChecksum(p, int(o.SumAt), int(o.SumOffset))
			}
			r.step(homeagent.Received{Packet: p}, collect)
		}
		wait = false
	}
}

// forwarded reports whether the packet b is one that the kernel has forwarded
// from somebody else to a home address. Beside these there are what the kernel
// itself tells groups on every interface, and Neighbor Discovery: that has been
// heard on the link, as it was before its hop limit became less.
func forwarded(b []byte) bool {
	if len(b) < wire.HeaderLen || b[0]>>4 != 6 || netip.AddrFrom16([16]byte(b[24:40])).IsMulticast() {
		return false
	}
	const first, last = 133, 137 // types of Neighbor Discovery
	return wire.Protocol(b[6]) != wire.ICMPv6 || len(b) == wire.HeaderLen ||
		b[wire.HeaderLen] < first || b[wire.HeaderLen] > last
}

// readTunnel takes tunnel packets to our address, which contacts send. Segments of
// a connection that come one after the other leave as a super-packet, if the
// kernel takes such: through the TUN, from where it forwards them.
func (r *Role) readTunnel() error {
	batch := r.sender.NewBatch()
	var coalescer rawip.Coalescer
	emit := func(s rawip.Super) {
		if s.SegmentSize == 0 {
			batch.Add(s.Packet)
			return
		}
		batch.Flush() // what came before it
		if err := r.dev.WritePacket(0, forForwarding(s), [][]byte{s.Packet}); err != nil {
			r.counts.undelivered++
		}
	}
	whole := r.dev.Offloads()
	collect := func(out homeagent.Output) {
		for _, p := range out.Send {
			if whole {
				coalescer.Add(p, emit)
			} else {
				batch.Add(p)
			}
		}
		batch.Add(out.Local...)
	}
	for {
		packets, err := r.tunnel.ReadBatch()
		if err != nil {
			return unlessClosed(err)
		}
		for _, p := range packets {
			r.step(homeagent.Received{Packet: p}, collect)
		}
		coalescer.Flush(emit)
		batch.Flush()
	}
}

// forForwarding prepares a super-packet for the kernel to forward, which takes a
// hop off: the machine has already.
func forForwarding(s rawip.Super) tun.Offload {
	const checksum = 16 // of TCP
	p := s.Packet
	if p[7] < 255 {
		p[7]++
	}
	return tun.Offload{
		Partial: true, SumAt: wire.HeaderLen, SumOffset: checksum,
		SegmentSize: uint16(s.SegmentSize), HeaderSize: wire.HeaderLen + 4*uint16(p[wire.HeaderLen+12]>>4),
	}
}

// readLink hears Neighbor Discovery on the home link.
func (r *Role) readLink() error {
	for {
		b, err := r.link.neighbors.Read()
		if errors.Is(err, unix.ENETDOWN) {
			r.log.Warn("home link is down", "interface", r.cfg.Interface)
			continue
		}
		if err != nil {
			return unlessClosed(err)
		}
		r.step(homeagent.OnLink{Packet: b}, r.send)
	}
}

func unlessClosed(err error) error {
	if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}
