package correspondent

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

func TestConfig(t *testing.T) {
	local := func(netip.Addr) bool { return false }
	source := rand.NewChaCha8([32]byte{})
	for _, bad := range []Config{
		{Rand: source},
		{Local: local},
		{Local: local, Rand: source, MaxBindings: -1},
		{Local: local, Rand: source, MaxLifetime: 421 * time.Second},
		{Local: local, Rand: source, MaxLifetime: time.Second},
		{Local: local, Rand: source, NonceLifetime: 241 * time.Second},
		{Local: local, Rand: source, NonceLifetime: -1},
	} {
		if c, err := New(bad); err == nil || c != nil {
			t.Errorf("New(%+v) is accepted", bad)
		}
	}
	c, err := New(Config{Local: local, Rand: source, MaxLifetime: 50 * time.Second})
	if err != nil || c.cfg.MaxLifetime != 48*time.Second || c.cfg.MaxBindings != 65536 || c.cfg.NonceLifetime != 240*time.Second {
		t.Errorf("%+v, %v", c.cfg, err)
	}
}

// other is the mobile node of a number, with addresses in /64s of its own.
func (h *host) other(i int) *mobile {
	m := h.mobile()
	m.home, m.coa = numbered(uint16(0x1000+i), 1), numbered(uint16(0x2000+i), 1)
	return m
}

// The changes tell of every binding what a mirror of the cache needs.
func TestChanges(t *testing.T) {
	h := newHost(t)
	m := h.mobile().rr()
	took := func(want ...Change) {
		t.Helper()
		if fmt.Sprint(h.changes) != fmt.Sprint(want) {
			t.Fatalf("changes %v, want %v", h.changes, want)
		}
		h.changes = nil
	}
	took()
	m.bind(bu{lifetime: 100 * time.Second})
	took(Change{cn, home, coa1, h.now + 100*time.Second})
	h.advance(10 * time.Second)
	m.bind(good)
	took(Change{cn, home, coa1, h.now + 420*time.Second})
	m.coa = coa2
	m.coti().bind(good)
	took(Change{cn, home, coa2, h.now + 420*time.Second})
	m.accepted(m.send(leave), coa2, home, &leave)
	took(Change{Local: cn, Home: home})
	m.accepted(m.send(leave), coa2, home, &leave)
	took() // there was none
	m.bind(bu{lifetime: 8 * time.Second})
	took(Change{cn, home, coa2, h.now + 8*time.Second})
	h.advance(8 * time.Second)
	took(Change{Local: cn, Home: home})
	m.bind(good)
	h.changes = nil
	h.step(Forget{cn, home2})
	h.step(Forget{cn2, home})
	took()
	h.step(Forget{cn, home})
	took(Change{Local: cn, Home: home})
	h.step(Forget{cn, home})
	took()
	m.unbound()

	// The tick is late: the end is told before what follows.
	m.bind(bu{lifetime: 8 * time.Second})
	h.changes = nil
	h.now += 10 * time.Second
	m.bind(good)
	took(Change{Local: cn, Home: home}, Change{cn, home, coa2, h.now + 420*time.Second})
}

// Time does not go back, whatever the clock of the driver does.
func TestTimeBackwards(t *testing.T) {
	m := newHost(t).mobile().rr()
	m.bind(bu{lifetime: 8 * time.Second})
	m.now += 8 * time.Second
	m.unbound()
	m.now -= 8 * time.Second
	m.unbound()
}

// Each of the host's addresses has a binding cache of its own (RFC 6275
// section 9.1).
func TestSection9_1SeparateCaches(t *testing.T) {
	h := newHost(t)
	m := h.mobile().rr()
	m.bind(good)
	to2 := h.mobile()
	to2.local, to2.sequence = cn2, 7
	if got := to2.ping(); len(got) != 1 || got[0].mh == nil {
		t.Fatalf("a binding for one address counts for another: %v", got)
	}
	to2.coa = coa2
	to2.rr().bind(good)
	for _, test := range []struct{ local, careOf netip.Addr }{{cn, coa1}, {cn2, coa2}} {
		if careOf, ok := h.c.Lookup(test.local, home); !ok || careOf != test.careOf {
			t.Errorf("from %v by way of %v, %t; want %v", test.local, careOf, ok, test.careOf)
		}
	}
	if h.c.Len() != 2 {
		t.Errorf("%d bindings", h.c.Len())
	}
}

// Mobile nodes that may not have a binding are told so, if they ask to be told.
func TestPermit(t *testing.T) {
	m := newHost(t, func(cfg *Config) { cfg.Permit = func(a netip.Addr) bool { return a != home } }).mobile().rr()
	m.signedAck(m.send(good), wire.Prohibited, coa1, home, &good)
	silence(t, m.send(bu{noAck: true}))
	m.unbound()
	m.home = home2
	m.rr().bind(good)
}

