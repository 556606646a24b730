package stack

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// Mobile makes a Stack a node of a distributed server: a mobile node (RFC 6275)
// whose home address is the server's. Between device and filter stands the shim,
// which gives the netstack packets to and from the home address, whatever way
// they take outside:
//
//	client is   inbound                            outbound
//	─────────   ────────────────────────────────   ──────────────────────────────
//	bound       to the care-of address, with a     from the care-of address, with
//	            type 2 routing header (RFC 6275    a Home Address option (RFC 6275
//	            §6.4, §11.3.3)                     §6.3, §11.3.1)
//	leaving     the same                           as if unbound
//	unbound     in a tunnel from Via or a peer     in a tunnel to Via (RFC 6275
//	            (RFC 2473)                         §11.3.1)
//
// What comes with a routing header from a client that is unbound is taken if it is for
// a connection that is here, or held: the client may have heard of the binding before
// the shim has.
//
// Packets to the home address that come as they are, because somebody else has
// ended the tunnel, pass too. So does all that concerns other addresses.
//
// The netstack sees a link whose MTU is 40 octets less than the device's, so
// that a full packet fits into a tunnel; hence the MSS it announces. From the
// MSS that clients announce the shim takes what the Home Address option needs.
type Mobile struct {
	// Home is the distributed server's address, one of Config.Addrs.
	Home netip.Addr

	// CareOf is this node's own address, not one of Config.Addrs. Both it and
	// Home are routed to the device.
	CareOf netip.Addr

	// Via is where packets go to clients without binding: the home agent, or
	// on a node that is not the contact node, the contact node's care-of
	// address. The zero value means that they are sent as they are.
	Via netip.Addr

	// KernelTunnel tells that the kernel puts into the tunnel to Via what comes
	// from Home by the device as it is. TCP does then, in whole super-packets;
	// the rest the shim tunnels all the same.
	KernelTunnel bool

	// Peers may send tunnelled packets beside Via: the care-of addresses of
	// the other nodes, and who was Via. What comes from them is late: a connection
	// for which it is may have been here and be elsewhere by now. So a segment for
	// none that is here gets no reset, unless Via tunnels it; a SYN is for a
	// listener all the same.
	Peers []netip.Addr

	// Signalling gets what is not for the netstack: packets with a mobility
	// header, ICMPv6 messages of home agent and prefix discovery (RFC 6275
	// §6.5 to §6.8), and ICMPv6 errors that quote such packets or object to
	// the Home Address option. It gets the whole packet as it came, in its
	// tunnel if it came in one, and must not keep it. It is called on the
	// reading goroutine, so it must not block. Nil drops them.
	Signalling func(packet []byte)
}

// shimHeadroom is what the shim adds to a packet at most (RFC 2473 §7.1).
const shimHeadroom = header.IPv6MinimumSize

// minMobileMTU is the least MTU of a device under a shim: what it leaves of it
// must carry IPv6 (RFC 8200 §5).
const minMobileMTU = header.IPv6MinimumMTU + shimHeadroom

// ShimStats counts packets that the shim dropped.
type ShimStats struct {
	Unbound   uint64 // with a routing header, from a client without binding here, and for no connection here
	Stranger  uint64 // in a tunnel from neither Via nor a peer
	Malformed uint64 // broken, or spoofed beyond doubt
	Late      uint64 // segments in a tunnel from a peer, for no connection here
	Unwanted  uint64 // anything else to the care-of address
}

// shim translates between what the netstack sends and receives and what is on
// the link. It looks bindings up without a lock.
type shim struct {
	home, careOf [16]byte
	signalling   func([]byte)
	clock        tcpip.Clock

	bindings *bindings
	via      atomic.Pointer[tunnel]                // nil: none
	kernel   atomic.Bool                           // Mobile.KernelTunnel
	peers    atomic.Pointer[map[[16]byte]struct{}] // replaced, never changed

	homeOption [homeOptionSize]byte // ready but for the next header

	dropped struct{ unbound, stranger, malformed, late, unwanted atomic.Uint64 }

	mu     sync.Mutex
	graces map[netip.Addr]tcpip.Timer // of the clients that are leaving
}

