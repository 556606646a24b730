package forward

import (
	"net"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"
)

// Agent forwards what comes to a home agent in tunnels, and counts the hop of what
// comes to home addresses, which a route with a tunnel does not.
type Agent struct {
	t *table

	mu    sync.Mutex
	bound map[netip.Addr]netip.Addr // home to care-of address
}

const (
	setBindings = "bindings" // care-of and home addresses
	setHomes    = "homes"    // home addresses of bindings

	toHomes   = "to-homes"
	fromHomes = "from-homes"
)

// OpenAgent begins without bindings. It needs CAP_NET_ADMIN and nftables. For
// [Exit] there must be a route.
func OpenAgent(c AgentConfig) (*Agent, error) {
	t, err := openTable(tableName(c.Queue))
	if err != nil {
		return nil, err
	}
	err = t.commit(func(b *batch) {
		b.begin()
		b.set(setBindings, 32, 0)
		b.set(setHomes, 16, 0)
		b.counter(toHomes)
		b.counter(fromHomes)
		b.rule(chain, all(
			is(nextHeader, unix.IPPROTO_TCP),
			one(load(destination, reg1), in(setHomes, reg1)),
			hop(hopLimit),
			one(count(toHomes), verdict(accept)))...)
		b.tunnelsOnly(Exit(c.Queue))
		// The rules of RFC 6275 section 10.4.5. What is for this host, or for a
		// home address, is left to the machine.
		x := all(
			is(destination, c.Address.AsSlice()...),
			one(load(source, reg1), load(innerSource, reg2), in(setBindings, reg1)),
			usual(innerDestFirst),
			isNot(innerDest, c.Address.AsSlice()...),
			uncongested())
		for _, p := range c.Prefixes {
			x = append(x, bits(unix.NFT_CMP_NEQ, innerDest, net.CIDRMask(p.Bits(), 128), p.Masked().Addr().AsSlice())...)
		}
		b.rule(chain, all(x, write(destination, Exit(c.Queue).AsSlice()...), one(count(fromHomes)))...)
	})
	if err != nil {
		return nil, err
	}
	return &Agent{t: t, bound: make(map[netip.Addr]netip.Addr)}, nil
}

// Bind sets the care-of address of a home address; the zero one: it has none. After
// an error the kernel forwards nothing any more, for good.
func (a *Agent) Bind(home, careOf netip.Addr) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	before, known := a.bound[home]
	if before == careOf {
		return nil
	}
	return a.t.commit(func(b *batch) {
		if known {
			b.remove(setBindings, element{key: pair(before, home)})
			b.remove(setHomes, element{key: home.AsSlice()})
			delete(a.bound, home)
		}
		if careOf.IsValid() {
			b.insert(setBindings, element{key: pair(careOf, home)})
			b.insert(setHomes, element{key: home.AsSlice()})
			a.bound[home] = careOf
		}
	})
}

func pair(a, b netip.Addr) []byte { return append(a.AsSlice(), b.AsSlice()...) }

// Counts are since OpenAgent: what the kernel has put into tunnels to home addresses,
// and what it has taken out of tunnels from them.
func (a *Agent) Counts() (to, from Count, err error) {
	if to, err = a.t.counted(toHomes); err == nil {
		from, err = a.t.counted(fromHomes)
	}
	return to, from, err
}

// Close ends it. A second call does nothing.
func (a *Agent) Close() error { return a.t.close() }
