//go:build linux

package topology

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/distributed-servers/ds/internal/impair"
)

// End is an end of a link: an interface of a host, with its addresses.
type End struct {
	Host  *Host
	Name  string // at most 15 octets
	Addrs []netip.Prefix
	MTU   int // default 1500
}

// Link connects two hosts, or a host and a switch.
type Link struct {
	net  *Net
	a, b End
	wire *wire // nil: a pair of interfaces
}

// Connect connects two hosts with a pair of virtual Ethernet interfaces.
func (n *Net) Connect(a, b End) (*Link, error) {
	l := &Link{net: n, a: a, b: b}
	if err := l.pair(a, b); err != nil {
		return nil, fmt.Errorf("topology: connect %s of %s and %s of %s: %w", a.Name, a.Host.name, b.Name, b.Host.name, err)
	}
	return l, nil
}

// ConnectImpaired connects two hosts with a link of this process, each of whose
// directions does to packets what ab and ba say. The seed decides about every
// packet: with the same packets in the same order, the same happens to them.
func (n *Net) ConnectImpaired(a, b End, seed uint64, ab, ba impair.Settings) (*Link, error) {
	l := &Link{net: n, a: a, b: b}
	err := l.wired(seed, ab, ba)
	if err != nil {
		return nil, fmt.Errorf("topology: connect %s of %s and %s of %s: %w", a.Name, a.Host.name, b.Name, b.Host.name, err)
	}
	return l, nil
}

// Switch adds a switch, of which hosts become members.
func (n *Net) Switch(name string) (*Switch, error) {
	h, err := n.Host(name)
	if err != nil {
		return nil, err
	}
	s := &Switch{Host: h}
	err = h.Do(func() error {
		// Without snooping: nobody here queries for listeners, and a bridge that
		// snoops holds neighbour discovery back until it knows them.
		snoop := false
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName}, MulticastSnooping: &snoop}
		if err := netlink.LinkAdd(bridge); err != nil {
			return err
		}
		// It looks at frames: what is in them, and which rules the machine has for that,
		// is no matter of its. Without br_netfilter there is nothing to switch off.
		for _, family := range []string{"ip", "ip6"} {
			err := writeSysctl("net/bridge/bridge-nf-call-"+family+"tables", "0")
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		return netlink.LinkSetUp(bridge)
	})
	if err != nil {
		return nil, fmt.Errorf("topology: switch %s: %w", name, err)
	}
	return s, nil
}

const bridgeName = "bridge"

// Switch is a bridge in a host of its own.
type Switch struct {
	*Host
	ports int
}

// Plug connects a host to the switch.
func (s *Switch) Plug(e End) (*Link, error) {
	port := s.port(e)
	l, err := s.Host.net.Connect(e, port)
	if err != nil {
		return nil, err
	}
	return l, s.enslave(port)
}

// PlugImpaired connects a host to the switch with a link of this process; see
// [Net.ConnectImpaired]. The direction out is that from the host.
func (s *Switch) PlugImpaired(e End, seed uint64, out, in impair.Settings) (*Link, error) {
	port := s.port(e)
	l, err := s.Host.net.ConnectImpaired(e, port, seed, out, in)
	if err != nil {
		return nil, err
	}
	return l, s.enslave(port)
}

func (s *Switch) port(e End) End {
	s.ports++
	return End{Host: s.Host, Name: fmt.Sprintf("port%d", s.ports), MTU: e.MTU}
}

func (s *Switch) enslave(port End) error {
	err := s.Do(func() error {
		bridge, err := netlink.LinkByName(bridgeName)
		if err != nil {
			return err
		}
		l, err := netlink.LinkByName(port.Name)
		if err != nil {
			return err
		}
		return netlink.LinkSetMaster(l, bridge)
	})
	if err != nil {
		return fmt.Errorf("topology: %s: make %s a port: %w", s.Name(), port.Name, err)
	}
	return nil
}

// Ends are the ends of the link, in the order in which they were connected.
func (l *Link) Ends() (a, b End) { return l.a, l.b }

// ErrNotImpaired is returned for links without a thread of this process between
// their ends.
var ErrNotImpaired = errors.New("the link is a pair of interfaces: connect its ends with ConnectImpaired or PlugImpaired")

