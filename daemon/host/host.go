package host

import (
	"cmp"
	"log/slog"
	"net/netip"
)

// Protocol is the number in routes, rules and proxy entries that says who made
// them (rtm_protocol; /etc/iproute2/rt_protos has those of others).
type Protocol uint8

// Numbers of the daemons. Nobody else is known to use them.
const (
	ProtocolNode          Protocol = 78
	ProtocolHomeAgent     Protocol = 79
	ProtocolCorrespondent Protocol = 80
)

// Config describes a Host. State is required.
type Config struct {
	// State is the directory of the journal. It is made if there is none. It
	// may be shared with others who leave host.journal and host.lock alone.
	State string

	// Protocol marks what is made here. Default [ProtocolNode].
	Protocol Protocol

	// Logger takes what was left by a daemon that was killed, and what cannot
	// be undone. Default: slog.Default.
	Logger *slog.Logger
}

func (c Config) withDefaults() Config {
	c.Protocol = cmp.Or(c.Protocol, ProtocolNode)
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c
}

// Rule is a routing rule of IPv6: packets that match all that is set look their
// route up in Table.
type Rule struct {
	From, To netip.Prefix // the zero value: any
	Iif      string       // interface that the packet came by; "": any
	IPProto  uint8        // protocol of the upper layer; 0: any
	Table    int          // required
	Priority int          // lower ones come first; 0: the kernel chooses one ahead of all others
}
