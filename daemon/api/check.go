package api

import (
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"strings"
	"time"
	"unicode/utf8"
)

// field is something that a message may need.
type field uint16

const (
	needID field = 1 << iota
	needClient
	needTo
	needFrom
	needSnapshot
	needCareOf
	needProgram
	needConfig
	needPackets
)

// fieldNames are in the order of the constants, as are the fields in has.
var fieldNames = [...]string{
	"ID", "client", "node that it goes to", "node that it comes from", "snapshot", "care-of address", "program",
	"configuration", "packets",
}

// has are the fields that a message has.
func (m *Message) has() (has field) {
	for i, there := range [len(fieldNames)]bool{
		m.ID != 0, m.Client.IsValid(), m.To != "", m.From != "", len(m.Snapshot) > 0, m.CareOf.IsValid(), m.Program != "",
		m.Config != nil, len(m.Packets) > 0,
	} {
		if there {
			has |= 1 << i
		}
	}
	return has
}

// A rule of a kind: which end sends it, and what it must have. Answers need
// what they need only without Error.
var rules = [kinds]struct {
	from  end
	needs field
	fails bool // it may have an Error
}{
	Hello:         {application, needProgram, false},
	Welcome:       {daemon, needConfig, true},
	ConfigChanged: {daemon, needConfig, false},
	Owned:         {application, needClient, false},
	Gone:          {application, needClient, false},
	Bound:         {daemon, needClient, false},
	Unbound:       {daemon, needClient, false},
	Asked:         {daemon, needID | needClient | needTo, false},
	Answered:      {application, needID, true},
	Prepare:       {application, needID | needClient | needTo, false},
	Prepared:      {daemon, needID, true},
	Transfer:      {application, needID | needSnapshot, false},
	Done:          {daemon, needID | needCareOf, true},
	Late:          {either, needClient | needPackets, false},
	Abort:         {application, needID, true},
	Expect:        {daemon, needID | needClient | needFrom | needCareOf, false},
	Expected:      {application, needID, true},
	Offer:         {daemon, needID | needClient | needFrom | needSnapshot, false},
	Activate:      {daemon, needID, false},
	Activated:     {application, needID, true},
	Forget:        {daemon, needID, true},
	Settled:       {application, needID, false},
	Nobodys:       {daemon, needClient, false},
}

// Limits of what a message may have.
const (
	maxName     = 253 // of a node, a DNS name; of an interface, a program
	maxError    = 4096
	maxRest     = 16 << 10      // of a handoff's message beside snapshot, state and packets
	maxQueues   = 64            // of the TUN
	maxFiles    = maxQueues + 1 // descriptors: one for each, and that of Decisions
	minimumMTU  = 1280
	greatestMTU = 65535
)

// Check tells what a message lacks for its kind, what of it cannot be, and that it is
// too large: [ErrMessage]. An Error that is too long is no fault of a message that is to
// be sent: see [AppendMessage].
func (m *Message) Check() error {
	if len(m.Error) > maxError || !utf8.ValidString(m.Error) {
		copied := *m
		copied.Error = copied.cutError()
		m = &copied
	}
	if err := m.check(); err != nil {
		return err
	}
	if err := checkLen("octets", m.size(), MaxMessage-maxRest); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrMessage, m.Kind, err)
	}
	return nil
}

// cutError is the Error as it can be sent.
func (m *Message) cutError() string {
	return strings.ToValidUTF8(m.Error[:min(len(m.Error), maxError)], "")
}

// check tells what a message lacks, and what of it cannot be.
func (m *Message) check() error {
	if m.Kind == 0 || m.Kind >= kinds {
		return fmt.Errorf("%w: %s", ErrMessage, m.Kind)
	}
	if err := m.checkFields(); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrMessage, m.Kind, err)
	}
	return nil
}

