package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/distributed-servers/ds/internal/demo/pattern"
	"github.com/distributed-servers/ds/internal/lab"
	"github.com/distributed-servers/ds/migrate"
	"github.com/distributed-servers/ds/stack"
)

var (
	clientAddr  = netip.MustParseAddr("fd00:1::1")
	serviceAddr = netip.MustParseAddr("fd00:2::1")
)

const service = "[fd00:2::1]:443"

// ends are the nodes' own addresses, where marks go.
var ends = [2]netip.Addr{netip.MustParseAddr("fd00:3::"), netip.MustParseAddr("fd00:3::1")}

// patience bounds what takes milliseconds as a rule.
const patience = 20 * time.Second

// world is the client, the nodes and their network.
type world struct {
	net       *lab.Net
	client    *stack.Stack
	nodes     [2]*stack.Stack
	ports     [2]*port
	listeners [2]*stack.Listener
}

func newWorld() (_ *world, err error) {
	w := &world{net: lab.New(1, nil)}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	port := w.net.Attach("client", 1500)
	w.net.Route(netip.PrefixFrom(clientAddr, 128), port)
	if w.client, err = stack.New(stack.Config{Device: port, Addrs: []netip.Addr{clientAddr}}); err != nil {
		return nil, err
	}
	for i := range w.nodes {
		w.ports[i] = newPort(w.net.Attach(fmt.Sprintf("node %d", i), 1500), ends[i])
		w.net.Route(netip.PrefixFrom(ends[i], 128), w.ports[i].Port)
		if w.nodes[i], err = stack.New(stack.Config{Device: w.ports[i], Addrs: []netip.Addr{serviceAddr}}); err != nil {
			return nil, err
		}
		if w.listeners[i], err = w.nodes[i].Listen("tcp", service); err != nil {
			return nil, err
		}
	}
	w.route(0)
	return w, nil
}

func (w *world) close() {
	for _, s := range []*stack.Stack{w.client, w.nodes[0], w.nodes[1]} {
		if s != nil {
			s.Close()
		}
	}
	w.net.Close()
}

// route makes node i the one that the service's packets reach.
func (w *world) route(i int) { w.net.Route(netip.PrefixFrom(serviceAddr, 128), w.ports[i].Port) }

// settle waits until node i has read what the network had for it. It sends a
// mark behind that, as whoever tells a node that its route is gone does: the
// word takes the same way.
func (w *world) settle(ctx context.Context, i int) error {
	w.net.Inject(w.ports[i].mark)
	select {
	case <-w.ports[i].marked:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

const noNextHeader = 59

// port is the link of a node, which does not see the marks.
type port struct {
	*lab.Port
	end    netip.Addr
	mark   []byte
	marked chan struct{} // one for each mark that was read
}

func newPort(p *lab.Port, end netip.Addr) *port {
	// An IPv6 header (RFC 8200 section 3) with nothing behind it.
	mark := append([]byte{0x60, 0, 0, 0, 0, 0, noNextHeader, 64}, clientAddr.AsSlice()...)
	mark = append(mark, end.AsSlice()...)
	return &port{Port: p, end: end, mark: mark, marked: make(chan struct{}, 1)}
}

// Read implements [tun.Device].
func (p *port) Read(b []byte) (n int, err error) {
	for {
		n, err = p.Port.Read(b)
		if err != nil || n != len(p.mark) || netip.AddrFrom16([16]byte(b[24:40])) != p.end {
			return n, err
		}
		p.marked <- struct{}{}
	}
}

// connect makes a connection to node 0.
func (w *world) connect(ctx context.Context) (client, server *stack.Conn, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if client, err = w.client.DialContext(ctx, "tcp", service); err != nil {
		return nil, nil, err
	}
	if server, err = w.listeners[0].AcceptConn(); err != nil {
		return nil, nil, err
	}
	return client, server, nil
}

// silence makes the network carry nothing: the client does not read, and what
// it sends has no route.
func (w *world) silence() error {
	w.net.Unroute(netip.PrefixFrom(serviceAddr, 128))
	return w.client.Pause()
}

// wake undoes silence, with the service at node i.
func (w *world) wake(i int) error {
	w.route(i)
	return w.client.Resume()
}

// acknowledged waits until everything written to c has arrived at its peer.
func acknowledged(ctx context.Context, c *stack.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	d := migrate.NewDonor(c)
	if err := d.Drain(ctx); err != nil {
		return err
	}
	return d.Thaw()
}

// stream is one direction of a connection under test.
type stream struct {
	name string
	src  pattern.Reader
	dst  pattern.Checker
}

// send writes the next n octets.
func (s *stream) send(c io.Writer, n int64) error {
	s.src.End = s.src.Offset + n
	if _, err := io.Copy(c, &s.src); err != nil {
		return fmt.Errorf("%s, up to octet %d: %w", s.name, s.src.Offset, err)
	}
	return nil
}

// expect reads what was sent and not yet read.
func (s *stream) expect(c io.Reader) error {
	_, err := io.CopyN(&s.dst, c, s.src.End-s.dst.Offset)
	return s.verdict(err)
}

// expectEnd reads to the end of the stream, which must be where that of the
// sent octets is.
func (s *stream) expectEnd(c io.Reader) error {
	_, err := io.Copy(&s.dst, c)
	return s.verdict(err)
}

func (s *stream) verdict(err error) error {
	switch {
	case err != nil:
		return fmt.Errorf("%s, at octet %d of %d: %w", s.name, s.dst.Offset, s.src.Offset, err)
	case s.dst.Wrong != 0 || s.dst.Offset != s.src.Offset:
		return fmt.Errorf("%s: %w: %d sent, %d arrived, %d of them wrong", s.name, errLost, s.src.Offset, s.dst.Offset, s.dst.Wrong)
	}
	return nil
}

// finish sends more both ways, ends both streams and reads each to its end.
func finish(client, server *stack.Conn, up, down *stream) error {
	const more = 10000
	deadline := time.Now().Add(patience)
	for _, c := range []*stack.Conn{client, server} {
		if err := c.SetDeadline(deadline); err != nil {
			return err
		}
	}
	if err := errors.Join(up.send(client, more), client.CloseWrite(), down.send(server, more), server.CloseWrite()); err != nil {
		return err
	}
	return errors.Join(up.expectEnd(server), down.expectEnd(client))
}
