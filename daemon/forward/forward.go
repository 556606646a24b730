package forward

import (
	"errors"
	"net/netip"
)

// ErrClosed tells that nothing is forwarded any more: it was closed, or a change
// has failed before.
var ErrClosed = errors.New("forward: closed")

// Exit is the destination that the packets get which are to leave their tunnel on
// this host. It is of the prefix that is for nobody (RFC 6666), a different one for
// each queue, so that several daemons can be on a host.
func Exit(queue uint16) netip.Addr {
	a := netip.MustParseAddr("100::6473:0").As16() // "ds"
	a[14], a[15] = byte(queue>>8), byte(queue)
	return netip.AddrFrom16(a)
}

// NodeConfig describes the tunnels of a node.
type NodeConfig struct {
	Queue   uint16     // of the daemon: its number is in names
	Daemon  netip.Addr // the daemon's address, where the contact's tunnels end
	Servers []Server
}

// Server is a distributed server of a node.
type Server struct {
	Home, CareOf netip.Addr

	// HomeAgent is where the contact's tunnel goes. The zero value: that is not
	// ours to send to, and packets of this server are not relayed here.
	HomeAgent netip.Addr

	// DirectReturn leaves to the daemon what goes to clients.
	DirectReturn bool

	// Senders may send in tunnels to the care-of address. Nil: tunnels there
	// are the application's, as they come.
	Senders []netip.Addr
}

// Owner is whose a client is: where its packets go. The zero CareOf means that they
// are for the daemon.
type Owner struct{ Client, CareOf netip.Addr }

// Change is what is new about a server's clients.
type Change struct {
	Reset   bool         // no members and owners of before hold
	Members []netip.Addr // who may send to clients; nil: as before
	Senders []netip.Addr // as a Server's; nil: as before
	Owners  []Owner      // the last one of a client holds
}

// Count is of packets, of which a super-packet is one, and of their octets, headers
// of tunnels included where they arrive in one.
type Count struct{ Packets, Octets uint64 }

// AgentConfig describes the tunnels of a home agent.
type AgentConfig struct {
	Queue    uint16 // of the daemon: its number is in names
	Address  netip.Addr
	Prefixes []netip.Prefix // of the home links
}
