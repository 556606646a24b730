package node

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"net/netip"
	"time"

	"github.com/distributed-servers/ds/internal/deadline"
	"github.com/distributed-servers/ds/mobility/wire"
)

// Protocol constants and configuration variables (RFC 6275 sections 12, 13).
const (
	InitialBindackTimeout         = time.Second             // INITIAL_BINDACK_TIMEOUT
	InitialBindackTimeoutFirstReg = 1500 * time.Millisecond // InitialBindackTimeoutFirstReg, its default
	MaxBindackTimeout             = 32 * time.Second        // MAX_BINDACK_TIMEOUT
	MaxTokenLifetime              = 210 * time.Second       // MAX_TOKEN_LIFETIME
	MaxRRBindingLifetime          = 420 * time.Second       // MAX_RR_BINDING_LIFETIME
	MaxUpdateRate                 = 3                       // MAX_UPDATE_RATE, a second
)

// Config is a node of one distributed server. Home, CareOf, HomeAgent and Rand
// must be set.
type Config struct {
	// Home is the distributed server address with the length of its home prefix.
	Home netip.Prefix

	// CareOf is the node's own address for this distributed server.
	CareOf netip.Addr

	// HomeAgent is the home agent's address.
	HomeAgent netip.Addr

	// SPI and Key secure home registrations (RFC 4285), both ways. Without a
	// Key they are neither signed nor checked: that is for a path which is
	// protected otherwise.
	SPI uint32
	Key wire.SharedKey

	// Epoch is the wall-clock time when now is 0, for the timestamps against
	// replay (RFC 4285 section 6). The home agent's clock decides: a node whose
	// clock is wrong learns the difference.
	Epoch time.Time

	// Rand gives cookies and first sequence numbers; it must be unpredictable
	// (RFC 6275 section 5.2.2).
	Rand io.Reader

	// HomeLifetime is asked of the home agent; 0: 10 minutes.
	HomeLifetime time.Duration

	// RegisterTimeout is how long the first Binding Update to the home agent waits
	// for its acknowledgement, which has to wait for Duplicate Address Detection
	// there; 0: InitialBindackTimeoutFirstReg (RFC 6275 sections 11.8, 13).
	RegisterTimeout time.Duration

	// CorrespondentLifetime is asked of clients; 0: 420 seconds, the most that
	// RFC 6275 allows (section 12).
	CorrespondentLifetime time.Duration

	// BindTimeout is how long the first Binding Update after a [Bind] waits for
	// its acknowledgement; 0: 350 milliseconds. RFC 6275 section 11.8 has 1
	// second for all of them, as a SHOULD, and allows 3 in a second: a lost one
	// leaves a connection that has just moved on the long way round.
	BindTimeout time.Duration

	// Attempts is how many messages of a kind a client may leave unanswered
	// before it counts as unable to do route optimisation; 0: 4, after 15 seconds.
	Attempts int

	// UnsupportedLifetime is how long that, or a refusal, is remembered; 0: 10 minutes.
	UnsupportedLifetime time.Duration

	// PrepareLifetime is how long a client stays prepared without a Bind or
	// another Prepare; 0: 5 minutes.
	PrepareLifetime time.Duration

	// MaxClients bounds the memory for clients; 0: 131072.
	MaxClients int
}

// Grant is what the owner of a client hands to the next one. It is a secret:
// with it and a care-of address of one's own, anyone binds the client.
type Grant struct {
	// HomeToken and HomeNonce are the home keygen token and its nonce index:
	// they depend on the home address alone, so they serve every node.
	HomeToken wire.Token
	HomeNonce uint16

	// Remaining is how long the token lives; not above 0: there is none.
	Remaining time.Duration

	// Sequence is that of the last Binding Update sent to the client.
	Sequence uint16

	// Binding is how long the client may have a binding; not above 0: it has
	// none.
	Binding time.Duration
}

// answered reports whether the client has answered anything.
func (g *Grant) answered() bool { return g.Remaining > 0 || g.Binding > 0 }

