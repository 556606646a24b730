package gvtcp

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/seqnum"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"github.com/distributed-servers/ds/migrate/snapshot"
)

// maxInSnapshot bounds counters that netstack does not bound.
const maxInSnapshot = 1 << 24

// states are netstack's names of the snapshot's states.
var states = [...]tcp.EndpointState{
	snapshot.Established: tcp.StateEstablished,
	snapshot.CloseWait:   tcp.StateCloseWait,
	snapshot.FinWait1:    tcp.StateFinWait1,
	snapshot.FinWait2:    tcp.StateFinWait2,
	snapshot.Closing:     tcp.StateClosing,
	snapshot.LastAck:     tcp.StateLastAck,
	snapshot.TimeWait:    tcp.StateTimeWait,
}

func stateOf(s tcp.EndpointState) snapshot.State {
	return snapshot.State(slices.Index(states[:], s))
}

// Capture describes the frozen endpoint in c, overwriting what is there. The
// octets in c belong to the endpoint until Thaw or Discard.
func (f *Frozen) Capture(c *snapshot.Conn) error {
	e := f.ep
	id := e.TransportEndpointInfo.ID
	inner := &e.TCPEndpointStateInner
	c.Reset()
	// Field by field: a literal would be built elsewhere, and copied.
	c.Local = netip.AddrPortFrom(addrOf(id.LocalAddress), id.LocalPort)
	c.Remote = netip.AddrPortFrom(addrOf(id.RemoteAddress), id.RemotePort)
	c.State = stateOf(e.original().EndpointState())
	c.Orphan = e.closed
	c.ReadShutdown = e.shutdownFlags&tcpip.ShutdownRead != 0
	c.Timestamps = inner.SendTSOk
	c.TSVal = uint32(f.at.Milliseconds()) + inner.TSOffset.milliseconds
	c.TSPhase = f.at % time.Millisecond
	c.TSRecent = inner.RecentTS
	c.TSRecentAge = f.age(e.recentTSTime)
	c.SACKPermitted = inner.SACKPermitted
	c.KeepAliveTimer = f.timers[keepaliveTimer].snapshot()
	c.FinWait2Timer = f.finWait2.snapshot()
	c.TimeWaitTimer = f.timeWait.snapshot()
	f.captureOptions(&c.Options)
	if err := f.captureSend(&c.Send, &c.Pieces, c.Send.Queue); err != nil {
		return fmt.Errorf("%s to %s: %w", c.Local, c.Remote, err)
	}
	// Netstack takes the acknowledgement of a FIN also from a segment out of
	// order, but leaves these states only with one in order. By RFC 9293
	// section 3.10.7.4 they are over.
	if (c.State == snapshot.Closing || c.State == snapshot.LastAck) && len(c.Send.Queue) == 0 {
		c.State, c.TimeWaitTimer = snapshot.TimeWait, snapshot.TimerOf(tcp.DefaultTCPTimeWaitTimeout)
	}
	f.captureReceive(&c.Receive, &c.Pieces)
	e.segmentQueue.mu.mu.Lock()
	for g := e.segmentQueue.list.head; g != nil; g = g.segmentEntry.next {
		c.Unprocessed = append(c.Unprocessed, rawPacket(g))
	}
	e.segmentQueue.mu.mu.Unlock()
	return nil
}

