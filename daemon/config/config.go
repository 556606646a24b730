// Package config reads the configuration of dsco, one TOML file, and says what
// is wrong with it: where, why, and what cures it. docs/dsco.toml is a complete
// example.
package config

import (
	"net/netip"
	"time"
)

// Config is the whole file. A file has at least one of the tables of the roles;
// a daemon is started for one role and needs that role's table. Fields tagged
// "need" must be there; defaults are in defaults.go.
//
// Names of files are relative to the directory of the configuration. All
// addresses are IPv6.
type Config struct {
	Node          *Node          `toml:"node"`
	Servers       []Server       `toml:"server"`
	HomeAgent     *HomeAgent     `toml:"home_agent"`
	Correspondent *Correspondent `toml:"correspondent"`

	file written // what is in the file itself, beside the list of members
}

// Node is this machine as a node of distributed servers. Name, Address and
// Interface are required, and either Cluster or CA, Cert and Key.
type Node struct {
	// Name of this node, a key of each server's Nodes.
	Name string `toml:"name" need:"yes"`

	// Address is the daemon's own, an address of this host: tunnels end there,
	// and other daemons connect to it.
	Address netip.Addr `toml:"address" need:"yes"`

	// ControlPort is where daemons accept each other's connections. Default 7846.
	ControlPort uint16 `toml:"control_port"`

	// Interface is the one on the server network. Care-of addresses are
	// announced there.
	Interface string `toml:"interface" need:"yes"`

	// Cluster is the directory with the identity that ds init or ds join has made.
	// It has CA, Cert and Key, and the other nodes: those that are not in Peers and
	// a server's Nodes are taken from there.
	Cluster string `toml:"cluster"`

	// CA, Cert and Key are PEM files. The certificate's name (DNS) is that of
	// the node.
	CA   string `toml:"ca"`
	Cert string `toml:"cert"`
	Key  string `toml:"key"`

	// Socket of the API. Default /run/dsco/dsco.sock. Group may write to it.
	// Default dsco if there is such a group, else only root may.
	Socket string `toml:"socket"`
	Group  string `toml:"group"`

	// State is a directory for what must survive a restart. Default /var/lib/dsco.
	State string `toml:"state"`

	// Queue is the number of the Netfilter queue. Default 7846.
	Queue uint16 `toml:"queue"`

	// KernelTunnels lets the kernel forward what is in tunnels, if it can.
	// Default true.
	KernelTunnels *bool `toml:"kernel_tunnels"`

	// StayAwake keeps the processors from sleeping while clients are handed off, if
	// the daemon may ask for it. Default true.
	StayAwake *bool `toml:"stay_awake"`

	// Peers are the other nodes' names and their Addresses.
	Peers map[string]netip.Addr `toml:"peers"`
}

// Server is a distributed server. Address, HomeAgent and Contact are required, and
// Nodes unless the node has a Cluster.
type Server struct {
	// Address is the distributed server address, with the length of its home
	// prefix.
	Address netip.Prefix `toml:"address" need:"yes"`

	// HomeAgent is the home agent's address.
	HomeAgent netip.Addr `toml:"home_agent" need:"yes"`

	// SPI (from 256) and KeyFile (at least 16 octets, hexadecimal) are shared
	// with the home agent, and secure registrations (RFC 4285). Required unless
	// Tunnel is [TunnelMIP6D].
	SPI     uint32 `toml:"spi"`
	KeyFile string `toml:"key_file"`

	// Contact is the name of the node that is the contact at first.
	Contact string `toml:"contact" need:"yes"`

	// Nodes are the names of all nodes and their care-of addresses for this
	// server. An address is routed to the application of the node.
	Nodes map[string]netip.Addr `toml:"nodes"`

	// Users and UserGroups are those that may attach, by name or number.
	// Default: the user root, if there are neither.
	Users      []string `toml:"users"`
	UserGroups []string `toml:"user_groups"`

	// MTU of the TUN. Default 1500. Queues of it. Default 1. Offload: whole
	// super-packets, where the kernel gives them. Default true.
	MTU     int   `toml:"mtu"`
	Queues  int   `toml:"queues"`
	Offload *bool `toml:"offload"`

	// DirectReturn lets packets from the server's address go straight out, where
	// the network lets them pass.
	DirectReturn bool `toml:"direct_return"`

	// Tunnel is [TunnelUser] (default): dsco has the tunnel to the home agent; or
	// [TunnelMIP6D]: TunnelInterface has it, and somebody else registers.
	Tunnel          string `toml:"tunnel"`
	TunnelInterface string `toml:"tunnel_interface"`

	// IdleTimeout is how long a client without connections keeps its owner and
	// its binding. Default 60s.
	IdleTimeout Duration `toml:"idle_timeout"`

	// RegisterTimeout is how long the contact waits for the home agent's answer
	// to its first registration before it asks again
	// (InitialBindackTimeoutFirstReg, RFC 6275 section 13). Default 1.5s.
	RegisterTimeout Duration `toml:"register_timeout"`
}

