package api

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"

	"github.com/fxamacker/cbor/v2"
)

// A session is what an attached application and its daemon say to each other on
// the connection that the attach call leaves them. It lasts as long as the
// application is attached.
//
//	application                        daemon
//	───────────────────────────────────────────────────────────────────────
//	Hello        ─────────────────────────────► Welcome, with the descriptors
//	Owned, Gone  ──────────────────────────────
//	             ◄───────────────────────────── Config, Bound, Unbound
//
//	handoff, as donor
//	             ◄───────────────────────────── Asked (by an operator)
//	Prepare      ─────────────────────────────► Prepared
//	Transfer     ─────────────────────────────► Imported
//	Commit       ─────────────────────────────► Done
//	Abort        ──────────────────────────────
//	Answered     ──────────────────────────────  (to Asked)
//
//	handoff, as target
//	             ◄───────────────────────────── Offer
//	Accepted     ──────────────────────────────
//	             ◄───────────────────────────── Activate
//	Activated    ──────────────────────────────
//	             ◄───────────────────────────── Forget
//
// Messages about the same handoff carry its ID, which the donor's application
// chooses for Prepare, Transfer, Commit, Abort and their answers, and the daemon
// for all others.

// Kind is what a [Message] is.
type Kind uint8

// Kinds of messages.
const (
	// Hello is the application's first message: Program, AcceptsHandoffs, and
	// Resume, the clients that it owns if it was attached before. HasTUN means
	// that it still has the descriptors.
	Hello Kind = iota + 1
	// Welcome answers it: Config, and with it the descriptors of the TUN unless
	// HasTUN. Error refuses.
	Welcome
	// Config tells a changed configuration.
	ConfigChanged
	// Owned: a new Client has connected. Gone: its last connection has ended.
	Owned
	Gone
	// Bound: packets to Client take its binding from now on. Unbound: the tunnel.
	Bound
	Unbound

	// Asked: hand Client off to node To. Answered tells how it went.
	Asked
	Answered

	// Prepare asks whether Client can be handed off to node To. Prepared
	// answers, with Optimised if the Binding Update will go out at once, or Error.
	Prepare
	Prepared
	// Transfer carries the Snapshot and the application's State. Imported
	// answers, or Error: then nothing has happened.
	Transfer
	Imported
	// Commit is the point of no return. Done answers: the client lives at To,
	// whose care-of address is CareOf. Error: it does not, and nobody but the
	// donor has it.
	Commit
	Done
	// Abort calls a handoff off before Commit.
	Abort

	// Offer brings a Client from node From. Accepted: the connections are
	// rebuilt, silent. Error refuses.
	Offer
	Accepted
	// Activate: they are this application's now. Bound if the Binding Update is
	// on its way. Activated answers.
	Activate
	Activated
	// Forget: they are not, and never will be.
	Forget

	kinds
)

var kindNames = [kinds]string{
	Hello: "hello", Welcome: "welcome", ConfigChanged: "config", Owned: "owned", Gone: "gone", Bound: "bound", Unbound: "unbound",
	Asked: "asked", Answered: "answered", Prepare: "prepare", Prepared: "prepared", Transfer: "transfer", Imported: "imported",
	Commit: "commit", Done: "done", Abort: "abort", Offer: "offer", Accepted: "accepted", Activate: "activate",
	Activated: "activated", Forget: "forget",
}

func (k Kind) String() string {
	if k == 0 || k >= kinds {
		return fmt.Sprintf("kind %d", uint8(k))
	}
	return kindNames[k]
}

