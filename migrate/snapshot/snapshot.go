// Package snapshot is the wire form of TCP connections that are moved from one
// node to another.
//
// A [Snapshot] names everything by its meaning in RFC 9293 and its companions,
// not by the layout of the stack it came from. [Append] and [Parse] share one
// description of the format (codec.go), so that they cannot differ; every
// field is checked against its range both when it is written and when it is
// read, and each connection as a whole for consistency (check.go). A snapshot
// that Parse accepts can be rebuilt without harm to the stack that does it.
// docs/snapshot-format.md describes the octets.
package snapshot

import (
	"net/netip"
	"time"
)

// Version is the version of the format that Append writes. Compat is the
// oldest version whose readers can read it: they skip what newer versions
// append to a connection's record.
const (
	Version = 1
	Compat  = 1
)

// State is a TCP state (RFC 9293 §3.3.2) that a connection can be moved in.
// The values are those of the format.
type State uint8

// The states between the handshake and CLOSED.
const (
	Established State = 1 + iota
	CloseWait
	FinWait1
	FinWait2
	Closing
	LastAck
	TimeWait
)

var stateNames = [...]string{"?", "ESTABLISHED", "CLOSE_WAIT", "FIN_WAIT_1", "FIN_WAIT_2", "CLOSING", "LAST_ACK", "TIME_WAIT"}

func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return stateNames[0]
}

// finReceived tells whether the peer's FIN has been processed in state s.
func (s State) finReceived() bool {
	return s == CloseWait || s == Closing || s == LastAck || s == TimeWait
}

// finQueued tells whether our own FIN is queued, sent or acknowledged.
func (s State) finQueued() bool { return s != Established && s != CloseWait }

// finPending tells whether our FIN may still be unacknowledged.
func (s State) finPending() bool { return s == FinWait1 || s == Closing || s == LastAck }

// FinReceived tells whether the peer has ended its stream.
func (c *Conn) FinReceived() bool { return c.State.finReceived() }

// FinQueued tells whether this side has ended its stream.
func (c *Conn) FinQueued() bool { return c.State.finQueued() }

// Age is how long before the freeze something happened, plus one nanosecond;
// 0 means that it never happened. The connection's clock stands still between
// freeze and activation, so ages need no agreement between clocks.
type Age uint64

// AgeOf returns the age of what happened d before the freeze.
func AgeOf(d time.Duration) Age { return Age(max(d, 0)) + 1 }

// Before returns how long before the freeze it happened; ok is false if it
// never did.
func (a Age) Before() (d time.Duration, ok bool) { return time.Duration(a) - 1, a != 0 }

// Timer is how long a timer still has to run, plus one nanosecond; 0 means
// that it is not set.
type Timer uint64

// TimerOf returns a timer that fires after d, at once if d is negative.
func TimerOf(d time.Duration) Timer { return Timer(max(d, 0)) + 1 }

// Left returns the remaining time; ok is false if the timer is not set.
func (t Timer) Left() (d time.Duration, ok bool) { return time.Duration(t) - 1, t != 0 }

// Snapshot is a set of connections that move together.
type Snapshot struct {
	// Client, if valid, is the client that all connections belong to and
	// whose other packets are held as well. Otherwise each connection is held
	// for itself.
	Client netip.Addr
	Conns  []Conn
}

// Conn is one connection at the instant of its freeze.
type Conn struct {
	Local, Remote netip.AddrPort
	State         State

	Orphan       bool // the application has closed it
	Unaccepted   bool // no application has accepted it yet
	ReadShutdown bool // the application reads no more

	// RFC 7323.
	Timestamps  bool
	TSVal       uint32        // the timestamp clock at the freeze, in ms
	TSPhase     time.Duration // and how far it was into that millisecond
	TSRecent    uint32
	TSRecentAge Age

	SACKPermitted bool // RFC 2018

	Options Options
	Send    Send
	Receive Receive

	// Timers that belong to the connection as a whole.
	KeepAliveTimer Timer
	FinWait2Timer  Timer // an orphan's patience in FIN_WAIT_2
	TimeWaitTimer  Timer

	// Unprocessed are whole IP packets that had arrived but were not looked
	// at yet, in order.
	Unprocessed [][]byte

	// Pieces is memory for Data and Unread. It is not part of the format.
	Pieces Pieces
}

