package cluster

import (
	"net/netip"
	"time"

	"github.com/distributed-servers/ds/internal/lab"
	"github.com/distributed-servers/ds/mobility/homeagent"
	"github.com/distributed-servers/ds/mobility/wire"
)

// What nodes and home agent share.
const spi = 256

var key = wire.SharedKey("a secret of the cluster alone")

// agent is the home agent's host.
type agent struct {
	*homeagent.HomeAgent
	host *lab.Host
}

func bootAgent(h *lab.Host) (lab.Program, error) {
	m, err := homeagent.New(homeagent.Config{
		Addr:     AgentAddr,
		Prefixes: []homeagent.Prefix{{Prefix: HomePrefix}},
		Keys:     map[netip.Addr]homeagent.Credential{Home: {SPI: spi, Key: key}},
		Epoch:    lab.Epoch,
		Start:    h.Now(),
		Rand:     h.Rand("home agent"),

		// Soon enough that a home agent without its memory is found out before
		// a client gives up.
		RefreshAdvice: 12 * time.Second,
	})
	if err != nil {
		return nil, err
	}
	return &agent{m, h}, nil
}

func (a *agent) Receive(p []byte) { a.step(homeagent.Received{Packet: p}) }
func (a *agent) Tick()            { a.step(homeagent.Tick{}) }

func (a *agent) NextDeadline() (time.Duration, bool) { return a.HomeAgent.NextDeadline() }

func (a *agent) step(in homeagent.Input) {
	for _, p := range a.Step(a.host.Now(), in).Send {
		a.host.Send(p)
	}
}
