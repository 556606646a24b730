package demo

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
)

// A frame is a type, the length of what follows as 4 octets, and that. Nodes
// send frames to each other and to whoever runs the demo.
const (
	frameHeader = 5
	maxFrame    = 1 << 28
)

// The types.
const (
	frameConfig  = 'S' // to a node: nodeConfig in JSON
	frameUp      = 'U' // from a node: it listens
	frameHandoff = 'H' // to a node: hand over
	frameDone    = 'D' // from a target: report in JSON
	frameFailed  = 'E' // from a node: a message
	frameOffer   = 'O' // donor to target: offer
	frameReady   = 'K' // target to donor: imported
	frameRefused = 'R' // target to donor: a message
	frameCommit  = 'C' // donor to target: late packets of each client
)

// beginFrame starts a frame in b's memory; the payload is appended to it.
func beginFrame(b []byte, typ byte) []byte { return append(b[:0], typ, 0, 0, 0, 0) }

// endFrame writes a frame once its payload is there.
func endFrame(w io.Writer, b []byte) error {
	if len(b)-frameHeader > maxFrame {
		return fmt.Errorf("demo: frame of %d octets: more than %d", len(b)-frameHeader, maxFrame)
	}
	binary.BigEndian.PutUint32(b[1:], uint32(len(b)-frameHeader))
	_, err := w.Write(b)
	return err
}

func sendFrame(w io.Writer, typ byte, payload []byte) error {
	return endFrame(w, append(beginFrame(nil, typ), payload...))
}

// receiveFrame reads a frame into b's memory.
func receiveFrame(r io.Reader, b []byte) (typ byte, payload []byte, err error) {
	var h [frameHeader]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(h[1:])
	if n > maxFrame {
		return 0, nil, fmt.Errorf("demo: frame of %d octets: more than %d", n, maxFrame)
	}
	if int(n) > cap(b) {
		b = make([]byte, n)
	}
	_, err = io.ReadFull(r, b[:n])
	return h[0], b[:n], err
}

// expectFrame reads a frame of a type.
func expectFrame(r io.Reader, b []byte, want byte) ([]byte, error) {
	typ, p, err := receiveFrame(r, b)
	if err == nil && typ != want {
		err = fmt.Errorf("demo: frame %q, want %q", typ, want)
	}
	return p, err
}

func appendBlob(b, blob []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(blob)))
	return append(b, blob...)
}

var errShort = errors.New("demo: message cut short, or too long")

// reader takes a message apart. After the first mistake bad is true and
// everything is zero.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n uint64) []byte {
	if r.bad || n > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return nil
	}
	p := r.b[:n]
	r.b = r.b[n:]
	return p
}

func (r *reader) octet() byte {
	if p := r.take(1); p != nil {
		return p[0]
	}
	return 0
}

func (r *reader) uint32() uint32 {
	if p := r.take(4); p != nil {
		return binary.BigEndian.Uint32(p)
	}
	return 0
}

func (r *reader) int64() int64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 || v > math.MaxInt64 {
		r.bad = true
	}
	r.take(uint64(max(n, 0)))
	if r.bad {
		return 0
	}
	return int64(v)
}

// count reads the number of items that follow, each of an octet or more.
func (r *reader) count() int {
	n := r.int64()
	if n > int64(len(r.b)) {
		r.bad = true
		return 0
	}
	return int(n)
}

func (r *reader) blob() []byte { return r.take(uint64(r.int64())) }

func (r *reader) blobs() [][]byte {
	bs := make([][]byte, r.count())
	for i := range bs {
		bs[i] = r.blob()
	}
	return bs
}

func appendBlobs(b []byte, blobs [][]byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(blobs)))
	for _, p := range blobs {
		b = appendBlob(b, p)
	}
	return b
}

// offer is everything a node has.
type offer struct {
	stopped int64 // when the donor stopped, see monotonic
	clients []offered
}

// offered is a client's connections and what the service knows of each, in the
// order of the snapshot.
type offered struct {
	snapshot []byte
	sessions [][]byte
}

func (o *offer) append(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(o.stopped))
	b = binary.AppendUvarint(b, uint64(len(o.clients)))
	for _, c := range o.clients {
		b = appendBlob(b, c.snapshot)
		b = appendBlobs(b, c.sessions)
	}
	return b
}

// parseOffer reads what append wrote; the result refers to b.
func parseOffer(b []byte) (offer, error) {
	r := reader{b: b}
	o := offer{stopped: r.int64()}
	o.clients = make([]offered, r.count())
	for i := range o.clients {
		o.clients[i] = offered{snapshot: r.blob(), sessions: r.blobs()}
	}
	if r.bad || len(r.b) != 0 {
		return offer{}, errShort
	}
	return o, nil
}

// parseCommit reads the late packets of each client; the result refers to b.
func parseCommit(b []byte) ([][][]byte, error) {
	r := reader{b: b}
	late := make([][][]byte, r.count())
	for i := range late {
		late[i] = r.blobs()
	}
	if r.bad || len(r.b) != 0 {
		return nil, errShort
	}
	return late, nil
}
