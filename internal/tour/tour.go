// Package tour shows a distributed server with Mobile IPv6 at work: two
// clients, one that speaks it and one that does not, are handed from node to
// node while they download and upload. All of it is simulated (package
// cluster), so it repeats exactly, needs no privilege and takes a second.
package tour

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/distributed-servers/ds/internal/cluster"
	"github.com/distributed-servers/ds/internal/lab"
	"github.com/distributed-servers/ds/internal/ladder"
	"github.com/distributed-servers/ds/mobility/node"
	"github.com/distributed-servers/ds/mobility/wire"
)

// Options say what to show. The zero value is the default.
type Options struct {
	Seed   uint64        // of everything that is random
	OneWay time.Duration // delay from client to server; default 20 ms

	// Packet, if not nil, is given every packet that a host sends or gets.
	Packet func(host string, at time.Time, packet []byte) error
}

// The gaps of the 2009 system and of the one before it (its report, figure 4).
const (
	Report2009 = 620.0 // ms, on a LAN
	Before2009 = 18.4  // ms
)

// pace is how often the service sends to a client that watches: no silence is
// shorter.
const pace = time.Millisecond

// Result is what was seen.
type Result struct {
	Seed     uint64    `json:"seed"`
	Handoffs []Handoff `json:"handoffs"`
	Bytes    int64     `json:"bytes"` // both ways
	Wrong    int64     `json:"bytes_wrong"`
	Resets   int       `json:"resets"`
	Problems []string  `json:"problems,omitempty"` // such as a node that sends what is not its own

	Delays []Delay `json:"delays"`

	// What others have reached, in milliseconds.
	Report2009 float64 `json:"gap_2009_ms"`
	Before2009 float64 `json:"gap_before_2009_ms"`

	Simulated float64 `json:"simulated_s"`
	Packets   int     `json:"packets"`
	Trace     string  `json:"trace"` // equal for equal runs

	// Ladder is the first handoff, packet by packet.
	Ladder ladder.Diagram `json:"-"`
}

// Handoff is one of a client from node to node.
type Handoff struct {
	Client   string  `json:"client"`
	From     string  `json:"from"`
	To       string  `json:"to"`
	Redirect string  `json:"redirect"` // "route-optimised" or "relayed"
	Bytes    int     `json:"snapshot"`
	Frozen   float64 `json:"frozen_ms"` // from freeze to activation
	Gap      float64 `json:"gap_ms"`    // the client's longest silence around it
}

// Delay is what a handoff costs at a one-way delay between client and servers.
// Times are in milliseconds.
type Delay struct {
	OneWay float64 `json:"one_way_ms"`

	// The client's longest silence, and the time from freeze to the first
	// octets that came directly from the new owner: with all tokens fetched
	// beforehand, with none.
	Gap        float64 `json:"gap_prepared_ms"`
	Direct     float64 `json:"direct_prepared_ms"`
	GapRR      float64 `json:"gap_unprepared_ms"`
	DirectRR   float64 `json:"direct_unprepared_ms"`
	ExchangeRR float64 `json:"exchange_ms"` // what RFC 6275's messages take: one way five times, with two detours
}

// Err is an error unless everything went as it should.
func (r *Result) Err() error {
	switch {
	case r.Wrong != 0:
		return fmt.Errorf("tour: %d octets are wrong", r.Wrong)
	case r.Resets != 0:
		return fmt.Errorf("tour: %d resets", r.Resets)
	case len(r.Problems) > 0:
		return fmt.Errorf("tour: %s", r.Problems[0])
	}
	return nil
}

// Run makes the tour.
func Run(ctx context.Context, o Options) (*Result, error) {
	if o.OneWay == 0 {
		o.OneWay = 20 * time.Millisecond
	}
	if o.OneWay < time.Millisecond || o.OneWay > time.Second {
		return nil, fmt.Errorf("tour: one-way delay %v: want 1 ms to 1 s", o.OneWay)
	}
	res := &Result{Seed: o.Seed, Report2009: Report2009, Before2009: Before2009}
	if err := res.clients(o); err != nil {
		return nil, err
	}
	for _, d := range []time.Duration{5 * time.Millisecond, 20 * time.Millisecond, 50 * time.Millisecond} {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := res.delay(o.Seed, d); err != nil {
			return nil, err
		}
	}
	return res, nil
}

// Delays within the servers' site, one way to the middle of the network.
const (
	nodeDelay  = 50 * time.Microsecond
	agentDelay = 500 * time.Microsecond
)

func newSystem(seed uint64, oneWay time.Duration) (*cluster.System, error) {
	return cluster.New(cluster.Config{
		Seed: seed, ClientDelay: oneWay - nodeDelay, NodeDelay: nodeDelay, AgentDelay: agentDelay,
	})
}

