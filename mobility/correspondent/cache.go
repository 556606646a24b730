package correspondent

import (
	"iter"
	"math/bits"
	"net/netip"
	"time"

	"github.com/distributed-servers/ds/internal/deadline"
)

// refreshLeads are how long before the end of a binding in use its mobile node
// is asked for a Binding Update, first and again.
var refreshLeads = [...]time.Duration{2 * time.Second, time.Second}

const (
	// idleFor is for how long a binding must not have been used before another
	// may take its place.
	idleFor = 10 * time.Second

	// sweep is how many bindings are looked at for one to give up.
	sweep = 64

	never = time.Duration(-1)
)

// key names a binding. A node SHOULD keep a binding cache for each of its unicast
// routable addresses (RFC 6275 section 9.1). Here it must: connections from one
// of our addresses may be served elsewhere than those from another.
type key struct{ local, home [16]byte }

func pair(local, home netip.Addr) key { return key{local.As16(), home.As16()} }

type state uint8

const (
	bound   state = 1 // there is a binding, unless its time is over
	removed state = 2 // there was one; its sequence number counts
)

// entry is what is remembered for a key. It has no pointers, so a million of
// them are nothing to the garbage collector. What a look-up needs comes first,
// in 64 octets.
type entry struct {
	key
	careOf   [16]byte
	until    time.Duration // bound: end of the lifetime; removed: end of the memory
	sequence uint16        // of the last Binding Update
	nonce    uint16        // the newest index at the last Binding Update
	state    state
	active   bool  // used since the last Binding Update
	asked    uint8 // refresh requests since the last Binding Update
	failures uint8 // how often it was found unreachable

	used   time.Duration // when a packet last went by way of it
	queued time.Duration // its deadline in the queue, maybe too early; never: none
	failed time.Duration // when it was last found unreachable
}

// live reports whether packets go by way of the binding.
func (e *entry) live(now time.Duration) bool { return e.state == bound && now < e.until }

// use notes that a packet went by way of the binding.
func (e *entry) use(now time.Duration) { e.used, e.active = now, true }

// next is when there is something to do about e.
func (e *entry) next(now time.Duration) time.Duration {
	if e.state == bound {
		for _, lead := range refreshLeads {
			if at := e.until - lead; at > now {
				return at
			}
		}
	}
	return e.until
}

// cache is the binding cache (RFC 6275 section 9.1), with room for a fixed
// number of entries. Entries are named by number. They lie in chunks, each twice
// as large as the one before, so growing copies nothing.
type cache struct {
	limit  int
	index  index
	chunks [][]entry
	unused []uint32 // numbers to be taken again
	taken  uint32   // numbers given out so far
	bound  int      // entries in state bound
	hand   uint32   // where the next sweep begins

	// deadlines may be earlier than what next says, so that a Binding Update
	// that prolongs, the usual one, leaves the queue alone.
	deadlines deadline.Queue[uint32]
}

const firstChunk = 64 // entries, a power of two

func (c *cache) init(limit int, seed [16]byte) {
	c.limit = limit
	c.index.init(seed)
}

func (c *cache) at(id uint32) *entry {
	n := id + firstChunk
	chunk := bits.Len32(n / firstChunk)
	return &c.chunks[chunk-1][n-firstChunk<<(chunk-1)]
}

// find is the entry of k and its number, or nil.
func (c *cache) find(k key) (uint32, *entry) {
	hash := c.index.hash(&k)
	slots := c.index.slots
	mask := uint32(len(slots) - 1)
	for i := hash & mask; slots[i].hash != 0; i = (i + 1) & mask {
		if slots[i].hash == hash {
			if e := c.at(slots[i].id); e.key == k {
				return slots[i].id, e
			}
		}
	}
	return 0, nil
}

// full reports whether an entry must go before another can come.
func (c *cache) full() bool { return c.index.count >= c.limit }

