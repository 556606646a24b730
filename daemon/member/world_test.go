package member

import (
	"container/heap"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/mobility/correspondent"
	"github.com/distributed-servers/ds/mobility/homeagent"
	"github.com/distributed-servers/ds/mobility/relay"
	"github.com/distributed-servers/ds/mobility/wire"
)

// A world is a distributed server of three members with applications that only
// pretend to have connections, a home agent and clients, in which messages take
// their time and connections between members break. The same seed gives the same
// run.
//
//	clients ── home agent
//	   └───────┬───┴───┬───────┐
//	           a ───── b ───── c     each with an application
type world struct {
	t    *testing.T
	rand *rand.Rand
	now  time.Duration
	seq  uint64
	todo events

	members map[string]*host
	agent   *homeagent.HomeAgent
	clients map[netip.Addr]*testClient

	// up are the connections between members, by both names in order; each time
	// one breaks it gets a new number, and what is on the way is lost.
	up map[[2]string]int

	lossy   bool                 // packets get lost
	doubled bool                 // what members say comes twice, though in order
	twice   map[[2]string]*again // from whom to whom: what comes the second time before anything else
	lax     bool                 // members say what makes no sense
	log     []string

	quiet  bool // nothing is logged
	replay string
	ended  func(why string)    // of every handoff, if not nil
	mayEnd map[netip.Addr]bool // clients whose connections may have been lost

	// forgotten are clients of which a node may not know that it had them: its application
	// has ended, and its disk was full.
	forgotten map[netip.Addr]bool
}

var (
	home      = netip.MustParsePrefix("2001:db8:1::1/64")
	agentAddr = netip.MustParseAddr("2001:db8:1::ff")
	epoch     = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	secret    = wire.SharedKey("a secret of sixteen octets")
	names     = []string{"a", "b", "c"}
)

// addrs are those of the nodes; nodes are them for a member to keep.
var addrs = nodes()

func nodes() map[string]Addrs {
	m := make(map[string]Addrs)
	for i, n := range names {
		m[n] = Addrs{
			Daemon: netip.MustParseAddr(fmt.Sprintf("2001:db8:2::%x", i+1)),
			CareOf: netip.MustParseAddr(fmt.Sprintf("2001:db8:2:%x::1", i+1)),
		}
	}
	return m
}

func clientAddr(i int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("2001:db8:c::%x", i+1)) }

// random is the world's, as an io.Reader.
type random struct{ *rand.Rand }

func (r random) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return len(b), nil
}

// host is a member with its relay and its application.
type host struct {
	w     *world
	name  string
	m     *Member
	relay *relay.Relay
	app   *app
	saved Contact
	kept  []Record
	all   []Record                              // kept, and what could not be
	disk  func([]Record) (kept int, why string) // nil: it keeps all
	words *api.Decisions                        // of the daemon that runs now
	mute  bool                                  // the daemon has been killed, and is about to be started anew

	answers map[uint64]Answer
	reports map[uint64][]Report
	events  []Event
}

// app is an application that pretends.
type app struct {
	h       *host
	session int                 // odd: attached; what is said in one is not heard in the next
	live    map[netip.Addr]bool // it may send for these
	frozen  map[netip.Addr]bool // it has these, silent
	bound   map[netip.Addr]bool
	lastID  uint64
	moving  map[uint64]move
	words   *api.Decisions // as long as it is attached
	coming  map[uint64]coming
	missed  []api.Missed
	ended   map[netip.Addr]string // how the last handoff of a client has ended; "" is well
	left    map[netip.Addr]departure
	late    int      // packets that came in handoffs
	refuses string   // why it takes no clients
	fails   string   // why it cannot rebuild their connections
	flaky   bool     // it cannot now and then
	hangs   api.Kind // at a message of this kind, and then at all
	unread  []*api.Message
	config  *api.SessionConfig
}

// coming is a client that is expected; once offered it has the connections.
type coming struct {
	api.Missed
	careOf  netip.Addr // of the donor
	offered bool
	word    int
	fails   string
}

type move struct {
	client  netip.Addr
	to      string
	asked   uint64
	handoff uint64 // as the nodes call it
	given   bool
}