// Impair changes what the link does to packets from now on. Those on it keep
// what was decided about them.
func (l *Link) Impair(ab, ba impair.Settings) error {
	if l.wire == nil {
		return fmt.Errorf("topology: impair: %w", ErrNotImpaired)
	}
	l.wire.impair(ab, ba)
	return nil
}

// Counters are what an impaired link has done to packets so far.
func (l *Link) Counters() (ab, ba impair.Counters) {
	if l.wire == nil {
		return ab, ba
	}
	return l.wire.counters()
}

// SetUp sets the interfaces of both ends up, or down, which cuts the link.
// Routes over it, and the addresses of its ends, are lost when it is cut;
// [Link.Impair] with a loss of 1 keeps them.
func (l *Link) SetUp(up bool) error {
	for _, e := range []End{l.a, l.b} {
		err := e.Host.Do(func() error {
			link, err := netlink.LinkByName(e.Name)
			if err != nil {
				return err
			}
			if up {
				return netlink.LinkSetUp(link)
			}
			return netlink.LinkSetDown(link)
		})
		if err != nil {
			return fmt.Errorf("topology: %s: set %s up=%t: %w", e.Host.name, e.Name, up, err)
		}
	}
	return nil
}

// pair makes the two interfaces and configures them.
func (l *Link) pair(a, b End) error {
	veth := &netlink.Veth{
		LinkAttrs:     netlink.NewLinkAttrs(),
		PeerName:      b.Name,
		PeerNamespace: netlink.NsFd(b.Host.fd),
	}
	veth.Name = a.Name
	veth.Namespace = netlink.NsFd(a.Host.fd)
	if err := netlink.LinkAdd(veth); err != nil {
		return err
	}
	for _, e := range []End{a, b} {
		if err := e.configure(); err != nil {
			return fmt.Errorf("%s of %s: %w", e.Name, e.Host.name, err)
		}
	}
	for _, e := range []End{a, b} {
		if err := e.Host.Do(func() error { return awaitUp(e.Name) }); err != nil {
			return fmt.Errorf("%s of %s: %w", e.Name, e.Host.name, err)
		}
	}
	return nil
}

// upWithin is more than the kernel needs to take notice that a link is up.
const upWithin = 20 * time.Second

// awaitUp waits until an interface of the thread's namespace has its link-local
// address, unless it is to have none, and is reached by each address that it has: the
// kernel configures IPv6 a little after the other end has come up, and routes to its
// own addresses come later still.
func awaitUp(name string) error {
	b, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + name + "/disable_ipv6")
	if err != nil || string(b) != "0\n" {
		return err
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(upWithin); ; time.Sleep(time.Millisecond) {
		addrs, err := netlink.AddrList(link, netlink.FAMILY_V6)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return err
		}
		local := &netlink.Route{LinkIndex: link.Attrs().Index, Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL}
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_V6, local, netlink.RT_FILTER_OIF|netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return err
		}
		unreached := slices.IndexFunc(addrs, func(a netlink.Addr) bool {
			return !slices.ContainsFunc(routes, func(r netlink.Route) bool { return r.Dst != nil && r.Dst.IP.Equal(a.IP) })
		})
		up := slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IP.IsLinkLocalUnicast() })
		switch {
		case up && unreached < 0:
			return nil
		case time.Now().Before(deadline):
		case !up:
			return fmt.Errorf("no link-local address after %v", upWithin)
		default:
			return fmt.Errorf("no route to its own address %s after %v", addrs[unreached].IP, upWithin)
		}
	}
}

func (e End) configure() error {
	return e.Host.Do(func() error {
		link, err := netlink.LinkByName(e.Name)
		if err != nil {
			return err
		}
		if e.MTU != 0 {
			if err := netlink.LinkSetMTU(link, e.MTU); err != nil {
				return fmt.Errorf("MTU %d: %w", e.MTU, err)
			}
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("up: %w", err)
		}
		for _, p := range e.Addrs {
			if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(p), Flags: unix.IFA_F_NODAD}); err != nil {
				return fmt.Errorf("address %s: %w", p, err)
			}
		}
		return nil
	})
}
