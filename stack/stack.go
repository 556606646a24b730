package stack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net/netip"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	gstack "gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"github.com/distributed-servers/ds/tun"
)

// nicID is the netstack's number of the one interface a Stack has.
const nicID tcpip.NICID = 1

// Defaults of [Config].
const (
	// DefaultHoldLimit is the default of Config.HoldLimit: room for two full
	// receive windows.
	DefaultHoldLimit = 16 << 20
	// DefaultMaxBuffer is the default of Config.MaxBuffer, what one
	// connection may buffer each way: 8 MiB fills 640 Mbit/s at 100 ms.
	DefaultMaxBuffer = 8 << 20
)

// ErrClosed is returned by calls on a closed Stack.
var ErrClosed = errors.New("stack: closed")

// Config says how to build a [Stack]. Device and Addrs are required.
type Config struct {
	// Device carries the packets. The Stack reads from it alone; Close closes
	// it.
	Device tun.Device

	// Addrs are the IPv6 and IPv4 addresses that the Stack answers for.
	Addrs []netip.Addr

	// Clock drives TCP's timers. Nil means the system's monotonic clock.
	Clock tcpip.Clock

	// HoldLimit is how many octets one [Hold] keeps in each direction before
	// it drops the newest, 0 means [DefaultHoldLimit].
	HoldLimit int

	// MaxBuffer bounds the send buffer and the receive buffer of a
	// connection, in octets, up to which auto-tuning grows them; 0 means
	// [DefaultMaxBuffer].
	MaxBuffer int

	// Rand gives sequence numbers, timestamp offsets, secrets, ports: nil means
	// crypto/rand.Reader. Only simulations that are to repeat exactly set it.
	// Several goroutines read from it.
	Rand io.Reader

	// CongestionControl is "cubic" or "reno"; empty means "cubic".
	CongestionControl string

	// Mobile makes the Stack a mobile node of RFC 6275. Nil means that packets
	// pass as they are.
	Mobile *Mobile

	// Present, if not nil, is told when a client gets its first connection here,
	// accepted, dialled or activated, and when the last one has ended or left.
	// It is called in order, under a lock: it must not block, nor call the Stack.
	Present func(client netip.Addr, here bool)

	// Begin, if not nil, is called once before the first packet is read.
	Begin func(*Stack)
}

// Stack is a TCP/IP stack on one link. Its methods may be called from several
// goroutines.
type Stack struct {
	ns   *gstack.Stack
	link *link

	maxBuffer int
	present   func(client netip.Addr, here bool) // nil: nobody asks

	// listing is held, for reading, by who takes a connection from netstack, or has it
	// begin one, until it is listed. See Settled.
	listing sync.RWMutex

	mu        sync.Mutex
	closed    bool
	listeners []*Listener          // replaced, never changed
	clients   map[netip.Addr]*Conn // heads of lists, see Conn.next
	addrs     map[netip.Addr]struct{}
}

// New builds a Stack and starts reading from its device.
func New(cfg Config) (*Stack, error) {
	if cfg.Device == nil {
		return nil, errors.New("stack: new: Config.Device is nil; open one with tun.Open or tuntest.Pair")
	}
	if len(cfg.Addrs) == 0 {
		return nil, errors.New("stack: new: Config.Addrs is empty; name the addresses to answer for")
	}
	if cfg.HoldLimit == 0 {
		cfg.HoldLimit = DefaultHoldLimit
	}
	if cfg.MaxBuffer == 0 {
		cfg.MaxBuffer = DefaultMaxBuffer
	}
	if cfg.CongestionControl == "" {
		cfg.CongestionControl = "cubic"
	}
	var source rand.Source // nil: gVisor seeds one
	if cfg.Rand != nil {
		source = randSource{cfg.Rand}
	}
	s := &Stack{
		addrs: make(map[netip.Addr]struct{}),
		ns: gstack.New(gstack.Options{
			NetworkProtocols:   []gstack.NetworkProtocolFactory{ipv6.NewProtocol, ipv4.NewProtocol},
			TransportProtocols: []gstack.TransportProtocolFactory{tcp.NewProtocol, icmp.NewProtocol6, icmp.NewProtocol4},
			Clock:              newClock(cfg.Clock),
			HandleLocal:        true,
			SecureRNG:          cfg.Rand,
			RandSource:         source,
		}),
		clients: make(map[netip.Addr]*Conn),
	}
	s.maxBuffer, s.present = cfg.MaxBuffer, cfg.Present
	s.link = newLink(s.ns, cfg.Device, cfg.HoldLimit)
	if cfg.Mobile != nil {
		shim, err := newShim(cfg.Mobile, cfg.Addrs, cfg.Device.MTU(), s.ns.Clock())
		if err != nil {
			s.ns.Destroy()
			return nil, fmt.Errorf("stack: new: %w", err)
		}
		s.link.shim = shim
	}
	s.link.setSuperPacket()
	if err := s.configure(cfg); err != nil {
		s.ns.Destroy()
		return nil, fmt.Errorf("stack: new: %w", err)
	}
	if cfg.Begin != nil {
		cfg.Begin(s)
	}
	s.link.start()
	return s, nil
}

// randSource is a rand.Source that reads its numbers.
type randSource struct{ io.Reader }

func (r randSource) Int63() int64 {
	var b [8]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		panic("stack: Config.Rand: " + err.Error())
	}
	return int64(binary.LittleEndian.Uint64(b[:]) >> 1)
}

func (r randSource) Seed(int64) {}

