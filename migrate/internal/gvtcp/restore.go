package gvtcp

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"reflect"
	"time"
	"unsafe"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/ports"
	"gvisor.dev/gvisor/pkg/tcpip/seqnum"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"github.com/distributed-servers/ds/migrate/snapshot"
	dsstack "github.com/distributed-servers/ds/stack"
)

// Errors of [Restored.Restore].
var (
	ErrNoAddress = errors.New("the stack does not have the connection's local address")
	ErrNoRoute   = errors.New("the stack has no route to the peer")
	ErrInUse     = errors.New("the stack has this connection already")
	ErrTooLarge  = errors.New("more than this stack takes in")
)

// What one connection may bring along. A segment costs about a kilobyte however
// little is in it, and netstack counts the octets received in 32 bits.
const (
	maxSegments = 1 << 16
	maxOctets   = 256 << 20
)

// minKeepAlive keeps a snapshot from making probes a flood.
const minKeepAlive = 10 * time.Millisecond

// maxUnread is the size of the segments that unread octets are rebuilt in:
// several, so that the window opens as the application reads.
const maxUnread = 16 << 10

// Restored is an endpoint rebuilt from a snapshot, silent and out of reach.
type Restored struct {
	ns   *stack.Stack
	ep   *endpoint
	conn *snapshot.Conn // during Restore
	home *Home

	timers             [5]snapshot.Timer // in the order of endpoint.timers
	finWait2, timeWait snapshot.Timer
	corked             bool
}

// Home is the memory of a restored connection that netstack does not allocate,
// in one piece.
type Home struct {
	Conn     dsstack.Conn
	receiver receiver
}

// Network protocols of an endpoint, shared by all: netstack only reads them.
var (
	onlyIPv4 = []tcpip.NetworkProtocolNumber{ipv4.ProtocolNumber}
	onlyIPv6 = []tcpip.NetworkProtocolNumber{ipv6.ProtocolNumber}
)

// Restore builds the endpoint that c describes, which Parse has checked, and
// reports its events to the queue of home.Conn. It keeps nothing of c, whose
// octets it copies. r and home must be new.
func (r *Restored) Restore(ns *stack.Stack, home *Home, c *snapshot.Conn) error {
	if err := tooLarge(c); err != nil {
		return err
	}
	protos := onlyIPv6
	if c.Local.Addr().Is4() {
		protos = onlyIPv4
	}
	id := stack.TransportEndpointID{
		LocalAddress:  addressOf(c.Local.Addr()),
		LocalPort:     c.Local.Port(),
		RemoteAddress: addressOf(c.Remote.Addr()),
		RemotePort:    c.Remote.Port(),
	}
	ep, terr := ns.NewEndpoint(tcp.ProtocolNumber, protos[0], home.Conn.Queue())
	if terr != nil {
		return fmt.Errorf("new endpoint: %s", terr)
	}
	original := ep.(*tcp.Endpoint)
	setOptions(&c.Options, original.SocketOptions()) // these lock the endpoint themselves
	original.LockUser()
	r.ns, r.ep, r.conn, r.home = ns, endpointOf(original), c, home
	err := r.build(id, protos)
	r.conn = nil
	if err != nil {
		discard(r.ep)
		return err
	}
	// Netstack's cork timer panics after a timeout, when what it sends next was
	// sent before. So the cork is released: what it holds back is sent.
	r.corked = c.Send.Corked
	r.setTimers(c)
	return nil
}

// setTimers takes over the timers' remaining times, no longer than netstack
// itself would have made them: whatever the snapshot says, every connection
// whose peer is silent comes to an end.
func (r *Restored) setTimers(c *snapshot.Conn) {
	s := r.ep.snd
	upTo := func(t snapshot.Timer, most time.Duration) snapshot.Timer { return min(t, snapshot.TimerOf(most)) }
	r.timers = [5]snapshot.Timer{
		resendTimer:    upTo(c.Send.RetransmitTimer, s.maxRTO),
		reorderTimer:   upTo(c.Send.ReorderTimer, s.maxRTO),
		probeTimer:     upTo(c.Send.ProbeTimer, s.maxRTO),
		keepaliveTimer: c.KeepAliveTimer,
	}
	if t := &s.TCPSenderState; t.SndNxt != t.SndUna && r.timers[resendTimer] == 0 && r.timers[probeTimer] == 0 {
		r.timers[resendTimer] = snapshot.TimerOf(t.RTO)
	}
	r.finWait2 = upTo(c.FinWait2Timer, tcp.MaxTCPLingerTimeout)
	if c.TimeWaitTimer != 0 {
		most := tcpip.TCPTimeWaitTimeoutOption(tcp.DefaultTCPTimeWaitTimeout)
		r.ns.TransportProtocolOption(tcp.ProtocolNumber, &most)
		r.timeWait = upTo(c.TimeWaitTimer, time.Duration(most))
	}
}