// Reset empties c but keeps memory that can be used again.
func (c *Conn) Reset() {
	p, q := c.Pieces, c.Send.Queue
	clear(p)
	clear(q)
	*c = Conn{}
	c.Pieces, c.Send.Queue = p[:0], q[:0]
}

// Pieces collects octets without copying them. It is an [io.Writer].
type Pieces [][]byte

// Write adds a piece.
func (p *Pieces) Write(b []byte) (int, error) {
	*p = append(*p, b)
	return len(b), nil
}

// From returns the pieces added since there were n.
func (p Pieces) From(n int) [][]byte {
	if n == len(p) {
		return nil
	}
	return p[n:len(p):len(p)]
}

// Options are the socket options.
type Options struct {
	Nagle, Cork, KeepAlive bool
	Linger                 bool
	LingerTime             time.Duration
	FinWait2Time           time.Duration // TCP_LINGER2
	KeepIdle, KeepInterval time.Duration
	KeepCount              int
	KeepUnacked            int // probes without answer so far
	UserTimeout            time.Duration
	SendBuffer, RecvBuffer int // octets
	SendBufferFixed        bool
	LowWater               int    // SO_RCVLOWAT
	WindowClamp            uint32 // octets
	UserMSS                uint16 // TCP_MAXSEG, 0: none
	TTL                    uint8  // IPv4, 0: default
	HopLimit               int16  // IPv6, -1: default
	TOS                    uint8  // traffic class
	PMTUDiscovery          uint8  // IP_MTU_DISCOVER
	Mark                   uint32 // SO_MARK
	ReusePort              bool
	ReuseAddr              bool
}

// usual are the settings of a connection that nobody has set any of.
var usual = Options{
	FinWait2Time: time.Minute,
	KeepIdle:     2 * time.Hour,
	KeepInterval: 75 * time.Second,
	KeepCount:    9,
	LowWater:     1,
	WindowClamp:  1 << 20,
	HopLimit:     -1,
}

// setUsual makes the settings the usual ones. Flags and buffer sizes are none.
func (o *Options) setUsual() {
	u := usual
	u.Nagle, u.Cork, u.KeepAlive, u.Linger = o.Nagle, o.Cork, o.KeepAlive, o.Linger
	u.SendBufferFixed, u.ReusePort, u.ReuseAddr = o.SendBufferFixed, o.ReusePort, o.ReuseAddr
	u.SendBuffer, u.RecvBuffer = o.SendBuffer, o.RecvBuffer
	*o = u
}

func (o *Options) isUsual() bool {
	u := *o
	u.setUsual()
	return u == *o
}

// Send is the sending side (RFC 9293 §3.3.1, RFC 5681, 6298, 6675, 8985, 9438).
type Send struct {
	Una, Nxt    uint32 // SND.UNA, SND.NXT
	Wnd         uint32 // SND.WND, octets
	WndScale    uint8
	MSS         uint16 // largest payload to send, options deducted
	PathMTU     uint32 // learned from ICMP, 0: none
	MaxSentAck  uint32 // highest acknowledgement sent
	LastSend    Age
	DupAcks     int
	Outstanding int // segments in flight
	SackedOut   int

	RTO          time.Duration
	SRTT, RTTVar time.Duration
	RTTSampled   bool
	RTTSeq       uint32 // segment being timed, without timestamps
	RTTTime      Age

	FirstRetransmit   Age
	ZeroWindowProbing bool
	UnackedProbes     uint32
	SpuriousRecovery  bool   // RFC 3522
	RetransmitTS      uint32 // RFC 3522
	Corked            bool   // the cork timer is what holds data back

	// Congestion control: window and threshold in segments.
	Algorithm Algorithm
	Phase     uint8 // open, disorder, recoveries: netstack's CongestionControlState
	Cwnd      int
	Ssthresh  int // 0: not set yet
	CAAcks    int
	Cubic     Cubic

	FastRecovery FastRecovery
	LossDetector uint8 // netstack's TCPRecovery bits
	RACK         RACK

	SACKed    []Block // the scoreboard
	MaxSACKed uint32
	SMSS      uint16 // of the scoreboard

	RetransmitTimer Timer
	ReorderTimer    Timer
	ProbeTimer      Timer
	CorkTimer       Timer

	// Queue holds all octets from SND.UNA on, sent or not; a segment without
	// data is the FIN. Next is the index of the first one to send, len(Queue)
	// if none is.
	Queue []Segment
	Next  int
}