func (s *Stack) configure(cfg Config) error {
	if err := s.ns.CreateNIC(nicID, s.link); err != nil {
		return fmt.Errorf("create interface on %s: %s", cfg.Device.Name(), err)
	}
	for i, proto := range []tcpip.NetworkProtocolNumber{ipv6.ProtocolNumber, ipv4.ProtocolNumber} {
		ep, err := s.ns.GetNetworkEndpoint(nicID, proto)
		if err != nil {
			return fmt.Errorf("protocol %d of the interface: %s", proto, err)
		}
		s.link.network[i] = ep
	}
	for _, a := range cfg.Addrs {
		if err := s.addAddr(a); err != nil {
			return err
		}
	}
	s.ns.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv6EmptySubnet, NIC: nicID},
		{Destination: header.IPv4EmptySubnet, NIC: nicID},
	})
	return tuneTCP(s.ns, cfg)
}

func (s *Stack) addAddr(a netip.Addr) error {
	if !a.IsValid() || a.IsUnspecified() || a.Is4In6() || a.Zone() != "" {
		return fmt.Errorf("address %q: want an IPv6 or IPv4 unicast address without zone", a)
	}
	err := s.ns.AddProtocolAddress(nicID, tcpip.ProtocolAddress{
		Protocol:          protocolOf(a),
		AddressWithPrefix: toAddress(a).WithPrefix(),
	}, gstack.AddressProperties{})
	if err != nil {
		return fmt.Errorf("address %s: %s", a, err)
	}
	s.mu.Lock()
	s.addrs[a] = struct{}{}
	s.mu.Unlock()
	return nil
}

// HasAddr tells whether the Stack answers for an address.
func (s *Stack) HasAddr(a netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.addrs[a]
	return ok
}

// AddAddr makes the Stack answer for one more address.
func (s *Stack) AddAddr(a netip.Addr) error {
	if err := s.addAddr(a); err != nil {
		return fmt.Errorf("stack: add %w", err)
	}
	return nil
}

// tuneTCP sets TCP up as the heaviest public users of netstack do. The choices
// were measured with BenchmarkLossy (5 ms each way).
func tuneTCP(ns *gstack.Stack, cfg Config) error {
	// Off by default in netstack; every peer has it.
	sack := tcpip.TCPSACKEnabled(true)
	// RACK off. When 1 % of the packets are reordered it is some twenty times
	// faster than without, for it does not take them for lost; under random
	// loss it changes nothing to speak of. But in this netstack one in some
	// thousand connections on a bad path hangs for ever with it: the count of
	// segments in flight falls to zero too early (sender.Outstanding), and then
	// no retransmission timer is set. And once a whole window is lost, it
	// sends two segments to a timeout.
	rack := tcpip.TCPRecovery(0)
	// Cubic is ahead of Reno on clean paths and at 0.1 % loss, and the default
	// of every kernel.
	cc := tcpip.CongestionControlOption(cfg.CongestionControl)
	// The receive buffer grows with the bandwidth-delay product.
	moderate := tcpip.TCPModerateReceiveBufferOption(true)
	rcv := tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: min(tcp.DefaultReceiveBufferSize, cfg.MaxBuffer), Max: cfg.MaxBuffer}
	snd := tcpip.TCPSendBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: min(tcp.DefaultSendBufferSize, cfg.MaxBuffer), Max: cfg.MaxBuffer}
	for _, o := range []struct {
		name   string
		value  any
		option tcpip.SettableTransportProtocolOption
	}{
		{"SACK", sack, &sack}, {"loss detection", rack, &rack}, {"congestion control", cc, &cc},
		{"receive buffer tuning", moderate, &moderate}, {"receive buffer", rcv, &rcv}, {"send buffer", snd, &snd},
	} {
		if err := ns.SetTransportProtocolOption(tcp.ProtocolNumber, o.option); err != nil {
			return fmt.Errorf("%s %v: %s", o.name, o.value, err)
		}
	}
	return nil
}

// Netstack is the gVisor stack inside, for package migrate and for statistics.
func (s *Stack) Netstack() *gstack.Stack { return s.ns }

// MTU is the largest packet of the netstack in octets: the device's MTU, or 40
// less with [Config.Mobile].
func (s *Stack) MTU() int { return int(s.link.MTU()) }

// Pause stops reading from the device and returns when no packet is on its way
// in any more. Arriving packets wait in the device's queue. With the device's
// descriptor handed to another process, that process may go on reading where
// this one stopped.
func (s *Stack) Pause() error { return s.link.pause() }

// Resume undoes Pause.
func (s *Stack) Resume() error { return s.link.resume() }

// Inject delivers a packet as if it had come from the device, and the shim had
// passed it: a held packet of another node, or a straggler that it forwards. It
// keeps no reference to p.
func (s *Stack) Inject(p []byte) { s.link.receive([]arrived{{p: p}}, nil) }

// Arrive takes a packet as if the device had read it: for a program that has
// the device's packets itself. It keeps no reference to p.
func (s *Stack) Arrive(p []byte) { s.link.arrive([]arrived{{p: p}}, nil) }

// Closed tells whether Close was called.
func (s *Stack) Closed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// Close resets the connections that are still open, as the end of a process
// does in a kernel, and closes the device. Frozen connections are not touched:
// they belong to whoever froze them.
func (s *Stack) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	for _, l := range s.Listeners() {
		l.Close()
	}
	s.ns.Close() // aborts what is registered, stops the protocol goroutines
	err := s.link.stop()
	s.ns.Wait()
	return err
}

func protocolOf(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return ipv4.ProtocolNumber
	}
	return ipv6.ProtocolNumber
}

func toAddress(a netip.Addr) tcpip.Address { return tcpip.AddrFromSlice(a.AsSlice()) }

func fromAddress(a tcpip.Address) netip.Addr {
	if a.Len() == 4 {
		return netip.AddrFrom4(a.As4())
	}
	return netip.AddrFrom16(a.As16())
}