func tooLarge(c *snapshot.Conn) error {
	segments := len(c.Send.Queue) + len(c.Receive.OutOfOrder) + len(c.Unprocessed)
	octets := snapshot.Len(c.Receive.Unread)
	for i := range c.Send.Queue {
		octets += snapshot.Len(c.Send.Queue[i].Data)
	}
	for i := range c.Receive.OutOfOrder {
		octets += snapshot.Len(c.Receive.OutOfOrder[i].Data)
	}
	if segments > maxSegments || octets > maxOctets {
		return fmt.Errorf("%w: %d segments, %d octets: at most %d and %d", ErrTooLarge, segments, octets, maxSegments, maxOctets)
	}
	return nil
}

// Endpoint is the endpoint as the rest of the world knows it.
func (r *Restored) Endpoint() *tcp.Endpoint { return r.ep.original() }

// setOptions sets what differs from a new endpoint's options.
func setOptions(o *snapshot.Options, so *tcpip.SocketOptions) {
	if o.Nagle != so.GetDelayOption() {
		so.SetDelayOption(o.Nagle)
	}
	if o.KeepAlive {
		so.SetKeepAlive(true)
	}
	if o.Linger {
		so.SetLinger(tcpip.LingerOption{Enabled: true, Timeout: o.LingerTime})
	}
	if o.Mark != 0 {
		so.SetMark(o.Mark)
	}
	if o.LowWater != 0 && o.LowWater != int(so.GetRcvlowat()) {
		so.SetRcvlowat(int32(o.LowWater))
	}
	if o.ReuseAddr {
		so.SetReuseAddress(true)
	}
	if o.ReusePort {
		so.SetReusePort(true)
	}
}

func (r *Restored) build(id stack.TransportEndpointID, protos []tcpip.NetworkProtocolNumber) error {
	e, c, ns := r.ep, r.conn, r.ns
	o := &c.Options
	flags := ports.Flags{LoadBalanced: o.ReusePort, TupleOnly: o.ReuseAddr}
	e.TransportEndpointInfo.ID = id
	e.effectiveNetProtos = protos
	e.connectingAddress = id.RemoteAddress
	e.isConnectNotified = true
	e.portFlags, e.boundPortFlags = flags, flags

	route, terr := ns.FindRoute(0, id.LocalAddress, id.RemoteAddress, protos[0], false)
	switch {
	case terr == nil:
	case ns.CheckLocalAddress(0, protos[0], id.LocalAddress) == 0:
		return fmt.Errorf("%w: %s", ErrNoAddress, c.Local.Addr())
	default:
		return fmt.Errorf("%w %s: %s", ErrNoRoute, c.Remote.Addr(), terr)
	}
	e.route = route
	e.boundNICID = route.NICID()
	dest := tcpip.FullAddress{Addr: id.RemoteAddress, Port: id.RemotePort}
	if !ns.ReserveTuple(ports.Reservation{
		Networks: protos, Transport: tcp.ProtocolNumber,
		Addr: id.LocalAddress, Port: id.LocalPort, Flags: flags, Dest: dest,
	}) {
		return fmt.Errorf("%w: %s to %s", ErrInUse, c.Local, c.Remote)
	}
	e.isPortReserved = true
	e.boundDest = dest
	if ns.CheckRegisterTransportEndpoint(protos, tcp.ProtocolNumber, id, flags, 0) != nil {
		return fmt.Errorf("%w: %s to %s", ErrInUse, c.Local, c.Remote)
	}

	// The donor's freeze is taken for this instant.
	base := rebase(ns.Clock(), c.TSPhase)
	r.buildCommon(base)
	r.buildSend(base, id)
	r.buildReceive(base, id)
	endpointSetState(e, tcp.StateEstablished) // for the statistics
	if s := states[c.State]; s != tcp.StateEstablished {
		endpointSetState(e, s)
	}
	return nil
}

