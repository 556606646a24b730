package daemon

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/distributed-servers/ds/daemon/host"
	"github.com/distributed-servers/ds/daemon/rawip"
	"github.com/distributed-servers/ds/mobility/wire"
	"github.com/distributed-servers/ds/tun"
)

// external is a tunnel to the home agent that somebody else has made, an interface
// of the kernel (config: tunnel = "mip6d"). What comes out of it to the distributed
// server address is routed to a TUN of ours; what is to go into it leaves by it.
//
//	home agent ══► interface ── rule ──► TUN ──► relay ══► owner
//	home agent ◄══ interface ◄── raw socket ◄─── relay ◄══ any node
//
// Around it packets have the tunnel's header that they would have come with, so
// that the rest is the same.
type external struct {
	agent, daemon netip.Addr
	dev           *tun.TUN
	out           *rawip.Sender
}

// Tables of routes, and the priority of the rules that lead there: ahead of an
// operator's own, behind the table of local addresses.
const (
	externalTable    = 7846
	externalPriority = 7846
)

func (s *service) openExternal(index int, h *host.Host) (err error) {
	e := &external{agent: s.cfg.HomeAgent, daemon: s.n.cfg.Node.Address}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("daemon: server %s: tunnel interface %s: %w", s.home, s.cfg.TunnelInterface, err), e.close())
		}
	}()
	if e.out, err = rawip.NewSender(); err != nil {
		return err
	}
	if err := e.out.SetInterface(s.cfg.TunnelInterface); err != nil {
		return err
	}
	e.dev, err = tun.Open(tun.Config{Name: "t" + s.tun, MTU: s.cfg.MTU, Alias: "dsco tunnel " + s.home.String()})
	if err != nil {
		return err
	}
	dsa := netip.PrefixFrom(s.home, s.home.BitLen())
	if err := h.AddRoute(dsa, e.dev.Name(), externalTable+index); err != nil {
		return err
	}
	err = h.AddRule(host.Rule{To: dsa, Iif: s.cfg.TunnelInterface, Table: externalTable + index, Priority: externalPriority})
	if err != nil {
		return err
	}
	s.external = e
	return nil
}

func (e *external) close() error {
	var errs []error
	if e.dev != nil {
		errs = append(errs, e.dev.Close())
	}
	if e.out != nil {
		errs = append(errs, e.out.Close())
	}
	return errors.Join(errs...)
}

// read takes what comes out of the tunnel, until it is closed.
func (e *external) read(s *service) {
	batch := s.n.sender.NewBatch()
	b := make([]byte, wire.HeaderLen+e.dev.MTU())
	for {
		n, err := e.dev.Read(b[wire.HeaderLen:])
		if err != nil {
			if !errors.Is(err, os.ErrClosed) {
				s.n.log.Error("the tunnel to the home agent ends", "server", s.home, "err", err)
			}
			return
		}
		inner := b[wire.HeaderLen:][:n]
		if n < wire.HeaderLen || inner[0]>>4 != 6 {
			continue
		}
		// AppendTunnel would take a hop off, which the kernel has done.
		p := b[:wire.HeaderLen+n]
		header(p, e.agent, e.daemon)
		s.fromTunnel(p, batch.Add)
		batch.Flush()
	}
}

// header writes that of a tunnel (RFC 2473 section 5.1) before what it carries.
func header(p []byte, src, dst netip.Addr) {
	inner := p[wire.HeaderLen:]
	copy(p[:4], inner[:4])
	p[4], p[5] = byte(len(inner)>>8), byte(len(inner))
	p[6], p[7] = byte(wire.IPv6), 64
	s, d := src.As16(), dst.As16()
	copy(p[8:], s[:])
	copy(p[24:], d[:])
}

// outward puts out packets of the relay or of the machines: into the tunnel to the
// home agent, if that is somebody else's, what is for it, and by send the rest.
func (s *service) outward(send func(...[]byte)) func(...[]byte) {
	e := s.external
	if e == nil {
		return send
	}
	return func(packets ...[]byte) {
		for _, p := range packets {
			if len(p) > 2*wire.HeaderLen && wire.Protocol(p[6]) == wire.IPv6 && netip.AddrFrom16([16]byte(p[24:40])) == e.agent {
				e.out.Send(p[wire.HeaderLen:])
			} else {
				send(p)
			}
		}
	}
}
