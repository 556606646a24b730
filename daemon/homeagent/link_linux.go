package homeagent

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"

	"github.com/distributed-servers/ds/daemon/rawip"
)

// link is the home link: what is heard there and what is said.
type link struct {
	neighbors *rawip.Neighbors
	sender    *rawip.Sender
}

func newLink(name string) (*link, error) {
	n, err := rawip.ListenNeighbors(name)
	if err != nil {
		return nil, err
	}
	if len(n.Link()) != 6 {
		n.Close()
		return nil, fmt.Errorf("interface %s is no Ethernet: leave it out of the configuration, and route the home prefixes here", name)
	}
	s, err := rawip.NewSender()
	if err == nil {
		if err = s.SetInterface(name); err == nil {
			return &link{n, s}, nil
		}
		s.Close()
	}
	n.Close()
	return nil, err
}

// join begins to listen to groups. That one cannot be joined is told: neighbors
// that look for a home address there will not find it.
func (l *link) join(groups []netip.Addr, log *slog.Logger) {
	for _, g := range groups {
		if err := l.neighbors.Join(g); err != nil {
			log.Error("home address will not be found on the link", "group", g, "error", err)
		}
	}
}

func (l *link) leave(groups []netip.Addr, log *slog.Logger) {
	for _, g := range groups {
		if err := l.neighbors.Leave(g); err != nil {
			log.Warn("group is not left", "group", g, "error", err)
		}
	}
}

func (l *link) Close() error { return errors.Join(l.neighbors.Close(), l.sender.Close()) }