// buildCommon sets what belongs to neither side, and what netstack reads when
// it makes a sender.
func (r *Restored) buildCommon(base time.Duration) {
	e, c, o := r.ep, r.conn, &r.conn.Options
	inner := &e.TCPEndpointStateInner
	inner.TSOffset.milliseconds = c.TSVal - uint32(base.Milliseconds())
	inner.SendTSOk = c.Timestamps
	inner.RecentTS = c.TSRecent
	e.recentTSTime = since(base, c.TSRecentAge)
	inner.SACKPermitted = c.SACKPermitted
	e.tcpRecovery = tcpip.TCPRecovery(c.Send.LossDetector)
	e.cc = "reno"
	if c.Send.Algorithm == snapshot.Cubic9438 {
		e.cc = "cubic"
	}
	e.closed = c.Orphan
	if c.ReadShutdown {
		e.shutdownFlags |= tcpip.ShutdownRead
	}
	var ended uint32
	if c.FinQueued() {
		e.shutdownFlags |= tcpip.ShutdownWrite
		e.sndQueueInfo.TCPSndBufState.SndClosed = true
		ended |= 2
	}
	if c.FinReceived() || c.ReadShutdown {
		e.TCPRcvBufState.RcvClosed = true
		ended |= 1
	}
	e.connectionDirectionState.Store(ended)

	e.tcpLingerTimeout = min(o.FinWait2Time, tcp.MaxTCPLingerTimeout)
	e.keepalive.idle = max(o.KeepIdle, minKeepAlive)
	e.keepalive.interval = max(o.KeepInterval, minKeepAlive)
	e.keepalive.count = o.KeepCount
	e.keepalive.unacked = o.KeepUnacked
	e.userTimeout = o.UserTimeout
	e.windowClamp = o.WindowClamp
	e.userMSS = o.UserMSS
	e.ipv4TTL = o.TTL
	e.ipv6HopLimit = o.HopLimit
	e.sendTOS = o.TOS
	e.pmtud = tcpip.PMTUDStrategy(o.PMTUDiscovery)
	// What is more than this stack's default may be more than its maximum.
	snd, rcv := o.SendBuffer, o.RecvBuffer
	if int64(snd) > e.ops.GetSendBufferSize() {
		snd = min(snd, tcp.GetTCPSendBufferLimits(r.ns).Max)
	}
	if int64(rcv) > e.ops.GetReceiveBufferSize() {
		rcv = min(rcv, tcp.GetTCPReceiveBufferLimits(r.ns).Max)
	}
	e.ops.SetSendBufferSize(int64(snd), false)
	e.ops.SetReceiveBufferSize(int64(rcv), false)
	if o.SendBufferFixed {
		e.sndQueueInfo.TCPSndBufState.AutoTuneSndBufDisabled.Store(1)
	}
	if mtu := c.Send.PathMTU; mtu != 0 {
		e.sndQueueInfo.TCPSndBufState.SndMTU = int(mtu)
	}
	endpointInitGSO(e)
}