func (f *Frozen) captureOptions(o *snapshot.Options) {
	e := f.ep
	so := &e.ops
	linger := so.GetLinger()
	*o = snapshot.Options{
		Nagle:           so.GetDelayOption(),
		Cork:            so.GetCorkOption(),
		KeepAlive:       so.GetKeepAlive(),
		Linger:          linger.Enabled,
		LingerTime:      linger.Timeout,
		FinWait2Time:    max(e.tcpLingerTimeout, 0),
		KeepIdle:        e.keepalive.idle,
		KeepInterval:    e.keepalive.interval,
		KeepCount:       e.keepalive.count,
		KeepUnacked:     e.keepalive.unacked,
		UserTimeout:     e.userTimeout,
		SendBuffer:      int(so.GetSendBufferSize()),
		RecvBuffer:      int(so.GetReceiveBufferSize()),
		SendBufferFixed: e.sndQueueInfo.TCPSndBufState.AutoTuneSndBufDisabled.Load() != 0,
		LowWater:        int(so.GetRcvlowat()),
		WindowClamp:     e.windowClamp,
		UserMSS:         e.userMSS,
		TTL:             e.ipv4TTL,
		HopLimit:        e.ipv6HopLimit,
		TOS:             e.sendTOS,
		PMTUDiscovery:   uint8(e.pmtud),
		Mark:            so.GetMark(),
		ReusePort:       e.portFlags.LoadBalanced,
		ReuseAddr:       e.portFlags.TupleOnly,
	}
}

// errInconsistent means that the endpoint is in a state that this package does
// not understand; it stays where it is.
var errInconsistent = errors.New("unexpected send queue")

func (f *Frozen) captureSend(out *snapshot.Send, pieces *snapshot.Pieces, queue []snapshot.Segment) error {
	e, s := f.ep, f.ep.snd
	t := &s.TCPSenderState
	rc := &s.rc.TCPRACKState
	*out = snapshot.Send{
		Queue:       queue,
		Una:         uint32(t.SndUna),
		Nxt:         uint32(t.SndNxt),
		Wnd:         uint32(t.SndWnd),
		WndScale:    t.SndWndScale,
		MSS:         uint16(t.MaxPayloadSize),
		MaxSentAck:  uint32(t.MaxSentAck),
		LastSend:    f.age(t.LastSendTime),
		DupAcks:     t.DupAckCount,
		Outstanding: bounded(t.Outstanding),
		SackedOut:   bounded(t.SackedOut),

		RTO:        t.RTO,
		SRTT:       s.rtt.TCPRTTState.SRTT,
		RTTVar:     s.rtt.TCPRTTState.RTTVar,
		RTTSampled: s.rtt.TCPRTTState.SRTTInited,
		RTTSeq:     uint32(t.RTTMeasureSeqNum),
		RTTTime:    f.age(t.RTTMeasureTime),

		FirstRetransmit:   f.age(s.firstRetransmittedSegXmitTime),
		ZeroWindowProbing: s.zeroWindowProbing,
		UnackedProbes:     s.unackZeroWindowProbes,
		SpuriousRecovery:  s.spuriousRecovery,
		RetransmitTS:      s.retransmitTS,
		Corked:            s.startCork,

		Phase:    uint8(s.state),
		Cwnd:     bounded(t.SndCwnd),
		Ssthresh: bounded(t.Ssthresh),
		CAAcks:   bounded(t.SndCAAckCount),

		FastRecovery: snapshot.FastRecovery{
			Active:    t.FastRecovery.Active,
			First:     uint32(t.FastRecovery.First),
			Last:      uint32(t.FastRecovery.Last),
			HighRxt:   uint32(t.FastRecovery.HighRxt),
			RescueRxt: uint32(t.FastRecovery.RescueRxt),
			MaxCwnd:   bounded(t.FastRecovery.MaxCwnd),
		},
		LossDetector: uint8(e.tcpRecovery),
		RACK: snapshot.RACK{
			XmitTime:       f.age(rc.XmitTime),
			EndSeq:         uint32(rc.EndSequence),
			FACK:           uint32(rc.FACK),
			RTT:            max(rc.RTT, 0),
			MinRTT:         max(s.rc.minRTT, 0),
			Reordered:      rc.Reord,
			DSACKSeen:      rc.DSACKSeen,
			ReoWnd:         max(rc.ReoWnd, 0),
			ReoWndIncr:     rc.ReoWndIncr,
			ReoWndPersist:  rc.ReoWndPersist,
			RTTSeq:         uint32(rc.RTTSeq),
			ExitedRecovery: s.rc.exitedRecovery,
			ProbeOut:       s.rc.tlpRxtOut,
			ProbeHighRxt:   uint32(s.rc.tlpHighRxt),
		},

		MaxSACKed: uint32(e.scoreboard.maxSACKED),
		SMSS:      e.scoreboard.smss,

		RetransmitTimer: f.timers[resendTimer].snapshot(),
		ReorderTimer:    f.timers[reorderTimer].snapshot(),
		ProbeTimer:      f.timers[probeTimer].snapshot(),
		CorkTimer:       f.timers[corkTimer].snapshot(),
	}
	if t.Ssthresh == math.MaxInt {
		out.Ssthresh = 0
	}
	if mtu := e.sndQueueInfo.TCPSndBufState.SndMTU; mtu != math.MaxInt32 {
		out.PathMTU = uint32(mtu)
	}
	switch s.cc.tab {
	case renoTab:
		out.Algorithm = snapshot.Reno
	case cubicTab:
		out.Algorithm = snapshot.Cubic9438
		f.captureCubic(&out.Cubic, (*cubicState)(s.cc.data))
	default:
		return fmt.Errorf("unknown congestion control %q", e.cc)
	}
	if e.scoreboard.sacked > 0 {
		blocks, _ := (*tcp.SACKScoreboard)(opaque(e.scoreboard)).Copy()
		for _, b := range blocks {
			out.SACKed = append(out.SACKed, snapshot.Block{Start: uint32(b.Start), Len: uint32(b.Start.Size(b.End))})
		}
	}
	return f.captureQueue(out, pieces)
}

