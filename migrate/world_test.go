package migrate_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	gstack "gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/distributed-servers/ds/internal/lab"
	"github.com/distributed-servers/ds/migrate"
	"github.com/distributed-servers/ds/stack"
)

// The world of the tests: a client and two nodes on one network. Both nodes
// have the service's addresses; the network's route decides who is reached.
//
//	client ── lab ──┬── node a
//	                └── node b
type world struct {
	t       testing.TB
	net     *lab.Net
	client  *stack.Stack
	clientP *lab.Port
	node    [2]*stack.Stack
	port    [2]*lab.Port
	at      int // which node has the service
	watch   *watcher
	service netip.Addr
	seed    uint64
}

var (
	client6  = netip.MustParseAddr("fd00:1::1")
	client4  = netip.MustParseAddr("192.0.2.10")
	service6 = netip.MustParseAddr("fd00:2::1")
	service4 = netip.MustParseAddr("198.51.100.1")
	anywhere = []netip.Addr{service6, service4}
)

// options change what newWorld builds.
type options struct {
	clock tcpip.Clock
	mtu   [2]int // of the nodes, 0: 1500
	cc    [2]string
	seed  uint64
	// service is the address that bulk connects to; zero: service6.
	service netip.Addr
}

// skewed is a clock that shows another time, as another machine's does.
type skewed struct {
	tcpip.Clock
	by time.Duration
}

func (s skewed) NowMonotonic() tcpip.MonotonicTime { return s.Clock.NowMonotonic().Add(s.by) }

func newWorld(t testing.TB, o options) *world {
	t.Helper()
	if o.seed == 0 {
		o.seed = 1
	}
	if o.clock == nil {
		o.clock = tcpip.NewStdClock()
	}
	if !o.service.IsValid() {
		o.service = service6
	}
	w := &world{t: t, net: lab.New(o.seed, o.clock), service: o.service, seed: o.seed}
	w.watch = newWatcher()
	w.clientP = w.net.Attach("client", 1500)
	w.client = w.stack(w.clientP, stack.Config{Addrs: []netip.Addr{client6, client4}, Clock: o.clock})
	for i := range w.node {
		mtu := o.mtu[i]
		if mtu == 0 {
			mtu = 1500
		}
		w.port[i] = w.net.Attach([]string{"a", "b"}[i], mtu)
		skew := []time.Duration{3*time.Hour + 123456, 777777}[i]
		w.node[i] = w.stack(w.port[i], stack.Config{Addrs: anywhere, Clock: skewed{o.clock, skew}, CongestionControl: o.cc[i]})
	}
	for _, a := range []netip.Addr{client6, client4} {
		w.net.Route(netip.PrefixFrom(a, a.BitLen()), w.clientP)
	}
	w.route(0)
	t.Cleanup(func() { w.net.Close() })
	return w
}

func (w *world) stack(p *lab.Port, cfg stack.Config) *stack.Stack {
	w.t.Helper()
	cfg.Device = watched{p, w.watch, p == w.clientP}
	s, err := stack.New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { s.Close() })
	return s
}

// route makes node i the one that packets to the service reach.
func (w *world) route(i int) {
	for _, a := range anywhere {
		w.net.Route(netip.PrefixFrom(a, a.BitLen()), w.port[i])
	}
	w.at = i
}

// netstacks are all stacks, the client's first.
func (w *world) netstacks() []*gstack.Stack {
	return []*gstack.Stack{w.client.Netstack(), w.node[0].Netstack(), w.node[1].Netstack()}
}