// departure is a client's to another node, where for a time is sent what still comes.
type departure struct {
	to    string
	until time.Duration
}

const forwardTime = time.Minute // package ds: grace

type testClient struct {
	addr netip.Addr
	c    *correspondent.Correspondent // nil: it does not speak Mobile IPv6
}

type event struct {
	at  time.Duration
	seq uint64
	do  func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].seq < e[j].seq
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	old := *e
	x := old[len(old)-1]
	*e = old[:len(old)-1]
	return x
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{
		t: t, rand: rand.New(rand.NewPCG(seed, 0)), now: time.Second,
		members: make(map[string]*host), clients: make(map[netip.Addr]*testClient), up: make(map[[2]string]int), twice: make(map[[2]string]*again),
		mayEnd: make(map[netip.Addr]bool), forgotten: make(map[netip.Addr]bool),
	}
	var err error
	w.agent, err = homeagent.New(homeagent.Config{
		Addr: agentAddr, Prefixes: []homeagent.Prefix{{Prefix: home.Masked()}},
		Keys:  map[netip.Addr]homeagent.Credential{home.Addr(): {SPI: 256, Key: secret}},
		Epoch: epoch, Rand: random{w.rand}, RefreshAdvice: 12 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		h := &host{w: w, name: n, saved: Contact{Name: "a"}, answers: make(map[uint64]Answer), reports: make(map[uint64][]Report)}
		w.members[n] = h
		h.boot()
	}
	for i, a := range names {
		for _, b := range names[i+1:] {
			w.connect(a, b)
		}
	}
	return w
}

func (h *host) boot() {
	var err error
	h.words = api.NewDecisions()
	h.m, err = New(Config{
		Name: h.name, Home: home, HomeAgent: agentAddr, SPI: 256, Key: secret, Nodes: nodes(), Contact: h.saved, Records: h.kept, Words: h.words,
		Epoch: epoch, Rand: random{h.w.rand},
	})
	if err != nil {
		h.w.t.Fatal(err)
	}
	h.mute = false
	h.relay, h.all = nil, slices.Clone(h.kept)
	h.step(Start{})
	if h.app == nil {
		h.step(AppGone{Lost: true})
	}
}

// attach starts an application, or lets it come back.
func (h *host) attach() {
	a := h.app
	if a == nil {
		a = &app{
			h: h, live: make(map[netip.Addr]bool), frozen: make(map[netip.Addr]bool), bound: make(map[netip.Addr]bool),
			moving: make(map[uint64]move), coming: make(map[uint64]coming), ended: make(map[netip.Addr]string),
			left: make(map[netip.Addr]departure),
		}
		h.app = a
	}
	hello := &api.Message{Kind: api.Hello, Program: "test", AcceptsHandoffs: true, HasTUN: a.session > 0, Doubts: a.doubts(), TakesAway: true, TellsMissed: true, Missed: slices.Clone(a.missed)}
	if a.session%2 == 0 {
		a.session++
	}
	a.words = h.words
	for c := range a.live {
		hello.Resume = append(hello.Resume, c)
	}
	slices.SortFunc(hello.Resume, netip.Addr.Compare)
	h.step(App{hello})
}

func (w *world) after(d time.Duration, do func()) {
	w.seq++
	heap.Push(&w.todo, event{w.now + d, w.seq, do})
}

// delay is how long a message takes.
func (w *world) delay() time.Duration {
	return time.Duration(100+w.rand.IntN(400)) * time.Microsecond
}

// run lets time pass.
func (w *world) run(d time.Duration) {
	end := w.now + d
	for same, was := 0, w.now; ; same++ {
		if w.now != was {
			same, was = 0, w.now
		}
		if same > 10000 {
			w.fail("time stands still")
		}
		at, do := end, func() {}
		if len(w.todo) > 0 && w.todo[0].at <= at {
			at = w.todo[0].at
			do = func() { heap.Pop(&w.todo).(event).do() }
		}
		for _, n := range names {
			if next, ok := w.members[n].m.NextDeadline(); ok && max(next, w.now) < at {
				at, do = max(next, w.now), func() { w.members[n].step(Tick{}) }
			}
		}
		if next, ok := w.agent.NextDeadline(); ok && max(next, w.now) < at {
			at, do = max(next, w.now), func() { w.stepAgent(homeagent.Tick{}) }
		}
		w.now = max(w.now, at)
		do()
		if at >= end {
			return
		}
	}
}

