package member

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/internal/deadline"
	"github.com/distributed-servers/ds/mobility/node"
	"github.com/distributed-servers/ds/mobility/relay"
	"github.com/distributed-servers/ds/mobility/wire"
)

// Config is a member. All but the durations are required.
type Config struct {
	// Name of the node.
	Name string

	// Home is the distributed server address with the length of its prefix.
	Home netip.Prefix

	// HomeAgent is the home agent's address; SPI and Key are shared with it.
	HomeAgent netip.Addr
	SPI       uint32
	Key       wire.SharedKey

	// Nodes are all nodes of the distributed server, this one included.
	Nodes map[string]Addrs

	// Contact is the contact at the beginning, with its epoch: what was saved
	// last, or what the configuration says, with epoch 0.
	Contact Contact

	// Records are what was recorded before, in order.
	Records []Record

	// Words are those of the application that is attached.
	Words Words

	// Epoch is the wall-clock time when now is 0.
	Epoch time.Time

	// Rand must be unpredictable.
	Rand io.Reader

	// Session is what the application is told beside addresses: MTU, queues,
	// name of the interface.
	Session api.SessionConfig

	// External: somebody else registers at the home agent, for whichever node is
	// the contact.
	External bool

	// IdleTimeout is how long a client without connections keeps its owner and
	// its binding. Default 60 s.
	IdleTimeout time.Duration

	// RegisterTimeout is how long a registration waits for its first answer
	// ([node.Config]). Default 1.5 s.
	RegisterTimeout time.Duration

	// StartGrace is how long after its start a contact waits for the other
	// members before it registers. Default 1 s.
	StartGrace time.Duration

	// PrepareTimeout is how long the target of a handoff waits for the client's
	// answers; then it goes on without. Default 1 s.
	PrepareTimeout time.Duration

	// HandoffTimeout is how long a handoff may take up to Transfer, and after it
	// until the target is asked to end it unless it has taken the client. Default 30 s.
	HandoffTimeout time.Duration

	// TakeoverTimeout is how long a takeover waits for the home agent. Default 10 s.
	TakeoverTimeout time.Duration

	// HandshakeGrace is how long after a takeover connections that the new contact
	// does not know may be in the middle of their handshakes at the old one, and, after a
	// client was forgotten, at the node that had it. Default 60 s.
	HandshakeGrace time.Duration

	// ReportTime is how long a new contact has clients that are new wait at most for
	// members that have not told what they have: longer than an application waits
	// before it tries again to attach. Default 5 s.
	ReportTime time.Duration

	// PassTime is how long after a handoff its donor tells the contact of it, at most, and
	// for how long it keeps what it has recorded, at least: by then others have heard
	// where the client is. Default 1 s.
	PassTime time.Duration

	// AwayTime is for how long a client that was handed off is not answered by another
	// application. Default 60 s, for which an application's stack sends on, too.
	AwayTime time.Duration
}

// Addrs are those of a node.
type Addrs struct {
	Daemon netip.Addr // the daemon's own: tunnels
	CareOf netip.Addr // of this distributed server: data
}

// Contact is the contact, as of an epoch.
type Contact struct {
	Name  string
	Epoch uint64
}

// later reports whether c overrules d.
func (c Contact) later(d Contact) bool {
	return c.Epoch > d.Epoch || c.Epoch == d.Epoch && c.Name > d.Name
}

// Input is one of [Start], [App], [AppGone], [Peer], [PeerUp], [PeerDown],
// [Unreached], [Received], [Takeover], [HandOff], [Command], [Optimise],
// [DeleteBinding], [SetNodes], [Tick].
type Input interface{ input() }

// Start comes first.
type Start struct{}

// App is a message of the attached application. Its first is Hello. The message is the
// driver's again after the step, what it refers to is not; so is that of Peer.
type App struct{ Message *api.Message }

// AppGone tells that the application is not attached any more. Lost means that
// it has ended, and its connections with it; otherwise it may come back. After
// Start it tells so of one that was attached to the daemon before.
type AppGone struct{ Lost bool }

// Peer is a message of another member.
type Peer struct {
	From    string
	Message *Message
}

