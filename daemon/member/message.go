package member

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/distributed-servers/ds/mobility/node"
)

// Kind is what a [Message] is.
type Kind uint8

// Kinds of messages between the members of a distributed server.
const (
	// Hello begins every connection between two members: Contact and
	// ContactEpoch as the sender knows them, Version, Newest, Features, and what it says of itself:
	// Clients that it owns, Attached, Awaiting, Accepts. It comes again when that changes.
	Hello Kind = iota + 1
	// SetContact tells that Contact is the contact with ContactEpoch. Owners
	// answers it, as it answers a Hello of the contact: all that the sender owns.
	SetContact
	// TakeOver asks the receiver to become the contact.
	TakeOver
	// Owners tells the contact of clients that the sender owns, or was the last to
	// own (Given, To); Complete with the last of those that tell of all, except
	// while the sender is Awaiting an application.
	Owners
	// Stale answers Owners: their epochs are later than the sender knew.
	Stale
	// Gone tells the contact that nothing is left of Client.
	Gone

	// A handoff, from donor to target and back. All have the donor's ID.
	Prepare  // Client, Epoch that it will have, Grant, Relayed
	Prepared // Optimised, or Error
	Transfer // Client, Snapshot, State, Epoch, Grant, Relayed: take it
	Done     // Optimised, or Error: the target does not have the client and never will
	// Late brings Packets of Client that have come to the donor since Transfer.
	Late
	Abort
	// Query asks how it has ended, and ends it: a client that has not been taken
	// never will be. It comes after a connection or a daemon was lost, or when
	// the donor has waited too long.
	Query
	// Settled answers Done: nobody will ask for it any more.
	Settled

	// Order has the receiver do Job. Reported tells how far it is with the
	// order of the same ID, with Report: at first at once, then now and then.
	Order
	Reported

	kinds
)

var kindNames = [kinds]string{
	Hello: "hello", SetContact: "set contact", TakeOver: "take over", Owners: "owners", Stale: "stale", Gone: "gone",
	Prepare: "prepare", Prepared: "prepared", Transfer: "transfer", Done: "done", Late: "late",
	Abort: "abort", Query: "query", Settled: "settled",
	Order: "order", Reported: "report",
}

func (k Kind) String() string {
	if k == 0 || k >= kinds {
		return fmt.Sprintf("kind %d", uint8(k))
	}
	return kindNames[k]
}

// Message is one between two members of the same distributed server.
type Message struct {
	Kind   Kind       `cbor:"1,keyasint"`
	Server netip.Addr `cbor:"2,keyasint"` // the distributed server address
	ID     uint64     `cbor:"3,keyasint,omitempty"`
	Error  string     `cbor:"4,keyasint,omitempty"`

	Client    netip.Addr `cbor:"5,keyasint,omitzero"`
	Epoch     uint64     `cbor:"6,keyasint,omitempty"`
	Grant     *Grant     `cbor:"7,keyasint,omitempty"`
	Relayed   bool       `cbor:"8,keyasint,omitempty"`
	Optimised bool       `cbor:"9,keyasint,omitempty"`

	Snapshot    []byte   `cbor:"10,keyasint,omitempty"`
	State       [][]byte `cbor:"11,keyasint,omitempty"`
	Connections int      `cbor:"12,keyasint,omitempty"`

	Version      int     `cbor:"13,keyasint,omitempty"` // the oldest that is spoken; alone, the only one
	Contact      string  `cbor:"14,keyasint,omitempty"`
	ContactEpoch uint64  `cbor:"15,keyasint,omitempty"`
	Clients      int     `cbor:"16,keyasint,omitempty"`
	Owners       []Owned `cbor:"17,keyasint,omitempty"`
	Complete     bool    `cbor:"18,keyasint,omitempty"`
	Attached     bool    `cbor:"19,keyasint,omitempty"` // an application is attached to the sender
	Accepts      bool    `cbor:"20,keyasint,omitempty"` // and it takes clients from other nodes
	Draining     bool    `cbor:"22,keyasint,omitempty"` // but not now

	Packets [][]byte `cbor:"21,keyasint,omitempty"`

	Job    *Job    `cbor:"23,keyasint,omitempty"`
	Report *Report `cbor:"24,keyasint,omitempty"`

	Ago time.Duration `cbor:"30,keyasint,omitempty"` // in Done: since the client went live

	Newest   int       `cbor:"25,keyasint,omitempty"` // version that is spoken
	Features []Feature `cbor:"26,keyasint,omitempty"`

	// Releases that do not know these take each report for all that there is.
	Awaiting bool    `cbor:"27,keyasint,omitempty"` // an application may come back whose clients the sender does not know
	Given    []Owned `cbor:"28,keyasint,omitempty"` // clients given away, of which the sender does not know more;
	To       string  `cbor:"29,keyasint,omitempty"` // or knows that this node has them
}

// Owned is a client with the epoch of its ownership.
type Owned struct {
	_      struct{} `cbor:",toarray"`
	Client netip.Addr
	Epoch  uint64
}

