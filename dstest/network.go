package dstest

import (
	"crypto/rand"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/distributed-servers/ds/daemon/filter"
	"github.com/distributed-servers/ds/daemon/member"
	"github.com/distributed-servers/ds/internal/lab"
	"github.com/distributed-servers/ds/mobility/homeagent"
	"github.com/distributed-servers/ds/mobility/relay"
	"github.com/distributed-servers/ds/mobility/wire"
)

// tunnels is by how much packets may be longer inside: two IPv6 headers.
const tunnels = 2 * wire.TunnelLen

// epoch is the wall-clock time of the daemons' time 0.
var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// agent is the home agent.
type agent struct {
	cluster *Cluster
	port    *lab.Port

	mu      sync.Mutex
	machine *homeagent.HomeAgent
	timer   *time.Timer
}

func newAgent(c *Cluster) *agent {
	a := &agent{cluster: c, port: c.net.Attach("home agent", mtu+tunnels)}
	var err error
	a.machine, err = homeagent.New(homeagent.Config{
		Addr: homeAgent, Prefixes: []homeagent.Prefix{{Prefix: netip.PrefixFrom(Server, 64).Masked()}},
		Keys:  map[netip.Addr]homeagent.Credential{Server: {SPI: spi, Key: key}},
		Epoch: epoch, Rand: rand.Reader, Window: 1000 * time.Hour, // nobody replays anything
	})
	if err != nil {
		panic("dstest: " + err.Error())
	}
	a.timer = time.AfterFunc(time.Hour, func() { a.step(homeagent.Tick{}) })
	a.port.Handle(func(p []byte) { a.step(homeagent.Received{Packet: p}) })
	c.net.Route(netip.PrefixFrom(Server, 64), a.port)
	return a
}

func (a *agent) step(in homeagent.Input) {
	a.mu.Lock()
	now := a.cluster.now()
	send := copies(a.machine.Step(now, in).Send)
	if at, ok := a.machine.NextDeadline(); ok {
		a.timer.Reset(max(0, at-now) / speed)
	}
	a.mu.Unlock()
	for _, p := range send {
		a.port.Write(p)
	}
}

func (a *agent) stop() { a.timer.Stop() }

// copies are packets that outlive the machine's next step.
func copies(packets [][]byte) [][]byte {
	out := make([][]byte, len(packets))
	for i, p := range packets {
		out[i] = slices.Clone(p)
	}
	return out
}

// fromTunnel takes what comes to the daemon's address.
func (d *daemon) fromTunnel(b []byte) {
	p := d.running.Load()
	if p == nil || len(b) < wire.HeaderLen {
		return
	}
	if wire.Protocol(b[6]) != wire.IPv6 {
		p.put(item{in: member.Received{Packet: slices.Clone(b)}})
		return
	}
	p.relaying.Lock()
	if p.relay == nil {
		p.relaying.Unlock()
		if isSignalling(b[wire.HeaderLen:]) {
			p.put(item{in: member.Received{Packet: slices.Clone(b)}})
		}
		return
	}
	out := p.relay.Step(d.cluster.now(), relay.Received{Packet: slices.Clone(b)})
	send, local := copies(out.Send), copies(out.Local)
	p.relaying.Unlock()
	for _, b := range send {
		d.port.Write(b)
	}
	for _, b := range local {
		p.keep(b)
	}
}

// keep takes what the relay leaves to this node: signalling, and packets of clients
// of whom nothing is known.
func (p *process) keep(b []byte) {
	inner := b[wire.HeaderLen:]
	if isSignalling(inner) {
		p.put(item{in: member.Received{Packet: b}})
		return
	}
	p.mu.Lock()
	to, ok := p.member.Unknown(p.daemon.cluster.now(), inner)
	p.mu.Unlock()
	if !ok {
		return
	}
	from, dst := p.daemon.self.Daemon.As16(), to.As16()
	copy(b[8:24], from[:])
	copy(b[24:40], dst[:])
	p.daemon.port.Write(b)
}

// isSignalling tells whether a packet is for the machines: what a daemon's packet
// filter takes.
func isSignalling(b []byte) bool {
	if len(b) < wire.HeaderLen {
		return false
	}
	switch wire.Protocol(b[6]) {
	case wire.TCP, wire.UDP, wire.IPv6:
		return false
	}
	return filter.Classify(filter.Node, b) == filter.Take
}

// closeTUN is that nobody has it any more.
func (d *daemon) closeTUN() {
	d.tun = d.cluster.net.Restart(d.tun)
	d.tun.Handle(func([]byte) {})
}

// openTUN gives an application the link of the node's care-of address. What a daemon
// filters comes to the daemon.
func (d *daemon) openTUN() *lab.Port {
	d.tun = d.cluster.net.Restart(d.tun)
	port := d.tun
	port.Handle(func(b []byte) {
		if !isSignalling(b) {
			port.Deliver(b)
		} else if p := d.running.Load(); p != nil {
			p.put(item{in: member.Received{Packet: slices.Clone(b)}})
		}
	})
	return port
}
