package correspondent

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
)

// locals are the addresses of this host that take part.
type locals struct {
	only []netip.Addr // if not empty, these, whether they are there or not
	lost func(netip.Addr)
	done chan struct{}

	mu  sync.RWMutex
	now map[netip.Addr]bool
}

// newLocals finds them; those that the operator has not named are watched. lost
// is told of one that is gone.
func newLocals(only []netip.Addr, lost func(netip.Addr)) (*locals, error) {
	l := &locals{only: only, lost: lost, done: make(chan struct{}), now: make(map[netip.Addr]bool)}
	if len(only) > 0 {
		return l, nil
	}
	// Subscribed to first, so that none is missed in between.
	updates := make(chan netlink.AddrUpdate)
	if err := netlink.AddrSubscribe(updates, l.done); err != nil {
		return nil, fmt.Errorf("watch addresses: %w", err)
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_V6)
	if err != nil {
		close(l.done)
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		l.set(a.IPNet.IP, true)
	}
	go func() {
		for u := range updates {
			l.set(u.LinkAddress.IP, u.NewAddr)
		}
	}()
	return l, nil
}

func (l *locals) set(ip []byte, there bool) {
	a, ok := netip.AddrFromSlice(ip)
	if !ok || !a.Is6() || !a.IsGlobalUnicast() {
		return
	}
	l.mu.Lock()
	was := l.now[a]
	if there {
		l.now[a] = true
	} else {
		delete(l.now, a)
	}
	l.mu.Unlock()
	if was && !there {
		l.lost(a)
	}
}

// has reports whether an address takes part.
func (l *locals) has(a netip.Addr) bool {
	if len(l.only) > 0 {
		return slices.Contains(l.only, a)
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.now[a]
}

// Close ends the watch.
func (l *locals) Close() error {
	close(l.done)
	return nil
}