// connect makes one connection to the node that has the service.
func (w *world) connect(service netip.Addr) (client, server *stack.Conn) {
	w.t.Helper()
	l, err := w.node[w.at].Listen("tcp", netip.AddrPortFrom(service, 443).String())
	if err != nil {
		w.t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	client, err = w.client.DialContext(ctx, "tcp", l.Addr().String())
	if err != nil {
		w.t.Fatal(err)
	}
	server, err = l.AcceptConn()
	if err != nil {
		w.t.Fatal(err)
	}
	return client, server
}

// move moves a connection to the other node.
func (w *world) move(c *stack.Conn) (*stack.Conn, error) {
	conns, err := w.moveDonor(migrate.NewDonor(c))
	if err != nil {
		return nil, err
	}
	return conns[0], nil
}

// moveClient moves all connections to the other node.
func (w *world) moveClient(client netip.Addr) ([]*stack.Conn, error) {
	return w.moveDonor(migrate.NewClientDonor(w.node[w.at], client))
}

// moveDonor moves what a donor gives to the other node, and routes there.
func (w *world) moveDonor(d *migrate.Donor) ([]*stack.Conn, error) {
	return passBy(d, w.node[1-w.at], func() { w.route(1 - w.at) })
}

// pass moves what a donor gives to a stack.
func pass(d *migrate.Donor, to *stack.Stack) ([]*stack.Conn, error) { return passBy(d, to, func() {}) }

func passBy(d *migrate.Donor, to *stack.Stack, commit func()) ([]*stack.Conn, error) {
	if err := d.Freeze(); err != nil {
		return nil, err
	}
	snap, err := d.Export(nil)
	if err != nil {
		return nil, fmt.Errorf("%w; thaw: %v", err, d.Thaw())
	}
	target, err := migrate.Import(to, snap)
	if err != nil {
		return nil, fmt.Errorf("%w; thaw: %v", err, d.Thaw())
	}
	commit()
	late, err := d.Discard(to.Inject, time.Minute)
	if err != nil {
		return nil, err
	}
	return target.Activate(late...)
}

// pattern is an endless stream whose octets tell where they belong.
func pattern(b []byte, offset int64) {
	var word [8]byte
	for i := range b {
		o := offset + int64(i)
		if i == 0 || o&7 == 0 {
			binary.LittleEndian.PutUint64(word[:], uint64(o>>3+1)*0x9E3779B97F4A7C15)
		}
		b[i] = word[o&7]
	}
}

// verify checks octets that were read at an offset of a pattern.
func verify(b []byte, offset int64) error {
	want := make([]byte, len(b))
	pattern(want, offset)
	for i := range b {
		if b[i] != want[i] {
			return fmt.Errorf("octet %d is %#x: want %#x", offset+int64(i), b[i], want[i])
		}
	}
	return nil
}

// send writes n octets of the pattern.
func send(w io.Writer, offset, n int64) error {
	b := make([]byte, 32<<10)
	for n > 0 {
		chunk := b[:min(n, int64(len(b)))]
		pattern(chunk, offset)
		m, err := w.Write(chunk)
		offset += int64(m)
		n -= int64(m)
		if err != nil {
			return fmt.Errorf("write at %d: %w", offset, err)
		}
	}
	return nil
}

// receive reads n octets of the pattern.
func receive(r io.Reader, offset, n int64) error {
	b := make([]byte, 64<<10)
	for n > 0 {
		m, err := r.Read(b[:min(n, int64(len(b)))])
		if e := verify(b[:m], offset); e != nil {
			return e
		}
		offset += int64(m)
		n -= int64(m)
		if err != nil && n > 0 {
			return fmt.Errorf("read at %d: %w", offset, err)
		}
	}
	return nil
}

func prefix(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// waitUnread waits until n octets have arrived that nobody has read.
func waitUnread(t testing.TB, c *stack.Conn, n int) {
	t.Helper()
	entry, ch := waiter.NewChannelEntry(waiter.ReadableEvents)
	c.Queue().EventRegister(&entry)
	defer c.Queue().EventUnregister(&entry)
	for {
		have, err := c.Endpoint().GetSockOptInt(tcpip.ReceiveQueueSizeOption)
		if err != nil {
			t.Fatal(err)
		}
		if have >= n {
			return
		}
		<-ch
	}
}
