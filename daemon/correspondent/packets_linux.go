package correspondent

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/distributed-servers/ds/daemon/filter"
	"github.com/distributed-servers/ds/daemon/rawip"
	"github.com/distributed-servers/ds/mobility/correspondent"
	"github.com/distributed-servers/ds/mobility/wire"
	"github.com/distributed-servers/ds/tun"
)

// step gives the machine an input and does what it says; packets are for then,
// which may not keep them.
func (r *Role) step(in correspondent.Input, then func(correspondent.Output)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return
	}
	out := r.machine.Step(time.Since(r.start), in)
	// Routes before packets: an acknowledgement invites to use the binding.
	for _, c := range out.Changes {
		r.changed(c)
	}
	then(out)
	if at, ok := r.machine.NextDeadline(); ok && at != r.due {
		r.due = at
		r.timer.Reset(max(0, at-time.Since(r.start)))
	}
}

// send is for inputs that are no packets.
func (r *Role) send(out correspondent.Output) {
	if len(out.Send) > 0 {
		r.sender.Send(out.Send...)
	}
}

// tick is for the timer. It may come too early, when a deadline has been moved:
// then the timer is set anew.
func (r *Role) tick() {
	r.mu.Lock()
	r.due = -1
	r.mu.Unlock()
	r.step(correspondent.Tick{}, r.send)
}

// lost ends the bindings for an address that is no longer this host's.
func (r *Role) lost(local netip.Addr) {
	r.mu.Lock()
	var gone []correspondent.Forget
	if !r.ended {
		for b := range r.machine.Bindings() {
			if b.Local == local {
				gone = append(gone, correspondent.Forget{Local: b.Local, Home: b.Home})
			}
		}
	}
	r.mu.Unlock()
	for _, f := range gone {
		r.step(f, r.send)
	}
}

// queued decides on a packet of the Netfilter queue.
func (r *Role) queued(p filter.Packet) filter.Verdict {
	switch filter.Classify(filter.Correspondent, p.Payload) {
	case filter.Pass:
		return filter.Accept()
	case filter.Discard:
		return filter.Drop()
	}
	verdict := filter.Drop()
	r.step(correspondent.Received{Packet: p.Payload}, func(out correspondent.Output) {
		r.send(out)
		for _, b := range out.Deliver {
			if same(b, p.Payload) {
				verdict = filter.Accept()
				continue
			}
			r.counts.in++
			r.deliver(b, p.Partial)
		}
	})
	return verdict
}

// same reports whether b is the packet p itself: what the machine lets pass is its
// input's.
func same(b, p []byte) bool { return len(b) == len(p) && (len(b) == 0 || &b[0] == &p[0]) }

// deliver gives the kernel a packet for this host. If its checksum is that of the
// pseudo-header alone, no wire has carried it, and the kernel is told so: there is
// nothing to be checked.
func (r *Role) deliver(b []byte, partial bool) {
	var o tun.Offload
	if partial {
		if o = unfinished(b); !o.Partial || !r.dev.Offloads() {
			o = tun.Offload{}
			filter.CompleteChecksum(b)
		}
	}
	if err := r.dev.WritePacket(0, o, [][]byte{b}); err != nil {
		r.counts.undelivered++
	}
}

// unfinished says where the checksum of the packet b is, if its upper layer is
// right behind the IPv6 header.
func unfinished(b []byte) tun.Offload {
	var at uint16
	switch wire.Protocol(b[6]) {
	case wire.TCP:
		at = 16
	case wire.UDP:
		at = 6
	case wire.ICMPv6:
		at = 2
	default:
		return tun.Offload{}
	}
	if len(b) < wire.HeaderLen+int(at)+2 {
		return tun.Offload{}
	}
	return tun.Offload{Partial: true, SumAt: wire.HeaderLen, SumOffset: at, HeaderSize: wire.HeaderLen}
}

// readTUN takes what this host sends to home addresses.
func (r *Role) readTUN(queue int) error {
	b := make([]byte, tun.HeaderRoom+tun.MaxPacket)
	batch := r.sender.NewBatch()
	var watch watch
	for wait := true; ; {
		p, o, err := r.dev.ReadPacket(queue, b, wait)
		switch {
		case err != nil:
			return unlessClosed(err)
		case p == nil: // no more for now
			batch.Flush()
			if watch.due(r.sender.Stats().TooBig, time.Since(r.start)) {
				if err := r.routes.refresh(); err != nil {
					r.log.Warn("path MTU", "error", err)
				}
			}
			wait = true
			continue
		case !unicast(p):
			continue // what the kernel tells groups on every interface
		}
		r.step(correspondent.Transmit{Packet: p}, func(out correspondent.Output) {
			for _, q := range out.Send {
				if same(q, p) {
					r.pass(p, o)
					continue
				}
				r.counts.out++
				collect(batch, q, p, o)
			}
		})
		wait = false
	}
}

// watch notices that packets have become too big for an interface.
type watch struct {
	tooBig uint64
	last   time.Duration
}

// due reports whether routes should be looked at again: packets were too big since
// the last time, which was not just now.
func (w *watch) due(tooBig uint64, now time.Duration) bool {
	if tooBig == w.tooBig || w.last != 0 && now-w.last < 100*time.Millisecond {
		return false
	}
	w.tooBig, w.last = tooBig, now
	return true
}

func unicast(p []byte) bool {
	return len(p) >= wire.HeaderLen && p[0]>>4 == 6 && p[24] != 0xff
}

// collect adds the packet q, which the machine has made of p, as packets of the
// wire. The checksum covers the addresses of p: the home address, wherever it is
// in q. What q is longer by is ahead of the transport header.
func collect(batch *rawip.Batch, q, p []byte, o tun.Offload) {
	longer := len(q) - len(p)
	switch {
	case o.SegmentSize > 0:
		batch.AddCut(q, rawip.Cut{
			TCP: int(o.SumAt) + longer, Size: int(o.SegmentSize),
			Src: [16]byte(p[8:24]), Dst: [16]byte(p[24:40]),
		})
		return
	case o.Partial:
		rawip.CompleteChecksum(q, int(o.SumAt)+longer, int(o.SumOffset))
	}
	batch.Add(q)
}

// pass sends a packet that the machine has nothing to do with: from another
// address of this host, or one that cannot have a routing header. By its
// destination it would come back here.
func (r *Role) pass(p []byte, o tun.Offload) {
	s, err := r.routes.around(netip.AddrFrom16([16]byte(p[24:40])))
	if err != nil {
		r.counts.undelivered++
		r.log.Debug("packet to a home address has no other way", "error", err)
		return
	}
	batch := s.NewBatch()
	collect(batch, bytes.Clone(p), p, o)
	batch.Flush()
}

func unlessClosed(err error) error {
	if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}