// Input is one of [Register], [Deregister], [Resign], [SetContact], [Received],
// [Optimise], [Prepare], [Bind], [Abandon], [Release], [Tick].
type Input interface{ input() }

// Register makes this node the contact: it registers its care-of address with
// the home agent and keeps it registered. Via is the home agent from now on. If
// it is registered, or about to be, it does so anew: somebody else may have
// registered since.
type Register struct{}

// Deregister ends the registration at the home agent; [Deregistered] follows.
type Deregister struct{}

// Resign ends it without a word, because another node has taken it over.
type Resign struct{}

// SetContact tells that another node is the contact, which implies [Resign].
// Via is its care-of address from now on.
type SetContact struct{ Addr netip.Addr }

// Received is an IPv6 packet to the care-of address: a mobility message or an
// ICMPv6 error, direct or in a tunnel. Others are ignored. The packet is
// neither kept nor changed.
type Received struct{ Packet []byte }

// Optimise asks for route optimisation with a client that this node owns, and
// of which no other node knows anything.
type Optimise struct{ Client netip.Addr }

// Prepare makes ready to take over a client that another node owns, which does
// not notice: a care-of test, and nothing else unless the grant has no home
// keygen token that lasts. [Ready] or [Unsupported] follows, or [Lapsed] if
// nobody comes for the client.
type Prepare struct {
	Client netip.Addr
	Grant  Grant
}

// Bind tells that this node owns the client from now on. A Binding Update goes
// out at once if the tokens are at hand. Grant is the previous owner's last
// word; if it is zero that of [Prepare] counts, if any.
type Bind struct {
	Client netip.Addr
	Grant  Grant
}

// Abandon forgets a client, silently and at once: another node owns it, or a
// preparation has been called off.
type Abandon struct{ Client netip.Addr }

// Release deletes the client's binding, then forgets the client. The caller
// has stopped sending to it by the optimised route. [Released] follows.
type Release struct{ Client netip.Addr }

// Tick is the input when a deadline has come.
type Tick struct{}

func (Register) input()   {}
func (Deregister) input() {}
func (Resign) input()     {}
func (SetContact) input() {}
func (Received) input()   {}
func (Optimise) input()   {}
func (Prepare) input()    {}
func (Bind) input()       {}
func (Abandon) input()    {}
func (Release) input()    {}
func (Tick) input()       {}

// Output is what a step asks for. The driver sends all packets of Send, in
// order, and then acts on Events, in order: so a Binding Update is on its way
// before the data that [Bound] sets free. Both belong to the node and are
// valid until its next step.
type Output struct {
	Send   [][]byte // IPv6 packets, from the care-of address
	Events []Event
}

// Event is something the driver wants to know.
type Event struct {
	Client netip.Addr // zero if it is about the home registration
	Kind   Kind
	Reason Reason        // of RegistrationFailed, Deregistered, Unbound, Unsupported, Released
	Status wire.Status   // of an acknowledgement, if that is the cause
	Until  time.Duration // as the kind says
}

// Kind is the kind of an event.
type Kind uint8

// Kinds of event.
const (
	// Registered: the home agent has accepted the registration, which lasts
	// until Until. It comes again with every refresh.
	Registered Kind = iota + 1
	// RegistrationFailed: there is no registration, for the reason given. The
	// node goes on trying, unless the reason is Superseded.
	RegistrationFailed
	// Deregistered: the registration has ended as asked.
	Deregistered

	// Ready: the client is prepared until Until. Bind takes one packet. It
	// comes again if the tokens have run out meanwhile and are back.
	Ready
	// Lapsed: the client is not prepared any more, because nobody came for it.
	Lapsed

	// Bound: route optimised sending may begin, until Until or Unbound. The
	// first Binding Update has been sent, or an acknowledgement has come after
	// an Unbound. See the package documentation for why it does not wait for
	// the acknowledgement.
	Bound
	// Confirmed: the client has acknowledged its binding, which lasts until
	// Until. It comes again with every refresh.
	Confirmed
	// Unbound: no route optimised sending (any more): tunnel. The node goes on
	// trying unless the reason is Refused, Superseded, Full or BadAddress.
	Unbound
	// Unsupported: the client cannot do route optimisation: tunnel. That is
	// remembered until Until, and not tried before.
	Unsupported
	// Released: the client is forgotten after a Release.
	Released
)