func (r *Restored) buildSend(base time.Duration, id stack.TransportEndpointID) {
	e, in := r.ep, &r.conn.Send
	// The sender's payload size becomes what this route carries; see below.
	initSender(e, seqnum.Value(in.Una-1), 0, 0, math.MaxUint16, 0)
	s := e.snd
	t := &s.TCPSenderState
	local := t.MaxPayloadSize
	*t = tcp.TCPSenderState{
		LastSendTime:     since(base, in.LastSend),
		DupAckCount:      in.DupAcks,
		SndCwnd:          in.Cwnd,
		Ssthresh:         in.Ssthresh,
		SndCAAckCount:    in.CAAcks,
		Outstanding:      in.Outstanding,
		SackedOut:        in.SackedOut,
		SndWnd:           seqnum.Size(in.Wnd),
		SndUna:           seqnum.Value(in.Una),
		SndNxt:           seqnum.Value(in.Nxt),
		RTTMeasureSeqNum: seqnum.Value(in.RTTSeq),
		RTTMeasureTime:   since(base, in.RTTTime),
		Closed:           r.conn.FinQueued(),
		RTO:              min(max(in.RTO, s.minRTO), s.maxRTO),
		MaxPayloadSize:   min(int(in.MSS), local),
		SndWndScale:      in.WndScale,
		MaxSentAck:       seqnum.Value(in.MaxSentAck),
		FastRecovery: tcp.TCPFastRecoveryState{
			Active:    in.FastRecovery.Active,
			First:     seqnum.Value(in.FastRecovery.First),
			Last:      seqnum.Value(in.FastRecovery.Last),
			MaxCwnd:   in.FastRecovery.MaxCwnd,
			HighRxt:   seqnum.Value(in.FastRecovery.HighRxt),
			RescueRxt: seqnum.Value(in.FastRecovery.RescueRxt),
		},
	}
	if in.Ssthresh == 0 {
		t.Ssthresh = math.MaxInt
	}
	if s.gso {
		e.gso.MSS = uint16(t.MaxPayloadSize)
	}
	s.rtt.TCPRTTState = tcp.TCPRTTState{SRTT: in.SRTT, RTTVar: in.RTTVar, SRTTInited: in.RTTSampled}
	t.RTTState = s.rtt.TCPRTTState
	s.firstRetransmittedSegXmitTime = since(base, in.FirstRetransmit)
	s.zeroWindowProbing = in.ZeroWindowProbing
	s.unackZeroWindowProbes = in.UnackedProbes
	s.spuriousRecovery = in.SpuriousRecovery
	s.retransmitTS = in.RetransmitTS
	s.state = tcpip.CongestionControlState(in.Phase)
	s.rc.TCPRACKState = tcp.TCPRACKState{
		XmitTime:      since(base, in.RACK.XmitTime),
		EndSequence:   seqnum.Value(in.RACK.EndSeq),
		FACK:          seqnum.Value(in.RACK.FACK),
		RTT:           in.RACK.RTT,
		Reord:         in.RACK.Reordered,
		DSACKSeen:     in.RACK.DSACKSeen,
		ReoWnd:        in.RACK.ReoWnd,
		ReoWndIncr:    in.RACK.ReoWndIncr,
		ReoWndPersist: in.RACK.ReoWndPersist,
		RTTSeq:        seqnum.Value(in.RACK.RTTSeq),
	}
	s.rc.minRTT = in.RACK.MinRTT
	s.rc.exitedRecovery = in.RACK.ExitedRecovery
	s.rc.tlpRxtOut = in.RACK.ProbeOut
	s.rc.tlpHighRxt = seqnum.Value(in.RACK.ProbeHighRxt)
	if in.Algorithm == snapshot.Cubic9438 {
		buildCubic((*cubicState)(s.cc.data), &in.Cubic, base)
	}
	e.scoreboard.smss = min(in.SMSS, uint16(t.MaxPayloadSize))
	for _, b := range in.SACKed {
		start := seqnum.Value(b.Start)
		(*tcp.SACKScoreboard)(opaque(e.scoreboard)).Insert(header.SACKBlock{Start: start, End: start.Add(seqnum.Size(b.Len))})
	}
	e.scoreboard.maxSACKED = seqnum.Value(in.MaxSACKed)
	r.buildQueue(base, id)
}

func (r *Restored) buildQueue(base time.Duration, id stack.TransportEndpointID) {
	e, in, s := r.ep, &r.conn.Send, r.ep.snd
	seq := seqnum.Value(in.Una)
	mark := r.conn.Options.Mark
	// Without a FIN left to acknowledge, it was sent long ago.
	s.finSent = r.conn.FinQueued() && len(in.Queue) == 0
	if n := len(in.Queue); n > smallMap {
		s.writeList.set = opaque(reflect.MakeMapWithSize(segmentSet, n).UnsafePointer()) // rather than grow it to that
	}
	var small row
	for i := range in.Queue {
		q := &in.Queue[i]
		if small.empty() {
			small.fill(in.Queue[i:])
		}
		n := snapshot.Len(q.Data)
		var data buffer.Buffer
		if small.empty() {
			data = payload(q.Data)
		} else {
			data = small.take(n)
		}
		g := newOutgoingSegment(id, noClock{}, data, mark)
		if q.Sent {
			g.sequenceNumber = seq
			g.flags = header.TCPFlagAck
			if q.Push {
				g.flags |= header.TCPFlagPsh
			}
			if n == 0 {
				g.flags |= header.TCPFlagFin
				s.finSent = true
			}
			g.xmitTime = since(base, q.XmitAt)
			g.xmitCount = q.Xmits
			g.acked = q.SACKed
			g.lost = q.Lost
			seq = seq.Add(seqnum.Size(max(n, 1)))
		}
		e.sndQueueInfo.TCPSndBufState.SndBufUsed += n
		writeListPushBack(&s.writeList, g)
		if i == in.Next {
			g.segmentRefs.refCount.Add(1)
			s.writeNext = g
		}
	}
}