// PeerUp and PeerDown tell that there is a connection to a member, or none.
type (
	PeerUp   struct{ Name string }
	PeerDown struct{ Name string }
)

// Unreached tells why there is no connection to a member, each time that the reason is
// another: who asks for something that takes one is told.
type Unreached struct{ Name, Why string }

// Received is a packet for the machines of Mobile IPv6: to the care-of address or
// to the daemon's address, in a tunnel or not. It is not kept; it may be changed.
type Received struct{ Packet []byte }

// Takeover makes the node To the contact. Force does it although the contact of
// now cannot be reached.
type Takeover struct {
	ID    uint64 // of the Answer
	To    string
	Force bool
}

// HandOff asks the application to hand a client off.
type HandOff struct {
	ID     uint64 // of the Answer
	Client netip.Addr
	To     string
}

// Optimise starts route optimisation with a client that this member owns.
type Optimise struct{ Client netip.Addr }

// DeleteBinding deletes the client's binding; it goes on through the tunnel.
type DeleteBinding struct{ Client netip.Addr }

// Tick is the input when a deadline has come.
type Tick struct{}

func (Start) input()         {}
func (App) input()           {}
func (AppGone) input()       {}
func (Peer) input()          {}
func (PeerUp) input()        {}
func (PeerDown) input()      {}
func (Unreached) input()     {}
func (Received) input()      {}
func (Takeover) input()      {}
func (HandOff) input()       {}
func (Optimise) input()      {}
func (DeleteBinding) input() {}
func (Tick) input()          {}

// Output is what a step asks for, in the order of the fields. It belongs to the
// member and is valid until its next step, the messages excepted, which may be
// kept; or given back, see [Member.Recycle].
type Output struct {
	// Save and Record are to be kept across restarts, before anything else is
	// done. If there is Record, [Recorded] is the next input.
	Save   *Contact
	Record []Record

	// Send are IPv6 packets: a Binding Update before the message that sets the
	// data free.
	Send [][]byte

	// Relay are inputs for the relay of the contact. NewRelay: it begins anew
	// before them.
	NewRelay bool
	Relay    []relay.Input

	App     []*api.Message
	Peers   []ToPeer
	Events  []Event
	Answers []Answer
	Reports []Report // of jobs
}

// ToPeer is a message to a member. A member that is not there does not get it.
type ToPeer struct {
	To      string
	Message *Message
}

// Event is something that happened, for people to read.
type Event struct {
	Kind   api.EventKind
	Client netip.Addr
	Node   string // another one that has to do with it
	Epoch  uint64
	Detail string
}

// Answer is that to a command.
type Answer struct {
	ID          uint64
	Err         error
	Optimised   bool
	Connections int
}

// Client is what a member knows of a client.
type Client struct {
	Client      netip.Addr
	Epoch       uint64
	State       node.State
	Bound       bool // its packets come directly, not through the contact
	Sequence    uint16
	Binding     time.Duration // for how long the client may have one
	Connections int
	Since       time.Duration // when this member became the owner
	Moving      string        // the node that it is on its way to, if any
	Stage       string        // and how far it is
}

// client is one that this member owns, or has given away and not yet heard.
type client struct {
	addr        netip.Addr
	epoch       uint64 // 0: this member was started anew and has not been told
	since       time.Duration
	connections int
	bound       bool     // the application sends by its binding
	arriving    bool     // it is about to be told that it has the client, and about that
	relayed     bool     // it is known not to do route optimisation
	out         *handoff // on its way to another member
}

// later is an epoch after the client's, if that is known.
func (c *client) later(n uint64) uint64 {
	if c.epoch == 0 {
		return 0
	}
	return c.epoch + n
}