var kinds = [...]string{
	Registered: "registered", RegistrationFailed: "registration failed", Deregistered: "deregistered",
	Ready: "ready", Lapsed: "lapsed",
	Bound: "bound", Confirmed: "confirmed", Unbound: "unbound", Unsupported: "unsupported", Released: "released",
}

func (k Kind) String() string { return name(kinds[:], k) }

// Reason says why.
type Reason uint8

// Reasons.
const (
	Refused    Reason = iota + 1 // an acknowledgement with Status
	Silent                       // no answer
	NotSpoken                    // the peer does not know the protocol: Parameter Problem, or Binding Error 2
	Lost                         // the client has no binding: Binding Error 1
	Expired                      // the lifetime ended before an answer came
	Superseded                   // another node has bound the client, or registered, after this one
	Full                         // MaxClients
	BadAddress                   // no such client can be
)

var reasons = [...]string{
	Refused: "refused", Silent: "silent", NotSpoken: "not spoken", Lost: "lost", Expired: "expired",
	Superseded: "superseded", Full: "full", BadAddress: "bad address",
}

func (r Reason) String() string { return name(reasons[:], r) }

// State is that of a client.
type State uint8

// States; the diagram is in client.go.
const (
	None        State = iota
	Preparing         // another node owns the client; tests under way
	Prepared          // both keygen tokens at hand
	Testing           // owned; return routability under way
	Binding           // Binding Update sent, not acknowledged
	Established       // binding acknowledged
	Unable            // remembered as unable or unwilling
	Releasing         // binding being deleted
)

var states = [...]string{
	None: "none", Preparing: "preparing", Prepared: "prepared", Testing: "testing", Binding: "binding",
	Established: "established", Unable: "unable", Releasing: "releasing",
}

func (s State) String() string { return name(states[:], s) }

func name[T ~uint8](names []string, v T) string {
	if int(v) < len(names) && names[v] != "" {
		return names[v]
	}
	return fmt.Sprintf("%T(%d)", v, uint8(v))
}

// Node is the mobile node's machine. See the package documentation; the state
// diagrams are above registration and client.
type Node struct {
	cfg  Config
	home netip.Addr
	via  netip.Addr
	now  time.Duration

	reg registration

	clients map[netip.Addr]*client // the Binding Update List (RFC 6275 section 11.1)
	order   []*client              // the same, in an order that does not vary from run to run
	timers  deadline.Queue[*client]
	idle    deadline.Queue[*client] // clients that are only remembered, and until when
	spare   deadline.Queue[*client] // those of them that make room for others, and from when

	errors bucket // ICMPv6 errors and Binding Errors sent

	// What follows is there to be reused.
	out    Output
	buf    []byte // packets of out
	mh     []byte // a mobility header on its way into a packet
	inner  []byte // a packet on its way into a tunnel
	quoted []byte // a packet that came back in an ICMPv6 error
	random [2]byte

	hoti wire.HomeTestInit
	coti wire.CareOfTestInit
	hot  wire.HomeTest
	cot  wire.CareOfTest
	bu   wire.BindingUpdate
	ba   wire.BindingAck
	be   wire.BindingError
	auth wire.MobileAuth
}