// captureQueue describes the write list. Segments before SND.NXT have been
// sent. One behind it can have its sequence number already, if the window had
// no room when its turn came; it is as good as new.
func (f *Frozen) captureQueue(out *snapshot.Send, pieces *snapshot.Pieces) error {
	s := f.ep.snd
	next := -1
	seq := s.TCPSenderState.SndUna
	for g := s.writeList.writeList.head; g != nil; g = g.segmentEntry.next {
		if g == s.writeNext {
			next = len(out.Queue)
		}
		q := snapshot.Segment{Data: gather(pieces, g.pkt)}
		if g.flags != 0 && seq.LessThan(s.TCPSenderState.SndNxt) {
			if g.sequenceNumber != seq {
				return fmt.Errorf("%w: segment at %d has sequence number %d", errInconsistent, seq, g.sequenceNumber)
			}
			q.Sent = true
			q.Push = g.flags.Contains(header.TCPFlagPsh)
			q.SACKed = g.acked
			q.Lost = g.lost
			q.XmitAt = f.age(g.xmitTime)
			q.Xmits = g.xmitCount
		}
		seq = seq.Add(seqnum.Size(max(snapshot.Len(q.Data), 1)))
		out.Queue = append(out.Queue, q)
	}
	if out.Next = next; next < 0 {
		out.Next = len(out.Queue)
	}
	return nil
}

func (f *Frozen) captureCubic(out *snapshot.Cubic, c *cubicState) {
	t := &c.TCPCubicState
	rtt := func(d time.Duration) time.Duration {
		if d == math.MaxInt64 {
			return 0 // none yet
		}
		return max(d, 1)
	}
	*out = snapshot.Cubic{
		WLastMax:     t.WLastMax,
		WMax:         t.WMax,
		K:            t.K,
		Epoch:        f.age(t.T),
		Events:       c.numCongestionEvents,
		EndSeq:       uint32(t.EndSeq),
		CurrRTT:      rtt(t.CurrRTT),
		LastRTT:      rtt(t.LastRTT),
		Samples:      t.SampleCount,
		LastAck:      f.age(t.LastAck),
		RoundStarted: f.age(t.RoundStart),
	}
}