// Algorithm is a congestion control algorithm.
type Algorithm uint8

// The algorithms.
const (
	Reno Algorithm = 1 + iota
	Cubic9438
)

// Cubic is the state of RFC 9438 and HyStart.
type Cubic struct {
	WLastMax, WMax, K     float64
	Epoch                 Age
	Events                int
	EndSeq                uint32
	CurrRTT, LastRTT      time.Duration // 0: none seen
	Samples               uint
	LastAck, RoundStarted Age
}

// FastRecovery is the state of RFC 6582 and RFC 6675.
type FastRecovery struct {
	Active                          bool
	First, Last, HighRxt, RescueRxt uint32
	MaxCwnd                         int
}

// RACK is the state of RFC 8985.
type RACK struct {
	XmitTime             Age
	EndSeq, FACK         uint32
	RTT, MinRTT          time.Duration
	Reordered, DSACKSeen bool
	ReoWnd               time.Duration
	ReoWndIncr           uint8
	ReoWndPersist        int8
	RTTSeq               uint32
	ExitedRecovery       bool
	ProbeOut             bool // a tail loss probe is unacknowledged
	ProbeHighRxt         uint32
}

// Segment is a part of the send queue.
type Segment struct {
	Data   [][]byte // in pieces; Parse gives at most one
	Sent   bool     // it has its place in sequence space
	Push   bool
	SACKed bool // acknowledged selectively
	Lost   bool // as RACK thinks
	XmitAt Age
	Xmits  uint32
}

// Block is a range of sequence numbers (RFC 2018).
type Block struct {
	Start uint32
	Len   uint32 // octets
}

// Receive is the receiving side.
type Receive struct {
	Nxt         uint32 // RCV.NXT
	Acceptable  uint32 // octets from RCV.NXT to the right edge ever promised
	Wnd         uint32 // RCV.WND as last advertised, octets
	WndScale    uint8
	WndUpdateAt uint32 // RCV.NXT when it was
	PrevUsed    int    // octets buffered then
	AMSS        uint16 // the MSS we advertised

	LastAck         Age // last acknowledgement received
	LastOutOfWindow Age // last answer to an out-of-window segment (RFC 5961)

	Tuning Tuning

	Blocks []Block // SACK blocks to report, latest first

	// Unread are the octets before RCV.NXT that the application has not
	// read, in pieces; Parse gives at most one.
	Unread [][]byte
	// OutOfOrder are segments beyond RCV.NXT, as a heap by Seq.
	OutOfOrder []Stray
}

// Tuning is the receive buffer's auto-tuning (dynamic right-sizing).
type Tuning struct {
	Off                bool
	Measured           Age
	Copied, PrevCopied int // octets the application read, this and last round
	RTT                time.Duration
	RTTSeq             uint32
	RTTMeasured        Age
}

// Stray is a segment that arrived out of order.
type Stray struct {
	Seq, Ack uint32
	Flags    uint8 // RFC 9293 §3.1
	Data     [][]byte
}

// Len is the number of octets in pieces.
func Len(pieces [][]byte) int {
	n := 0
	for _, p := range pieces {
		n += len(p)
	}
	return n
}