// Message is one of a session. Which fields it has depends on its kind.
type Message struct {
	Kind Kind   `cbor:"1,keyasint"`
	ID   uint64 `cbor:"2,keyasint,omitempty"`

	// Error, if not empty, is why what was asked cannot be done.
	Error string `cbor:"3,keyasint,omitempty"`

	Client netip.Addr `cbor:"4,keyasint,omitzero"`
	To     string     `cbor:"5,keyasint,omitempty"`
	From   string     `cbor:"6,keyasint,omitempty"`

	Snapshot []byte   `cbor:"7,keyasint,omitempty"`
	State    [][]byte `cbor:"8,keyasint,omitempty"` // of each connection in the snapshot

	Optimised bool       `cbor:"9,keyasint,omitempty"`
	CareOf    netip.Addr `cbor:"10,keyasint,omitzero"`

	Program         string       `cbor:"11,keyasint,omitempty"`
	AcceptsHandoffs bool         `cbor:"12,keyasint,omitempty"`
	HasTUN          bool         `cbor:"13,keyasint,omitempty"`
	Resume          []netip.Addr `cbor:"14,keyasint,omitempty"`

	Config *SessionConfig `cbor:"15,keyasint,omitempty"`

	Connections int `cbor:"16,keyasint,omitempty"` // of Client, in Owned, Transfer, Answered
}

// SessionConfig is what an application needs to know for its stack.
type SessionConfig struct {
	Addr   netip.Addr `cbor:"1,keyasint"` // the distributed server address
	CareOf netip.Addr `cbor:"2,keyasint"` // this node's care-of address

	// Via is where packets to unbound clients are tunnelled; Peers may send in
	// tunnels beside it.
	Via   netip.Addr   `cbor:"3,keyasint"`
	Peers []netip.Addr `cbor:"4,keyasint,omitempty"`

	Node    string   `cbor:"5,keyasint"`           // this node's name
	Nodes   []string `cbor:"6,keyasint,omitempty"` // the others' names
	MTU     int      `cbor:"7,keyasint"`
	Queues  int      `cbor:"8,keyasint"` // how many descriptors come with it
	TUN     string   `cbor:"9,keyasint"` // name of the interface
	Contact string   `cbor:"10,keyasint,omitempty"`
}

// MaxMessage bounds a message, in octets: a client's connections with full
// buffers, and the application's state.
const MaxMessage = 256 << 20

// ErrMessage is returned for what is not a message.
var ErrMessage = errors.New("api: not a message")

// Integers are what arrays and maps may have at most of elements; nothing in a
// message is nested deeper than its configuration.
var decoding, _ = cbor.DecOptions{
	MaxArrayElements: 1 << 20,
	MaxMapPairs:      64,
	MaxNestedLevels:  6,
	DupMapKey:        cbor.DupMapKeyEnforcedAPF,
	IndefLength:      cbor.IndefLengthForbidden,
}.DecMode()

// AppendMessage appends a message in its frame: four octets with the length of
// what follows, big-endian, and CBOR (RFC 8949).
func AppendMessage(b []byte, m *Message) ([]byte, error) {
	body, err := cbor.Marshal(m)
	if err != nil {
		return b, fmt.Errorf("api: %s: %w", m.Kind, err)
	}
	if len(body) > MaxMessage {
		return b, fmt.Errorf("api: %s: %d octets are more than the %d of a message", m.Kind, len(body), MaxMessage)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(body)))
	return append(b, body...), nil
}

// ReadMessage reads a message. Memory grows with what has arrived, not with
// what the length says.
func ReadMessage(r io.Reader) (*Message, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > MaxMessage {
		return nil, fmt.Errorf("%w: %d octets, more than %d", ErrMessage, n, MaxMessage)
	}
	body, err := readN(r, int(n))
	if err != nil {
		return nil, err
	}
	m := new(Message)
	if err := decoding.Unmarshal(body, m); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMessage, err)
	}
	if m.Kind == 0 || m.Kind >= kinds {
		return nil, fmt.Errorf("%w: %s", ErrMessage, m.Kind)
	}
	return m, nil
}

func readN(r io.Reader, n int) ([]byte, error) {
	const step = 1 << 20
	b := make([]byte, 0, min(n, step))
	for len(b) < n {
		k := min(n-len(b), step)
		b = append(b, make([]byte, k)...)
		if _, err := io.ReadFull(r, b[len(b)-k:]); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	return b, nil
}
