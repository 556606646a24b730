package dstest

import (
	"crypto/rand"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/daemon/member"
	"github.com/distributed-servers/ds/daemon/server"
	"github.com/distributed-servers/ds/internal/lab"
	"github.com/distributed-servers/ds/mobility/relay"
)

// daemon is one node's: what there is of it whether it runs or not.
type daemon struct {
	cluster *Cluster
	name    string
	addrs   map[string]member.Addrs // of all
	self    member.Addrs
	port    *lab.Port // of the daemon's own address

	running atomic.Pointer[process] // the same as process

	// Under Cluster.mu.
	process *process     // nil: it is down
	app     *application // the one that lives, attached or not
	tun     *lab.Port    // where what is sent to the care-of address goes

	// What is kept across restarts. Under process.mu of the one that runs.
	contact member.Contact
	records []member.Record
}

// process is a daemon that runs, around the machine that every daemon has. Its
// inputs are taken one after another, at the time at which they came: who answers
// at once has done so, however long the daemon takes to look at it.
type process struct {
	daemon *daemon
	timer  *time.Timer
	ended  chan struct{}
	dead   atomic.Bool
	events server.Events

	mu     sync.Mutex // of the machine
	member *member.Member

	relaying sync.Mutex
	relay    *relay.Relay // nil: it has never been the contact

	queue sync.Mutex
	more  sync.Cond
	todo  []item

	// Of the goroutine that takes the inputs.
	session *session
	words   *words            // of that session, and in the step in which it has ended
	joined  map[string]uint64 // the number of the connection to each, 0: none
}

// words are a member's.
type words struct{ *api.Decisions }

// item is an input with where it comes from.
type item struct {
	at      time.Duration
	in      member.Input
	session *session // of App and AppGone
	hello   bool     // the session begins
	frame   []byte   // of a message of another daemon, in place of in
	from    string   // of that one, and of PeerUp and PeerDown
	number  uint64   // of the connection that it came by
}

func newDaemon(c *Cluster, name, contact string, addrs map[string]member.Addrs) *daemon {
	d := &daemon{cluster: c, name: name, addrs: addrs, self: addrs[name], contact: member.Contact{Name: contact}}
	d.port = c.net.Attach("daemon "+name, mtu+tunnels)
	d.port.Handle(d.fromTunnel)
	c.net.Route(netip.PrefixFrom(d.self.Daemon, 128), d.port)
	d.tun = c.net.Attach(name, mtu+tunnels)
	d.tun.Handle(func([]byte) {}) // nobody has it
	c.net.Route(netip.PrefixFrom(d.self.CareOf, 128), d.tun)
	return d
}

// bootLocked starts a daemon.
func (c *Cluster) bootLocked(d *daemon) {
	if c.closed {
		return
	}
	words := new(words)
	m, err := member.New(member.Config{
		Name: d.name, Home: netip.PrefixFrom(Server, 64), HomeAgent: homeAgent, SPI: spi, Key: key,
		Nodes: d.addrs, Contact: d.contact, Records: d.records, Words: words, Epoch: epoch, Rand: rand.Reader,
		Session:     api.SessionConfig{MTU: mtu, Queues: 1, TUN: "tun-" + d.name},
		IdleTimeout: speed * time.Minute, StartGrace: speed * time.Second, PrepareTimeout: speed * 10 * time.Second,
		HandoffTimeout: speed * 30 * time.Second, TakeoverTimeout: speed * 10 * time.Second, HandshakeGrace: speed * time.Minute,
		ReportTime: speed * 5 * time.Second, AwayTime: speed * time.Minute, PassTime: speed * time.Second,
	})
	if err != nil {
		panic(fmt.Sprintf("dstest: %s: %v", d.name, err)) // two nodes of one name, or none
	}
	p := &process{daemon: d, member: m, words: words, ended: make(chan struct{}), events: server.Events{Size: 1024}, joined: make(map[string]uint64)}
	p.more.L = &p.queue
	p.timer = time.AfterFunc(time.Hour, func() { p.put(item{in: member.Tick{}}) })
	d.process = p
	d.running.Store(p)
	p.events.Publish(api.Event{Kind: api.EventStarted})
	p.put(item{in: member.Start{}})
	if d.app == nil {
		p.put(item{in: member.AppGone{Lost: true}})
	}
	for name := range c.daemons {
		c.joinLocked(d.name, name)
	}
	go p.run()
}

// killLocked ends a daemon at whatever it is doing.
func (c *Cluster) killLocked(d *daemon) {
	p := d.process
	if p == nil {
		return
	}
	d.process = nil
	d.running.Store(nil)
	p.mu.Lock() // what it has recorded it has
	p.dead.Store(true)
	p.mu.Unlock()
	p.timer.Stop()
	p.queue.Lock()
	p.todo = nil
	p.more.Signal()
	p.queue.Unlock()
	for name := range c.daemons {
		c.breakLocked(d.name, name)
	}
	if d.app != nil && d.app.session != nil {
		d.app.session.end()
		d.app.session = nil
	}
}

