package config

import (
	"net/netip"
	"time"
)

// Defaults, all of them. Those that are empty lists and strings are explained at
// their fields.

// SetDefaults fills in what is not set: zero. Load does that, so it is for
// configurations that are not from a file.
func (c *Config) SetDefaults() {
	if c.Node != nil {
		c.Node.setDefaults()
	}
	for i := range c.Servers {
		c.Servers[i].setDefaults()
	}
	if c.HomeAgent != nil {
		c.HomeAgent.setDefaults()
	}
	if c.Correspondent != nil {
		c.Correspondent.setDefaults()
	}
}

func (n *Node) setDefaults() {
	set(&n.ControlPort, 7846)
	set(&n.Socket, "/run/dsco/dsco.sock")
	set(&n.State, "/var/lib/dsco")
	set(&n.Queue, 7846)
	on(&n.KernelTunnels)
	on(&n.StayAwake)
}

func (s *Server) setDefaults() {
	if len(s.Users) == 0 && len(s.UserGroups) == 0 {
		s.Users = []string{"root"}
	}
	set(&s.MTU, 1500)
	set(&s.Queues, 1)
	on(&s.Offload)
	set(&s.Tunnel, TunnelUser)
	set(&s.IdleTimeout, Duration(60*time.Second))
	set(&s.RegisterTimeout, Duration(1500*time.Millisecond))
}

func (h *HomeAgent) setDefaults() {
	set(&h.Queue, 7847)
	on(&h.KernelTunnels)
	set(&h.RefreshAdvice, Duration(12*time.Second))
	on(&h.PrefixAdvertisements)
	set(&h.MinPrefixInterval, Duration(10*time.Minute))
	set(&h.MaxPrefixInterval, Duration(24*time.Hour))
	set(&h.TunnelMTU, 1500)
	set(&h.State, "/var/lib/dsco/home-agent")
	set(&h.Socket, "/run/dsco/home-agent.sock")
}

func (c *Correspondent) setDefaults() {
	if len(c.Permit) == 0 {
		c.Permit = []netip.Prefix{netip.PrefixFrom(netip.IPv6Unspecified(), 0)}
	}
	set(&c.Queue, 7848)
	on(&c.KernelHeaders)
	set(&c.MaxBindings, 65536)
	set(&c.State, "/var/lib/dsco/correspondent")
	set(&c.Socket, "/run/dsco/correspondent.sock")
}

func set[T comparable](v *T, to T) {
	var zero T
	if *v == zero {
		*v = to
	}
}

func on(v **bool) {
	if *v == nil {
		*v = new(true)
	}
}