func (m *Message) checkFields() error {
	rule := rules[m.Kind]
	needs := rule.needs
	if m.Error != "" {
		if !rule.fails {
			return fmt.Errorf("it cannot have an error")
		}
		needs &= needID
	}
	if lacks := needs &^ m.has(); lacks != 0 {
		return fmt.Errorf("no %s", fieldNames[bits.TrailingZeros16(uint16(lacks))])
	}
	for _, err := range [...]error{
		checkAddr("client", m.Client, false),
		checkAddr("care-of address", m.CareOf, false),
		checkLen("error", len(m.Error), maxError),
		checkName("node", m.To),
		checkName("node", m.From),
		checkName("program", m.Program),
		checkLen("state", len(m.State), maxElements),
		checkLen("packets", len(m.Packets), maxElements),
		checkLen("resume", len(m.Resume), maxElements),
		checkLen("doubts", len(m.Doubts), maxElements),
		checkLen("missed", len(m.Missed), MaxMissed),
		checkConnections(m.Connections),
		checkWord(m.Word),
		checkAgo(m.Ago),
	} {
		if err != nil {
			return err
		}
	}
	for _, a := range m.Resume {
		if err := checkAddr("client to resume", a, true); err != nil {
			return err
		}
	}
	for _, o := range m.Missed {
		if err := checkAddr("client that was missed", o.Client, true); err != nil {
			return err
		}
		if err := checkName("node", o.From); err != nil {
			return err
		}
	}
	for _, d := range m.Doubts {
		if err := d.check(); err != nil {
			return err
		}
	}
	if m.Config != nil {
		return m.Config.check()
	}
	return nil
}

func (d *Doubt) check() error {
	if d.ID == 0 || d.Handoff == 0 || d.To == "" {
		return errors.New("a doubt without handoff, or node that it goes to")
	}
	if err := checkLen("node", len(d.To), maxName); err != nil {
		return err
	}
	return checkAddr("client in doubt", d.Client, true)
}

func (c *SessionConfig) check() error {
	for _, err := range []error{
		checkAddr("distributed server address", c.Addr, true),
		checkAddr("care-of address", c.CareOf, true),
		checkAddr("address of the contact", c.Via, true),
		checkLen("peers", len(c.Peers), maxElements),
		checkLen("nodes", len(c.Nodes), maxElements),
		checkLen("clients that are away", len(c.Away), maxElements),
		checkLen("clients that have left", len(c.Left), maxElements),
		checkName("node", c.Node),
		checkName("node", c.Contact),
		checkName("interface", c.TUN),
	} {
		if err != nil {
			return err
		}
	}
	for _, a := range c.Away {
		if err := errors.Join(checkAddr("client that is away", a.Client, true), checkAddr("where it is", a.CareOf, false)); err != nil {
			return err
		}
	}
	for _, a := range c.Left {
		if err := checkAddr("client that has left", a, true); err != nil {
			return err
		}
	}
	for _, a := range c.Peers {
		if err := checkAddr("peer", a, true); err != nil {
			return err
		}
	}
	for _, n := range c.Nodes {
		if n == "" {
			return fmt.Errorf("a node without a name")
		}
		if err := checkName("node", n); err != nil {
			return err
		}
	}
	switch {
	case c.Node == "":
		return fmt.Errorf("no name of the node")
	case c.MTU < minimumMTU || c.MTU > greatestMTU:
		return fmt.Errorf("an MTU of %d, not %d to %d", c.MTU, minimumMTU, greatestMTU)
	case c.Queues < 1 || c.Queues > maxQueues:
		return fmt.Errorf("%d queues, not 1 to %d", c.Queues, maxQueues)
	}
	return nil
}

// checkAddr wants an IPv6 address without zone, or none at all.
func checkAddr(what string, a netip.Addr, required bool) error {
	switch {
	case !a.IsValid() && required:
		return fmt.Errorf("no %s", what)
	case a.IsValid() && (!a.Is6() || a.Is4In6() || a.Zone() != ""):
		return fmt.Errorf("%s %s: not an IPv6 address without zone", what, a)
	}
	return nil
}

func checkLen(what string, n, most int) error {
	if n > most {
		return fmt.Errorf("%s: %d, more than %d", what, n, most)
	}
	return nil
}

// checkName wants what CBOR can have as text.
func checkName(what, name string) error {
	if len(name) > maxName || !utf8.ValidString(name) {
		return fmt.Errorf("%s %.40q: longer than %d octets, or not UTF-8", what, name, maxName)
	}
	return nil
}

func checkConnections(n int) error {
	if n < 0 || n > maxElements {
		return fmt.Errorf("%d connections", n)
	}
	return nil
}

func checkAgo(d time.Duration) error {
	if d < 0 {
		return fmt.Errorf("%v ago", d)
	}
	return nil
}

func checkWord(n int) error {
	if n < 0 || n >= MaxDecisions {
		return fmt.Errorf("word %d, not 0 to %d", n, MaxDecisions-1)
	}
	return nil
}
