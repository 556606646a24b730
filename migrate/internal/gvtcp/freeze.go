package gvtcp

import (
	"errors"
	"fmt"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// Errors of [Frozen.Freeze].
var (
	ErrHandshake = errors.New("handshake in progress")
	ErrEnded     = errors.New("connection has ended")
)

// Frozen is an endpoint that is held still.
type Frozen struct {
	ns     *stack.Stack
	ep     *endpoint
	at     time.Duration // on the stack's clock
	timers [5]stopped

	finWait2, timeWait stoppedClock
}

// Freeze holds an endpoint still: locked, out of the demultiplexer, its timers
// stopped. It fails with ErrHandshake or ErrEnded, and then has done nothing.
// f must be new.
func (f *Frozen) Freeze(ns *stack.Stack, original *tcp.Endpoint) error {
	e := endpointOf(original)
	original.LockUser()
	switch state := original.EndpointState(); state {
	case tcp.StateEstablished, tcp.StateCloseWait, tcp.StateFinWait1, tcp.StateFinWait2,
		tcp.StateClosing, tcp.StateLastAck, tcp.StateTimeWait:
	case tcp.StateInitial, tcp.StateBound, tcp.StateConnecting, tcp.StateSynSent, tcp.StateSynRecv:
		original.UnlockUser()
		return ErrHandshake
	default:
		original.UnlockUser()
		return ErrEnded
	}
	if e.snd == nil || e.rcv == nil || !e.isRegistered {
		original.UnlockUser()
		return ErrEnded
	}
	f.ns, f.ep, f.at = ns, e, at(ns.Clock().NowMonotonic())
	ns.UnregisterTransportEndpoint(e.effectiveNetProtos, tcp.ProtocolNumber, e.TransportEndpointInfo.ID, original, e.boundPortFlags, e.boundBindToDevice)
	e.isRegistered = false
	for i, t := range e.timers() {
		f.timers[i] = stop(t, f.at)
	}
	switch original.EndpointState() {
	case tcp.StateFinWait2:
		f.finWait2 = stopClock(e.finWait2Timer)
	case tcp.StateTimeWait:
		f.timeWait = stopClock(e.timeWaitTimer)
	}
	return nil
}

// The order of timers.
const (
	resendTimer = iota
	reorderTimer
	probeTimer
	corkTimer
	keepaliveTimer
)

func (e *endpoint) timers() [5]*timer {
	return [5]*timer{&e.snd.resendTimer, &e.snd.reorderTimer, &e.snd.probeTimer, &e.snd.corkTimer, &e.keepalive.timer}
}

// stopped is what stop did to a timer.
type stopped struct {
	left time.Duration // until it would have fired
	set  bool          // it was running
	late bool          // and had fired: its goroutine waits for the lock
}

// stop keeps a timer from firing during the freeze, which would leave its
// goroutine waiting for the endpoint's lock.
func stop(t *timer, now time.Duration) stopped {
	if t.timer == nil || t.state != timerEnabled && t.state != timerOrphaned {
		return stopped{}
	}
	s := stopped{set: t.state == timerEnabled, left: at(t.target) - now}
	if t.timer.Stop() {
		t.state = timerDisabled
	} else {
		// Too late. An orphan's goroutine finds the state orphaned and does
		// nothing; an enabled timer's looks at the target again.
		s.late = true
	}
	return s
}

func (s stopped) restart(t *timer, shift time.Duration) {
	switch {
	case !s.set:
	case s.late:
		t.target = instantAt(at(t.target) + shift)
	default:
		timerEnable(t, max(s.left, 0))
	}
}

// stoppedClock is a stopped timer of the clock itself, which netstack uses for
// the two longest waits.
type stoppedClock struct {
	timer tcpip.Timer // nil: there was none, or it has fired
	left  time.Duration
	set   bool
}

// remainder is implemented by the timers of package stack's clock.
type remainder interface{ Remaining() time.Duration }

func stopClock(t tcpip.Timer) stoppedClock {
	if t == nil {
		return stoppedClock{}
	}
	s := stoppedClock{set: true}
	if r, ok := t.(remainder); ok {
		s.left = r.Remaining()
	}
	if t.Stop() {
		s.timer = t
	}
	return s
}

func (s stoppedClock) restart() {
	if s.timer != nil {
		s.timer.Reset(max(s.left, 0))
	}
}

// Thaw lets the endpoint go on as if no time had passed since Freeze. The
// error means that the endpoint could not be entered in the demultiplexer; it
// is still frozen then.
func (f *Frozen) Thaw() error {
	e := f.ep
	if err := f.ns.RegisterTransportEndpoint(e.effectiveNetProtos, tcp.ProtocolNumber, e.TransportEndpointInfo.ID, e.original(), e.boundPortFlags, e.boundBindToDevice); err != nil {
		return fmt.Errorf("register: %s", err)
	}
	e.isRegistered = true
	shift := rebase(f.ns.Clock(), f.at%time.Millisecond) - f.at
	e.shift(shift)
	for i, t := range e.timers() {
		f.timers[i].restart(t, shift)
	}
	f.finWait2.restart()
	f.timeWait.restart()
	e.original().UnlockUser()
	return nil
}

// rebase returns the latest instant up to now that is as far into its
// millisecond as the donor's clock was at the freeze. Taken for that instant,
// it lets the timestamp clock, which counts milliseconds, go on evenly.
func rebase(clock tcpip.Clock, phase time.Duration) time.Duration {
	now := at(clock.NowMonotonic())
	base := now - now%time.Millisecond + phase
	if base > now {
		base -= time.Millisecond
	}
	return base
}

// shift moves everything the endpoint remembers by d, whole milliseconds.
func (e *endpoint) shift(d time.Duration) {
	e.TCPEndpointStateInner.TSOffset.milliseconds -= uint32(d / time.Millisecond)
	s, r := e.snd, e.rcv
	for _, t := range [...]*tcpip.MonotonicTime{
		&e.recentTSTime, &e.lastOutOfWindowAckTime,
		&e.TCPRcvBufState.RcvAutoParams.MeasureTime, &e.TCPRcvBufState.RcvAutoParams.RTTMeasureTime,
		&s.TCPSenderState.LastSendTime, &s.TCPSenderState.RTTMeasureTime, &s.firstRetransmittedSegXmitTime,
		&s.rc.TCPRACKState.XmitTime, &r.lastRcvdAckTime,
	} {
		shiftTime(t, d)
	}
	if s.cc.tab == cubicTab {
		c := (*cubicState)(s.cc.data)
		shiftTime(&c.TCPCubicState.T, d)
		shiftTime(&c.TCPCubicState.LastAck, d)
		shiftTime(&c.TCPCubicState.RoundStart, d)
	}
	for g := s.writeList.writeList.head; g != nil; g = g.segmentEntry.next {
		shiftTime(&g.xmitTime, d)
	}
	e.segmentQueue.mu.mu.Lock()
	for g := e.segmentQueue.list.head; g != nil; g = g.segmentEntry.next {
		shiftTime(&g.rcvdTime, d)
	}
	e.segmentQueue.mu.mu.Unlock()
}

func shiftTime(t *tcpip.MonotonicTime, d time.Duration) {
	if n := at(*t); n != 0 {
		*t = instantAt(n + d)
	}
}

// Discard tears the endpoint down with nothing on the wire.
func (f *Frozen) Discard() {
	e := f.ep
	// First what was received but not processed: netstack would look for
	// somebody else to deliver it to, and answer with a reset.
	e.segmentQueue.mu.mu.Lock()
	g := e.segmentQueue.list.head
	e.segmentQueue.list = segmentList{}
	e.segmentQueue.mu.mu.Unlock()
	for g != nil {
		next := g.segmentEntry.next
		g.segmentEntry = segmentEntry{}
		segmentDecRef(g)
		g = next
	}
	discard(e)
}

// discard gives back what a locked, unregistered endpoint has.
func discard(e *endpoint) {
	if e.rcv != nil {
		endpointPurgePending(e)
	}
	e.closed = true // so that cleanup purges the read queue too
	if e.original().EndpointState() != tcp.StateInitial {
		endpointSetState(e, tcp.StateFinWait2) // the statistics shall not count a reset
	}
	endpointCleanup(e)
	endpointSetState(e, tcp.StateError) // not closed: that would read as a clean end
	e.hardError = &tcpip.ErrConnectionAborted{}
	e.original().UnlockUser()
}