// add makes an entry for k, for which there is none. The cache is not full.
func (c *cache) add(k key) (uint32, *entry) {
	var id uint32
	if n := len(c.unused); n > 0 {
		id, c.unused = c.unused[n-1], c.unused[:n-1]
	} else {
		id = c.taken
		if start := id + firstChunk; start&(start-1) == 0 { // of a chunk, of that size
			c.chunks = append(c.chunks, make([]entry, min(int(id)+firstChunk, c.limit-int(id))))
		}
		c.taken++
	}
	c.index.insert(c.index.hash(&k), id)
	e := c.at(id)
	*e = entry{key: k, queued: never}
	return id, e
}

// free forgets an entry.
func (c *cache) free(id uint32) {
	e := c.at(id)
	c.deadlines.Remove(id)
	c.index.remove(c.index.hash(&e.key), id)
	*e = entry{}
	c.unused = append(c.unused, id)
}

// set changes the state of e.
func (c *cache) set(e *entry, s state) {
	if e.state == bound {
		c.bound--
	}
	if s == bound {
		c.bound++
	}
	e.state = s
}

// arm sees to it that the deadline of e is not missed.
func (c *cache) arm(id uint32, e *entry, now time.Duration) {
	if at := e.next(now); e.queued == never || at < e.queued {
		e.queued = at
		c.deadlines.Set(id, at)
	}
}

// all yields every entry.
func (c *cache) all() iter.Seq[*entry] {
	return func(yield func(*entry) bool) {
		for id := range c.taken {
			if e := c.at(id); e.state != 0 && !yield(e) {
				return
			}
		}
	}
}

// remove ends a binding. Its sequence number must be kept while a Binding Update
// for it could be replayed (RFC 6275 sections 5.2.8, 9.5.3), which is until the
// nonce that was the newest at the last one is too old.
func (c *Correspondent) remove(id uint32, e *entry) {
	c.cache.set(e, removed)
	c.changed(e)
	c.retain(id, e)
}

// retain keeps the sequence number of a removed entry for as long as it counts.
func (c *Correspondent) retain(id uint32, e *entry) {
	e.until = c.nonces.expiry(e.nonce)
	if e.until <= c.now {
		c.cache.free(id)
		return
	}
	c.cache.arm(id, e, c.now)
}

// lastUsed is when a packet last went by way of the binding e, with the machine or
// without.
func (c *Correspondent) lastUsed(e *entry) time.Duration {
	if c.cfg.Used != nil {
		if at, ok := c.cfg.Used(netip.AddrFrom16(e.local), netip.AddrFrom16(e.home)); ok {
			e.use(max(e.used, at))
		}
	}
	return e.used
}

// inUse reports whether the binding e has been used since the last Binding Update.
func (c *Correspondent) inUse(e *entry) bool {
	c.lastUsed(e)
	return e.active
}

// makeRoom makes an entry available, if it can (RFC 6275 section 9.6). What may
// go is, in this order:
//
//   - what is over, though no Tick has seen to it yet;
//   - the least recently used binding that has not been used for 10 s, and
//     whose last Binding Update is too old to be replayed.
//
// So a flood of new bindings, each well signed, takes nothing from those who are
// using theirs; it is the new ones that are refused (status 130). To be
// quick it looks at some entries only, at others every time.
func (c *Correspondent) makeRoom() bool {
	var oldest *entry
	var oldestID uint32
	for range min(sweep, c.cache.taken) {
		if c.cache.hand++; c.cache.hand >= c.cache.taken {
			c.cache.hand = 0
		}
		id := c.cache.hand
		e := c.cache.at(id)
		switch {
		case e.state == 0:
			continue
		case e.state == removed && c.now >= e.until:
			c.cache.free(id)
			return true
		case e.state == removed || c.nonces.find(e.nonce, c.now) != nil:
			continue // must be remembered
		case e.live(c.now) && c.now-c.lastUsed(e) < idleFor:
			continue
		}
		if oldest == nil || !e.live(c.now) || e.used < oldest.used {
			oldest, oldestID = e, id
		}
		if !e.live(c.now) {
			break
		}
	}
	if oldest == nil {
		return false
	}
	c.cache.set(oldest, removed)
	c.changed(oldest)
	c.cache.free(oldestID)
	return true
}