func (w *world) logf(format string, args ...any) {
	if w.quiet {
		return
	}
	w.log = append(w.log, fmt.Sprintf("%12v ", w.now)+fmt.Sprintf(format, args...))
}

func pair(a, b string) [2]string {
	if a > b {
		a, b = b, a
	}
	return [2]string{a, b}
}

func (w *world) connect(a, b string) {
	w.up[pair(a, b)]++
	w.members[a].step(PeerUp{b})
	w.members[b].step(PeerUp{a})
}

// disconnect breaks a connection for a time. Each side finds out in its own time.
func (w *world) disconnect(a, b string, d time.Duration) {
	p := pair(a, b)
	if w.up[p]%2 == 0 {
		return
	}
	w.logf("%s and %s are disconnected", a, b)
	w.up[p]++
	w.after(w.delay(), func() { w.members[a].step(PeerDown{b}) })
	w.after(w.delay(), func() { w.members[b].step(PeerDown{a}) })
	w.after(time.Millisecond+d, func() { w.connect(a, b) })
}

// again is a message that comes the second time, while the connection of that number lasts.
type again struct {
	connection int
	message    []byte
}

// again has come what there is to come the second time.
func (w *world) again(way [2]string) {
	it := w.twice[way]
	delete(w.twice, way)
	if it == nil || w.up[pair(way[0], way[1])] != it.connection {
		return
	}
	msg, err := Parse(it.message)
	if err != nil {
		w.t.Fatal(err)
	}
	w.members[way[1]].step(Peer{way[0], msg})
}

func (h *host) step(in Input) {
	w := h.w
	if p, ok := in.(Peer); ok {
		w.logf("%s ◄ %s: %s %d %s %s", h.name, p.From, p.Message.Kind, p.Message.ID, p.Message.Client, p.Message.Error)
	}
	out := h.m.Step(w.now, in)
	switch in := in.(type) { // which are the driver's again
	case App:
		*in.Message = api.Message{}
	case Peer:
		*in.Message = Message{}
	}
	if out.Save != nil {
		h.saved = *out.Save
	}
	kept := h.keep(out.Record)
	if h.mute {
		return
	}
	for _, p := range out.Send {
		w.route(p)
	}
	if out.NewRelay {
		a := addrs[h.name]
		var err error
		if h.relay, err = relay.New(relay.Config{Home: home.Addr(), CareOf: a.Daemon, HomeAgent: agentAddr}); err != nil {
			w.t.Fatal(err)
		}
	}
	if h.relay != nil {
		for _, in := range out.Relay {
			h.relay.Step(w.now, in)
		}
	}
	for _, m := range out.App {
		m, app, session := *m, h.app, h.app.session
		w.after(sessionDelay, func() {
			if h.app == app && app.session == session {
				h.app.receive(&m)
			}
		})
	}
	for _, p := range out.Peers {
		n := w.up[pair(h.name, p.To)]
		b, err := p.Message.Append(nil)
		if err != nil {
			w.t.Fatal(err)
		}
		w.after(500*time.Microsecond, func() { // in order
			if n%2 == 1 && w.up[pair(h.name, p.To)] == n {
				msg, err := Parse(b)
				if err != nil {
					w.t.Fatal(err)
				}
				way := [2]string{h.name, p.To}
				w.again(way)
				w.members[p.To].step(Peer{h.name, msg})
				if w.doubled {
					w.twice[way] = &again{n, b}
					it := w.twice[way]
					w.after(time.Duration(w.rand.IntN(int(time.Millisecond))), func() {
						if w.twice[way] == it {
							w.again(way)
						}
					})
				}
			}
		})
	}
	h.m.Recycle(out)
	h.events = append(h.events, slices.Clone(out.Events)...)
	for _, e := range out.Events {
		w.logf("%s: %s %s %s %s", h.name, e.Kind, e.Client, e.Node, e.Detail)
		if !w.lax && e.Kind == api.EventFault && strings.Contains(e.Detail, "claims") {
			w.fail("%s: %+v", h.name, e)
		}
	}
	for _, a := range out.Answers {
		h.answers[a.ID] = a
	}
	for _, r := range out.Reports {
		h.reports[r.ID] = append(h.reports[r.ID], r)
	}
	if kept != nil {
		h.step(*kept)
	}
}

