package gvtcp

import (
	"time"
	_ "unsafe" // for linkname

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/seqnum"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// Unexported functions of gVisor's package tcp. TestSignatures compares each
// with the source; mirrors stand for the types they mirror.

//go:linkname initSender gvisor.dev/gvisor/pkg/tcpip/transport/tcp.initSender
func initSender(ep *endpoint, iss, irs seqnum.Value, sndWnd seqnum.Size, mss uint16, sndWndScale int)

//go:linkname initCongestionControl gvisor.dev/gvisor/pkg/tcpip/transport/tcp.(*sender).initCongestionControl
func initCongestionControl(s *sender, name tcpip.CongestionControlOption) iface

//go:linkname newOutgoingSegment gvisor.dev/gvisor/pkg/tcpip/transport/tcp.newOutgoingSegment
func newOutgoingSegment(id stack.TransportEndpointID, clock tcpip.Clock, buf buffer.Buffer, mark uint32) *segment

//go:linkname segmentDecRef gvisor.dev/gvisor/pkg/tcpip/transport/tcp.(*segment).DecRef
func segmentDecRef(s *segment)

//go:linkname writeListPushBack gvisor.dev/gvisor/pkg/tcpip/transport/tcp.(*protectedWriteList).PushBack
func writeListPushBack(l *writeList, s *segment)

//go:linkname timerEnable gvisor.dev/gvisor/pkg/tcpip/transport/tcp.(*timer).enable
func timerEnable(t *timer, d time.Duration)

//go:linkname endpointInitGSO gvisor.dev/gvisor/pkg/tcpip/transport/tcp.(*Endpoint).initGSO
func endpointInitGSO(e *endpoint)

//go:linkname endpointSetState gvisor.dev/gvisor/pkg/tcpip/transport/tcp.(*Endpoint).setEndpointState
func endpointSetState(e *endpoint, state tcp.EndpointState)

//go:linkname endpointCleanup gvisor.dev/gvisor/pkg/tcpip/transport/tcp.(*Endpoint).cleanupLocked
func endpointCleanup(e *endpoint)

//go:linkname endpointPurgePending gvisor.dev/gvisor/pkg/tcpip/transport/tcp.(*Endpoint).purgePendingRcvQueue
func endpointPurgePending(e *endpoint)

//go:linkname endpointFinWait2Expired gvisor.dev/gvisor/pkg/tcpip/transport/tcp.(*Endpoint).finWait2TimerExpired
func endpointFinWait2Expired(e *endpoint)

//go:linkname endpointTimeWaitExpired gvisor.dev/gvisor/pkg/tcpip/transport/tcp.(*Endpoint).timeWaitTimerExpired
func endpointTimeWaitExpired(e *endpoint)
