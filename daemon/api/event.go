package api

import (
	"math"
	"net/netip"
	"time"
)

// Event is something that has happened at a daemon.
type Event struct {
	// Seq numbers the events of a daemon, from 1 at its start.
	Seq  uint64    `json:"seq"`
	Time time.Time `json:"time"`
	Kind EventKind `json:"kind"`

	// What it is about, as far as that applies.
	Server netip.Addr `json:"server,omitzero"`
	Client netip.Addr `json:"client,omitzero"`
	Node   string     `json:"node,omitempty"`

	Epoch  uint64 `json:"epoch,omitempty"`
	Detail string `json:"detail,omitempty"` // for people

	// Missed is of kind EventMissed: how many events were lost.
	Missed uint64 `json:"missed,omitempty"`
}

// EventKind is what has happened. Readers skip those that they do not know.
type EventKind string

// Kinds of events.
const (
	// EventMissed: this reader was too slow, or asked for events that are not
	// remembered any more. Seq is that of the last one missed.
	EventMissed EventKind = "missed"

	EventStarted  EventKind = "started"  // the daemon
	EventReloaded EventKind = "reloaded" // its configuration
	EventStopping EventKind = "stopping"

	EventAttached EventKind = "attached" // an application, to Server
	EventDetached EventKind = "detached"

	EventOwned    EventKind = "owned"    // Client is this node's, with Epoch
	EventGone     EventKind = "gone"     // it has no connections any more, or has been forgotten
	EventTesting  EventKind = "testing"  // return routability under way
	EventBound    EventKind = "bound"    // Client sends directly
	EventUnbound  EventKind = "unbound"  // it is relayed; Detail says why
	EventPrepared EventKind = "prepared" // this node could take it over

	EventHandoff       EventKind = "handoff"        // a stage of one; Node is the other side
	EventHandedOff     EventKind = "handed-off"     // to Node
	EventTakenOver     EventKind = "taken-over"     // from Node
	EventHandoffFailed EventKind = "handoff-failed" // Detail says why; the donor has the client

	EventContact      EventKind = "contact"      // Node is the contact of Server, with Epoch
	EventRegistered   EventKind = "registered"   // at the home agent; a home agent: Node's care-of address is in Detail
	EventDeregistered EventKind = "deregistered" // or not registered, as Detail says

	EventPeerUp   EventKind = "peer-up" // Node's daemon is connected
	EventPeerDown EventKind = "peer-down"

	EventDraining  EventKind = "draining"   // this node: its clients go to others, and it takes none
	EventDrained   EventKind = "drained"    // that is done, as far as Detail says
	EventInService EventKind = "in-service" // it takes clients again

	EventFault EventKind = "fault" // something that an operator should know
)

// FromNow is a Since: no events of the past.
const FromNow = math.MaxUint64

// WatchOptions say which events [Client.Watch] gives.
type WatchOptions struct {
	// Since: events with a greater number, as far as they are remembered. 0:
	// all of them. [FromNow]: none of the past.
	Since uint64

	// Server and Client, unless zero, select events about them.
	Server netip.Addr
	Client netip.Addr
}

// Match tells whether e is one of those selected.
func (o WatchOptions) Match(e Event) bool {
	return e.Kind == EventMissed ||
		(!o.Server.IsValid() || e.Server == o.Server) && (!o.Client.IsValid() || e.Client == o.Client)
}