// keep is what becomes of records, nil if there are none: those that the disk does not
// take are written with the next that it does.
func (h *host) keep(recs []Record) *Recorded {
	if len(recs) == 0 {
		return nil
	}
	h.all = append(h.all, recs...)
	n, why := len(recs), ""
	if h.disk != nil {
		n, why = h.disk(recs)
	}
	if h.kept = append(h.kept, recs[:n]...); why == "" && len(h.kept) < len(h.all) {
		h.kept = slices.Clone(h.all)
	}
	return &Recorded{Why: why}
}

// route brings a packet to where it goes.
func (w *world) route(b []byte) {
	b = slices.Clone(b)
	if w.lossy && w.rand.IntN(20) == 0 {
		return
	}
	w.after(w.delay(), func() { w.arrive(b) })
}

func (w *world) arrive(b []byte) {
	to := dst(b)
	tunnel := wire.Protocol(b[nextHeader]) == wire.IPv6
	if to == agentAddr || to == home.Addr() {
		w.stepAgent(homeagent.Received{Packet: b})
		return
	}
	if c := w.clients[to]; c != nil {
		if c.c == nil {
			return
		}
		for _, p := range c.c.Step(w.now, correspondent.Received{Packet: b}).Send {
			w.route(p)
		}
		return
	}
	for n, a := range addrs {
		h := w.members[n]
		switch {
		case to == a.CareOf && !tunnel:
			h.step(Received{b})
		case to == a.Daemon && tunnel && h.relay != nil:
			out := h.relay.Step(w.now, relay.Received{Packet: b})
			for _, p := range out.Send {
				w.route(p)
			}
			for _, p := range out.Local {
				h.step(Received{slices.Clone(p)})
			}
		case to == a.Daemon:
			h.step(Received{b})
		}
	}
}

func (w *world) stepAgent(in homeagent.Input) {
	for _, p := range w.agent.Step(w.now, in).Send {
		w.route(p)
	}
}

// addClient adds a client, which connects to a node.
func (w *world) addClient(i int, mobile bool, at string) netip.Addr {
	c := &testClient{addr: clientAddr(i)}
	if mobile {
		var err error
		c.c, err = correspondent.New(correspondent.Config{Local: func(a netip.Addr) bool { return a == c.addr }, Rand: random{w.rand}})
		if err != nil {
			w.t.Fatal(err)
		}
	}
	w.clients[c.addr] = c
	h := w.members[at]
	h.app.live[c.addr] = true
	h.step(App{&api.Message{Kind: api.Owned, Client: c.addr, Connections: 1}})
	return c.addr
}

func (a *app) send(m *api.Message) {
	h, member, session := a.h, a.h.m, a.session
	h.w.after(sessionDelay, func() {
		if h.app == a && h.m == member && a.session == session {
			h.step(App{m})
		}
	})
}

// handOff begins a handoff.
func (a *app) handOff(client netip.Addr, to string, asked uint64) {
	a.lastID++
	a.moving[a.lastID] = move{client: client, to: to, asked: asked}
	delete(a.ended, client)
	a.send(&api.Message{Kind: api.Prepare, ID: a.lastID, Client: client, To: to})
}

func (a *app) end(id uint64, client netip.Addr, why string) {
	mv := a.moving[id]
	delete(a.moving, id)
	a.ended[client] = why
	if a.h.w.ended != nil {
		a.h.w.ended(why)
	}
	a.h.w.logf("%s's application: handoff %d of %s to %s ends %q", a.h.name, id, client, mv.to, why)
	if mv.asked != 0 {
		a.send(&api.Message{Kind: api.Answered, ID: mv.asked, Error: why})
	}
}