func (f *Frozen) captureReceive(out *snapshot.Receive, pieces *snapshot.Pieces) {
	e, r := f.ep, f.ep.rcv
	t := &r.TCPReceiverState
	auto := &e.TCPRcvBufState.RcvAutoParams
	*out = snapshot.Receive{
		Nxt:             uint32(t.RcvNxt),
		Acceptable:      uint32(t.RcvNxt.Size(t.RcvAcc)),
		Wnd:             uint32(r.rcvWnd),
		WndScale:        t.RcvWndScale,
		WndUpdateAt:     uint32(r.rcvWUP),
		PrevUsed:        r.prevBufUsed,
		AMSS:            e.amss,
		LastAck:         f.age(r.lastRcvdAckTime),
		LastOutOfWindow: f.age(e.lastOutOfWindowAckTime),
		Tuning: snapshot.Tuning{
			Off:         auto.Disabled,
			Measured:    f.age(auto.MeasureTime),
			Copied:      auto.CopiedBytes,
			PrevCopied:  max(auto.PrevCopiedBytes, 1),
			RTT:         max(auto.RTT, 0),
			RTTSeq:      uint32(auto.RTTMeasureSeqNumber),
			RTTMeasured: f.age(auto.RTTMeasureTime),
		},
	}
	for _, b := range e.sack.Blocks[:e.sack.NumBlocks] {
		out.Blocks = append(out.Blocks, snapshot.Block{Start: uint32(b.Start), Len: uint32(b.Start.Size(b.End))})
	}
	have := len(*pieces)
	for g := e.rcvQueue.head; g != nil; g = g.segmentEntry.next {
		g.pkt.Data().ReadTo(pieces, true)
	}
	out.Unread = pieces.From(have)
	for _, g := range r.pendingRcvdSegments {
		out.OutOfOrder = append(out.OutOfOrder, snapshot.Stray{
			Seq:   uint32(g.sequenceNumber),
			Ack:   uint32(g.ackNumber),
			Flags: uint8(g.flags & (header.TCPFlagFin | header.TCPFlagPsh | header.TCPFlagAck)),
			Data:  gather(pieces, g.pkt),
		})
	}
}

func (f *Frozen) age(t tcpip.MonotonicTime) snapshot.Age {
	n := at(t)
	if n == 0 {
		return 0
	}
	return snapshot.AgeOf(f.at - n)
}

func (s stopped) snapshot() snapshot.Timer {
	if !s.set {
		return 0
	}
	return snapshot.TimerOf(s.left)
}

func (s stoppedClock) snapshot() snapshot.Timer {
	if !s.set {
		return 0
	}
	return snapshot.TimerOf(s.left)
}

func bounded(n int) int { return min(max(n, 0), maxInSnapshot) }

func gather(pieces *snapshot.Pieces, pkt *stack.PacketBuffer) [][]byte {
	have := len(*pieces)
	if pkt.Data().Size() > 0 {
		pkt.Data().ReadTo(pieces, true)
	}
	return pieces.From(have)
}

// rawPacket is the whole IP packet of a received segment. It gets a checksum: a
// link that offloads checksums may have left it out, and nobody has checked it
// then.
func rawPacket(g *segment) []byte {
	v := g.pkt.ToView()
	defer v.Release()
	p := append([]byte(nil), v.AsSlice()...)
	n := len(g.pkt.NetworkHeader().Slice())
	addresses := p[8:40] // of the IPv6 header
	if p[0]>>4 == 4 {
		addresses = p[12:20]
	}
	t := header.TCP(p[n:])
	t.SetChecksum(0)
	sum := checksum.Checksum(addresses, uint16(header.TCPProtocolNumber))
	t.SetChecksum(^checksum.Checksum(t, checksum.Combine(sum, uint16(len(t)))))
	return p
}

func addrOf(a tcpip.Address) netip.Addr {
	if a.Len() == 4 {
		return netip.AddrFrom4(a.As4())
	}
	return netip.AddrFrom16(a.As16())
}