// New returns a node that is neither contact nor knows one.
func New(cfg Config) (*Node, error) {
	usable := func(a netip.Addr) bool { return a.Is6() && !a.Is4In6() && a.Zone() == "" && a.IsGlobalUnicast() }
	home := cfg.Home.Addr()
	switch {
	case !cfg.Home.IsValid() || !usable(home):
		return nil, fmt.Errorf("node: home address: %v is not a unicast IPv6 prefix", cfg.Home)
	case !usable(cfg.CareOf) || cfg.CareOf == home:
		return nil, fmt.Errorf("node: care-of address: %v is not usable with home address %v", cfg.CareOf, home)
	case cfg.Home.Masked().Contains(cfg.CareOf):
		// RFC 6275 section 3.1: a care-of address has a foreign subnet prefix.
		return nil, fmt.Errorf("node: care-of address: %v is on the home link %v", cfg.CareOf, cfg.Home.Masked())
	case !usable(cfg.HomeAgent) || cfg.HomeAgent == home || cfg.HomeAgent == cfg.CareOf:
		return nil, fmt.Errorf("node: home agent: %v is not usable", cfg.HomeAgent)
	case len(cfg.Key) > 0 && len(cfg.Key) < 16:
		return nil, fmt.Errorf("node: key: %d octets, not 16 or more", len(cfg.Key))
	case cfg.Rand == nil:
		return nil, errors.New("node: rand: not set")
	}
	for _, d := range []struct {
		name       string
		field      *time.Duration
		def, least time.Duration
	}{
		{"home lifetime", &cfg.HomeLifetime, 10 * time.Minute, 2 * wire.LifetimeUnit},
		{"register timeout", &cfg.RegisterTimeout, InitialBindackTimeoutFirstReg, 100 * time.Millisecond},
		{"correspondent lifetime", &cfg.CorrespondentLifetime, MaxRRBindingLifetime, 2 * wire.LifetimeUnit},
		{"bind timeout", &cfg.BindTimeout, 350 * time.Millisecond, time.Millisecond},
		{"unsupported lifetime", &cfg.UnsupportedLifetime, 10 * time.Minute, time.Second},
		{"prepare lifetime", &cfg.PrepareLifetime, 5 * time.Minute, time.Second},
	} {
		if *d.field == 0 {
			*d.field = d.def
		}
		if *d.field < d.least {
			return nil, fmt.Errorf("node: %s: %v is less than %v", d.name, *d.field, d.least)
		}
	}
	cfg.CorrespondentLifetime = min(cfg.CorrespondentLifetime, MaxRRBindingLifetime)
	cfg.HomeLifetime = min(cfg.HomeLifetime, math.MaxUint16*wire.LifetimeUnit)
	if cfg.Attempts == 0 {
		cfg.Attempts = 4
	}
	if cfg.MaxClients == 0 {
		cfg.MaxClients = 1 << 17
	}
	if cfg.Attempts < 0 || cfg.Attempts > 100 || cfg.MaxClients < 0 {
		return nil, fmt.Errorf("node: attempts %d, clients %d: out of range", cfg.Attempts, cfg.MaxClients)
	}
	return &Node{cfg: cfg, home: home, clients: make(map[netip.Addr]*client)}, nil
}

// Step takes an input at the time now, and does what is due.
func (n *Node) Step(now time.Duration, in Input) Output {
	n.now = max(n.now, now)
	n.buf = n.buf[:0]
	n.out.Send, n.out.Events = n.out.Send[:0], n.out.Events[:0]

	switch in := in.(type) {
	case Register:
		n.register()
	case Deregister:
		n.deregister()
	case Resign:
		n.resign()
	case SetContact:
		if n.acceptable(in.Addr) {
			n.resign()
			n.setVia(in.Addr)
		}
	case Received:
		n.receive(in.Packet)
	case Optimise:
		n.optimise(in.Client)
	case Prepare:
		n.prepare(in.Client, &in.Grant)
	case Bind:
		n.bind(in.Client, &in.Grant)
	case Abandon:
		n.abandon(in.Client)
	case Release:
		n.release(in.Client)
	case Tick:
	}

	n.advanceRegistration()
	for {
		c, ok := n.timers.Pop(n.now)
		if !ok {
			break
		}
		n.advance(c)
	}
	for {
		c, ok := n.idle.Pop(n.now)
		if !ok {
			break
		}
		n.remove(c)
	}
	return n.out
}

