package demo

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/distributed-servers/ds/migrate"
	"github.com/distributed-servers/ds/stack"
)

const (
	// drainTime bounds the wait for the send buffers to run empty.
	drainTime = 20 * time.Millisecond
	// A handshake in progress is over within a round trip: wait, and try again
	// this often.
	handshakeWait  = 2 * time.Millisecond
	handshakeTries = 500
	// What a node may buffer bounds how long a drain takes and how much a
	// handoff carries, in octets. The link is short: it needs no more.
	maxBuffer   = 256 << 10
	writeBuffer = 128 << 10
)

// wire is how a node's packets come and go.
type wire struct {
	// leave ends the arrival of packets here, enter begins it.
	leave, enter func() error
	// forward takes packets that arrive here for connections that have left,
	// for the time of grace.
	forward func([]byte)
	grace   time.Duration
}

// node is one of the two servers.
type node struct {
	stack   *stack.Stack
	service *service
	wire    wire
	control io.ReadWriter // whoever runs the demo
	peer    io.ReadWriter // the other node

	frame, received []byte // memory of frames to and from the peer
}

// report is what a target tells about a handoff. Times are of monotonic.
type report struct {
	Stopped int64 `json:"stopped"` // when the donor stopped
	Started int64 `json:"started"` // when the target had started
	Bytes   int   `json:"bytes"`   // of the offer
}

// serve accepts connections and hands over, or takes over, until the control
// connection (of the owner) or the peer (of the other node) ends.
func (n *node) serve(service netip.AddrPort, owner bool) error {
	l, err := n.stack.Listen("tcp", service.String())
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.AcceptConn()
			if err != nil {
				return // the stack is closed
			}
			c.SetWriteBuffer(writeBuffer) // it fails if the client has gone, as Read will
			n.service.start(c, &session{})
		}
	}()
	if err := sendFrame(n.control, frameUp, nil); err != nil {
		return err
	}
	err = n.alternate(owner)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrClosedPipe) {
		return nil
	}
	return errors.Join(err, sendFrame(n.control, frameFailed, []byte(err.Error())))
}

// alternate gives and takes by turns. It returns how that ended, never nil.
func (n *node) alternate(owner bool) error {
	for {
		if owner {
			if _, err := expectFrame(n.control, nil, frameHandoff); err != nil {
				return err
			}
			if err := n.give(); err != nil {
				return err
			}
		}
		owner = true
		if err := n.take(); err != nil {
			return err
		}
	}
}

// give hands everything over to the other node.
func (n *node) give() error {
	for try := 1; ; try++ {
		err := n.tryGive()
		if try == handshakeTries || !errors.Is(err, migrate.ErrHandshake) {
			return err
		}
		<-time.After(handshakeWait)
	}
}

