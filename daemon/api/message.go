package api

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/fxamacker/cbor/v2"

	"github.com/distributed-servers/ds/internal/framing"
)

// Kind is what a [Message] is.
type Kind uint8

// Kinds of messages.
const (
	// Hello is the application's first message: Program, AcceptsHandoffs. HasTUN
	// means that it was attached before, has not ended since and still has the
	// descriptors; then Resume are the clients that it owns, Doubts its
	// handoffs after Transfer of which it has not heard the end: Done will tell. Missed
	// are the latest clients that it has expected and that did not go live; without
	// TellsMissed (of ds before it had them) none are told. TakesAway says that it knows
	// what SessionConfig.Away and Nobodys are. A
	// later Hello says that AcceptsHandoffs has changed, and is not answered.
	Hello Kind = iota + 1
	// Welcome answers it: Config, and with it the descriptors of the TUN unless
	// HasTUN, and that of [Decisions]. Error refuses.
	Welcome
	// ConfigChanged tells a changed configuration.
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
	// answers, with Optimised if the Binding Update will go out at once, and with
	// Handoff, or Error.
	Prepare
	Prepared
	// Transfer carries the Snapshot and the application's State, and is the point
	// of no return. Done answers: the client lives at To, whose care-of address is
	// CareOf. Error: it does not, and nobody but the donor has it.
	Transfer
	Done
	// Late brings Packets of Client, to the distributed server address, that have
	// come to the donor since: from the donor after Transfer, and to the target
	// after Offer, with its ID. Without an ID the client is the target's already:
	// what comes is as if it had come there, also if no connection is known.
	Late
	// Abort calls a handoff off before Transfer. After it, Abort asks for that: if
	// the target has not taken the client, it never will, and Done tells.
	Abort

	// Expect: an Offer of Client may come, from node From, whose care-of address is
	// CareOf. What the client sends is held from now on. Expected answers. Error refuses.
	Expect
	Expected
	// Offer brings the Snapshot of a Client from node From, and the State: the connections
	// are rebuilt, silent, and nothing answers. It has the ID of Expect; Word of
	// [Decisions] is where the offer is decided.
	Offer
	// Activate: they are this application's if it can take the word of the offer.
	// Optimised if the Binding Update is on its way. Activated answers: they live here.
	// Error: it could not, and never will; it has not taken the word.
	Activate
	Activated
	// Forget, after Expect or Offer: they are not, and never will be.
	Forget

	// Settled answers a Done without Error: the application is in no doubt about
	// the handoff any more, and will never ask.
	Settled

	// Nobodys: nobody has Client, which Welcome had in Config.Away. Or somebody has it
	// here.
	Nobodys

	kinds
)

var kindNames = [kinds]string{
	Hello: "hello", Welcome: "welcome", ConfigChanged: "config", Owned: "owned", Gone: "gone", Bound: "bound", Unbound: "unbound",
	Asked: "asked", Answered: "answered", Prepare: "prepare", Prepared: "prepared", Transfer: "transfer",
	Done: "done", Late: "late", Abort: "abort", Expect: "expect", Expected: "expected",
	Offer: "offer", Activate: "activate", Activated: "activated", Forget: "forget", Settled: "settled", Nobodys: "nobody's",
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

	Handoff uint64  `cbor:"17,keyasint,omitempty"` // what the nodes call a handoff, see [Doubt]
	Doubts  []Doubt `cbor:"18,keyasint,omitempty"`

	Packets [][]byte `cbor:"19,keyasint,omitempty"`

	Missed      []Missed `cbor:"20,keyasint,omitempty"`
	TellsMissed bool     `cbor:"21,keyasint,omitempty"`
	TakesAway   bool     `cbor:"22,keyasint,omitempty"`

	Word int `cbor:"23,keyasint,omitempty"` // of Decisions, 0 to MaxDecisions-1, in Offer

	Ago time.Duration `cbor:"24,keyasint,omitempty"` // in Activated and Done: since the client went live
}

// Away is a client that was given away by an application which has ended: it is not to
// be answered for some time. What it sends is for whom CareOf belongs to;
// without CareOf it is for nobody, and to be reset: it has ended with its application.
type Away struct {
	_      struct{} `cbor:",toarray"`
	Client netip.Addr
	CareOf netip.Addr
}

// Missed is a client that an application has expected, and that did not go live there.
type Missed struct {
	_      struct{} `cbor:",toarray"`
	Client netip.Addr
	From   string
}

// MaxMissed is how many an application tells at most.
const MaxMissed = 1 << 12