// RFC 6275 section 9.6: a full cache. Who uses a binding keeps it; a new one
// takes the place of the one that was used least recently, when its tokens
// cannot be replayed; otherwise it is refused.
func TestSection9_6Full(t *testing.T) {
	for _, without := range []bool{false, true} {
		t.Run(fmt.Sprintf("used without the machine=%v", without), func(t *testing.T) { testFull(t, without) })
	}
}

func testFull(t *testing.T, withoutMachine bool) {
	const room = 20
	h := newHost(t, unlimited, func(cfg *Config) { cfg.MaxBindings = room })
	use := func(m *mobile) { m.bound() }
	if withoutMachine {
		used := make(map[netip.Addr]time.Duration)
		h.c.cfg.Used = func(_, home netip.Addr) (time.Duration, bool) {
			at, ok := used[home]
			return at, ok
		}
		use = func(m *mobile) { used[m.home] = m.now }
	}
	nodes := make([]*mobile, room)
	for i := range nodes {
		nodes[i] = h.other(i)
		nodes[i].rr().bind(good)
		h.advance(100 * time.Millisecond)
	}
	newcomer := h.other(room)
	newcomer.rr()
	newcomer.signedAck(newcomer.send(good), wire.InsufficientResources, newcomer.coa, newcomer.home, &good)
	without := bu{noAck: true}
	newcomer.signedAck(newcomer.send(without), wire.InsufficientResources, newcomer.coa, newcomer.home, &without)
	h.c.check(t)

	// Idle is not enough: their Binding Updates could be replayed.
	h.advance(200 * time.Second)
	newcomer.rr()
	newcomer.signedAck(newcomer.send(good), wire.InsufficientResources, newcomer.coa, newcomer.home, &good)

	// Now they are too old. All but three are in use, of those one least recently.
	h.advance(30 * time.Second)
	use(nodes[11])
	h.advance(time.Second)
	use(nodes[3])
	use(nodes[17])
	h.advance(15 * time.Second)
	for i, n := range nodes {
		if i != 3 && i != 11 && i != 17 {
			use(n)
		}
	}
	h.changes = nil
	newcomer.rr().bind(good)
	if h.changes[0] != (Change{Local: cn, Home: nodes[11].home}) || len(h.changes) != 2 {
		t.Errorf("changes %v, want that of the least recently used first", h.changes)
	}
	nodes[11].unbound()
	h.c.check(t)

	// A removed one is given up as soon as its memory is over, tick or not.
	h.step(Forget{cn, nodes[5].home})
	h.step(Forget{cn, newcomer.home}) // to be remembered
	again := h.other(room + 1)
	again.rr().bind(good)
	last := h.other(room + 2)
	last.rr().bind(good) // 3 or 17
	last = h.other(room + 3)
	last.rr().bind(good)
	last = h.other(room + 4)
	last.rr()
	last.signedAck(last.send(good), wire.InsufficientResources, last.coa, last.home, &good)
	h.c.check(t)
	if h.c.cache.index.count != room {
		t.Errorf("%d entries", h.c.cache.index.count)
	}
}

// A full cache in which all is over, but no tick has come, has room.
func TestFullOfThePast(t *testing.T) {
	const room = 100
	h := newHost(t, unlimited, func(cfg *Config) { cfg.MaxBindings = room })
	for i := range room {
		m := h.other(i)
		m.rr().bind(good)
		if i%2 == 0 {
			h.step(Forget{cn, m.home})
		}
	}
	h.now += time.Hour
	for i := range room {
		m := h.other(room + i)
		m.rr().bind(good)
		h.c.check(t)
	}
}

// RFC 6275 section 9.5.5: a Binding Refresh Request goes to the home address
// about 2 s before a binding ends that has been used, once more after that, and
// no more when a Binding Update has come.
func TestSection9_5_5RefreshRequests(t *testing.T) {
	for _, test := range []struct {
		name     string
		use      func(m *mobile)
		update   bool
		requests int
	}{
		{"not used", func(m *mobile) {}, false, 0},
		{"sent", func(m *mobile) {
			m.step(Transmit{build(m.t, wire.Packet{Src: cn, Dst: home, Protocol: wire.UDP, Payload: make([]byte, 8)})})
		}, false, 2},
		{"received", func(m *mobile) {
			m.receive(build(m.t, wire.Packet{Src: coa1, Dst: cn, Home: home, Protocol: wire.UDP, Payload: make([]byte, 8)}))
		}, false, 2},
		{"used without the machine", func(m *mobile) {
			at := m.now
			m.c.cfg.Used = func(local, home netip.Addr) (time.Duration, bool) {
				return at, local == m.local && home == m.home
			}
		}, false, 2},
		{"updated", func(m *mobile) { m.bound() }, true, 1},
	} {
		for _, lifetime := range []time.Duration{4 * time.Second, 12 * time.Second, 420 * time.Second} {
			t.Run(fmt.Sprint(test.name, "/", lifetime), func(t *testing.T) {
				m := newHost(t).mobile().rr()
				m.bind(bu{lifetime: lifetime})
				test.use(m)
				silence(t, m.advance(lifetime-2*time.Second-1))
				requests := len(m.advance(1))
				if test.update {
					m.rr().bind(good)
				}
				requests += len(m.advance(3 * time.Second))
				if requests != test.requests {
					t.Errorf("%d requests, want %d", requests, test.requests)
				}
				if !test.update {
					m.unbound()
				}
			})
		}
	}
}

