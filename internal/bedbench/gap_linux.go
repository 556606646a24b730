package bedbench

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"

	"github.com/gopacket/gopacket/pcapgo"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/internal/testbed"
	"github.com/distributed-servers/ds/mobility/wire"
)

// A client is not sent more than three Binding Updates in a second (RFC 6275
// section 11.8). So clients take turns, and none comes before its time.
const (
	betweenHandoffs = 400 * time.Millisecond
	takeTurns       = 64 // clients that do
)

// asking is how a client asks while it is handed off.
type asking func(cl *one, handoff func() error) error

// oneByOne asks one question after another: the next when the answer is there.
func oneByOne(cl *one, handoff func() error) error { return cl.askDuring(handoff, 10, 10) }

// initialWindow is how many segments may be on the way at first (RFC 6928).
const initialWindow = 10

// steadily asks at even intervals, whatever the answers do, from some time before a
// handoff until some time after it: so packets of both nodes are on the way, however
// long it is. The intervals are a millisecond, or so long that an initial window is
// enough: TCP would make a burst each round trip of more, and keep to that.
func steadily(delay time.Duration) asking {
	every := max(time.Millisecond, 2*delay/(initialWindow-2))
	before, after := 20*time.Millisecond+4*delay, 20*time.Millisecond+3*delay

	return func(cl *one, handoff func() error) error {
		conn, first := cl.conns[0], cl.count
		stop, asked, answered := make(chan struct{}), make(chan error, 1), make(chan error, 1)
		go func() {
			tick := time.NewTicker(every)
			defer tick.Stop()
			for last := false; !last; {
				select {
				case <-stop:
					last = true
				case <-tick.C:
				}
				var m [messageLen]byte
				if last {
					m[1] = 1
				}
				cl.count++
				binary.BigEndian.PutUint64(m[8:], cl.count)
				if _, err := conn.Write(m[:]); err != nil {
					asked <- err
					return
				}
			}
			asked <- nil
		}()
		go func() {
			var m [messageLen]byte
			for want := first + 1; m[1] == 0; want++ {
				if _, err := io.ReadFull(conn, m[:]); err != nil {
					answered <- err
					return
				}
				if n := binary.BigEndian.Uint64(m[8:]); n != want {
					answered <- fmt.Errorf("%s: answer %d is to question %d", cl.addr, want, n)
					return
				}
			}
			answered <- nil
		}()
		time.Sleep(before)
		err := handoff()
		time.Sleep(after)
		close(stop)
		conn.SetReadDeadline(time.Now().Add(30 * time.Second))
		err = errors.Join(err, <-asked, <-answered)
		conn.SetReadDeadline(time.Time{})
		return err
	}
}

// measured is what clients of a crowd have seen.
type measured struct {
	gaps []float64 // ms, a handoff each
	same []float64 // ms between packets of the same node
	took []float64 // ms, from asking the daemon to its answer
}

// gaps hands the clients of a crowd to and fro between the two nodes that are not
// the contact, some at the same time, and looks at what comes to their host.
func (c *crowd) gaps(ctx context.Context, name string, mode api.Mode, handoffs, together int, ask asking) (*measured, error) {
	b := c.b
	together = min(together, len(c.clients))
	if err := c.settle(ctx, b.bed.Nodes[1]); err != nil {
		return nil, err
	}
	var file bytes.Buffer
	capture, err := c.clients[0].host.Capture("eth0", &file) // all are on this one
	if err != nil {
		return nil, err
	}
	defer capture.Stop()
	m := new(measured)
	at := make(map[*one]int) // 0: Nodes[1]
	turns := make(map[netip.AddrPort][]time.Time)
	for _, cl := range c.clients {
		turns[cl.port()] = nil
	}
	for done := 0; done < handoffs; {
		if done/50 != (done-together)/50 || done == 0 {
			b.Progress(fmt.Sprintf("%s: handoff %d of %d", name, done, handoffs))
		}
		n := min(together, handoffs-done)
		results := make(chan error, n)
		took := make(chan float64, n)
		for i := range n {
			cl := c.clients[(done+i)%len(c.clients)]
			port := cl.port()
			if n := len(turns[port]); n > 0 {
				if err := sleep(ctx, betweenHandoffs-time.Since(turns[port][n-1])); err != nil {
					return nil, err
				}
			}
			turns[port] = append(turns[port], time.Now())
			from, to := b.bed.Nodes[1+at[cl]], b.bed.Nodes[2-at[cl]]
			at[cl] = 1 - at[cl]
			go func() {
				results <- ask(cl, func() error {
					begin := time.Now()
					h, err := from.API.Handoff(ctx, b.server.Addr.Addr(), cl.addr, to.Name())
					if err == nil && h.Mode != mode {
						b.note("%s: a handoff was %s", name, h.Mode)
					}
					took <- float64(time.Since(begin)) / 1e6
					return err
				})
			}()
		}
		for range n {
			if err := <-results; err != nil {
				return nil, err
			}
			m.took = append(m.took, <-took)
		}
		done += n
	}
	if err := capture.Stop(); err != nil {
		return nil, err
	}
	nodes := make(map[netip.Addr]byte)
	for _, n := range b.bed.Nodes {
		nodes[n.CareOf(b.server)] = n.Name()[0]
	}
	if m.gaps, m.same, err = gaps(&file, nodes, turns); err != nil {
		return nil, err
	}
	// What one node has sent, the other may have to repeat: then one handoff looks
	// like none, or like several.
	switch n := len(m.gaps); {
	case n == 0:
		return nil, fmt.Errorf("%s: the clients saw none of %d handoffs", name, handoffs)
	case n != handoffs:
		b.note("%s: in %d handoffs the clients saw packets change from one node to another %d times", name, handoffs, n)
	}
	return m, nil
}