// receive takes a message of the member.
func (a *app) receive(m *api.Message) {
	w := a.h.w
	if m.Kind == a.hangs || len(a.unread) > 0 {
		a.unread = append(a.unread, m)
		return
	}
	switch mv := a.moving[m.ID]; m.Kind {
	case api.Welcome, api.ConfigChanged:
		a.config = m.Config
		for _, away := range m.Config.Away {
			a.left[away.Client] = departure{a.h.m.other[away.CareOf], w.now + forwardTime}
		}
	case api.Nobodys:
		delete(a.left, m.Client)
	case api.Bound:
		a.bound[m.Client] = true
	case api.Unbound:
		delete(a.bound, m.Client)
	case api.Asked:
		a.handOff(m.Client, m.To, m.ID)
	case api.Prepared:
		if m.Error != "" {
			a.end(m.ID, mv.client, m.Error)
			return
		}
		mv.handoff = m.Handoff
		a.moving[m.ID] = mv
		mv.given = true
		a.moving[m.ID] = mv
		delete(a.live, mv.client)
		a.frozen[mv.client] = true
		a.send(&api.Message{Kind: api.Transfer, ID: m.ID, Client: mv.client, Snapshot: []byte("connections of " + mv.client.String())})
		a.send(&api.Message{Kind: api.Late, ID: m.ID, Client: mv.client, Packets: [][]byte{[]byte("packet of " + mv.client.String())}})
		if w.rand.IntN(20) == 0 {
			w.after(w.delay(), func() { a.send(&api.Message{Kind: api.Abort, ID: m.ID}) })
		}
	case api.Late:
		if !w.lax && string(m.Packets[0]) != "packet of "+m.Client.String() {
			w.fail("%s gets %q for %s", a.h.name, m.Packets, m.Client)
		}
		a.late++
	case api.Done:
		a.done(m)
	case api.Expect:
		for _, id := range slices.Sorted(maps.Keys(a.moving)) {
			if mv := a.moving[id]; mv.client == m.Client && mv.given {
				a.done(&api.Message{Kind: api.Done, ID: id}) // who hands it off had it
			}
		}
		if a.refuses == "" {
			a.coming[m.ID] = coming{Missed: api.Missed{Client: m.Client, From: m.From}, careOf: m.CareOf}
		}
		a.send(&api.Message{Kind: api.Expected, ID: m.ID, Error: a.refuses})
	case api.Offer:
		o, expected := a.coming[m.ID]
		if !expected || o.Client != m.Client || !w.lax && string(m.Snapshot) != "connections of "+m.Client.String() {
			w.fail("%s is offered %q for %s", a.h.name, m.Snapshot, m.Client)
		}
		o.offered, o.word, o.fails = true, m.Word, a.fails
		if a.flaky && w.rand.IntN(30) == 0 {
			o.fails = "bad luck"
		}
		a.coming[m.ID] = o
	case api.Activate:
		o := a.coming[m.ID]
		if o.Client != m.Client || !o.offered {
			w.fail("%s is to activate %s, which it has not", a.h.name, m.Client)
		}
		if o.fails == "" && !a.words.Take(o.word, m.ID) {
			o.fails = "overruled"
		}
		if o.fails != "" {
			a.miss(m.ID)
			a.send(&api.Message{Kind: api.Activated, ID: m.ID, Error: o.fails})
			return
		}
		a.missed = slices.DeleteFunc(a.missed, func(m api.Missed) bool { return m == o.Missed })
		delete(a.coming, m.ID)
		delete(a.left, m.Client)
		if m.Optimised {
			a.bound[m.Client] = true
		}
		a.live[m.Client] = true
		w.oneOwner()
		a.send(&api.Message{Kind: api.Activated, ID: m.ID})
	case api.Forget:
		a.miss(m.ID)
	}
}

// goOn ends a hang.
func (a *app) goOn() {
	unread := a.unread
	a.hangs, a.unread = 0, nil
	for _, m := range unread {
		a.receive(m)
	}
}

// done is the end of a handoff, which it may know already.
func (a *app) done(m *api.Message) {
	if mv, waiting := a.moving[m.ID]; waiting {
		if m.Error != "" {
			a.thaw(mv.client)
		} else {
			delete(a.frozen, mv.client)
			delete(a.bound, mv.client)
			a.left[mv.client] = departure{mv.to, a.h.w.now + forwardTime}
		}
		a.end(m.ID, mv.client, m.Error)
	}
	if m.Error == "" {
		a.send(&api.Message{Kind: api.Settled, ID: m.ID})
	}
}

