package tun

import (
	"errors"
	"fmt"
	"net/netip"
)

// DefaultMTU is the MTU of a [Config] that names none, in octets.
const DefaultMTU = 1500

// MaxQueues is how many queues a [Config] may ask for.
const MaxQueues = 64

// ErrUnsupported is returned where the package knows no TUN interface of the
// operating system. It is an [errors.ErrUnsupported].
var ErrUnsupported = fmt.Errorf("tun: open: %w: TUN interfaces need Linux; use the in-memory network elsewhere", errors.ErrUnsupported)

// Config says what [Open] creates. The zero value is a working interface
// without addresses and routes.
type Config struct {
	// Name of the interface, at most 15 octets. The kernel replaces %d by
	// the first free number. Default "ds%d".
	Name string

	// MTU in octets, 68 to 65535, at least 1280 for IPv6. Default
	// [DefaultMTU].
	MTU int

	// Addrs are the addresses of the kernel's side of the link, with the
	// length of the prefix that is reached through it. IPv6 addresses are
	// usable at once, without duplicate address detection: a TUN has no
	// neighbours.
	Addrs []netip.Prefix

	// Routes are the prefixes the kernel sends into the device: what the
	// netstack behind it owns.
	Routes []netip.Prefix

	// Offload asks for super-packets and packets without checksum, see
	// [OffloadDevice]. A kernel that has none gives an interface without;
	// Offloads of the TUN tells.
	Offload bool

	// Queues is how many queues the interface is to have, each with a
	// descriptor of its own, 1 to [MaxQueues]; a kernel that cannot gives one.
	// Default 1, which is best unless many connections are busy at once.
	Queues int

	// Alias is what the interface is tagged with (ip link shows it), so that
	// whoever cleans up knows whose it was; at most 255 octets. Default none.
	Alias string
}

func (c Config) withDefaults() Config {
	if c.Name == "" {
		c.Name = "ds%d"
	}
	if c.MTU == 0 {
		c.MTU = DefaultMTU
	}
	if c.Queues == 0 {
		c.Queues = 1
	}
	return c
}

func (c Config) check() error {
	if len(c.Name) > 15 {
		return fmt.Errorf("tun: open: name %q has %d octets; the kernel takes 15", c.Name, len(c.Name))
	}
	if len(c.Alias) > 255 {
		return fmt.Errorf("tun: open %s: alias has %d octets; the kernel takes 255", c.Name, len(c.Alias))
	}
	if c.Queues < 1 || c.Queues > MaxQueues {
		return fmt.Errorf("tun: open %s: %d queues are out of range; use 1 to %d", c.Name, c.Queues, MaxQueues)
	}
	lowest := 68 // RFC 791 section 3.2
	for _, list := range [][]netip.Prefix{c.Addrs, c.Routes} {
		for _, p := range list {
			if !p.IsValid() || p.Addr().Is4In6() {
				return fmt.Errorf("tun: open %s: %v is not an IPv4 or IPv6 prefix", c.Name, p)
			}
			if p.Addr().Is6() {
				lowest = 1280 // RFC 8200 section 5
			}
		}
	}
	if c.MTU < lowest || c.MTU > MaxPacket {
		return fmt.Errorf("tun: open %s: MTU %d is out of range; use %d to %d", c.Name, c.MTU, lowest, MaxPacket)
	}
	return nil
}
