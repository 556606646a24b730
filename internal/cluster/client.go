package cluster

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/distributed-servers/ds/internal/lab"
	"github.com/distributed-servers/ds/mobility/correspondent"
	"github.com/distributed-servers/ds/stack"
)

// Client is a client's host.
type Client struct {
	Name   string
	Addr   netip.Addr
	Mobile bool // it speaks Mobile IPv6
	Host   *lab.Host

	// Now in the host's present life.
	Stack         *stack.Stack
	Correspondent *correspondent.Correspondent // nil unless Mobile
}

// AddClient adds a client, which speaks Mobile IPv6 or not.
func (s *System) AddClient(mobile bool) (*Client, error) {
	i := len(s.Clients) + 1
	c := &Client{Name: fmt.Sprintf("client %d", i), Addr: ClientAddr(i), Mobile: mobile}
	var err error
	if c.Host, err = s.Sim.NewHost(c.Name, s.Net, mtu, c.boot); err != nil {
		return nil, err
	}
	s.Net.Route(netip.PrefixFrom(c.Addr, 128), c.Host.Port())
	delay(c.Host, s.cfg.ClientDelay)
	s.Clients = append(s.Clients, c)
	return c, nil
}

func (c *Client) boot(h *lab.Host) (_ lab.Program, err error) {
	c.Correspondent = nil
	out := h.Send
	if c.Mobile {
		c.Correspondent, err = correspondent.New(correspondent.Config{
			Local: func(a netip.Addr) bool { return a == c.Addr },
			Rand:  h.Rand("correspondent"),
		})
		if err != nil {
			return nil, err
		}
		out = func(p []byte) { c.step(h, correspondent.Transmit{Packet: p}) }
	}
	d := h.Device(mtu, out)
	c.Stack, err = stack.New(stack.Config{
		Device: d, Addrs: []netip.Addr{c.Addr}, Clock: h.Clock(), Rand: h.Rand("stack"),
	})
	if err != nil {
		return nil, err
	}
	d.Watch(c.Stack.Netstack())
	return &clientProgram{c, h}, nil
}

func (c *Client) step(h *lab.Host, in correspondent.Input) {
	out := c.Correspondent.Step(h.Now(), in)
	for _, p := range out.Send {
		h.Send(p)
	}
	for _, p := range out.Deliver {
		c.Stack.Arrive(p)
	}
}

type clientProgram struct {
	*Client
	host *lab.Host
}

func (c *clientProgram) Receive(p []byte) {
	if c.Correspondent == nil {
		c.Stack.Arrive(p)
		return
	}
	c.step(c.host, correspondent.Received{Packet: p})
}

func (c *clientProgram) NextDeadline() (time.Duration, bool) {
	if c.Correspondent == nil {
		return 0, false
	}
	return c.Correspondent.NextDeadline()
}

func (c *clientProgram) Tick() {
	if c.Correspondent != nil {
		c.step(c.host, correspondent.Tick{})
	}
}

func (c *clientProgram) Close() error { return c.Stack.Close() }