func (c *Cluster) restartLocked(d *daemon) {
	c.killLocked(d)
	c.bootLocked(d)
}

// put gives it something to do.
func (p *process) put(i item) {
	i.at = p.daemon.cluster.now()
	p.queue.Lock()
	defer p.queue.Unlock()
	if !p.dead.Load() {
		p.todo = append(p.todo, i)
		p.more.Signal()
	}
}

func (p *process) take() (i item, ok bool) {
	p.queue.Lock()
	defer p.queue.Unlock()
	for len(p.todo) == 0 && !p.dead.Load() {
		p.more.Wait()
	}
	if p.dead.Load() {
		return item{}, false
	}
	i = p.todo[0]
	p.todo[0] = item{}
	p.todo = p.todo[1:]
	return i, true
}

// run takes one input after another.
func (p *process) run() {
	defer close(p.ended)
	for {
		i, ok := p.take()
		if !ok {
			return
		}
		if p.admit(&i) {
			p.step(&i)
		}
	}
}

// admit tells whether an input is not from a time that is over.
func (p *process) admit(i *item) bool {
	switch in := i.in.(type) {
	case nil:
		m, err := member.Parse(i.frame)
		if err != nil {
			panic(fmt.Sprintf("dstest: of %s: %v", i.from, err))
		}
		i.in = member.Peer{From: i.from, Message: m}
		return p.joined[i.from] == i.number
	case member.PeerUp:
		p.joined[in.Name] = i.number
	case member.PeerDown:
		if p.joined[in.Name] != i.number {
			return false
		}
		p.joined[in.Name] = 0
	case member.App:
		if i.hello {
			p.session, p.words.Decisions = i.session, i.session.decisions
		}
		return p.session == i.session
	case member.AppGone:
		if p.session != i.session {
			return false
		}
		p.session = nil
	}
	return true
}

// step gives the machine an input and does what it says, in the order that it asks
// for.
func (p *process) step(i *item) {
	d, c := p.daemon, p.daemon.cluster
	p.mu.Lock()
	if p.dead.Load() {
		p.mu.Unlock()
		return
	}
	out := p.member.Step(i.at, i.in)
	if out.Save != nil {
		d.contact = *out.Save
	}
	d.records = append(d.records, out.Record...)
	at, due := p.member.NextDeadline()
	p.mu.Unlock()
	for _, b := range out.Send {
		d.port.Write(b)
	}
	p.tellRelay(&out)
	for _, m := range out.App {
		if p.session != nil {
			p.session.push(m)
		}
	}
	for _, m := range out.Peers {
		if !p.toPeer(m) {
			return // it has ended
		}
	}
	for _, e := range out.Events {
		p.events.Publish(api.Event{Kind: e.Kind, Server: Server, Client: e.Client, Node: e.Node, Epoch: e.Epoch, Detail: e.Detail})
	}
	for _, a := range out.Answers {
		c.answered(a)
	}
	if due && !p.dead.Load() {
		p.timer.Reset(max(0, at-c.now()) / speed)
	}
	c.happened()
	if len(out.Record) > 0 {
		p.step(&item{at: i.at, in: member.Recorded{}})
	}
}

func (p *process) tellRelay(out *member.Output) {
	p.relaying.Lock()
	defer p.relaying.Unlock()
	if out.NewRelay {
		var err error
		if p.relay, err = relay.New(relay.Config{Home: Server, CareOf: p.daemon.self.Daemon, HomeAgent: homeAgent}); err != nil {
			panic("dstest: relay: " + err.Error())
		}
	}
	for _, in := range out.Relay {
		p.relay.Step(p.daemon.cluster.now(), in)
	}
}

// ask looks at the machine, if the daemon runs.
func (d *daemon) ask(f func(*member.Member)) {
	if p := d.running.Load(); p != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		f(p.member)
	}
}

func (d *daemon) serves(client netip.Addr) (does bool) {
	d.ask(func(m *member.Member) {
		cl, ok := m.Client(client)
		does = ok && cl.Connections > 0
	})
	return does
}

func (d *daemon) bound(client netip.Addr) (is bool) {
	d.ask(func(m *member.Member) {
		cl, _ := m.Client(client)
		is = cl.Bound
	})
	return is
}

func (d *daemon) registered() (is bool) {
	d.ask(func(m *member.Member) { _, is = m.Contact() })
	return is
}

func (d *daemon) unsettled() (n int) {
	d.ask(func(m *member.Member) { n = m.Unsettled() })
	return n
}