// tunnel is a tunnel's header (RFC 2473 §5.1) but for what depends on the packet
// in it.
type tunnel [header.IPv6MinimumSize]byte

func newShim(m *Mobile, addrs []netip.Addr, mtu int, clock tcpip.Clock) (*shim, error) {
	switch {
	case !isUnicast6(m.Home) || !slices.Contains(addrs, m.Home):
		return nil, fmt.Errorf("Mobile.Home %s: want an IPv6 address of Config.Addrs", m.Home)
	case !isUnicast6(m.CareOf) || slices.Contains(addrs, m.CareOf):
		return nil, fmt.Errorf("Mobile.CareOf %s: want an IPv6 unicast address that is not in Config.Addrs", m.CareOf)
	case mtu < minMobileMTU:
		return nil, fmt.Errorf("MTU %d of the device leaves too little for IPv6 in a tunnel: want at least %d", mtu, minMobileMTU)
	}
	s := &shim{
		home: m.Home.As16(), careOf: m.CareOf.As16(),
		signalling: m.Signalling,
		clock:      clock,
		bindings:   newBindings(),
		graces:     make(map[netip.Addr]tcpip.Timer),
	}
	s.homeOption = homeOption(s.home)
	s.kernel.Store(m.KernelTunnel)
	if err := s.setVia(m.Via); err != nil {
		return nil, err
	}
	return s, s.setPeers(m.Peers)
}

func isUnicast6(a netip.Addr) bool {
	return a.Is6() && !a.Is4In6() && a.Zone() == "" && !a.IsUnspecified() && !a.IsMulticast()
}

// tunnelEnd is an address that a tunnel can have at its other end. A tunnel to
// the home address would not leave this node.
func (s *shim) tunnelEnd(a netip.Addr) bool {
	return isUnicast6(a) && a.As16() != s.careOf && a.As16() != s.home
}

func (s *shim) setVia(via netip.Addr) error {
	if !via.IsValid() {
		s.via.Store(nil)
		return nil
	}
	if !s.tunnelEnd(via) {
		return fmt.Errorf("tunnel to %s: want another node's IPv6 unicast address", via)
	}
	t := tunnelTo(s.careOf, via.As16())
	s.via.Store(&t)
	return nil
}

func (s *shim) setPeers(peers []netip.Addr) error {
	set := make(map[[16]byte]struct{}, len(peers))
	for _, p := range peers {
		if !s.tunnelEnd(p) {
			return fmt.Errorf("tunnel from %s: want another node's IPv6 unicast address", p)
		}
		set[p.As16()] = struct{}{}
	}
	s.peers.Store(&set)
	return nil
}

// mayTunnel tells whether packets in a tunnel from src are taken: a tunnel's
// exit believes what is inside (RFC 2473 §9.1, RFC 6275 §11.3.3). peer tells
// whether src is a peer and not Via.
func (s *shim) mayTunnel(src [16]byte) (may, peer bool) {
	if via := s.via.Load(); via != nil && via.dst() == src {
		return true, false
	}
	_, peer = (*s.peers.Load())[src]
	return peer, peer
}

// set ends a client's grace and gives it a state, for some time if that is
// leaving.
func (s *shim) set(client netip.Addr, state bindingState, grace time.Duration) {
	if !isUnicast6(client) {
		return // Mobile IPv6 has no binding for it
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.graces[client]; t != nil {
		t.Stop()
		delete(s.graces, client)
	}
	if state == leaving {
		if s.bindings.state(client.AsSlice()) == unbound {
			return
		}
		if grace <= 0 {
			state = unbound
		} else {
			var t tcpip.Timer
			t = s.clock.AfterFunc(grace, func() {
				s.mu.Lock()
				defer s.mu.Unlock()
				if s.graces[client] == t { // else it fired while being replaced
					delete(s.graces, client)
					s.bindings.set(client, unbound)
				}
			})
			s.graces[client] = t
		}
	}
	s.bindings.set(client, state)
}

func (s *shim) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.graces {
		t.Stop()
	}
	clear(s.graces)
}