// Before a handoff a transfer runs, and after it, for so long.
const (
	setup  = 3 * time.Second // until the contact is registered
	warmUp = 600 * time.Millisecond
	rest   = 600 * time.Millisecond
)

// clients hands both clients round.
func (r *Result) clients(o Options) error {
	s, err := newSystem(o.Seed, o.OneWay)
	if err != nil {
		return err
	}
	defer s.Close()
	var failed error
	packets := newRecorder(s)
	s.Sim.Tap(func(e lab.Event) {
		h, out := s.Sim.Host(e)
		if h == nil {
			return
		}
		if out {
			r.Packets++
			if cluster.IsReset(e.Packet) {
				r.Resets++
			}
			if begin := setup + warmUp; e.At > begin-rest/2 && e.At < begin+rest/2 {
				packets.sent(e)
			}
		}
		if o.Packet != nil && failed == nil {
			failed = o.Packet(h.Name(), lab.Epoch.Add(e.At), e.Packet)
		}
	})
	var clients []*cluster.Client
	for _, mobile := range []bool{true, false} {
		c, err := s.AddClient(mobile)
		if err != nil {
			return err
		}
		clients = append(clients, c)
	}
	s.Sim.Run(setup)

	tour := []int{1, 2, 0, 1}
	transfer := cluster.Transfer{
		Chunk: 400, Every: pace,
		Down: 400 * int64((warmUp+time.Duration(len(tour))*rest)/pace),
		Up:   1 << 20,
	}
	var downloads []*cluster.Download
	done := 0
	reports := make([][]cluster.Report, len(clients))
	for i, c := range clients {
		d := c.Start(transfer)
		downloads = append(downloads, d)
		s.Sim.Go("operator of "+c.Name, func(p *lab.Proc) {
			defer func() { done++ }()
			p.Sleep(warmUp)
			for _, to := range tour {
				rep, err := s.Handoff(p, c.Addr, s.Nodes[to], cluster.Ahead)
				if err != nil {
					failed = err
					return
				}
				reports[i] = append(reports[i], rep)
				p.Sleep(rest)
			}
		})
	}
	over := s.Sim.RunUntil(time.Hour, func() bool {
		return failed != nil || done == len(clients) && downloads[0].Done && downloads[1].Done
	})
	if failed == nil && !over {
		failed = fmt.Errorf("tour: not over after an hour of simulated time")
	}
	if failed != nil {
		return failed
	}
	for i, d := range downloads {
		if d.Err != nil {
			return fmt.Errorf("tour: %s: %w", clients[i].Name, d.Err)
		}
		r.Bytes += d.Down + d.Up
		r.Wrong += d.Wrong()
		for _, rep := range reports[i] {
			gap, _ := d.Gap(rep.Freeze, rep.Activate+rest/2)
			redirect := "relayed"
			if rep.Optimised {
				redirect = "route-optimised"
			}
			r.Handoffs = append(r.Handoffs, Handoff{
				Client: clients[i].Name, From: rep.From, To: rep.To, Redirect: redirect, Bytes: rep.Bytes,
				Frozen: ms(rep.Activate - rep.Freeze), Gap: ms(gap),
			})
		}
	}
	for _, p := range s.Problems() {
		r.Problems = append(r.Problems, p.Error())
	}
	r.Simulated = s.Sim.Now().Seconds()
	r.Trace = fmt.Sprintf("%016x", s.Sim.Hash())

	first := reports[0][0]
	from, to := s.Nodes[0], s.Nodes[tour[0]]
	packets.note(from, first.Freeze, "freeze, export", clients[0].Addr)
	packets.note(from, first.Commit, "commit: no way back", clients[0].Addr)
	packets.note(to, first.Activate, "activate", clients[0].Addr)
	r.Ladder = packets.diagram(first, clients[0], o.OneWay)
	// The silence before the first octets of the new owner.
	last, next := downloads[0].Around(first.Activate + o.OneWay)
	r.Ladder.Mark = ladder.Interval{From: last, To: next, Host: clients[0].Name, Label: "client-visible gap"}
	return nil
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// delay measures one handoff with tokens and one without.
func (r *Result) delay(seed uint64, oneWay time.Duration) error {
	row := Delay{OneWay: ms(oneWay)}
	for _, m := range []struct {
		how         cluster.Preparation
		gap, direct *float64
	}{{cluster.Ahead, &row.Gap, &row.Direct}, {cluster.Nothing, &row.GapRR, &row.DirectRR}} {
		gap, direct, err := measure(seed, oneWay, m.how)
		if err != nil {
			return err
		}
		*m.gap, *m.direct = ms(gap), ms(direct)
	}
	// HoTI and HoT go round by contact and home agent; the Binding Update and
	// the data behind it arrive one way later.
	toAgent := 2*nodeDelay + nodeDelay + agentDelay
	row.ExchangeRR = ms(2*(toAgent+agentDelay+oneWay-nodeDelay) + oneWay)
	r.Delays = append(r.Delays, row)
	return nil
}

// measure hands a client that only downloads over once, from the contact to
// another node.
func measure(seed uint64, oneWay time.Duration, how cluster.Preparation) (gap, direct time.Duration, err error) {
	s, err := newSystem(seed, oneWay)
	if err != nil {
		return 0, 0, err
	}
	defer s.Close()
	c, err := s.AddClient(true)
	if err != nil {
		return 0, 0, err
	}
	to := s.Nodes[1]
	var arrived time.Duration // of the first packet that came directly from there
	s.Sim.Tap(func(e lab.Event) {
		if e.Verdict != lab.Delivered || e.To != c.Name || arrived != 0 {
			return
		}
		if p, err := wire.ParsePacket(e.Packet); err == nil && p.Src == to.CareOf && p.Protocol == wire.TCP {
			arrived = e.At
		}
	})
	s.Sim.Run(setup)
	d := c.Start(cluster.Transfer{Chunk: 400, Every: pace, Down: 400 * int64((warmUp+rest)/pace)})
	var rep cluster.Report
	handed := false
	s.Sim.Go("operator", func(p *lab.Proc) {
		p.Sleep(warmUp)
		rep, err = s.Handoff(p, c.Addr, to, how)
		handed = true
	})
	over := s.Sim.RunUntil(time.Hour, func() bool { return handed && (d.Done || err != nil) })
	switch {
	case err != nil:
		return 0, 0, err
	case !over || arrived == 0:
		return 0, 0, fmt.Errorf("tour: %v one way: nothing came directly from %s", oneWay, to.Name)
	case d.Err != nil:
		return 0, 0, d.Err
	case len(s.Problems()) > 0:
		return 0, 0, s.Problems()[0]
	}
	gap, _ = d.Gap(rep.Freeze, rep.Activate+rest/2)
	return gap, arrived - rep.Freeze, nil
}

// recorder keeps what a ladder diagram of a client may show.
type recorder struct {
	system *cluster.System
	events []recorded
}

// recorded is an event with the client that it is about; zero: none.
type recorded struct {
	ladder.Event
	client netip.Addr
}

func newRecorder(s *cluster.System) *recorder {
	r := &recorder{system: s}
	s.OnMessage = func(m cluster.Message) {
		r.events = append(r.events, recorded{
			ladder.Event{At: m.Sent, From: m.From, To: m.To, Label: m.What, Kind: ladder.Signal}, m.Client,
		})
	}
	for _, n := range s.Nodes {
		n.OnEvent = func(e node.Event) { r.note(n, s.Sim.Now(), e.Kind.String(), e.Client) }
	}
	return r
}

func (r *recorder) note(n *cluster.Node, at time.Duration, what string, client netip.Addr) {
	r.events = append(r.events, recorded{
		ladder.Event{At: at, From: n.Name, To: n.Name, Label: what, Kind: ladder.Note}, client,
	})
}

func (r *recorder) sent(e lab.Event) {
	r.events = append(r.events, recorded{ladder.Packet(e.At, e.From, r.host(e.Packet), e.Packet), r.client(e.Packet)})
}

// client is whom a packet is about, in a tunnel or not.
func (r *recorder) client(b []byte) netip.Addr {
	p, err := wire.ParsePacket(b)
	if err == nil && p.Protocol == wire.IPv6 {
		if b, err = p.Inner(); err == nil {
			p, err = wire.ParsePacket(b)
		}
	}
	if err == nil {
		for _, c := range r.system.Clients {
			if c.Addr == p.Src || c.Addr == p.Dst {
				return c.Addr
			}
		}
	}
	return netip.Addr{}
}

// host is the name of the one to whom a packet goes.
func (r *recorder) host(b []byte) string {
	if len(b) < 40 {
		return ""
	}
	dst := netip.AddrFrom16([16]byte(b[24:40]))
	for _, n := range r.system.Nodes {
		if n.CareOf == dst {
			return n.Name
		}
	}
	for _, c := range r.system.Clients {
		if c.Addr == dst {
			return c.Name
		}
	}
	if cluster.HomePrefix.Contains(dst) {
		return r.system.Agent.Name()
	}
	return ""
}

// diagram shows one handoff.
func (r *recorder) diagram(rep cluster.Report, c *cluster.Client, oneWay time.Duration) ladder.Diagram {
	d := ladder.Diagram{
		Title:  fmt.Sprintf("%s is handed from %s to %s, %v one way between client and servers (simulated)", c.Name, rep.From, rep.To, oneWay),
		Hosts:  []string{c.Name, r.system.Agent.Name(), rep.From, rep.To},
		From:   rep.Begin,
		To:     rep.Activate + 2*oneWay + 2*time.Millisecond,
		Origin: rep.Freeze,
	}
	for _, e := range r.events {
		if e.client == c.Addr {
			d.Events = append(d.Events, e.Event)
		}
	}
	return d
}
