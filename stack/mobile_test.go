package stack_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"github.com/distributed-servers/ds/migrate"
	"github.com/distributed-servers/ds/stack"
)

var (
	homeAgent = netip.MustParseAddr("fd00:2::ffff")
	careOf    = [2]netip.Addr{netip.MustParseAddr("fd00:a::1"), netip.MustParseAddr("fd00:b::1")}
)

// internet is what lies between a client and the nodes of a distributed server
// whose home address is server6. It plays the home agent, the router between,
// and the client's part as a correspondent, by hand: from RFC 6275 and RFC 2473,
// not from the code under test.
//
//	client ── correspondent ──┬── home agent ══ tunnel ══╗
//	                          └── router ── node a, node b
type internet struct {
	t       testing.TB
	client  node
	clientD *device
	nodes   [2]node
	devs    [2]*device

	mu      sync.Mutex
	contact int        // to whose care-of address the home agent tunnels
	binding netip.Addr // the care-of address in the client's binding cache
	mtu     int        // of the path
	tooBig  int        // packets that did not fit
	refused int        // with a Home Address option that fits no binding
	largest int        // packet from a node
	seen    [2]traffic
}

// traffic counts what a node has sent.
type traffic struct{ optimised, tunnelled, forwarded int }

// mobileWorld starts the client and two nodes; the client has no binding yet.
func mobileWorld(t testing.TB, clientMTU int, change func(*stack.Mobile)) *internet {
	t.Helper()
	w := &internet{t: t, mtu: 1500, clientD: newDevice("client", clientMTU)}
	w.clientD.Out = w.fromClient
	start := func(cfg stack.Config, d *device) node {
		cfg.Device = d
		s, err := stack.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return node{s, d}
	}
	for i := range w.nodes {
		w.devs[i] = newDevice([]string{"a", "b"}[i], 1500)
		w.devs[i].Out = func(p []byte) { w.fromNode(i, p) }
	}
	w.client = start(stack.Config{Addrs: []netip.Addr{client6}}, w.clientD)
	for i := range w.nodes {
		m := &stack.Mobile{Home: server6, CareOf: careOf[i], Via: homeAgent, Peers: []netip.Addr{careOf[1-i]}}
		if change != nil {
			change(m)
		}
		w.nodes[i] = start(stack.Config{Addrs: []netip.Addr{server6}, Mobile: m}, w.devs[i])
	}
	return w
}

func addrsOf(p []byte) (src, dst netip.Addr) {
	return netip.AddrFrom16([16]byte(p[8:24])), netip.AddrFrom16([16]byte(p[24:40]))
}

// packet6 is an IPv6 packet.
func packet6(src, dst netip.Addr, next byte, payload ...[]byte) []byte {
	p := make([]byte, 40)
	p[0], p[6], p[7] = 0x60, next, 60
	copy(p[8:], src.AsSlice())
	copy(p[24:], dst.AsSlice())
	p = append(p, bytes.Join(payload, nil)...)
	binary.BigEndian.PutUint16(p[4:], uint16(len(p)-40))
	return p
}

// routing2 gives a packet to the home address a type 2 routing header, as a
// correspondent does (RFC 6275 §9.3.2).
func routing2(p []byte, careOf netip.Addr) []byte {
	src, home := addrsOf(p)
	q := packet6(src, careOf, 43, []byte{p[6], 2, 2, 1, 0, 0, 0, 0}, home.AsSlice(), p[40:])
	copy(q, p[:4])
	return q
}

func (w *internet) bind(careOf netip.Addr) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.binding = careOf
}

// fits tells whether p fits the path; if not its source is told so.
func (w *internet) fits(p []byte) bool {
	w.mu.Lock()
	mtu := w.mtu
	if len(p) > mtu {
		w.tooBig++
	}
	w.mu.Unlock()
	if len(p) <= mtu {
		return true
	}
	src, _ := addrsOf(p)
	router := netip.MustParseAddr("fd00:ff::1")
	m := make([]byte, 8, 1240)
	m[0] = byte(header.ICMPv6PacketTooBig)
	binary.BigEndian.PutUint32(m[4:], uint32(mtu))
	m = append(m, p[:min(len(p), 1232)]...)
	h := header.ICMPv6(m)
	h.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{Header: h, Src: tcpip.AddrFrom16(router.As16()), Dst: tcpip.AddrFrom16(src.As16())}))
	w.deliver(packet6(router, src, 58, m))
	return false
}

