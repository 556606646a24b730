package daemon

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/daemon/config"
	"github.com/distributed-servers/ds/daemon/identity"
	"github.com/distributed-servers/ds/daemon/member"
	"github.com/distributed-servers/ds/daemon/peer"
)

// credentials are what a node proves who it is by, and its part in the cluster's
// list of members.
type credentials struct {
	keeper *identity.Keeper
	agent  *identity.Agent // nil: certificates and nodes are an operator's

	ctx     context.Context
	stop    context.CancelFunc
	running sync.WaitGroup
}

// openIdentity reads certificates, and the list of members if there is one.
func (n *Node) openIdentity() error {
	c := n.cfg.Node
	keeper, err := identity.Open(c.Name, identity.Files{CA: c.CA, Cert: c.Cert, Key: c.Key})
	if err != nil {
		return fmt.Errorf("daemon: %w", err)
	}
	keeper.Changed = n.certificatesChanged
	var agent *identity.Agent
	if c.Cluster != "" {
		agent, err = identity.NewAgent(identity.Config{
			Dir: c.Cluster, Name: c.Name, Keeper: keeper, Logger: n.log,
			Servers: n.offered, Admit: n.admits, Adopted: n.adopted, Fault: n.fault, Dial: n.dialNode,
		})
		if err != nil {
			return fmt.Errorf("daemon: %w", err)
		}
	}
	n.reloading.Lock()
	defer n.reloading.Unlock()
	if agent != nil { // somebody may have joined since the configuration was read
		cfg, err := n.current.With(agent.Roster())
		if err != nil {
			return fmt.Errorf("daemon: %w", err)
		}
		n.cfg, n.current = cfg, cfg
		n.peers.Store(&cfg.Node.Peers)
	}
	n.identity.keeper, n.identity.agent = keeper, agent
	n.identity.ctx, n.identity.stop = context.WithCancel(context.Background())
	return nil
}

// run renews and passes on, until what it returns is called.
func (c *credentials) run() (stop func() error) {
	if c.agent != nil {
		c.running.Go(func() { c.agent.Run(c.ctx) })
	}
	return func() error {
		c.stop()
		c.running.Wait()
		return nil
	}
}

// compareLists compares lists of members with a node that is connected now, or not any more:
// it may be that this node has been removed.
func (n *Node) compareLists(name string) {
	c := &n.identity
	if c.agent == nil || c.ctx.Err() != nil {
		return
	}
	c.running.Go(func() {
		if err := c.agent.Exchange(c.ctx, name); errors.Is(err, identity.ErrRemoved) {
			n.unreached(name, err)
		}
	})
}

// unreached is why there is no connection to a node.
func (n *Node) unreached(name string, err error) {
	<-n.meshed
	why := fmt.Sprint(err)
	n.reached.Store(name, reach{since: time.Now(), err: why})
	for _, s := range n.services {
		s.step(member.Unreached{Name: name, Why: why})
	}
}

// reload reads certificates anew. It does nothing before Run.
func (c *credentials) reload() error {
	if c.agent != nil {
		c.agent.Wake()
	}
	if c.keeper == nil {
		return nil
	}
	return c.keeper.Reload()
}

// certificatesChanged is told that certificates have been read anew, or cannot be.
func (n *Node) certificatesChanged(err error) {
	if err != nil {
		n.log.Error("certificates stay as they were", "err", err)
		n.fault(err)
		return
	}
	n.log.Info("certificates have been read anew; connections go on")
}

func (n *Node) fault(err error) {
	n.events.Publish(api.Event{Kind: api.EventFault, Detail: err.Error()})
}

// offered are the distributed servers, for a node that joins.
func (n *Node) offered() (all []identity.Server) {
	n.reloading.Lock()
	servers := n.current.Servers
	n.reloading.Unlock()
	for _, s := range servers {
		o := identity.Server{
			Address: s.Address, HomeAgent: s.HomeAgent, SPI: s.SPI, Contact: s.Contact, Users: s.Users, UserGroups: s.UserGroups,
			MTU: s.MTU, DirectReturn: s.DirectReturn, Tunnel: s.Tunnel, Idle: time.Duration(s.IdleTimeout).String(),
		}
		if s.Tunnel != config.TunnelMIP6D {
			key, err := config.ReadKey(s.KeyFile)
			if err != nil {
				n.log.Error("a node joins without the key of a server", "server", s.Address.Addr(), "err", err)
				continue
			}
			o.Key = []byte(hex.EncodeToString(key))
		}
		all = append(all, o)
	}
	return all
}

// admits tells whether the configuration has anything against a list of members.
func (n *Node) admits(r *identity.Roster) error {
	n.reloading.Lock()
	defer n.reloading.Unlock()
	_, err := n.current.With(r)
	return err
}

// adopted takes over a list of members.
func (n *Node) adopted(r *identity.Roster) {
	n.reloading.Lock()
	defer n.reloading.Unlock()
	cfg, err := n.current.With(r)
	if err == nil {
		err = n.setNodes(cfg)
	}
	if err != nil {
		n.log.Error("the list of members is not taken over", "serial", r.Serial, "err", err)
		n.fault(err)
		return
	}
	n.events.Publish(api.Event{Kind: api.EventReloaded, Detail: fmt.Sprintf("list of members %d", r.Serial)})
}

// dialNode connects to another node from the daemon's own address, as the mesh does.
func (n *Node) dialNode(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: n.cfg.Node.Address.AsSlice()}}
	return d.DialContext(ctx, "tcp", addr.String())
}

// control is where the daemons of other nodes accept connections.
func (n *Node) control(c *config.Node) map[string]netip.AddrPort {
	peers := make(map[string]netip.AddrPort)
	for name, addr := range c.Peers {
		peers[name] = netip.AddrPortFrom(addr, c.ControlPort)
		n.reached.LoadOrStore(name, reach{since: time.Now(), err: "not yet"})
	}
	return peers
}

// meshConfig is what the connections to the other daemons need.
func (n *Node) meshConfig() peer.Config {
	c := n.cfg.Node
	cfg := peer.Config{
		Name: c.Name, Listen: netip.AddrPortFrom(c.Address, c.ControlPort), Peers: n.control(c),
		Identity: n.identity.keeper, Handler: (*fromPeers)(n), Logger: n.log,
		Failed: func(name string, err error) {
			n.unreached(name, err)
			n.compareLists(name)
		},
	}
	if n.identity.agent != nil {
		cfg.Services = map[string]peer.Service{identity.Protocol: n.identity.agent}
	}
	return cfg
}