func buildCubic(c *cubicState, in *snapshot.Cubic, base time.Duration) {
	rtt := func(d time.Duration) time.Duration {
		if d == 0 {
			return math.MaxInt64 // none yet
		}
		return d
	}
	t := &c.TCPCubicState // its constants are set
	t.WLastMax = in.WLastMax
	t.WMax = in.WMax
	t.K = in.K
	t.T = since(base, in.Epoch)
	t.EndSeq = seqnum.Value(in.EndSeq)
	t.CurrRTT = rtt(in.CurrRTT)
	t.LastRTT = rtt(in.LastRTT)
	t.SampleCount = in.Samples
	t.LastAck = since(base, in.LastAck)
	t.RoundStart = since(base, in.RoundStarted)
	c.numCongestionEvents = in.Events
}

func (r *Restored) buildReceive(base time.Duration, id stack.TransportEndpointID) {
	e, in := r.ep, &r.conn.Receive
	nxt := seqnum.Value(in.Nxt)
	e.rcv = &r.home.receiver
	*e.rcv = receiver{
		TCPReceiverState: tcp.TCPReceiverState{
			RcvNxt:      nxt,
			RcvAcc:      nxt.Add(seqnum.Size(in.Acceptable)),
			RcvWndScale: in.WndScale,
		},
		ep:              e,
		rcvWnd:          seqnum.Size(in.Wnd),
		rcvWUP:          seqnum.Value(in.WndUpdateAt),
		prevBufUsed:     in.PrevUsed,
		closed:          r.conn.FinReceived(),
		lastRcvdAckTime: since(base, in.LastAck),
	}
	e.amss = in.AMSS
	e.lastOutOfWindowAckTime = since(base, in.LastOutOfWindow)
	auto := &e.TCPRcvBufState.RcvAutoParams
	auto.Disabled = in.Tuning.Off
	auto.MeasureTime = since(base, in.Tuning.Measured)
	auto.CopiedBytes = in.Tuning.Copied
	auto.PrevCopiedBytes = in.Tuning.PrevCopied
	auto.RTT = in.Tuning.RTT
	auto.RTTMeasureSeqNumber = seqnum.Value(in.Tuning.RTTSeq)
	auto.RTTMeasureTime = since(base, in.Tuning.RTTMeasured)
	for i, b := range in.Blocks {
		start := seqnum.Value(b.Start)
		e.sack.Blocks[i] = header.SACKBlock{Start: start, End: start.Add(seqnum.Size(b.Len))}
	}
	e.sack.NumBlocks = len(in.Blocks)

	for _, p := range in.Unread {
		for len(p) > 0 {
			n := min(len(p), maxUnread)
			e.rcvQueue.pushBack(r.received(id, p[:n]))
			e.TCPRcvBufState.RcvBufUsed += n
			p = p[n:]
		}
	}
	if len(in.OutOfOrder) == 0 {
		return
	}
	e.rcv.pendingRcvdSegments = make([]*segment, 0, len(in.OutOfOrder))
	for i := range in.OutOfOrder {
		o := &in.OutOfOrder[i]
		g := r.received(id, o.Data...)
		g.sequenceNumber = seqnum.Value(o.Seq)
		g.ackNumber = seqnum.Value(o.Ack)
		g.flags = header.TCPFlags(o.Flags)
		e.rcv.TCPReceiverState.PendingBufUsed += segmentSize + g.dataMemSize
		e.rcv.pendingRcvdSegments = append(e.rcv.pendingRcvdSegments, g)
	}
}

const segmentSize = int(unsafe.Sizeof(segment{}))