// miss is that a client does not come. What it sends all the same, once it may have heard
// of this node, is sent on.
func (a *app) miss(id uint64) {
	if o, expected := a.coming[id]; expected {
		a.missed = append(a.missed, o.Missed)
		delete(a.coming, id)
		if o.offered {
			a.left[o.Client] = departure{a.h.m.other[o.careOf], a.h.w.now + forwardTime}
		}
	}
}

func (a *app) thaw(client netip.Addr) {
	delete(a.frozen, client)
	a.live[client] = true
	a.h.w.oneOwner()
}

// oneOwner is what must always be true: at most one application may send for a
// client.
func (w *world) oneOwner() {
	for addr := range w.clients {
		var owners []string
		for _, n := range names {
			if a := w.members[n].app; a != nil && a.live[addr] {
				owners = append(owners, n)
			}
		}
		if len(owners) > 1 && !w.lax {
			w.fail("%s has the owners %v", addr, owners)
		}
	}
}

// owner is the one application that may send for a client.
func (w *world) owner(addr netip.Addr) string {
	for _, n := range names {
		if a := w.members[n].app; a != nil && a.live[addr] {
			return n
		}
	}
	return ""
}

func (w *world) fail(format string, args ...any) {
	w.t.Helper()
	for _, l := range w.log {
		w.t.Log(l)
	}
	if w.replay != "" {
		w.t.Logf("to see it again, with what happened before: %s", w.replay)
	}
	w.t.Fatalf(format, args...)
}

// settled is what must be true when all is quiet: every client is served by one
// node, everybody who ought to know knows it, and clients that can send
// directly do.
func (w *world) settled() {
	w.t.Helper()
	w.oneOwner()
	contact := ""
	for _, n := range names {
		m := w.members[n].m
		if c, registered := m.Contact(); registered {
			if contact != "" || c.Name != n {
				w.fail("%s is registered as well as %s, and believes in %s", n, contact, c.Name)
			}
			contact = n
		}
	}
	if contact == "" {
		w.fail("nobody is the contact")
	}
	if to, want := w.agentSendsTo(), addrs[contact].Daemon; to != want {
		w.fail("the home agent sends to %s; the contact %s is %s", to, contact, want)
	}
	for addr, c := range w.clients {
		owner := w.owner(addr)
		if owner == "" {
			w.fail("nobody serves %s", addr)
		}
		if name, _ := w.members[contact].m.Owner(addr); name != owner {
			w.fail("the contact %s thinks that %s owns %s; it is %s", contact, name, addr, owner)
		}
		for _, n := range names {
			if _, owns := w.members[n].m.Client(addr); owns != (n == owner) {
				w.fail("member %s owns %s: %v; the application that does is %s's", n, addr, owns, owner)
			}
		}
		app := w.members[owner].app
		if want := c.c != nil; app.bound[addr] != want {
			w.fail("%s sends to %s directly: %v; want %v", owner, addr, app.bound[addr], want)
		}
		if c.c != nil {
			careOf, ok := c.c.Lookup(addr, home.Addr())
			if !ok || careOf != addrs[owner].CareOf {
				w.fail("%s sends to %s; its owner is %s", addr, careOf, owner)
			}
		}
		if via := app.config.Via; via != addrs[contact].Daemon {
			w.fail("%s tunnels to %s; the contact is %s", owner, via, contact)
		}
	}
}

// agentSendsTo is where the home agent tunnels what comes for the home address.
func (w *world) agentSendsTo() netip.Addr {
	w.t.Helper()
	p := append([]byte{0x60, 0, 0, 0, 0, 0, 59, 64}, clientAddr(99).AsSlice()...) // no next header
	p = append(p, home.Addr().AsSlice()...)
	out := w.agent.Step(w.now, homeagent.Received{Packet: p})
	if len(out.Send) != 1 {
		w.fail("the home agent sends %d packets in place of one that comes for the home address", len(out.Send))
	}
	return dst(out.Send[0])
}

func gone(client netip.Addr) *api.Message { return &api.Message{Kind: api.Gone, Client: client} }

// sessionDelay is always the same: the messages of a session come in order.
const sessionDelay = 50 * time.Microsecond