// settle brings all clients of a crowd to a node.
func (c *crowd) settle(ctx context.Context, n *testbed.Node) error {
	for _, from := range c.b.bed.Nodes {
		if from == n {
			continue
		}
		clients, err := from.API.Clients(ctx, c.b.server.Addr.Addr())
		if err != nil {
			return err
		}
		here := make(map[netip.Addr]bool)
		for _, i := range clients {
			if i.Local {
				here[i.Client] = true
			}
		}
		err = c.each(func(cl *one) error {
			if !here[cl.addr] {
				return nil
			}
			_, err := from.API.Handoff(ctx, c.b.server.Addr.Addr(), cl.addr, n.Name())
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// seen is a connection, as the capture has it.
type seen struct {
	from byte      // the node that sent last; 0: none has
	at   time.Time // when
	base uint32    // sequence number at which the first message began
	next uint32    // sequence number of what has not been seen yet, from base on
}

// gaps are the times between packets with data to some ports in a capture, in
// milliseconds: between those of different nodes, and between those of the same, in
// one turn of the client; turns are when those began. Nodes are known by their care-of
// addresses. What came through the contact, as far as it is new, says in the first
// octet of each message whose it is.
func gaps(file io.Reader, nodes map[netip.Addr]byte, turns map[netip.AddrPort][]time.Time) (changed, same []float64, err error) {
	r, err := pcapgo.NewNgReader(file, pcapgo.DefaultNgReaderOptions)
	if err != nil {
		return nil, nil, err
	}
	all := make(map[netip.AddrPort]*seen)
	for {
		p, info, err := r.ZeroCopyReadPacketData()
		if err == io.EOF {
			return changed, same, nil
		}
		if err != nil {
			return nil, nil, err
		}
		packet, err := wire.ParsePacket(p)
		if err != nil || packet.Protocol != wire.TCP || len(packet.Payload) < 20 {
			continue
		}
		segment := packet.Payload
		to := netip.AddrPortFrom(packet.Dst, binary.BigEndian.Uint16(segment[2:]))
		data := segment[min(len(segment), int(segment[12]>>4)*4):]
		begun, ok := turns[to]
		if !ok || len(data) == 0 {
			continue
		}
		s, seq := all[to], binary.BigEndian.Uint32(segment[4:])
		if s == nil {
			s = &seen{base: seq}
			all[to] = s
		}
		offset := seq - s.base
		from, direct := nodes[packet.Src]
		if !direct {
			// The first message that begins in what is new.
			skip := max(int32(s.next-offset), 0)
			skip += int32((messageLen - (offset+uint32(skip))%messageLen) % messageLen)
			if int(skip) < len(data) {
				from = data[skip]
			}
		}
		if end := offset + uint32(len(data)); int32(end-s.next) > 0 {
			s.next = end
		}
		if from == 0 {
			continue
		}
		since := float64(info.Timestamp.Sub(s.at)) / 1e6
		pause := slices.ContainsFunc(begun, func(t time.Time) bool { return t.After(s.at) && !t.After(info.Timestamp) })
		switch {
		case s.from == 0 || pause: // of the client, not of the nodes
		case from != s.from:
			changed = append(changed, since)
		default:
			same = append(same, since)
		}
		s.from, s.at = from, info.Timestamp
	}
}
