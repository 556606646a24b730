package api

import (
	"net/netip"
	"time"
)

// Role is what a daemon has been started as.
type Role string

// Roles.
const (
	RoleNode          Role = "node"
	RoleHomeAgent     Role = "home-agent"
	RoleCorrespondent Role = "correspondent"
)

// Status is what a daemon is, and how it is doing.
type Status struct {
	Role    Role      `json:"role"`
	Version string    `json:"version"` // of the program
	API     int       `json:"api"`     // [Version]
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`

	// LastEvent is the number of the last event; the server of the API fills it
	// in.
	LastEvent uint64 `json:"last_event"`

	// Node is this node's name, and Address its daemon's, which a home agent
	// has too.
	Node    string     `json:"node,omitempty"`
	Address netip.Addr `json:"address,omitzero"`

	Servers  []Server  `json:"servers,omitempty"`  // of a node
	Peers    []Peer    `json:"peers,omitempty"`    // of a node: the other daemons
	Homes    []Home    `json:"homes,omitempty"`    // of a home agent
	Bindings []Binding `json:"bindings,omitempty"` // of a correspondent

	// Counters are of packets and faults since Started, by names that say what
	// was counted.
	Counters map[string]uint64 `json:"counters,omitempty"`
}

// Peer is another node's daemon.
type Peer struct {
	Node      string     `json:"node"`
	Address   netip.Addr `json:"address"`
	Connected bool       `json:"connected"`
	Since     time.Time  `json:"since,omitzero"`  // of being connected, or not
	Error     string     `json:"error,omitempty"` // why it is not connected
}

// Home is a home address at a home agent.
type Home struct {
	Address  netip.Addr `json:"address"`
	CareOf   netip.Addr `json:"care_of,omitzero"` // zero: not registered
	Sequence uint16     `json:"sequence,omitempty"`
	Expires  time.Time  `json:"expires,omitzero"`
}

// Binding is an entry of a correspondent's binding cache.
type Binding struct {
	Home     netip.Addr `json:"home"`
	CareOf   netip.Addr `json:"care_of"`
	Peer     netip.Addr `json:"peer,omitzero"` // this host's address that it is for
	Sequence uint16     `json:"sequence"`
	Expires  time.Time  `json:"expires,omitzero"`
}

// Server is a distributed server, as this node sees it.
type Server struct {
	Address   netip.Addr `json:"address"`    // the distributed server address
	CareOf    netip.Addr `json:"care_of"`    // this node's
	HomeAgent netip.Addr `json:"home_agent"` //
	Contact   Contact    `json:"contact"`    // who is the contact
	Local     bool       `json:"local"`      // this node is the contact

	// Registered is until when the home agent sends packets here, if this node
	// is the contact and registered.
	Registered time.Time `json:"registered,omitzero"`

	// Application is who is attached, if anyone.
	Application *Application `json:"application,omitempty"`

	TUN    string `json:"tun"` // name of the interface
	MTU    int    `json:"mtu"`
	Queues int    `json:"queues"`

	Clients   int `json:"clients"`   // that this node owns
	Optimised int `json:"optimised"` // of them, those with a binding
	Relayed   int `json:"relayed"`   // clients in the contact's relay table

	// Counters are of packets and faults of this server.
	Counters map[string]uint64 `json:"counters,omitempty"`
}

// Contact is the node that the home agent sends to.
type Contact struct {
	Server  netip.Addr `json:"server"`
	Node    string     `json:"node"`
	Address netip.Addr `json:"address,omitzero"` // where others send what the home agent is to pass on
	// Epoch is that of the contact: each has a greater one than the one
	// before, and what carries an older one is refused.
	Epoch uint64 `json:"epoch"`

	// Previous, and Told: only in the answer to a takeover. Told are the other
	// nodes and what they said.
	Previous string `json:"previous,omitempty"`
	Told     []Told `json:"told,omitempty"`
}

// Told is how a node took a message.
type Told struct {
	Node  string `json:"node"`
	Error string `json:"error,omitempty"`
}

// Application is a program that is attached to a distributed server.
type Application struct {
	Program         string    `json:"program"`
	PID             int       `json:"pid"`
	UID             uint32    `json:"uid"`
	Attached        time.Time `json:"attached"`
	AcceptsHandoffs bool      `json:"accepts_handoffs"`
}

// NodeInfo is a node of a distributed server.
type NodeInfo struct {
	Node    string     `json:"node"`
	CareOf  netip.Addr `json:"care_of"`
	Address netip.Addr `json:"address"` // its daemon's
	Local   bool       `json:"local"`   // it is this one
	Contact bool       `json:"contact"`

	// Connected: its daemon can be reached. The rest is known of no other.
	Connected       bool `json:"connected"`
	Attached        bool `json:"attached"` // an application is there
	AcceptsHandoffs bool `json:"accepts_handoffs"`
	Draining        bool `json:"draining"` // it takes no clients, whatever the application says
	Clients         int  `json:"clients"`  // that it owns; of others as of a second ago
}

// Mode is how a client's packets come to its owner.
type Mode string

// Modes.
const (
	// Relayed: by way of the home agent and the contact. Every client can.
	Relayed Mode = "relayed"
	// Optimised: directly, with a binding at the client.
	Optimised Mode = "optimised"
)

// ClientInfo is a client of a distributed server.
type ClientInfo struct {
	Server netip.Addr `json:"server"`
	Client netip.Addr `json:"client"`
	Owner  string     `json:"owner"` // node
	Local  bool       `json:"local"` // the owner is this node
	// Epoch is that of the ownership: it grows with each handoff.
	Epoch uint64 `json:"epoch"`
	Mode  Mode   `json:"mode"`

	// State is that of the node's machine: testing, binding, established,
	// unable … (package mobility/node). Empty if another node owns the client.
	State string `json:"state,omitempty"`
	// Handoff is the stage of one that is under way.
	Handoff string `json:"handoff,omitempty"`

	Connections int       `json:"connections,omitempty"` // as the application last said
	Since       time.Time `json:"since,omitzero"`        // of the ownership

	// Binding is what only the trace of a client of this node has.
	Binding *ClientBinding `json:"binding,omitempty"`
	// History are recent events about the client, the oldest first; of the
	// trace only.
	History []Event `json:"history,omitempty"`
}

// ClientBinding is the entry of the binding update list for a client.
type ClientBinding struct {
	CareOf   netip.Addr `json:"care_of"`
	Sequence uint16     `json:"sequence"` // of the last Binding Update
	Expires  time.Time  `json:"expires,omitzero"`

	// Ages of the keygen tokens; nil: there is none.
	HomeTokenAge   *Seconds `json:"home_token_age_s,omitempty"`
	CareOfTokenAge *Seconds `json:"care_of_token_age_s,omitempty"`
}

// Sequence is the number of the last Binding Update to a client.
type Sequence struct {
	Client   netip.Addr `json:"client"`
	Sequence uint16     `json:"sequence"`
	Known    bool       `json:"known"` // one has been sent, or was told by the owner before
}

// Handoff is the report of a handoff that has succeeded.
type Handoff struct {
	Server      netip.Addr `json:"server"`
	Client      netip.Addr `json:"client"`
	From        string     `json:"from"`
	To          string     `json:"to"`
	Mode        Mode       `json:"mode"` // Optimised: the Binding Update went out at once
	Connections int        `json:"connections"`
	Took        Seconds    `json:"took_s"` // from being asked to the answer
}
