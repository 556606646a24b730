//lint:file-ignore U1000 the mirrors have every field of their originals

package gvtcp

import (
	"container/list"
	"io"
	"time"
	"unsafe"

	"gvisor.dev/gvisor/pkg/atomicbitops"
	"gvisor.dev/gvisor/pkg/sleep"
	"gvisor.dev/gvisor/pkg/sync"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/ports"
	"gvisor.dev/gvisor/pkg/tcpip/seqnum"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// Mirrors of gVisor's structs, field by field in their order. Those that are
// only passed by are opaque.
type (
	opaque = unsafe.Pointer // any pointer, map, channel or function

	// iface is an interface with methods.
	iface struct{ tab, data unsafe.Pointer }

	// lock is one of gVisor's generated mutex types.
	lock struct{ mu sync.Mutex }
)

type endpoint struct {
	TCPEndpointStateInner       endpointStateInner
	TransportEndpointInfo       stack.TransportEndpointInfo
	DefaultSocketOptionsHandler tcpip.DefaultSocketOptionsHandler
	endpointEntry               endpointEntry
	pendingProcessingMu         lock
	pendingProcessing           bool
	stack                       *stack.Stack
	protocol                    opaque
	waiterQueue                 *waiter.Queue
	hardError                   tcpip.Error
	lastErrorMu                 lock
	lastError                   tcpip.Error
	rcvQueueMu                  lock
	TCPRcvBufState              tcp.TCPRcvBufState
	rcvMemUsed                  atomicbitops.Int32
	mu                          sync.CrossGoroutineMutex
	ownedByUser                 atomicbitops.Uint32
	rcvQueue                    segmentList
	state                       atomicbitops.Uint32
	connectionDirectionState    atomicbitops.Uint32
	origEndpointState           uint32
	isPortReserved              bool
	isRegistered                bool
	boundNICID                  tcpip.NICID
	route                       *stack.Route
	ipv4TTL                     uint8
	ipv6HopLimit                int16
	isConnectNotified           bool
	h                           opaque
	portFlags                   ports.Flags
	boundBindToDevice           tcpip.NICID
	boundPortFlags              ports.Flags
	boundDest                   tcpip.FullAddress
	effectiveNetProtos          []tcpip.NetworkProtocolNumber
	recentTSTime                tcpip.MonotonicTime
	shutdownFlags               tcpip.ShutdownFlags
	tcpRecovery                 tcpip.TCPRecovery
	sack                        tcp.SACKInfo
	delay                       uint32
	scoreboard                  *scoreboard
	segmentQueue                segmentQueue
	userMSS                     uint16
	maxSynRetries               uint8
	windowClamp                 uint32
	sndQueueInfo                sndQueueInfo
	cc                          tcpip.CongestionControlOption
	keepalive                   keepalive
	userTimeout                 time.Duration
	deferAccept                 time.Duration
	acceptMu                    sync.Mutex
	acceptQueue                 acceptQueue
	rcv                         *receiver
	snd                         *sender
	drainDone                   chan struct{}
	undrain                     chan struct{}
	probe                       tcp.TCPProbeFunc
	connectingAddress           tcpip.Address
	amss                        uint16
	sendTOS                     uint8
	gso                         stack.GSO
	stats                       tcp.Stats
	tcpLingerTimeout            time.Duration
	closed                      bool
	txHash                      uint32
	owner                       tcpip.PacketOwner
	ops                         tcpip.SocketOptions
	lastOutOfWindowAckTime      tcpip.MonotonicTime
	finWait2Timer               tcpip.Timer
	timeWaitTimer               tcpip.Timer
	listenCtx                   opaque
	limRdr                      *io.LimitedReader
	pmtud                       tcpip.PMTUDStrategy
	alsoBindToV4                bool
	terminateAtRestore          bool
}

type endpointStateInner struct {
	TSOffset      tsOffset
	SACKPermitted bool
	SendTSOk      bool
	RecentTS      uint32
}

type tsOffset struct{ milliseconds uint32 }

type endpointEntry struct{ next, prev *tcp.Endpoint }

type sndQueueInfo struct {
	sndQueueMu     lock
	TCPSndBufState tcp.TCPSndBufState
}

type keepalive struct {
	keepaliveMutex lock
	idle           time.Duration
	interval       time.Duration
	count          int
	unacked        int
	timer          timer
	waker          sleep.Waker
}

type acceptQueue struct {
	endpoints        list.List
	pendingEndpoints map[*tcp.Endpoint]struct{}
	capacity         int
}

type segmentQueue struct {
	mu     lock
	list   segmentList
	ep     *endpoint
	frozen bool
}

type segmentList struct{ head, tail *segment }

type segmentEntry struct{ next, prev *segment }

type segment struct {
	segmentEntry   segmentEntry
	segmentRefs    segmentRefs
	ep             *endpoint
	qFlags         uint8
	id             stack.TransportEndpointID
	pkt            *stack.PacketBuffer
	sequenceNumber seqnum.Value
	ackNumber      seqnum.Value
	flags          header.TCPFlags
	window         seqnum.Size
	csum           uint16
	csumValid      bool
	parsedOptions  header.TCPOptions
	options        []byte
	hasNewSACKInfo bool
	rcvdTime       tcpip.MonotonicTime
	xmitTime       tcpip.MonotonicTime
	xmitCount      uint32
	acked          bool
	dataMemSize    int
	lost           bool
}

type segmentRefs struct{ refCount atomicbitops.Int64 }

type sender struct {
	TCPSenderState                tcp.TCPSenderState
	ep                            *endpoint
	finSent                       bool
	lr                            iface
	firstRetransmittedSegXmitTime tcpip.MonotonicTime
	zeroWindowProbing             bool
	unackZeroWindowProbes         uint32
	writeNext                     *segment
	writeList                     writeList
	resendTimer                   timer
	rtt                           rtt
	minRTO                        time.Duration
	maxRTO                        time.Duration
	maxRetries                    uint32
	gso                           bool
	state                         tcpip.CongestionControlState
	cc                            iface
	rc                            rackControl
	reorderTimer                  timer
	probeTimer                    timer
	spuriousRecovery              bool
	retransmitTS                  uint32
	startCork                     bool
	corkTimer                     timer
}

type writeList struct {
	writeList segmentList
	set       opaque
}

type rtt struct {
	rttMutex    lock
	TCPRTTState tcp.TCPRTTState
}

type rackControl struct {
	TCPRACKState   tcp.TCPRACKState
	exitedRecovery bool
	minRTT         time.Duration
	tlpRxtOut      bool
	tlpHighRxt     seqnum.Value
	snd            *sender
}

type receiver struct {
	TCPReceiverState    tcp.TCPReceiverState
	ep                  *endpoint
	rcvWnd              seqnum.Size
	rcvWUP              seqnum.Value
	prevBufUsed         int
	closed              bool
	pendingRcvdSegments []*segment
	lastRcvdAckTime     tcpip.MonotonicTime
}

type timer struct {
	state       timerState
	clock       tcpip.Clock
	target      tcpip.MonotonicTime
	clockTarget tcpip.MonotonicTime
	timer       tcpip.Timer
	callback    func()
}

// timerState are the states of gVisor's timer.
type timerState int

const (
	timerUninitialized timerState = iota
	timerDisabled
	timerEnabled
	timerOrphaned // disabled, but the clock's timer still runs
)

// Congestion control algorithms behind sender.cc.
type cubicState struct {
	TCPCubicState       tcp.TCPCubicState
	numCongestionEvents int
	s                   *sender
}

type renoState struct{ s *sender }

type scoreboard struct {
	smss      uint16
	maxSACKED seqnum.Value
	sacked    seqnum.Size
	ranges    opaque
}

// recvQ marks a segment as counted against the receive buffer: gVisor's
// queueFlags.
const recvQ = 1 << 1

// instant is tcpip.MonotonicTime: nanoseconds of the stack's clock, 0 for never.
// Its methods guard against overflow, at ten times the cost of the sum.
type instant struct{ nanoseconds int64 }

func at(t tcpip.MonotonicTime) time.Duration {
	return time.Duration((*instant)(unsafe.Pointer(&t)).nanoseconds)
}

func instantAt(d time.Duration) (t tcpip.MonotonicTime) {
	(*instant)(unsafe.Pointer(&t)).nanoseconds = int64(d)
	return t
}

func endpointOf(e *tcp.Endpoint) *endpoint { return (*endpoint)(unsafe.Pointer(e)) }

func (e *endpoint) original() *tcp.Endpoint { return (*tcp.Endpoint)(unsafe.Pointer(e)) }
