package correspondent

import (
	"fmt"
	"io"
	"iter"
	"net/netip"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// Protocol constants (RFC 6275 section 12).
const (
	maxBindingLifetime = 420 * time.Second // MAX_RR_BINDING_LIFETIME
	maxNonceLifetime   = 240 * time.Second // MAX_NONCE_LIFETIME
)

// Overhead is by how many octets [Transmit] makes a packet longer: a type 2
// routing header.
const Overhead = wire.RoutingLen

// maxPerTick bounds what one Tick does. If more is due, NextDeadline says so.
const maxPerTick = 256

// Config says how a Correspondent works.
type Config struct {
	// Local reports whether an address is one of the host's own. Required.
	Local func(netip.Addr) bool

	// Rand is where nonces come from, and Key if it is zero. Required.
	Rand io.Reader

	// Key is the node key Kcn. Zero: drawn from Rand.
	Key wire.NodeKey

	// MaxBindings limits the binding cache, bindings that are over but whose
	// sequence numbers must be remembered included. Default 65536.
	MaxBindings int

	// MaxLifetime limits the lifetime of a binding. Default, and greatest,
	// 420 s (MAX_RR_BINDING_LIFETIME); whole multiples of 4 s.
	MaxLifetime time.Duration

	// NonceLifetime is for how long after its first use a nonce is accepted.
	// There is a new one every eighth of it, so that keygen tokens live for
	// seven eighths of it at least. Default, and greatest, 240 s
	// (MAX_NONCE_LIFETIME), and with it MAX_TOKEN_LIFETIME of 210 s.
	NonceLifetime time.Duration

	// Permit reports whether a mobile node may have a binding here. Default:
	// every one may.
	Permit func(home netip.Addr) bool

	// Used is when a packet last went by way of a binding without the machine, since
	// its last Change, on the machine's clock; ok is false if none has. It is for those
	// who have something faster for payload packets. It is asked during a Step, which
	// repeats as far as its answers do. Default: the machine sees them all.
	Used func(local, home netip.Addr) (at time.Duration, ok bool)

	Limits Limits
}

// Input is one of [Received], [Transmit], [Tick], [Forget].
type Input interface{ input() }

// Received is an IPv6 packet that has arrived at this host from the network.
type Received struct{ Packet []byte }

// Transmit is an IPv6 packet that the host's stack is about to send.
type Transmit struct{ Packet []byte }

// Tick: the time of [Correspondent.NextDeadline] has come.
type Tick struct{}

// Forget deletes a binding by order of the operator.
type Forget struct{ Local, Home netip.Addr }

func (Received) input() {}
func (Transmit) input() {}
func (Tick) input()     {}
func (Forget) input()   {}

// Output is what there is to do after a Step, in the order of the fields. It
// belongs to the machine and is valid until the next Step. A packet that is to
// go on as it is, is the input's itself.
type Output struct {
	// Changes happened to the binding cache. Whoever mirrors it (a kernel's
	// policies) does so before the packets that follow: an acknowledgement
	// invites the mobile node to use the binding.
	Changes []Change

	// Send goes to the network.
	Send [][]byte

	// Deliver goes to the host's upper layers.
	Deliver [][]byte
}

// Change is a binding that was made, changed, prolonged or removed.
type Change struct {
	Local, Home netip.Addr
	CareOf      netip.Addr    // zero: the binding is gone
	Until       time.Duration // when the binding ends, if it is not gone
}

// Binding is an entry of the binding cache (RFC 6275 section 9.1).
type Binding struct {
	Local, Home, CareOf netip.Addr
	Until               time.Duration
	Sequence            uint16 // of the last Binding Update accepted
}

// Correspondent is a correspondent node. For each pair of an address of its
// own and a mobile node's home address it is in one of these states:
//
//	             Binding Update
//	   ┌─────────────────────────────────┐   ┌──┐ Binding Update of greater
//	   │                                 ▼   ▼  │ sequence number
//	nothing                             bound ──┘
//	   ▲                                 │ ▲   │ 2 s before the end, if in use:
//	   │   lifetime over, Binding Update │ │   └► Binding Refresh Request
//	   │   to delete, persistently       │ │
//	   │   unreachable, Forget           ▼ │ Binding Update of greater sequence
//	   └────────────────────────────── removed  number, or with newer nonces
//	     nonces of that time too old
//
// removed is there against replay (RFC 6275 sections 5.2.8, 9.5.3): nothing is
// sent by way of it, but its sequence number counts. It is skipped if no nonce
// from before the last Binding Update is valid any more, as at the end of a
// lifetime of 420 s.
//
// It is not safe for concurrent use.
type Correspondent struct {
	cfg    Config
	now    time.Duration
	nonces nonces
	cache  cache

	tests, updates, errors limiter

	out Output
	buf []byte // what out points at
	mh  []byte // the mobility header being made

	// Messages being handled, here so that handling them allocates nothing.
	packet wire.Packet
	reply  wire.Packet
	homeTI wire.HomeTestInit
	careTI wire.CareOfTestInit
	homeT  wire.HomeTest
	careT  wire.CareOfTest
	update wire.BindingUpdate
	ack    wire.BindingAck
	fault  wire.BindingError
	kbm    wire.BindingKey
}

// New makes a Correspondent without bindings.
func New(cfg Config) (*Correspondent, error) {
	if cfg.Local == nil || cfg.Rand == nil {
		return nil, fmt.Errorf("correspondent: configure: Local and Rand are required")
	}
	var err error
	if cfg.MaxBindings, err = within("MaxBindings", cfg.MaxBindings, 1<<16, 1<<31-1); err != nil {
		return nil, err
	}
	if cfg.MaxLifetime, err = within("MaxLifetime", cfg.MaxLifetime, maxBindingLifetime, maxBindingLifetime); err != nil {
		return nil, err
	}
	if cfg.MaxLifetime -= cfg.MaxLifetime % wire.LifetimeUnit; cfg.MaxLifetime == 0 {
		return nil, fmt.Errorf("correspondent: configure: MaxLifetime is less than %v", wire.LifetimeUnit)
	}
	if cfg.NonceLifetime, err = within("NonceLifetime", cfg.NonceLifetime, maxNonceLifetime, maxNonceLifetime); err != nil {
		return nil, err
	}
	if cfg.Permit == nil {
		cfg.Permit = func(netip.Addr) bool { return true }
	}

	var random struct {
		key   wire.NodeKey
		seed  [3][8]byte
		hash  [16]byte
		index [2]byte
	}
	for _, b := range [][]byte{random.key[:], random.seed[0][:], random.seed[1][:], random.seed[2][:], random.hash[:], random.index[:]} {
		if _, err := io.ReadFull(cfg.Rand, b); err != nil {
			return nil, fmt.Errorf("correspondent: draw the node key: %w", err)
		}
	}
	if cfg.Key == (wire.NodeKey{}) {
		cfg.Key = random.key
	}
	c := &Correspondent{cfg: cfg}
	c.nonces.init(cfg.Rand, cfg.NonceLifetime, random.index)
	c.cache.init(cfg.MaxBindings, random.hash)
	limits := cfg.Limits.orDefault()
	c.tests.init(limits.Tests, limits.AllTests, random.seed[0])
	c.updates.init(limits.Updates, limits.AllUpdates, random.seed[1])
	c.errors.init(limits.Errors, limits.AllErrors, random.seed[2])
	return c, nil
}

// within is v, or what stands for zero. It is an error if v is not in (0, most].
func within[T int | time.Duration](name string, v, zero, most T) (T, error) {
	if v == 0 {
		return zero, nil
	}
	if v < 0 || v > most {
		return 0, fmt.Errorf("correspondent: configure: %s is %v, not in (0, %v]", name, v, most)
	}
	return v, nil
}

// Step handles an input at a time, which is never before that of the last Step.
func (c *Correspondent) Step(now time.Duration, in Input) Output {
	c.now = max(c.now, now)
	c.out.Changes, c.out.Send, c.out.Deliver = c.out.Changes[:0], c.out.Send[:0], c.out.Deliver[:0]
	c.buf = c.buf[:0]
	switch in := in.(type) {
	case Received:
		c.receive(in.Packet)
	case Transmit:
		c.transmit(in.Packet)
	case Tick:
		c.tick()
	case Forget:
		if id, e := c.cache.find(pair(in.Local, in.Home)); e != nil && e.state == bound {
			c.remove(id, e)
		}
	}
	return c.out
}

// NextDeadline is when the next Tick is due; ok is false if none is. It may be
// in the past, and a Tick at that time may find nothing to do.
func (c *Correspondent) NextDeadline() (at time.Duration, ok bool) {
	return c.cache.deadlines.Next()
}

// Lookup is where packets from local to home go now.
func (c *Correspondent) Lookup(local, home netip.Addr) (careOf netip.Addr, ok bool) {
	_, e := c.cache.find(pair(local, home))
	if e == nil || !e.live(c.now) {
		return netip.Addr{}, false
	}
	return netip.AddrFrom16(e.careOf), true
}

// Bindings are those in force, in no particular order. The machine may not be
// used meanwhile.
func (c *Correspondent) Bindings() iter.Seq[Binding] {
	return func(yield func(Binding) bool) {
		for e := range c.cache.all() {
			if e.live(c.now) && !yield(Binding{
				Local:    netip.AddrFrom16(e.local),
				Home:     netip.AddrFrom16(e.home),
				CareOf:   netip.AddrFrom16(e.careOf),
				Until:    e.until,
				Sequence: e.sequence,
			}) {
				return
			}
		}
	}
}

// Len is the number of bindings, those included that are over since the last Tick.
func (c *Correspondent) Len() int { return c.cache.bound }

// tick does what is due.
func (c *Correspondent) tick() {
	for range maxPerTick {
		id, ok := c.cache.deadlines.Pop(c.now)
		if !ok {
			return
		}
		e := c.cache.at(id)
		e.queued = never
		switch {
		case c.now >= e.until && e.state == bound:
			c.remove(id, e)
			continue
		case c.now >= e.until:
			c.cache.free(id)
			continue
		case e.state == bound && int(e.asked) < len(refreshLeads) && c.now >= e.until-refreshLeads[e.asked] && c.inUse(e):
			e.asked++
			c.requestRefresh(e)
		}
		c.cache.arm(id, e, c.now)
	}
}

// requestRefresh asks for a Binding Update before a binding ends that is in use
// (RFC 6275 section 9.5.5). It always goes to the home address, by way of the
// home agent: so it arrives even if the care-of address is no longer good.
func (c *Correspondent) requestRefresh(e *entry) {
	local, home := netip.AddrFrom16(e.local), netip.AddrFrom16(e.home)
	c.send(local, home, netip.Addr{}, &wire.BindingRefreshRequest{})
}

// send sends a mobility message. routing is the home address for a type 2
// routing header; zero: there is none.
func (c *Correspondent) send(local, to, routing netip.Addr, m wire.Message) {
	final := to
	if routing.IsValid() {
		final = routing
	}
	c.mh = m.Append(c.mh[:0], local, final)
	c.sendHeader(local, to, routing)
}

// sendHeader sends the mobility header in c.mh.
func (c *Correspondent) sendHeader(local, to, routing netip.Addr) {
	c.reply = wire.Packet{Src: local, Dst: to, Routing: routing, Protocol: wire.Mobility, Payload: c.mh}
	from := len(c.buf)
	b, err := c.reply.Append(c.buf)
	if err != nil {
		return // our own packet is never too large
	}
	c.buf = b
	c.out.Send = append(c.out.Send, b[from:len(b):len(b)])
}

// changed notes that a binding came about, changed, or (with no care-of
// address) is gone.
func (c *Correspondent) changed(e *entry) {
	change := Change{Local: netip.AddrFrom16(e.local), Home: netip.AddrFrom16(e.home)}
	if e.state == bound {
		change.CareOf, change.Until = netip.AddrFrom16(e.careOf), e.until
	}
	c.out.Changes = append(c.out.Changes, change)
}

// peer reports whether a is a unicast routable address (RFC 6275 section 9.5.1)
// and another node's.
func (c *Correspondent) peer(a netip.Addr) bool { return routable(a) && !c.cfg.Local(a) }

func routable(a netip.Addr) bool {
	return a.Is6() && !a.Is4In6() && a.IsGlobalUnicast()
}