// Member is the machine.
type Member struct {
	cfg   Config
	self  Addrs
	home  netip.Addr
	other map[netip.Addr]string // names by address, of both kinds

	now       time.Duration
	machine   *node.Node // binds clients to the care-of address
	registrar *node.Node // registers the daemon's address while this is the contact

	contact    Contact
	listed     map[string]Addrs // of the last SetNodes
	registered bool
	hesitating bool
	takeover   *takeover

	attached bool
	awaiting bool // one may come back of whose clients this member does not know
	accepts  bool // the application takes clients from other nodes

	up   map[string]*Message      // the Hello of members that are connected, nil before it has come
	away map[string]time.Duration // the others, and since when
	why  map[string]string        // they are not connected, of those of which that is known

	lastPrepare map[string]uint64 // the ID of the latest Prepare of members that are connected

	clients map[netip.Addr]*client
	idle    deadline.Queue[*client]

	// Of the contact (unknown.go): what it has been told; the nodes that have not
	// told everything since it is the contact (true: but for what an application has
	// that may come back); and how long new clients wait for those.
	owners      map[netip.Addr]Owner
	missing     map[string]bool
	unconfirmed map[string]*unconfirmed // of those that were connected again since
	hearsay     map[netip.Addr]hearsay
	patience    time.Duration

	handshakes map[string]time.Duration // nodes that were the contact, and how long handshakes may go on there
	beginners  beginners
	began      began
	forgotten  absences // clients that are nobody's any more, and who had them

	lastID    uint64
	outgoing  map[uint64]*handoff     // by our ID, as donor
	giving    map[netip.Addr]*handoff // the latest of those that have come to Transfer, by client
	bySession map[uint64]*handoff     // by the application's ID, as donor
	incoming  map[handoffKey]*offer   // as target
	coming    map[netip.Addr]*offer   // the same, by client: one at a time
	offers    map[uint64]*offer       // by the ID towards the application
	taking    int                     // octets of those that are taken
	asked     map[uint64]asked        // by the ID towards the application
	onward    map[netip.Addr]Owner    // clients that others have taken, which the contact is to hear
	timers    deadline.Queue[any]     // of *handoff, *offer, *takeover, *job, *errand and others
	records   records
	donated   map[uint64]Record // of handoffs from this member (away.go)
	over      []ended           // those of them that have, in order

	absences  absences
	takesAway bool // the application knows of them
	words     words
	waiting   []*offer // for what was recorded of them to be kept
	releases  []ToPeer // Settled that wait for that, too
	noRecords string   // why it could not be

	appSpares  spares[api.Message]
	peerSpares spares[Message]

	draining   bool // this member takes no clients
	job        *job // nil: none is under way
	errands    map[uint64]*errand
	told       int // how many clients the others think there are
	recounting bool

	started bool
	out     Output
}

// asked is what the application was asked for: by a command, or by a job.
type asked struct {
	command uint64
	job     *job
	client  netip.Addr // of the job
}

// takeover is one that waits for the home agent.
type takeover struct{ id uint64 }

