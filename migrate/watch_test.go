package migrate_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/distributed-servers/ds/internal/lab"
)

// watcher looks at every packet between client and nodes, as the client's
// network would, and counts what a move must never do.
type watcher struct {
	mu       sync.Mutex
	packets  int
	resets   []string
	late     int // resets by the client that are none of those: the connection was over
	edges    []string
	backTS   int // timestamps that went back
	backAck  int // acknowledgements that went back
	backEdge int // right edges of the window that went back
	flows    map[flowKey]*serverFlow
	off      atomic.Bool
	// lose decides about a packet that is being sent; nil loses none.
	lose atomic.Pointer[func(client bool, h header.TCP) bool]
}

// flowKey names a connection: the IP version, the service's port, the client's.
type flowKey [3]uint16

// serverFlow is what the service has promised on one connection.
type serverFlow struct {
	seen          bool
	ts, ack, edge uint32
	first         uint32 // acknowledgement
	scale         int
	haveTS        bool

	serverFin, clientFin end
}

// end is how far one side's stream has come to its end.
type end struct {
	sent, acked bool
	seq         uint32 // behind the FIN
}

// ack notes a segment of the side whose end this is not.
func (e *end) ack(h header.TCP) {
	if e.sent && h.Flags().Contains(header.TCPFlagAck) && int32(h.AckNumber()-e.seq) >= 0 {
		e.acked = true
	}
}

// fin notes a segment of the side whose end this is.
func (e *end) fin(h header.TCP, payload int) {
	if h.Flags().Contains(header.TCPFlagFin) {
		e.sent, e.seq = true, h.SequenceNumber()+uint32(payload)+1
	}
}

// over tells whether both ends have acknowledged the other's FIN: what comes
// after, such as a duplicate that the network had kept, may well be answered
// with a reset (RFC 9293 §3.10.7.1).
func (f *serverFlow) over() bool { return f.serverFin.acked && f.clientFin.acked }

// watched is a port whose packets the watcher sees in the order in which the
// stack sends them.
type watched struct {
	*lab.Port
	w      *watcher
	client bool
}

func (p watched) Write(b []byte) (int, error) {
	p.w.see(b, p.client)
	if lose := p.w.lose.Load(); lose != nil {
		if h := tcpHeader(b); h != nil && (*lose)(p.client, h) {
			return len(b), nil
		}
	}
	return p.Port.Write(b)
}

func newWatcher() *watcher { return &watcher{flows: map[flowKey]*serverFlow{}} }

func tcpHeader(p []byte) header.TCP {
	switch {
	case len(p) >= 60 && p[0]>>4 == 6 && p[6] == 6:
		return header.TCP(p[40:])
	case len(p) >= 40 && p[0]>>4 == 4 && p[9] == 6:
		return header.TCP(p[p[0]&0xf*4:])
	}
	return nil
}

func (w *watcher) see(p []byte, client bool) {
	if w.off.Load() {
		return
	}
	h := tcpHeader(p)
	if h == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.packets++
	payload := len(h) - int(h.DataOffset())
	version := uint16(p[0] >> 4)
	if client {
		f := w.flows[flowKey{version, h.DestinationPort(), h.SourcePort()}]
		if f != nil {
			f.clientFin.fin(h, payload)
			f.serverFin.ack(h)
		}
		switch {
		case !h.Flags().Contains(header.TCPFlagRst):
		case f != nil && f.over():
			w.late++
		default:
			w.resets = append(w.resets, fmt.Sprintf("by the client: port %d to %d", h.SourcePort(), h.DestinationPort()))
		}
		return
	}
	key := flowKey{version, h.SourcePort(), h.DestinationPort()}
	f := w.flows[key]
	if h.Flags().Contains(header.TCPFlagRst) {
		if f == nil || !f.over() {
			w.resets = append(w.resets, fmt.Sprintf("by the service: port %d to %d", h.SourcePort(), h.DestinationPort()))
		}
		return // it promises nothing
	}
	if h.Flags().Contains(header.TCPFlagSyn) {
		o := header.ParseSynOptions(h.Options(), true)
		w.flows[key] = &serverFlow{scale: max(o.WS, 0)}
		return
	}
	if f == nil {
		return
	}
	f.serverFin.fin(h, payload)
	f.clientFin.ack(h)
	if o := header.ParseTCPOptions(h.Options()); o.TS {
		if f.haveTS && int32(o.TSVal-f.ts) < 0 {
			w.backTS++
		}
		f.ts, f.haveTS = o.TSVal, true
	}
	edge := h.AckNumber() + uint32(h.WindowSize())<<f.scale
	if f.seen {
		if int32(h.AckNumber()-f.ack) < 0 {
			w.backAck++
		}
		// Netstack does not scale the window of an ACK that it sends while it
		// shakes hands.
		if f.ack != f.first && int32(edge-f.edge) <= -(1<<f.scale) {
			w.backEdge++
			w.edges = append(w.edges, fmt.Sprintf("from %d to %d, scale %d, ack %d, seen %d packets", f.edge, edge, f.scale, h.AckNumber(), w.packets))
		}
	}
	if !f.seen {
		f.first = h.AckNumber()
	}
	f.seen, f.ack, f.edge = true, h.AckNumber(), edge
}

// count is how many packets were sent so far.
func (w *watcher) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.packets
}

// lateResets is how many resets a client has sent that are no fault.
func (w *watcher) lateResets() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.late
}

// forget starts anew: the test has made time or sequence numbers jump.
func (w *watcher) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.flows {
		*f = serverFlow{scale: f.scale}
	}
}

// check fails the test if the peer could have noticed anything.
func (w *watcher) check(t testing.TB) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.resets) > 0 {
		t.Errorf("%d resets on the wire: %v", len(w.resets), w.resets[:min(len(w.resets), 5)])
	}
	if w.backTS+w.backAck+w.backEdge > 0 {
		t.Errorf("went back: %d timestamps, %d acknowledgements, %d window edges %v", w.backTS, w.backAck, w.backEdge, w.edges)
	}
}