// Got tells, of the Hello of an application that was attached before, whether it was
// told to activate a client that came from a node. What has become of the client
// since does not matter.
func (m *Message) Got(client netip.Addr, from string) bool {
	if slices.Contains(m.Resume, client) {
		return true
	}
	return m.TellsMissed && !slices.ContainsFunc(m.Missed, func(o Missed) bool { return o.Client == client && o.From == from })
}

// Doubt is a handoff of which an application has sent Transfer without having heard
// the end of it. It outlives the daemon with which it was begun.
type Doubt struct {
	_       struct{} `cbor:",toarray"`
	ID      uint64   // the application's
	Handoff uint64   // as in Prepared
	Client  netip.Addr
	To      string
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
	Queues  int      `cbor:"8,keyasint"` // how many descriptors the TUN has
	TUN     string   `cbor:"9,keyasint"` // name of the interface
	Contact string   `cbor:"10,keyasint,omitempty"`

	// KernelTunnel: the kernel puts TCP from Addr into the tunnel to Via.
	KernelTunnel bool `cbor:"11,keyasint,omitempty"`

	Away []Away       `cbor:"12,keyasint,omitempty"` // in the Welcome of a new application
	Left []netip.Addr `cbor:"13,keyasint,omitempty"` // those of Away that are known to have arrived there
}

// MaxMessage bounds a message, in octets: a client's connections with full
// buffers, and the application's state.
const MaxMessage = 256 << 20

// ErrMessage is returned for what is not a message.
var ErrMessage = errors.New("api: not a message")

// decoding bounds what a message may be made of. Nothing in one is nested deeper
// than its configuration. An element of an array takes one octet at least, and
// 24 once decoded.
var decoding = func() cbor.DecMode {
	mode, err := cbor.DecOptions{
		MaxArrayElements: maxElements,
		MaxMapPairs:      64,
		MaxNestedLevels:  6,
		DupMapKey:        cbor.DupMapKeyEnforcedAPF,
		IndefLength:      cbor.IndefLengthForbidden,
		TagsMd:           cbor.TagsForbidden,
	}.DecMode()
	if err != nil {
		panic(err) // the options above are wrong
	}
	return mode
}()

// encoding writes into a buffer of the caller's.
var encoding = func() cbor.UserBufferEncMode {
	mode, err := cbor.EncOptions{}.UserBufferEncMode()
	if err != nil {
		panic(err)
	}
	return mode
}()

// maxElements bounds arrays: connections of a client, clients of an application.
const maxElements = 1 << 20

// AppendMessage appends a message in its frame: four octets with the length of
// what follows, big-endian, and CBOR (RFC 8949). A message that lacks what its
// kind needs is [ErrMessage]. An Error that is too long is cut, and
// what of it is not UTF-8 is left out.
func AppendMessage(b []byte, m *Message) ([]byte, error) {
	if len(m.Error) > maxError || !utf8.ValidString(m.Error) {
		copied := *m
		copied.Error = m.cutError()
		m = &copied
	}
	if err := m.Check(); err != nil {
		return b, err
	}
	buf := bytes.NewBuffer(b)
	buf.Grow(m.size() + 256)
	buf.Write(make([]byte, 4))
	if err := encoding.MarshalToBuffer(m, buf); err != nil {
		return b, fmt.Errorf("%w: %s: %w", ErrMessage, m.Kind, err)
	}
	n := buf.Len() - len(b) - 4
	if err := checkLen("octets", n, MaxMessage); err != nil {
		return b, fmt.Errorf("%w: %s: %w", ErrMessage, m.Kind, err)
	}
	frame := buf.Bytes()
	binary.BigEndian.PutUint32(frame[len(b):], uint32(n))
	return frame, nil
}

// size bounds what the parts take of which it may have much or many, in CBOR: its
// snapshot, state and packets, each with a head of up to 9 octets.
func (m *Message) size() int {
	size := len(m.Snapshot)
	for _, parts := range [...][][]byte{m.State, m.Packets} {
		for _, s := range parts {
			size += len(s) + 9
		}
	}
	return size
}

// ReadMessage reads a message that has what its kind needs. Memory grows with
// what has arrived, not with what the length says. The error is that of r
// (io.EOF between messages), or [ErrMessage].
func ReadMessage(r io.Reader) (*Message, error) {
	m := new(Message)
	if err := m.read(r); err != nil {
		return nil, err
	}
	return m, nil
}

// read is ReadMessage into m, whatever that was before.
func (m *Message) read(r io.Reader) error {
	*m = Message{}
	body, err := framing.Next(r, MaxMessage)
	switch {
	case errors.Is(err, framing.ErrTooLong):
		return fmt.Errorf("%w: %w", ErrMessage, err)
	case err != nil:
		return err
	}
	if err := decoding.Unmarshal(body, m); err != nil {
		return fmt.Errorf("%w: %w", ErrMessage, err)
	}
	return m.check()
}