// New returns a member that has not been started.
func New(cfg Config) (*Member, error) {
	self, ok := cfg.Nodes[cfg.Name]
	if !ok {
		return nil, fmt.Errorf("member: node %q is not among the nodes of %s", cfg.Name, cfg.Home.Addr())
	}
	if _, ok := cfg.Nodes[cfg.Contact.Name]; !ok {
		return nil, fmt.Errorf("member: contact %q is not among the nodes of %s", cfg.Contact.Name, cfg.Home.Addr())
	}
	for _, d := range []struct {
		field *time.Duration
		def   time.Duration
	}{
		{&cfg.IdleTimeout, time.Minute}, {&cfg.StartGrace, time.Second}, {&cfg.PrepareTimeout, time.Second}, {&cfg.HandoffTimeout, 30 * time.Second},
		{&cfg.TakeoverTimeout, 10 * time.Second}, {&cfg.HandshakeGrace, time.Minute},
		{&cfg.ReportTime, reportTime}, {&cfg.AwayTime, awayTime}, {&cfg.PassTime, passTime},
	} {
		if *d.field < 0 {
			return nil, errors.New("member: a timeout is negative")
		}
		if *d.field == 0 {
			*d.field = d.def
		}
	}
	m := &Member{
		cfg: cfg, self: self, home: cfg.Home.Addr(),
		other:       make(map[netip.Addr]string),
		contact:     cfg.Contact,
		up:          make(map[string]*Message),
		lastPrepare: make(map[string]uint64),
		away:        make(map[string]time.Duration),
		why:         make(map[string]string),
		clients:     make(map[netip.Addr]*client),
		outgoing:    make(map[uint64]*handoff),
		giving:      make(map[netip.Addr]*handoff),
		bySession:   make(map[uint64]*handoff),
		incoming:    make(map[handoffKey]*offer),
		coming:      make(map[netip.Addr]*offer),
		offers:      make(map[uint64]*offer),
		asked:       make(map[uint64]asked),
		errands:     make(map[uint64]*errand),
		onward:      make(map[netip.Addr]Owner),
		donated:     make(map[uint64]Record),

		handshakes: make(map[string]time.Duration),
	}
	for _, rec := range cfg.Records {
		if rec.From == cfg.Name {
			m.setOwn(rec)
		} else {
			m.records.set(rec)
		}
	}
	for name, a := range cfg.Nodes {
		if name != cfg.Name {
			m.other[a.Daemon], m.other[a.CareOf] = name, name
		}
	}
	var err error
	mobile := node.Config{
		Home: cfg.Home, CareOf: self.CareOf, HomeAgent: cfg.HomeAgent, SPI: cfg.SPI, Key: cfg.Key, Epoch: cfg.Epoch, Rand: cfg.Rand,
		RegisterTimeout: cfg.RegisterTimeout,
	}
	if m.machine, err = node.New(mobile); err != nil {
		return nil, fmt.Errorf("member: %s: %w", m.home, err)
	}
	mobile.CareOf = self.Daemon
	if m.registrar, err = node.New(mobile); err != nil {
		return nil, fmt.Errorf("member: %s: the daemon's address: %w", m.home, err)
	}
	var b [8]byte
	if _, err := io.ReadFull(cfg.Rand, b[:]); err != nil {
		return nil, fmt.Errorf("member: random number: %w", err)
	}
	for i, v := range b {
		m.lastID |= uint64(v) << (8 * i) >> 8 // far from the greatest that Words take
	}
	return m, nil
}

// Step takes inputs that have come at the time now, in their order, and does what
// is due. What several of them ask for is together in the output.
func (m *Member) Step(now time.Duration, inputs ...Input) Output {
	m.now = max(m.now, now)
	m.out = Output{Record: m.out.Record[:0], Send: m.out.Send[:0], Relay: m.out.Relay[:0], Events: m.out.Events[:0], Reports: m.out.Reports[:0]}
	for _, in := range inputs {
		m.input(in)
	}
	return m.out
}

func (m *Member) input(in Input) {
	if _, first := in.(Start); !first && !m.started {
		return
	}
	m.started = true
	switch in := in.(type) {
	case Start:
		m.begin()
	case App:
		m.fromApp(in.Message)
	case AppGone:
		m.appGone(in.Lost)
	case Peer:
		m.fromPeer(in.From, in.Message)
	case PeerUp:
		m.peerUp(in.Name)
	case PeerDown:
		m.peerDown(in.Name)
	case Unreached:
		m.unreachedFor(in.Name, in.Why)
	case Received:
		m.received(in.Packet)
	case Takeover:
		m.startTakeover(in)
	case HandOff:
		m.ask(in)
	case Command:
		m.command(in)
	case Optimise:
		m.optimise(in.Client)
	case DeleteBinding:
		m.deleteBinding(in.Client)
	case SetNodes:
		m.setNodes(in.Nodes)
	case Recorded:
		m.recorded(in.Why)
	case Tick:
	}
	m.due()
	m.counted()
}

// due does what has a deadline that has come.
func (m *Member) due() {
	if at, ok := m.machine.NextDeadline(); ok && at <= m.now {
		m.mobile(node.Tick{})
	}
	if at, ok := m.registrar.NextDeadline(); ok && at <= m.now {
		m.register(node.Tick{})
	}
	for {
		k, ok := m.timers.Pop(m.now)
		if !ok {
			break
		}
		switch k := k.(type) {
		case *handoff:
			m.handoffLate(k)
		case *offer:
			m.offerLate(k)
		case *client:
			m.optimise(k.addr)
		case hesitation:
			m.resolve()
		case passing:
			m.tellPassed()
		case settling:
			m.forgetOver()
		case recount:
			m.recounting = false
			m.introduce()
		case *job:
			m.kick()
		case *errand:
			m.lostErrand(k, fmt.Sprintf("node %s has not answered for %v: perhaps its dsco is of a release that cannot do that", k.node, errandTimeout))
		case *takeover:
			m.endTakeover(fmt.Errorf("the home agent %s has not answered within %v; this node is the contact all the same and goes on trying", m.cfg.HomeAgent, m.cfg.TakeoverTimeout))
		}
	}
	for {
		c, ok := m.idle.Pop(m.now)
		if !ok {
			break
		}
		m.retire(c)
	}
}