// deliver routes a packet by its destination.
func (w *internet) deliver(p []byte) {
	switch _, dst := addrsOf(p); dst {
	case client6:
		w.clientD.arrive(p)
	case careOf[0]:
		w.devs[0].arrive(p)
	case careOf[1]:
		w.devs[1].arrive(p)
	default:
		w.t.Errorf("no route to %s", dst)
	}
}

func (w *internet) fromClient(p []byte) {
	w.mu.Lock()
	binding, contact := w.binding, careOf[w.contact]
	w.mu.Unlock()
	if binding.IsValid() {
		w.deliver(routing2(p, binding))
		return
	}
	w.deliver(packet6(homeAgent, contact, 41, p))
}

func (w *internet) fromNode(i int, p []byte) {
	w.mu.Lock()
	w.largest = max(w.largest, len(p))
	binding := w.binding
	w.mu.Unlock()
	if !w.fits(p) {
		return
	}
	src, dst := addrsOf(p)
	if src != careOf[i] {
		w.t.Errorf("node %d sent from %s", i, src)
		return
	}
	switch {
	case dst == homeAgent && p[6] == 41:
		w.mu.Lock()
		w.seen[i].tunnelled++
		w.mu.Unlock()
		if src, dst := addrsOf(p[40:]); src != server6 || dst != client6 {
			w.t.Errorf("a tunnel with a packet from %s to %s", src, dst)
		}
		w.clientD.arrive(p[40:])
	case dst == careOf[1-i] && p[6] == 41:
		w.mu.Lock()
		w.seen[i].forwarded++
		w.mu.Unlock()
		w.devs[1-i].arrive(p)
	case dst == client6 && p[6] == 60:
		// RFC 6275 §6.3, §9.3.1.
		if !bytes.Equal(p[41:48], []byte{2, 1, 2, 0, 0, 201, 16}) || netip.AddrFrom16([16]byte(p[48:64])) != server6 {
			w.t.Errorf("no Home Address option: %x", p[40:64])
			return
		}
		w.mu.Lock()
		w.seen[i].optimised++
		ok := binding == src
		if !ok {
			w.refused++
		}
		w.mu.Unlock()
		if ok {
			q := packet6(server6, client6, p[40], p[64:])
			w.clientD.arrive(q)
		}
	default:
		w.t.Errorf("node %d sent a packet to %s with next header %d", i, dst, p[6])
	}
}

func (w *internet) counts() (s [2]traffic, tooBig, refused, largest int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen, w.tooBig, w.refused, w.largest
}

// mssOf finds the MSS in what a device sent.
func mssOf(t testing.TB, packets [][]byte) uint16 {
	t.Helper()
	for _, p := range packets {
		if p[6] == 41 {
			p = p[40:]
		}
		if s := segmentOf(p); s != nil && s.Flags().Contains(header.TCPFlagSyn) {
			return header.ParseSynOptions(s.Options(), s.Flags().Contains(header.TCPFlagAck)).MSS
		}
	}
	t.Fatal("no SYN")
	return 0
}

// full tells whether the largest of many packets makes use of an MTU. Netstack
// leaves room for SACK blocks, also when it sends none.
func full(largest, mtu int) bool { return mtu-28 <= largest && largest <= mtu }

// transfer sends n octets each way at once.
func transfer(t testing.TB, c, s *stack.Conn, offset, n int) {
	t.Helper()
	errs := make(chan error, 4)
	for _, f := range []func() error{
		func() error { _, err := send(c, offset, n); return err },
		func() error { _, err := send(s, offset+1, n); return err },
		func() error { return receive(s, offset, n) },
		func() error { return receive(c, offset+1, n) },
	} {
		go func() { errs <- f() }()
	}
	for range 4 {
		if err := result(t, "transfer", errs); err != nil {
			t.Fatal(err)
		}
	}
}