// noClock saves asking for the time of each segment: netstack does not look at
// when a segment was made that is to be sent, or is in a queue already.
type noClock struct{ tcpip.Clock }

func (noClock) NowMonotonic() tcpip.MonotonicTime { return tcpip.MonotonicTime{} }

// received makes a segment that counts against the receive buffer.
func (r *Restored) received(id stack.TransportEndpointID, data ...[]byte) *segment {
	g := newOutgoingSegment(id, noClock{}, payload(data), 0)
	g.ep = r.ep
	g.qFlags = recvQ
	r.ep.rcvMemUsed.Add(int32(segmentSize + g.dataMemSize))
	return g
}

// payload copies octets into a buffer of netstack's.
func payload(pieces [][]byte) buffer.Buffer {
	switch len(pieces) {
	case 0:
		return buffer.Buffer{}
	case 1:
		return buffer.MakeWithData(pieces[0])
	}
	var b buffer.Buffer
	for _, p := range pieces {
		b.Append(buffer.NewViewWithData(p))
	}
	return b
}

// smallMap is the size up to which a map does not grow.
const smallMap = 8

// inRow is the size up to which segments share memory. One of the usual MTU has
// 1400 octets, and there are dozens.
const inRow = 4 << 10

// row is the octets of small segments, one behind the other in one of netstack's
// chunks, which saves getting, zeroing and returning a chunk for each. The chunk
// stays until the last of them is acknowledged.
type row struct{ rest *buffer.View }

func (w *row) empty() bool { return w.rest == nil }

// fill copies the octets of as many segments from the first on as fit, if that
// is more than one.
func (w *row) fill(queue []snapshot.Segment) {
	size, n := 0, 0
	for ; n < len(queue); n++ {
		octets := snapshot.Len(queue[n].Data)
		if octets == 0 || octets > inRow || size+octets > buffer.MaxChunkSize {
			break
		}
		size += octets
	}
	if n < 2 {
		return
	}
	w.rest = buffer.NewView(size)
	for i := range queue[:n] {
		for _, p := range queue[i].Data {
			w.rest.Write(p)
		}
	}
}

// take returns the next n octets, those of a segment.
func (w *row) take(n int) buffer.Buffer {
	v := w.rest
	if n == v.Size() {
		w.rest = nil
	} else {
		v = v.Clone()
		v.CapLength(n)
		w.rest.TrimFront(n)
	}
	return buffer.MakeWithView(v)
}

// Activate makes the endpoint live. It must have been the only one of its kind
// since Restore. The error means that it could not be entered in the
// demultiplexer; it is still restored then.
func (r *Restored) Activate() error {
	e := r.ep
	if err := r.ns.RegisterTransportEndpoint(e.effectiveNetProtos, tcp.ProtocolNumber, e.TransportEndpointInfo.ID, e.original(), e.boundPortFlags, e.boundBindToDevice); err != nil {
		return fmt.Errorf("register: %s", err)
	}
	e.isRegistered = true
	for i, t := range e.timers() {
		if left, ok := r.timers[i].Left(); ok {
			timerEnable(t, left)
		}
	}
	if e.closed {
		tcpip.AddDanglingEndpoint(e.original())
	}
	if left, ok := r.finWait2.Left(); ok {
		e.finWait2Timer = r.ns.Clock().AfterFunc(left, func() { endpointFinWait2Expired(e) })
	}
	if left, ok := r.timeWait.Left(); ok {
		e.timeWaitTimer = r.ns.Clock().AfterFunc(left, func() { endpointTimeWaitExpired(e) })
	}
	e.original().UnlockUser()
	if r.corked {
		e.ops.SetCorkOption(false) // sends
	}
	return nil
}

// Discard gives the endpoint up with nothing on the wire.
func (r *Restored) Discard() { discard(r.ep) }

// since turns an age back into an instant.
func since(base time.Duration, a snapshot.Age) tcpip.MonotonicTime {
	d, ok := a.Before()
	switch {
	case !ok:
		return tcpip.MonotonicTime{}
	case base == d:
		d-- // zero would mean never
	}
	return instantAt(base - d)
}

func addressOf(a netip.Addr) tcpip.Address {
	if a.Is4() {
		return tcpip.AddrFrom4(a.As4())
	}
	return tcpip.AddrFrom16(a.As16())
}