// NextDeadline is when [Node.Step] wants a [Tick]; ok is false if it does not.
func (n *Node) NextDeadline() (at time.Duration, ok bool) {
	at, ok = n.reg.deadline()
	for _, q := range []*deadline.Queue[*client]{&n.timers, &n.idle} {
		if a, o := q.Next(); o && (!ok || a < at) {
			at, ok = a, true
		}
	}
	return at, ok
}

// Via is where packets from the home address go that are not route optimised,
// in a tunnel: the home agent if this node is the contact, the contact's
// care-of address otherwise. It is invalid until the node has been told.
func (n *Node) Via() netip.Addr { return n.via }

// Registered tells whether this node is registered with the home agent, and
// until when.
func (n *Node) Registered() (until time.Duration, ok bool) {
	return n.reg.expires, n.reg.expires > n.now
}

// State is that of a client.
func (n *Node) State(client netip.Addr) State {
	if c := n.clients[client]; c != nil {
		return c.state(n.now)
	}
	return None
}

// Clients are all clients that the node knows of.
func (n *Node) Clients() iter.Seq2[netip.Addr, State] {
	return func(yield func(netip.Addr, State) bool) {
		for _, c := range n.order {
			if s := c.state(n.now); s != None && !yield(c.addr, s) {
				return
			}
		}
	}
}

// Grant is what the next owner of a client gets. ok is false if this node does
// not own the client.
func (n *Node) Grant(client netip.Addr, now time.Duration) (g Grant, ok bool) {
	c := n.clients[client]
	if c == nil || c.goal != ownership {
		return g, false
	}
	g.Sequence, g.Binding = c.seq, max(0, c.possible-now)
	if left := c.home.expires - now; left > 0 {
		g.HomeToken, g.HomeNonce, g.Remaining = c.home.token, c.home.nonce, left
	}
	return g, true
}

// setVia changes where packets from the home address go.
func (n *Node) setVia(via netip.Addr) {
	if n.via != via {
		n.via = via
		n.retryHomeTests()
	}
}

// retryHomeTests starts those home tests again that wait for an answer, because
// there is a way for them again: since it broke they have backed off far. They
// are spread, not to swamp it.
func (n *Node) retryHomeTests() {
	const spread = 2 * time.Millisecond
	at := n.now
	for _, c := range n.order {
		if !c.home.pending {
			continue
		}
		c.home.start(at)
		n.schedule(c)
		if at == n.now {
			n.timers.Set(c, at) // in this step
		}
		at += spread
	}
}

// acceptable reports whether a is an address that another node or a client can
// have (RFC 6275 section 9.5.1 has the like for care-of addresses).
func (n *Node) acceptable(a netip.Addr) bool {
	return a.Is6() && !a.Is4In6() && a.Zone() == "" && a.IsGlobalUnicast() && a != n.home && a != n.cfg.CareOf
}

func (n *Node) event(e Event) { n.out.Events = append(n.out.Events, e) }

// sequence is a number to begin with.
func (n *Node) sequence() uint16 {
	if _, err := io.ReadFull(n.cfg.Rand, n.random[:]); err != nil {
		return 0 // any will do: a peer that has a greater one says which
	}
	return uint16(n.random[0])<<8 | uint16(n.random[1])
}

// ours reports whether seq is that of one of the last count Binding Updates,
// of which the latest had the number last.
func ours(seq, last uint16, count uint8) bool { return last-seq < uint16(count) }

// oldNews reports whether status 135 with the number stored tells nothing that
// is new to a node whose last count Binding Updates, up to the number last, have
// not been acknowledged: one of them, or the status, has come in late or twice.
//
// Once a node has been accepted, all numbers up to its last are its own, or
// from before its time. Until then it knows only those it has used, and the
// one before them.
func oldNews(stored, last uint16, count uint8, accepted bool) bool {
	if accepted {
		return int16(stored-last) <= 0
	}
	return last-stored <= uint16(count)
}

// refreshAfter is how long after its Binding Update a binding of the given
// lifetime is refreshed: early enough for four retransmissions.
func refreshAfter(lifetime time.Duration) time.Duration {
	margin := min(max(lifetime/8, 16*time.Second), time.Minute)
	return lifetime - min(margin, lifetime/2)
}