// TestMobile: a client is served through the home agent, then directly, then
// through the home agent again, and its connection notices nothing.
func TestMobile(t *testing.T) {
	w := mobileWorld(t, 1500, nil)
	if w.nodes[0].MTU() != 1460 {
		t.Errorf("MTU %d: want what a tunnel leaves", w.nodes[0].MTU())
	}
	c, s := connect(t, w.client.Stack, w.nodes[0].Stack, server6)
	if mss := mssOf(t, w.clientD.sent(0)); mss != 1440 {
		t.Errorf("the client announced an MSS of %d", mss)
	}
	if mss := mssOf(t, w.devs[0].sent(0)); mss != 1400 {
		t.Errorf("the node announced an MSS of %d: want 1400", mss)
	}
	pingPong(t, c, s)
	transfer(t, c, s, 0, 1<<20)
	quiet(t, w.client, w.nodes[0]) // the last acknowledgements go the same way
	seen, _, _, largest := w.counts()
	if seen[0].optimised != 0 || seen[0].tunnelled == 0 || !full(largest, 1500) {
		t.Errorf("unbound: %+v, largest %d", seen, largest)
	}

	w.bind(careOf[0])
	w.nodes[0].Bind(client6)
	if !w.nodes[0].Bound(client6) || w.nodes[0].Bound(server6) || w.nodes[0].Bound(server4) {
		t.Error("Bound is wrong")
	}
	transfer(t, c, s, 5, 1<<20)
	quiet(t, w.client, w.nodes[0])
	bound, _, refused, largest := w.counts()
	if bound[0].optimised == 0 || bound[0].tunnelled != seen[0].tunnelled || refused != 0 || largest > 1500 {
		t.Errorf("bound: %+v, %d refused, largest %d", bound, refused, largest)
	}
	if stats := w.nodes[0].ShimStats(); stats != (stack.ShimStats{}) {
		t.Errorf("dropped %+v", stats)
	}

	w.bind(netip.Addr{})
	w.nodes[0].Unbind(client6)
	transfer(t, c, s, 9, 1<<20)
	seen, tooBig, _, largest := w.counts()
	if seen[0].optimised != bound[0].optimised || tooBig != 0 || largest > 1500 {
		t.Errorf("unbound again: %+v, %d too big, largest %d", seen, tooBig, largest)
	}
	if stats := w.nodes[0].ShimStats(); stats != (stack.ShimStats{}) {
		t.Errorf("dropped %+v", stats)
	}
}