// NextDeadline is when [Member.Step] wants a [Tick]; ok is false if it does not.
func (m *Member) NextDeadline() (at time.Duration, ok bool) {
	next := func(a time.Duration, some bool) {
		if some && (!ok || a < at) {
			at, ok = a, true
		}
	}
	next(m.machine.NextDeadline())
	next(m.registrar.NextDeadline())
	next(m.timers.Next())
	next(m.idle.Next())
	return at, ok
}

// Contact is the contact as this member knows it, and whether this member is it
// and registered at the home agent.
func (m *Member) Contact() (c Contact, registered bool) { return m.contact, m.registered }

// IsContact reports whether this member is the contact.
func (m *Member) IsContact() bool { return m.contact.Name == m.cfg.Name }

// Accepts tells whether an application is attached that takes clients from other
// nodes.
func (m *Member) Accepts() bool { return m.accepts }

// Registered tells whether this member is registered at the home agent, and until
// when.
func (m *Member) Registered() (until time.Duration, ok bool) { return m.registrar.Registered() }

// Peers are the other members, and what they have said of themselves; nil: they
// are not connected.
func (m *Member) Peers() iter.Seq2[string, *Message] {
	return func(yield func(string, *Message) bool) {
		for _, name := range slices.Sorted(maps.Keys(m.cfg.Nodes)) {
			if name == m.cfg.Name {
				continue
			}
			if !yield(name, m.up[name]) {
				return
			}
		}
	}
}

// Clients are those that this member owns, in the order of their addresses.
func (m *Member) Clients() []Client {
	cs := make([]Client, 0, len(m.clients))
	for _, c := range m.sorted() {
		v, _ := m.Client(c.addr)
		cs = append(cs, v)
	}
	return cs
}

// sorted are the clients in an order that does not vary from run to run.
func (m *Member) sorted() []*client {
	return slices.SortedFunc(maps.Values(m.clients), func(a, b *client) int { return a.addr.Compare(b.addr) })
}

// Client is one of them.
func (m *Member) Client(addr netip.Addr) (Client, bool) {
	c := m.clients[addr]
	if c == nil {
		return Client{}, false
	}
	g, _ := m.machine.Grant(addr, m.now)
	out := Client{
		Client: addr, Epoch: c.epoch, State: m.machine.State(addr), Bound: c.bound, Sequence: g.Sequence, Binding: g.Binding,
		Connections: c.connections, Since: c.since,
	}
	if c.out != nil {
		out.Moving, out.Stage = c.out.to, c.out.stage.String()
	}
	return out, true
}

// Count is how many clients there are, and how many of them are bound.
func (m *Member) Count() (clients, bound int) {
	for _, c := range m.clients {
		if c.bound {
			bound++
		}
	}
	return len(m.clients), bound
}

// Unsettled is how many handoffs are under way here, or over without the donor's
// being known to know.
func (m *Member) Unsettled() int { return len(m.outgoing) + len(m.incoming) + len(m.records.of) }

func (m *Member) event(kind api.EventKind, client netip.Addr, node, detail string) {
	e := Event{Kind: kind, Client: client, Node: node, Detail: detail}
	if c := m.clients[client]; c != nil {
		e.Epoch = c.epoch
	}
	m.out.Events = append(m.out.Events, e)
}

func (m *Member) toApp(msg *api.Message) {
	if m.attached {
		m.out.App = append(m.out.App, m.appSpares.copy(msg))
	}
}

// toPeer sends to a member; ok is false if it is not connected.
func (m *Member) toPeer(name string, msg *Message) (ok bool) {
	if _, ok = m.up[name]; ok {
		msg.Server = m.home
		m.out.Peers = append(m.out.Peers, ToPeer{name, m.peerSpares.copy(msg)})
	}
	return ok
}
