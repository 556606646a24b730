package migrate_test

import (
	"sync"
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
	backTS   int // timestamps that went back
	backAck  int // acknowledgements that went back
	backEdge int // right edges of the window that went back
	flows    map[[2]uint16]*serverFlow
	stop     func()
}

// serverFlow is what the service has promised on one connection.
type serverFlow struct {
	seen           bool
	ts, ack, edge  uint32
	scale          int
	haveTS, scaled bool
}

func newWatcher(n *lab.Net) *watcher {
	w := &watcher{flows: map[[2]uint16]*serverFlow{}}
	w.stop = n.Tap(w.see)
	return w
}

func tcpHeader(p []byte) header.TCP {
	switch {
	case len(p) >= 60 && p[0]>>4 == 6 && p[6] == 6:
		return header.TCP(p[40:])
	case len(p) >= 40 && p[0]>>4 == 4 && p[9] == 6:
		return header.TCP(p[p[0]&0xf*4:])
	}
	return nil
}

func (w *watcher) see(e lab.Event) {
	h := tcpHeader(e.Packet)
	if h == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.packets++
	if h.Flags().Contains(header.TCPFlagRst) {
		w.resets = append(w.resets, e.From+" to "+e.To)
	}
	// The order in which the service sends counts, so look only where its
	// packets enter the network: what was lost or reordered later is the
	// network's doing.
	if e.From != "a" && e.From != "b" || e.Verdict == lab.Duplicated {
		return
	}
	key := [2]uint16{h.SourcePort(), h.DestinationPort()}
	if h.Flags().Contains(header.TCPFlagSyn) {
		o := header.ParseSynOptions(h.Options(), true)
		w.flows[key] = &serverFlow{scale: max(o.WS, 0), scaled: o.WS >= 0}
		return
	}
	f := w.flows[key]
	if f == nil {
		return
	}
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
		if int32(edge-f.edge) <= -(1 << f.scale) {
			w.backEdge++
		}
	}
	f.seen, f.ack, f.edge = true, h.AckNumber(), edge
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
		t.Errorf("went back: %d timestamps, %d acknowledgements, %d window edges", w.backTS, w.backAck, w.backEdge)
	}
}