// TestMobileEarly: a client may use a binding before its node has been told of it.
func TestMobileEarly(t *testing.T) {
	w := mobileWorld(t, 1500, nil)
	c, s := connect(t, w.client.Stack, w.nodes[0].Stack, server6)
	pingPong(t, c, s)
	w.bind(careOf[0])
	transfer(t, c, s, 3, 1<<20)
	if stats := w.nodes[0].ShimStats(); stats != (stack.ShimStats{}) {
		t.Errorf("dropped %+v", stats)
	}
	// But not for a connection that is not here.
	l, err := w.nodes[0].Listen("tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	begin := syn(netip.AddrPortFrom(client6, 1000), netip.AddrPortFrom(server6, 80))
	middle := slices.Clone(begin)
	middle[40+13] = 0x10 // ACK
	for _, p := range [][]byte{middle, syn(netip.AddrPortFrom(client6, 1000), netip.AddrPortFrom(server6, 81))} {
		w.fromClient(p)
		w.devs[0].settle(t)
	}
	if stats := w.nodes[0].ShimStats(); stats.Unbound != 2 {
		t.Errorf("dropped %+v", stats)
	}
	w.fromClient(begin) // it may begin one
	w.devs[0].waitSent(t, "an answer", 0, func(p []byte) bool { return p[6] == 41 })
}

// TestMobileRefuse: a client that uses a binding which is not ours is not
// served by it.
func TestMobileRefuse(t *testing.T) {
	w := mobileWorld(t, 1500, nil)
	w.bind(careOf[0])
	p := syn(netip.AddrPortFrom(client6, 1000), netip.AddrPortFrom(server6, 80))
	w.fromClient(p)
	w.devs[0].settle(t)
	if in, out := w.nodes[0].Netstack().Stats().IP.PacketsReceived.Value(), w.devs[0].sent(0); in != 0 || len(out) != 0 {
		t.Errorf("netstack got %d packets, sent %x", in, out)
	}
	if stats := w.nodes[0].ShimStats(); stats.Unbound != 1 {
		t.Errorf("%+v", stats)
	}
	if err := w.nodes[0].SetPeers(nil); err != nil {
		t.Fatal(err)
	}
	w.devs[0].arrive(packet6(careOf[1], careOf[0], 41, p))
	w.devs[0].settle(t)
	if stats := w.nodes[0].ShimStats(); stats.Stranger != 1 {
		t.Errorf("%+v", stats)
	}
	if err := w.nodes[0].SetPeers([]netip.Addr{careOf[1]}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.nodes[0].Listen("tcp", ":80"); err != nil {
		t.Fatal(err)
	}
	w.devs[0].arrive(packet6(careOf[1], careOf[0], 41, p))
	w.devs[0].waitSent(t, "an answer", 0, func(p []byte) bool { return p[6] == 41 })
}

// TestMobileStraggler: a segment for no connection here that a peer has forwarded
// gets no answer, since somebody else may have the connection; Via, who should
// know, gets one. For connections and listeners that are here it is as any other.
func TestMobileStraggler(t *testing.T) {
	w := mobileWorld(t, 1500, nil)
	c, s := connect(t, w.client.Stack, w.nodes[0].Stack, server6)
	open := s.LocalAddr().(*net.TCPAddr).AddrPort()
	if _, err := w.nodes[0].Listen("tcp", ":81"); err != nil {
		t.Fatal(err)
	}
	d := w.devs[0]
	segment := func(from uint16, to netip.AddrPort, flags header.TCPFlags) []byte {
		return segment(netip.AddrPortFrom(client6, from), to, flags)
	}
	// fragment is the first of a packet that has no others.
	fragment := func(p []byte) []byte {
		return packet6(client6, server6, 44, []byte{p[6], 0, 0, 0, 0, 0, 0, 1}, p[40:])
	}
	listener, nobody := netip.AddrPortFrom(server6, 81), netip.AddrPortFrom(server6, 82)
	const ack, rst, fin = header.TCPFlagAck, header.TCPFlagRst, header.TCPFlagFin
	const data = header.TCPFlagAck | header.TCPFlagPsh
	for _, p := range []struct {
		name   string
		packet []byte
		late   bool // if it comes from a peer
		answer bool // if it comes from Via
	}{
		{"data for no connection of a listener", segment(1, listener, data), true, true},
		{"the end of no connection", segment(1, listener, fin|ack), true, true},
		{"a SYN-ACK for a listener", segment(1, listener, header.TCPFlagSyn|ack), true, true},
		{"data in a fragment", fragment(segment(1, listener, data)), true, true},
		{"data for nobody", segment(1, nobody, data), true, true},
		{"a SYN for nobody", segment(1, nobody, header.TCPFlagSyn), true, true},
		{"a reset for nobody", segment(1, nobody, rst), true, false},
		{"a SYN for a listener", segment(2, listener, header.TCPFlagSyn), false, true},
		{"an acknowledgement for a connection", segment(c.LocalAddr().(*net.TCPAddr).AddrPort().Port(), open, ack), false, false},
	} {
		t.Run(p.name, func(t *testing.T) {
			// The netstack may look at a packet in another goroutine, but whether
			// it gets it shows at once.
			taken := func(from netip.Addr, answered bool) bool {
				dropped := w.nodes[0].ShimStats().Late
				_, before := d.counts()
				d.arrive(packet6(from, careOf[0], 41, p.packet))
				d.settle(t)
				if answered {
					d.waitSent(t, "an answer", before, func(p []byte) bool { return p[6] == 41 })
				}
				return w.nodes[0].ShimStats().Late == dropped
			}
			if taken(careOf[1], p.answer && !p.late) == p.late {
				t.Errorf("from a peer: %t that it was dropped", !p.late)
			}
			if !taken(homeAgent, p.answer) {
				t.Error("from Via: it was dropped")
			}
		})
	}
	pingPong(t, c, s)
	// Who was Via is a peer, who is Via now none. Here is nothing that the
	// client could answer to.
	if err := errors.Join(w.nodes[1].SetPeers([]netip.Addr{careOf[0], homeAgent}), w.nodes[1].SetVia(careOf[0])); err != nil {
		t.Fatal(err)
	}
	for from, want := range map[netip.Addr]uint64{homeAgent: 1, careOf[0]: 0} {
		before := w.nodes[1].ShimStats().Late
		w.devs[1].arrive(packet6(from, careOf[1], 41, segment(1, nobody, data)))
		w.devs[1].settle(t)
		if got := w.nodes[1].ShimStats().Late - before; got != want {
			t.Errorf("%d packets of %s were dropped", got, from)
		}
	}
}

// TestAnswerNew: a client that has moved begins a connection here again, if Via has sent
// it, and all that it does not have here is sent on as before.
func TestAnswerNew(t *testing.T) {
	w := mobileWorld(t, 1500, nil)
	w.nodes[0].Bind(client6)
	h, err := w.nodes[0].HoldClient(client6)
	h = mustHold(t, h, err)
	w.nodes[0].AnswerNew(client6, func() bool { t.Error("asked about what is held"); return true })
	var forwarded atomic.Int32
	h.Forward(func([]byte) { forwarded.Add(1) }, time.Hour)
	w.nodes[0].Leave(client6, time.Hour)
	d, listener := w.devs[0], netip.AddrPortFrom(server6, 81)
	if _, err := w.nodes[0].Listen("tcp", ":81"); err != nil {
		t.Fatal(err)
	}
	first := func(port uint16) []byte { return syn(netip.AddrPortFrom(client6, port), listener) }
	data := func(port uint16) []byte {
		return segment(netip.AddrPortFrom(client6, port), listener, header.TCPFlagAck)
	}
	tunnel := func(from netip.Addr, p []byte) []byte { return packet6(from, careOf[0], 41, p) }
	check := func(what string, p []byte, away bool) {
		t.Helper()
		quiet(t, w.client, w.nodes[0]) // of what was answered, the client knows nothing
		before, sent := forwarded.Load(), 0
		_, sent = d.counts()
		d.arrive(p)
		quiet(t, w.client, w.nodes[0])
		if got := forwarded.Load() != before; got != away {
			t.Errorf("%s: %t that it was sent on", what, got)
		}
		if out := d.sent(sent); away && len(out) > 0 {
			t.Errorf("%s: sent on, and answered", what)
		}
	}
	check("before", tunnel(homeAgent, first(1)), true)
	here := false
	w.nodes[0].AnswerNew(client6, func() bool { return here })
	check("not here", tunnel(homeAgent, first(1)), true)
	other, err := w.nodes[0].Listen("tcp", ":82")
	if err != nil {
		t.Fatal(err)
	}
	rebuilt := new(stack.Conn) // of a handoff that comes to nothing
	w.nodes[0].Restored(rebuilt, stack.Tuple{Local: listener, Remote: netip.AddrPortFrom(client6, 3)})
	rebuilt.Attach(other.Endpoint(), false)
	here = true
	check("from a peer", tunnel(careOf[1], first(1)), true)
	check("by a binding", routing2(first(1), careOf[0]), true)
	rebuilt.Detach()
	check("of another connection", tunnel(homeAgent, data(1)), true)
	check("what was sent on, once more", tunnel(homeAgent, first(1)), true)
	undo := stack.SetRepeatTime(0)
	check("what was sent on, and not answered for long", tunnel(homeAgent, first(1)), false)
	undo()
	check("from Via", tunnel(homeAgent, first(2)), false)
	c, s := connect(t, w.client.Stack, w.nodes[0].Stack, server6)
	here = false
	pingPong(t, c, s)
	check("of a connection that is not here", tunnel(homeAgent, data(4)), true)
	again, err := w.nodes[0].HoldClient(client6)
	again = mustHold(t, again, err)
	d.arrive(tunnel(homeAgent, first(5)))
	quiet(t, w.client, w.nodes[0])
	before := forwarded.Load()
	again.Undo()
	if forwarded.Load() != before {
		t.Error("begun while it was held: it was sent on")
	}
	pingPong(t, c, s)
	check("held meanwhile", tunnel(homeAgent, data(4)), true)
	c.Close()
	s.Close()
	check("from Via when it is back", tunnel(homeAgent, first(6)), false)
	check("from a peer when it is back", tunnel(careOf[1], first(7)), false)
	check("by a binding when it is back", routing2(first(8), careOf[0]), false)
	check("from a peer, of a connection that is not here", tunnel(careOf[1], data(9)), false)
}

// TestMobileDial: the server's own connections have the same limits.
func TestMobileDial(t *testing.T) {
	w := mobileWorld(t, 1500, nil)
	c, s := connect(t, w.nodes[0].Stack, w.client.Stack, client6)
	if mss := mssOf(t, w.devs[0].sent(0)); mss != 1400 {
		t.Errorf("MSS %d: want 1400", mss)
	}
	transfer(t, c, s, 0, 1<<20)
	if _, tooBig, _, largest := w.counts(); tooBig != 0 || largest > 1500 {
		t.Errorf("%d too big, largest %d", tooBig, largest)
	}
}

// TestMobileSmallLink: a client on a link of 1280 octets gets no packet that is
// too big for it, although it does not know of our Home Address option.
func TestMobileSmallLink(t *testing.T) {
	w := mobileWorld(t, 1280, nil)
	w.mtu = 1280
	w.bind(careOf[0])
	w.nodes[0].Bind(client6)
	c, s := connect(t, w.client.Stack, w.nodes[0].Stack, server6)
	transfer(t, c, s, 0, 1<<20)
	if _, tooBig, _, largest := w.counts(); tooBig != 0 || !full(largest, 1280) {
		t.Errorf("%d too big, largest %d", tooBig, largest)
	}
}

// TestMobilePathMTU: after a Packet Too Big message about a packet with our
// headers things go on, with packets that fit.
func TestMobilePathMTU(t *testing.T) {
	for _, c := range []struct {
		name  string
		mtu   int
		bound bool
	}{
		{"tunnel 1400", 1400, false}, {"tunnel 1280", 1280, false},
		{"optimised 1400", 1400, true}, {"optimised 1280", 1280, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := mobileWorld(t, 1500, nil)
			if c.bound {
				w.bind(careOf[0])
				w.nodes[0].Bind(client6)
			}
			// With RACK netstack sends two segments to a timeout once a whole
			// window is lost, which takes long.
			rack := tcpip.TCPRecovery(0)
			if err := w.nodes[0].Netstack().SetTransportProtocolOption(tcp.ProtocolNumber, &rack); err != nil {
				t.Fatal(err)
			}
			client, server := connect(t, w.client.Stack, w.nodes[0].Stack, server6)
			transfer(t, client, server, 0, 1<<20)
			w.mu.Lock()
			w.mtu, w.largest = c.mtu, 0
			w.mu.Unlock()
			transfer(t, client, server, 0, 1<<20)
			if _, tooBig, _, _ := w.counts(); tooBig == 0 {
				t.Error("nothing was too big")
			}
			w.mu.Lock()
			w.largest = 0
			w.mu.Unlock()
			transfer(t, client, server, 0, 1<<20)
			if _, _, _, largest := w.counts(); !full(largest, c.mtu) {
				t.Errorf("the largest packet has %d octets: want %d or little less", largest, c.mtu)
			}
		})
	}
}

// TestSmallPathMTU: nobody can make a stack send segments of one octet by a
// Packet Too Big message with less than IPv6's minimum (RFC 8201 §4).
func TestSmallPathMTU(t *testing.T) {
	client, server := newNodes(t, nil)
	c, s := connect(t, client.Stack, server.Stack, server6)
	mustSend(t, s, 0, 10_000)
	mustReceive(t, c, 0, 10_000)
	sent := server.dev.sent(0)
	i := slices.IndexFunc(sent, hasData)
	for _, mtu := range []int{0, 68, 1240, 1279} {
		server.dev.arrive(tooBig(sent[i], mtu))
	}
	server.dev.settle(t)
	_, from := server.dev.counts()
	mustSend(t, s, 0, 10_000)
	mustReceive(t, c, 0, 10_000)
	segments := make(map[uint32]bool) // by where they are: one may be sent again
	for _, p := range server.dev.sent(from) {
		if hasData(p) {
			segments[segmentOf(p).SequenceNumber()] = true
		}
	}
	if len(segments) > 10 {
		t.Errorf("%d segments for 10,000 octets", len(segments))
	}
}

// TestMobileSignalling: signalling goes to whom it is for as it came, and what
// they send goes out as it is.
func TestMobileSignalling(t *testing.T) {
	got := make(chan []byte, 10)
	w := mobileWorld(t, 1500, func(m *stack.Mobile) {
		m.Signalling = func(p []byte) { got <- slices.Clone(p) }
	})
	mobility := []byte{59, 1, 4, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8}
	careOfTest := packet6(client6, careOf[0], 135, mobility)
	homeTest := packet6(homeAgent, careOf[0], 41, packet6(client6, server6, 135, mobility))
	for _, p := range [][]byte{careOfTest, homeTest} {
		w.devs[0].arrive(slices.Clone(p))
		if q := result(t, "signalling", got); !bytes.Equal(q, p) {
			t.Errorf("%x: want %x", q, p)
		}
	}
	w.devs[0].settle(t)
	if sent := w.devs[0].sent(0); len(sent) != 0 {
		t.Errorf("answered by %x", sent)
	}
	p := packet6(careOf[0], careOf[1], 41, packet6(client6, server6, 6, make([]byte, 20)))
	w.nodes[0].Send(p)
	if sent := w.devs[0].sent(0); len(sent) != 1 || !bytes.Equal(sent[0], p) {
		t.Errorf("sent %x", sent)
	}
	// Nobody wants it at node b.
	w.devs[1].arrive(packet6(client6, careOf[1], 135, mobility))
	w.devs[1].settle(t)
}

// TestMobileHold: a hold keeps what the netstack would have got, and what it
// sends when it ends goes the way that is right then.
func TestMobileHold(t *testing.T) {
	w := mobileWorld(t, 1500, nil)
	c, s := connect(t, w.client.Stack, w.nodes[0].Stack, server6)
	pingPong(t, c, s)
	h, err := w.nodes[0].HoldClient(client6)
	mustHold(t, h, err)
	_, before := w.devs[0].counts()
	mustSend(t, c, 0, 3000)
	mustSend(t, s, 1, 3000)
	w.devs[0].settle(t)
	if sent := w.devs[0].sent(before); len(sent) != 0 {
		t.Errorf("sent %d packets meanwhile", len(sent))
	}
	w.bind(careOf[0])
	w.nodes[0].Bind(client6)
	h.Release()
	mustReceive(t, s, 0, 3000)
	mustReceive(t, c, 1, 3000)
	for _, p := range w.devs[0].sent(before) {
		if p[6] != 60 {
			t.Errorf("sent a packet without option after Bind: %x", p[:48])
		}
	}
}

// TestMobileMove: a connection moves between two nodes with care-of addresses
// of their own, there and back, while octets flow both ways: with the client
// bound, through the home agent, and with the client sending to the old node for
// a while.
func TestMobileMove(t *testing.T) {
	for _, name := range []string{"relayed", "optimised"} {
		t.Run(name, func(t *testing.T) {
			optimised := name == "optimised"
			w := mobileWorld(t, 1500, nil)
			if optimised {
				w.bind(careOf[0])
				w.nodes[0].Bind(client6)
			}
			c, s := connect(t, w.client.Stack, w.nodes[0].Stack, server6)
			transfer(t, c, s, 0, 100_000)

			const moves, chunk = 20, 20_000
			for i := range moves {
				from, to := i%2, 1-i%2
				donorNode, targetNode := w.nodes[from], w.nodes[to]
				// In flight, or in buffers, when it moves.
				up, down := make(chan error, 1), make(chan error, 1)
				go func() { _, err := send(c, 0, chunk); up <- err }()
				go func() { down <- receive(c, 1, 2*chunk) }()
				mustSend(t, s, 1, chunk)

				donor := migrate.NewDonor(s)
				if err := donor.Freeze(); err != nil {
					t.Fatal(err)
				}
				snap, err := donor.Export(nil)
				if err != nil {
					t.Fatal(err)
				}
				target, err := migrate.Import(targetNode.Stack, snap)
				if err != nil {
					t.Fatal(err)
				}
				late, err := donor.Discard(func(p []byte) {
					if src, dst := addrsOf(p); src != client6 || dst != server6 {
						t.Errorf("a straggler from %s to %s", src, dst)
					}
					donorNode.Tunnel(careOf[to], p)
				}, time.Minute)
				if err != nil {
					t.Fatal(err)
				}
				conns, err := target.Activate(late...)
				if err != nil {
					t.Fatal(err)
				}
				s = conns[0]
				// Until the client's Binding Update, or the contact node's
				// relaying, the donor gets what the client sends, and the target
				// uses the home agent.
				donorNode.Leave(client6, time.Minute)
				if err := result(t, "the client", up); err != nil {
					t.Fatal(err)
				}
				mustSend(t, c, chunk, chunk)
				mustSend(t, s, chunk+1, chunk)
				mustReceive(t, s, 0, 2*chunk)
				w.mu.Lock()
				if w.contact = to; optimised {
					w.binding = careOf[to]
				}
				w.mu.Unlock()
				if optimised {
					targetNode.Bind(client6)
				}
				if err := result(t, "the client", down); err != nil {
					t.Fatal(err)
				}
				pingPong(t, c, s)
			}
			seen, _, refused, largest := w.counts()
			t.Logf("%+v, %d refused, largest %d", seen, refused, largest)
			for i, n := range w.nodes {
				if stats := n.ShimStats(); stats != (stack.ShimStats{}) {
					t.Errorf("node %d dropped %+v", i, stats)
				}
				if seen[i].forwarded == 0 || optimised && seen[i].optimised == 0 || seen[i].tunnelled == 0 {
					t.Errorf("node %d sent %+v", i, seen[i])
				}
			}
			if resets := w.client.Netstack().Stats().TCP.EstablishedResets.Value(); resets != 0 {
				t.Errorf("%d resets", resets)
			}
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestMobileOtherAddresses: the shim is in the way of nothing else.
func TestMobileOtherAddresses(t *testing.T) {
	other := netip.MustParseAddr("fd00:2::2")
	client, server := newNodes(t, func(_, s *stack.Config) {
		s.Addrs = append(s.Addrs, other)
		s.Mobile = &stack.Mobile{Home: server6, CareOf: careOf[0]}
	})
	for _, a := range []netip.Addr{other, server4, server6} { // no Via: as it is
		c, s := connect(t, client.Stack, server.Stack, a)
		transfer(t, c, s, 0, 100_000)
	}
	if err := server.SetVia(careOf[0]); err == nil {
		t.Error("a tunnel to ourselves")
	}
	// Without Mobile the methods do nothing, or say so.
	client.Bind(server6)
	client.Leave(server6, time.Second)
	client.Tunnel(server6, make([]byte, 40))
	if client.Bound(server6) || client.ShimStats() != (stack.ShimStats{}) {
		t.Error("a binding without Mobile")
	}
	if err := client.SetPeers(nil); err == nil {
		t.Error("SetPeers without Mobile")
	}
}
