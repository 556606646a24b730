package homeagent

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// Config is what a home agent is told. Addr, Prefixes, Keys, Epoch and Rand
// are required.
type Config struct {
	// Addr is the home agent's address, global and unicast.
	Addr netip.Addr

	// Prefixes are those of the home link, at most 32.
	Prefixes []Prefix

	// Link is the link-layer address of the interface on the home link, 6
	// octets. nil: the home prefixes are routed to us and there is no link.
	Link []byte

	// Keys has, for each home address that is served, what its mobile node
	// shares with us. There is no registration without one.
	Keys map[netip.Addr]Credential

	// Epoch is the wall clock when now is 0, within the Window of that of the
	// mobile nodes.
	Epoch time.Time

	// Start is now when this machine begins. A Binding Update with an earlier
	// timestamp is refused: it may be a copy of one that an earlier machine
	// has accepted.
	Start time.Duration

	// Window is how far the timestamp of a Binding Update may be from our
	// clock. Default 7 s (RFC 4285 section 6).
	Window time.Duration

	// Rand gives random numbers; they decide of order and delays only.
	Rand io.Reader

	// Preference among home agents of the link, the higher the better; Agents
	// are others. Those that advertise themselves on the link are added.
	Preference uint16
	Agents     []Agent

	// MaxBindings is how many there may be at the same time. Default: one for
	// each key.
	MaxBindings int

	// MaxLifetime of a binding. Default 262140 s, the most that can be said.
	MaxLifetime time.Duration

	// RefreshAdvice is when a mobile node is asked to register again although
	// the binding lasts longer, in case we have forgotten it. It is told in units of
	// 4 s, and never less than one. Default: none.
	RefreshAdvice time.Duration

	// TunnelMTU is the MTU of the path to care-of addresses unless ICMPv6 says
	// less. Default 1500, at least 1280.
	TunnelMTU int

	// DADTransmits and RetransTimer are those of RFC 4862 section 5.1. Default
	// 1 and 1 s.
	DADTransmits int
	RetransTimer time.Duration

	// MinPrefixInterval and MaxPrefixInterval are MinMobPfxAdvInterval and
	// MaxMobPfxAdvInterval (RFC 6275 section 13): the least and the greatest
	// delay of a Mobile Prefix Advertisement that nobody asked for. Default
	// 600 s and 86400 s.
	MinPrefixInterval, MaxPrefixInterval time.Duration

	// NoPrefixAdvertisements: Mobile Prefix Advertisements are sent neither
	// unasked nor in answer to solicitations (RFC 6275 section 8.4 wants that to
	// be the operator's choice).
	NoPrefixAdvertisements bool
}

// Prefix is a prefix of the home link.
type Prefix struct {
	Prefix netip.Prefix

	// Valid and Preferred are how long it is so, from Start or SetPrefixes on.
	// 0: for ever, and as long as it is valid. Negative Preferred: it is
	// deprecated.
	Valid, Preferred time.Duration
}

// Agent is another home agent.
type Agent struct {
	Addr       netip.Addr
	Preference uint16
}

// Credential is what a mobile node and its home agent share (RFC 4285).
type Credential struct {
	SPI uint32
	Key wire.SharedKey // at least 16 octets
}

// New returns a home agent without bindings.
func New(cfg Config) (*HomeAgent, error) {
	m := &HomeAgent{
		homes:  make(map[address]*entry, len(cfg.Keys)),
		links:  make(map[address]*entry),
		groups: make(map[netip.Addr]int),
		now:    cfg.Start,
	}
	if !routable(cfg.Addr) {
		return nil, fmt.Errorf("homeagent: new: %v is not a global unicast address", cfg.Addr)
	}
	if len(cfg.Link) != 0 && len(cfg.Link) != 6 {
		return nil, fmt.Errorf("homeagent: new: link-layer address of %d octets", len(cfg.Link))
	}
	if cfg.Epoch.IsZero() {
		return nil, errors.New("homeagent: new: no epoch")
	}
	if cfg.Rand == nil {
		return nil, errors.New("homeagent: new: no source of random numbers")
	}
	if cfg.TunnelMTU != 0 && (cfg.TunnelMTU < wire.MinMTU || cfg.TunnelMTU > 65535) {
		return nil, fmt.Errorf("homeagent: new: tunnel MTU of %d", cfg.TunnelMTU)
	}
	if cfg.MaxLifetime != 0 && cfg.MaxLifetime < wire.LifetimeUnit {
		return nil, fmt.Errorf("homeagent: new: lifetime of %v is less than can be said", cfg.MaxLifetime)
	}
	if cfg.MinPrefixInterval > 0 && cfg.MaxPrefixInterval > 0 && cfg.MinPrefixInterval > cfg.MaxPrefixInterval {
		return nil, fmt.Errorf("homeagent: new: least prefix interval of %v, greatest of %v", cfg.MinPrefixInterval, cfg.MaxPrefixInterval)
	}
	for _, a := range cfg.Agents {
		if !routable(a.Addr) {
			return nil, fmt.Errorf("homeagent: new: home agent %v is not a global unicast address", a.Addr)
		}
	}
	if cfg.Link = bytes.Clone(cfg.Link); len(cfg.Link) == 0 {
		cfg.Link = nil
	}
	cfg.Agents = slices.Clone(cfg.Agents)
	cfg.Window = orDefault(cfg.Window, 7*time.Second)
	cfg.MaxLifetime = min(orDefault(cfg.MaxLifetime, maxLifetime), maxLifetime)
	if cfg.RefreshAdvice > 0 {
		cfg.RefreshAdvice = max(cfg.RefreshAdvice, wire.LifetimeUnit)
	}
	cfg.TunnelMTU = orDefault(cfg.TunnelMTU, 1500)
	cfg.DADTransmits = orDefault(cfg.DADTransmits, 1)
	cfg.RetransTimer = orDefault(cfg.RetransTimer, time.Second)
	cfg.MinPrefixInterval = orDefault(cfg.MinPrefixInterval, 600*time.Second)
	cfg.MaxPrefixInterval = orDefault(cfg.MaxPrefixInterval, 86400*time.Second)
	m.cfg, m.addr = cfg, cfg.Addr.As16()

	var err error
	if m.prefixes, err = newPrefixes(cfg.Prefixes, cfg.Addr, cfg.Start); err != nil {
		return nil, fmt.Errorf("homeagent: new: %w", err)
	}
	for a, c := range cfg.Keys {
		if err := m.checkKey(a, c); err != nil {
			return nil, fmt.Errorf("homeagent: new: %w", err)
		}
		m.addHome(a, c)
	}
	m.cfg.Keys, m.cfg.Prefixes = nil, nil // in homes and prefixes from now on
	return m, nil
}

func orDefault[T cmp.Ordered](v, def T) T {
	var zero T
	if v <= zero {
		return def
	}
	return v
}