// errNotMobile is for those calls on a Stack without a shim that say so.
var errNotMobile = errors.New("Config.Mobile is not set")

// Bind sends a client's packets by its binding from now on, and takes those
// that it sends by it: there is one with our care-of address, or there will be
// before they arrive. Like the methods that follow, it does nothing on a Stack
// without [Config.Mobile], and for addresses that cannot have a binding.
func (s *Stack) Bind(client netip.Addr) { s.setBinding(client, bound, 0) }

// Leave ends a binding that another node has taken over: what is sent from now
// on takes the tunnel. What the client sent to us before it knew is taken for
// some time more, by the stack's clock, and meets the filter, which knows where
// its connections are.
func (s *Stack) Leave(client netip.Addr, grace time.Duration) { s.setBinding(client, leaving, grace) }

// LeaveAll is Leave for all clients, when nobody knows any more which bindings there are.
func (s *Stack) LeaveAll(grace time.Duration) {
	if shim := s.link.shim; shim != nil {
		for _, client := range shim.bindings.bound() {
			shim.set(client, leaving, grace)
		}
	}
}

// Unbind ends a binding at once.
func (s *Stack) Unbind(client netip.Addr) { s.setBinding(client, unbound, 0) }

func (s *Stack) setBinding(client netip.Addr, state bindingState, grace time.Duration) {
	if shim := s.link.shim; shim != nil {
		shim.set(client, state, grace)
	}
}

// Bound tells whether packets to a client take its binding.
func (s *Stack) Bound(client netip.Addr) bool {
	shim := s.link.shim
	return shim != nil && client.Is6() && shim.bindings.state(client.AsSlice()) == bound
}

// SetVia replaces Mobile.Via: the contact node has changed.
func (s *Stack) SetVia(via netip.Addr) error {
	return s.change("set via", func(shim *shim) error { return shim.setVia(via) })
}

// SetKernelTunnel replaces Mobile.KernelTunnel.
func (s *Stack) SetKernelTunnel(on bool) error {
	return s.change("set kernel tunnel", func(shim *shim) error { shim.kernel.Store(on); return nil })
}

// SetPeers replaces Mobile.Peers.
func (s *Stack) SetPeers(peers []netip.Addr) error {
	return s.change("set peers", func(shim *shim) error { return shim.setPeers(peers) })
}

func (s *Stack) change(what string, f func(*shim) error) error {
	err := errNotMobile
	if s.link.shim != nil {
		err = f(s.link.shim)
	}
	if err != nil {
		return fmt.Errorf("stack: %s: %w", what, err)
	}
	return nil
}

// Send writes a packet to the device as it is, past netstack, filter and shim:
// a mobility message. It keeps no reference to it.
func (s *Stack) Send(packet []byte) { s.link.sendRaw(packet) }

// Tunnel sends a packet to another node in a tunnel: a straggler whose
// connection has moved there, as [Hold.Forward] hands it out, already with one
// hop less to go (RFC 2473 §3.1). It drops what no tunnel may carry.
func (s *Stack) Tunnel(to netip.Addr, packet []byte) {
	l := s.link
	if l.shim == nil || !l.shim.tunnelEnd(to) {
		return
	}
	via := tunnelTo(l.shim.careOf, to.As16())
	t := l.getTransmit()
	t.flat = append(t.flat[:shimHeadroom], packet...)
	l.transmitFlat(t, 0, way{via: &via}, t.flat)
	l.putTransmit(t)
}

// ShimStats returns the counters of the shim.
func (s *Stack) ShimStats() ShimStats {
	if s.link.shim == nil {
		return ShimStats{}
	}
	return s.link.shim.counts()
}

func (s *shim) counts() ShimStats {
	d := &s.dropped
	return ShimStats{Unbound: d.unbound.Load(), Stranger: d.stranger.Load(), Malformed: d.malformed.Load(), Late: d.late.Load(), Unwanted: d.unwanted.Load()}
}