// Grant is a [node.Grant] on the wire; times are in nanoseconds.
type Grant struct {
	_         struct{} `cbor:",toarray"`
	Token     []byte
	Nonce     uint16
	Remaining time.Duration
	Sequence  uint16
	Binding   time.Duration
}

func newGrant(g node.Grant) *Grant {
	if g == (node.Grant{}) {
		return nil
	}
	return &Grant{Token: g.HomeToken[:], Nonce: g.HomeNonce, Remaining: g.Remaining, Sequence: g.Sequence, Binding: g.Binding}
}

// after is the grant when time has passed.
func (g *Grant) after(d time.Duration) *Grant {
	if g == nil {
		return nil
	}
	later := *g
	later.Remaining -= d
	later.Binding -= d
	return &later
}

// grant is what the machine gets; a token of the wrong size, or too old, is none.
func (g *Grant) grant() (out node.Grant) {
	if g == nil {
		return out
	}
	out.Sequence, out.Binding = g.Sequence, max(0, g.Binding)
	if len(g.Token) == len(out.HomeToken) && g.Remaining > 0 {
		copy(out.HomeToken[:], g.Token)
		out.HomeNonce, out.Remaining = g.Nonce, g.Remaining
	}
	return out
}

// MaxOwners is how many clients one Owners message has at most.
const MaxOwners = 4096

// ErrMessage is returned for octets that are not a message.
var ErrMessage = errors.New("member: not a message")

var decoding, _ = cbor.DecOptions{
	MaxArrayElements: 1 << 20,
	MaxMapPairs:      64,
	MaxNestedLevels:  6,
	DupMapKey:        cbor.DupMapKeyEnforcedAPF,
	IndefLength:      cbor.IndefLengthForbidden,
}.DecMode()

var encoding, _ = cbor.EncOptions{}.UserBufferEncMode()

// Append appends m in CBOR (RFC 8949).
func (m *Message) Append(b []byte) ([]byte, error) {
	buf := bytes.NewBuffer(b)
	buf.Grow(m.octets() + 256)
	if err := encoding.MarshalToBuffer(m, buf); err != nil {
		return b, fmt.Errorf("member: %s: %w", m.Kind, err)
	}
	return buf.Bytes(), nil
}

// Parse reads a message, which does not refer to b. It is complete as its kind demands.
func Parse(b []byte) (*Message, error) {
	m := new(Message)
	if err := m.Read(b); err != nil {
		return nil, err
	}
	return m, nil
}

// Read is Parse into m, whatever that was before.
func (m *Message) Read(b []byte) error {
	*m = Message{}
	if err := decoding.Unmarshal(b, m); err != nil {
		return fmt.Errorf("%w: %w", ErrMessage, err)
	}
	if err := m.check(); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrMessage, m.Kind, err)
	}
	return nil
}

// octets are those of the connections and of their state, without what is around them.
func (m *Message) octets() int {
	n := len(m.Snapshot)
	for _, s := range m.State {
		n += len(s)
	}
	return n
}

func (m *Message) check() error {
	unicast := func(a netip.Addr) bool { return a.Is6() && !a.Is4In6() && a.Zone() == "" && a.IsGlobalUnicast() }
	needsClient, needsID := false, false
	switch m.Kind {
	case Hello, SetContact:
		if m.Contact == "" {
			return errors.New("no contact")
		}
		if len(m.Features) > maxFeatures || slices.ContainsFunc(m.Features, func(f Feature) bool { return len(f) > maxFeature }) {
			return fmt.Errorf("more than %d features, or one of more than %d octets", maxFeatures, maxFeature)
		}
	case Owners, Stale:
		for _, list := range [...][]Owned{m.Owners, m.Given} {
			for _, o := range list {
				if !unicast(o.Client) {
					return fmt.Errorf("client %s", o.Client)
				}
			}
			if len(list) > MaxOwners {
				return fmt.Errorf("%d clients, more than %d", len(list), MaxOwners)
			}
		}
	case TakeOver:
	case Gone:
		needsClient = true
	case Prepare, Transfer, Query, Late:
		needsClient, needsID = true, true
	case Prepared, Done, Abort, Settled:
		needsID = true
	case Order:
		needsID = true
		if err := m.Job.check(); err != nil {
			return err
		}
	case Reported:
		needsID = true
		if m.Report == nil {
			return errors.New("no report")
		}
		if r := m.Report.Progress.Rate; !(r >= 0) || r > math.MaxFloat64 {
			return fmt.Errorf("rate %g", r)
		}
	default:
		return errors.New("unknown")
	}
	switch {
	case m.Ago < 0:
		return fmt.Errorf("%v ago", m.Ago)
	case !unicast(m.Server):
		return fmt.Errorf("server %s", m.Server)
	case needsClient && !unicast(m.Client):
		return fmt.Errorf("client %s", m.Client)
	case needsID && m.ID == 0:
		return errors.New("no id")
	}
	return nil
}