// A Binding Update begins anew: what was used before it does not count, and
// what was asked for before it is asked for again.
func TestSection9_5_5AfterUpdate(t *testing.T) {
	m := newHost(t).mobile().rr()
	m.bind(bu{lifetime: 20 * time.Second})
	m.bound().bind(bu{lifetime: 20 * time.Second})
	silence(t, m.advance(19*time.Second))
	m.bind(bu{lifetime: 20 * time.Second})
	for range 3 {
		m.bound()
		if got := m.advance(19*time.Second + time.Second/2); len(got) != 2 {
			t.Errorf("%d requests, want 2", len(got))
		}
		m.bind(bu{lifetime: 20 * time.Second})
	}
}

// Many deadlines at once are seen to in portions.
func TestManyDeadlines(t *testing.T) {
	const n = 10 * maxPerTick
	h := newHost(t)
	h.fill(n)
	h.changes = nil
	h.now += 420 * time.Second
	ticks := 0
	for {
		at, ok := h.c.NextDeadline()
		if !ok || at > h.now {
			break
		}
		ticks++
		before := len(h.changes)
		h.step(Tick{})
		if len(h.changes)-before > maxPerTick {
			t.Fatalf("%d changes by one tick", len(h.changes)-before)
		}
	}
	if len(h.changes) != n || h.c.Len() != 0 || ticks > n/maxPerTick+1 {
		t.Errorf("%d changes by %d ticks, %d bindings left", len(h.changes), ticks, h.c.Len())
	}
	h.c.check(t)
	for range h.c.Bindings() {
		t.Error("a binding is left")
	}
}

// The index against a map, at random.
func TestIndexAgainstMap(t *testing.T) {
	const seed = 1
	r := rand.New(rand.NewPCG(seed, seed))
	var c cache
	c.init(3000, [16]byte{1})
	want := map[key]uint32{}
	for step := range 200000 {
		k := pair(cn, numbered(1, r.IntN(5000)))
		id, e := c.find(k)
		if wantID, ok := want[k]; ok != (e != nil) || ok && (id != wantID || e.key != k) {
			t.Fatalf("seed %d, step %d: found %v %d, want %t %d", seed, step, e, id, ok, wantID)
		}
		switch {
		case e != nil && r.IntN(2) == 0:
			c.free(id)
			delete(want, k)
		case e == nil && !c.full():
			want[k], _ = c.add(k)
		}
	}
	if c.index.count != len(want) || int(c.taken) != 3000 {
		t.Errorf("%d entries, want %d, %d taken", c.index.count, len(want), c.taken)
	}
}

// A flood of good registrations and deregistrations, all with right tokens:
// the cache stays within its bounds, and who has a binding and uses it keeps it.
func TestChurn(t *testing.T) {
	r := random(t)
	const room = 64
	h := newHost(t, unlimited, func(cfg *Config) { cfg.MaxBindings = room })
	m := h.mobile().rr()
	m.bind(good)
	nodes := make([]*mobile, 4*room)
	for i := range nodes {
		nodes[i] = h.other(i)
	}
	refreshed := h.now
	for step := range 20000 {
		n := nodes[r.IntN(len(nodes))]
		switch r.IntN(8) {
		case 0:
			n.rr()
			n.send(bu{lifetime: time.Duration(1+r.IntN(105)) * 4 * time.Second})
		case 1:
			n.rr()
			n.send(leave)
		case 2:
			n.hoti()
			n.send(bu{noHome: true, src: n.home, delete: true})
		case 3:
			n.ping()
		case 4:
			n.coa = numbered(uint16(0x2000+r.IntN(5000)), 1)
		case 5:
			h.advance(time.Duration(r.IntN(5000)) * time.Millisecond)
		case 6:
			h.now += time.Duration(r.IntN(5000)) * time.Millisecond // no ticks
		case 7:
			h.step(Forget{cn, n.home})
		}
		if h.now-refreshed > 300*time.Second {
			m.rr().bind(good)
			refreshed = h.now
		}
		if step%3 == 0 {
			m.bound()
		}
		if step%50 == 0 {
			h.c.check(t)
		}
	}
}