func (n *node) tryGive() (err error) {
	// Drain, so that little has to travel while the client waits. Without
	// success more travels, that is all.
	donors := make(map[netip.Addr]*migrate.Donor)
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	for _, client := range n.stack.Clients() {
		donors[client] = migrate.NewClientDonor(n.stack, client)
		donors[client].Drain(ctx)
	}

	o := offer{stopped: monotonic()}
	n.service.stop()
	if err := n.wire.leave(); err != nil {
		return err
	}
	committed := false
	defer func() {
		if committed {
			return
		}
		for _, d := range donors {
			if e := d.Thaw(); e != nil && !errors.Is(e, migrate.ErrOrder) {
				err = errors.Join(err, e)
			}
		}
		err = errors.Join(err, n.wire.enter())
		n.service.resume()
	}()

	var frozen []*migrate.Donor
	var conns []*stack.Conn
	for _, client := range n.stack.Clients() { // no packet comes in: nor do clients
		d := donors[client]
		if d == nil {
			d = migrate.NewClientDonor(n.stack, client)
			donors[client] = d
		}
		err := d.Freeze()
		if errors.Is(err, migrate.ErrEnded) {
			continue
		}
		if err != nil {
			return err
		}
		frozen = append(frozen, d)
		var c offered
		if c.snapshot, err = d.Export(nil); err != nil {
			return err
		}
		for _, conn := range d.Conns() {
			c.sessions = append(c.sessions, n.service.state(conn))
			conns = append(conns, conn)
		}
		o.clients = append(o.clients, c)
	}

	n.frame = o.append(beginFrame(n.frame, frameOffer))
	if err := endFrame(n.peer, n.frame); err != nil {
		return err
	}
	typ, p, err := receiveFrame(n.peer, nil)
	switch {
	case err != nil:
		return err
	case typ == frameRefused:
		return fmt.Errorf("demo: handoff refused: %s", p)
	case typ != frameReady:
		return fmt.Errorf("demo: frame %q instead of an answer to the offer", typ)
	}

	// The point of no return. Up to here everything is thawed after an error;
	// from here on the connections are the other node's, and an error ends the
	// demo.
	committed = true
	b := binary.AppendUvarint(beginFrame(n.frame, frameCommit), uint64(len(frozen)))
	for _, d := range frozen {
		late, err := d.Discard(n.wire.forward, n.wire.grace)
		if err != nil {
			return err
		}
		b = appendBlobs(b, late)
	}
	n.frame = b
	if err := endFrame(n.peer, b); err != nil {
		return err
	}
	for _, c := range conns {
		n.service.forget(c)
	}
	n.service.resume() // nothing, unless a handshake ends here later
	return nil
}

// take receives everything from the other node.
func (n *node) take() error {
	p, err := expectFrame(n.peer, n.received, frameOffer)
	if err != nil {
		return err
	}
	n.received = p
	r := report{Bytes: len(p)}
	o, err := parseOffer(p)
	var targets []*migrate.Target
	var sessions [][]*session
	if err == nil {
		targets, sessions, err = n.importAll(o)
	}
	if err != nil {
		return errors.Join(err, sendFrame(n.peer, frameRefused, []byte(err.Error())))
	}
	if err := sendFrame(n.peer, frameReady, nil); err != nil {
		return errors.Join(err, discardAll(targets))
	}
	if p, err = expectFrame(n.peer, nil, frameCommit); err != nil {
		return errors.Join(err, discardAll(targets))
	}
	late, err := parseCommit(p)
	if err == nil && len(late) != len(targets) {
		err = fmt.Errorf("demo: late packets of %d clients, want %d", len(late), len(targets))
	}
	if err != nil {
		return errors.Join(err, discardAll(targets))
	}
	for i, t := range targets {
		conns, err := t.Activate(late[i]...)
		if err != nil {
			return err
		}
		for j, c := range conns {
			if c != nil {
				n.service.start(c, sessions[i][j])
			}
		}
	}
	if err := n.wire.enter(); err != nil {
		return err
	}
	r.Stopped, r.Started = o.stopped, monotonic()
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return sendFrame(n.control, frameDone, b)
}

// importAll rebuilds the connections of all clients, or of none.
func (n *node) importAll(o offer) (targets []*migrate.Target, sessions [][]*session, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, discardAll(targets))
		}
	}()
	for _, c := range o.clients {
		t, err := migrate.Import(n.stack, c.snapshot)
		if err != nil {
			return targets, nil, err
		}
		targets = append(targets, t)
		if len(c.sessions) != t.Len() {
			return targets, nil, fmt.Errorf("demo: %d sessions for %d connections", len(c.sessions), t.Len())
		}
		ss := make([]*session, len(c.sessions))
		for i, b := range c.sessions {
			if ss[i], err = parseSession(b); err != nil {
				return targets, nil, err
			}
		}
		sessions = append(sessions, ss)
	}
	return targets, sessions, nil
}

func discardAll(targets []*migrate.Target) error {
	var errs []error
	for _, t := range targets {
		errs = append(errs, t.Discard())
	}
	return errors.Join(errs...)
}