// Values of Server.Tunnel.
const (
	TunnelUser  = "user"
	TunnelMIP6D = "mip6d"
)

// HomeAgent is this machine as home agent. Address, Prefixes and Homes are
// required.
type HomeAgent struct {
	// Address is the home agent's, an address of this host.
	Address netip.Addr `toml:"address" need:"yes"`

	// Prefixes of the home link.
	Prefixes []netip.Prefix `toml:"prefixes" need:"yes"`

	// Interface on the home link, on which home addresses are defended. Empty:
	// the prefixes are routed to this host and there is no link.
	Interface string `toml:"interface"`

	// Homes are the home addresses that are served.
	Homes []Home `toml:"homes" need:"yes"`

	// Queue is the number of the Netfilter queue. Default 7847.
	Queue uint16 `toml:"queue"`

	// KernelTunnels is as a node's.
	KernelTunnels *bool `toml:"kernel_tunnels"`

	// RefreshAdvice bounds how long it takes until contact nodes notice that
	// this home agent has restarted. Default 12s.
	RefreshAdvice Duration `toml:"refresh_advice"`

	// PrefixAdvertisements lets it send Mobile Prefix Advertisements (RFC 6275
	// section 8.4). Default true. MinPrefixInterval and MaxPrefixInterval are the
	// least and the greatest delay of one that nobody asked for
	// (MinMobPfxAdvInterval, MaxMobPfxAdvInterval, section 13). Default 10m and 24h.
	PrefixAdvertisements *bool    `toml:"prefix_advertisements"`
	MinPrefixInterval    Duration `toml:"min_prefix_interval"`
	MaxPrefixInterval    Duration `toml:"max_prefix_interval"`

	// TunnelMTU is the MTU of the path to the contact nodes. Default 1500.
	TunnelMTU int `toml:"tunnel_mtu"`

	// State is a directory for the record of what was changed on the host.
	// Default /var/lib/dsco/home-agent.
	State string `toml:"state"`

	// Socket of the API, as a node's. Default /run/dsco/home-agent.sock.
	Socket string `toml:"socket"`
	Group  string `toml:"group"`
}

// Home is a home address that a home agent serves, with what secures its
// registrations. All are required.
type Home struct {
	Address netip.Addr `toml:"address" need:"yes"`
	SPI     uint32     `toml:"spi" need:"yes"`
	KeyFile string     `toml:"key_file" need:"yes"`
}

// Correspondent is this machine as a client that knows Mobile IPv6.
type Correspondent struct {
	// Addresses of this host that take part. Default: all global ones.
	Addresses []netip.Addr `toml:"addresses"`

	// Permit are the prefixes whose addresses may have a binding here.
	// Default: all.
	Permit []netip.Prefix `toml:"permit"`

	// Queue is the number of the Netfilter queue. Default 7848.
	Queue uint16 `toml:"queue"`

	// KernelHeaders lets the kernel treat packets of bindings, if it can.
	// Default true.
	KernelHeaders *bool `toml:"kernel_headers"`

	// MaxBindings limits the binding cache. Default 65536.
	MaxBindings int `toml:"max_bindings"`

	// State is a directory, as a home agent's. Default /var/lib/dsco/correspondent.
	State string `toml:"state"`

	// Socket of the API, as a node's. Default /run/dsco/correspondent.sock.
	Socket string `toml:"socket"`
	Group  string `toml:"group"`
}

// Duration is a time.Duration in the form of [time.ParseDuration].
type Duration time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = Duration(v)
	return err
}

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }
