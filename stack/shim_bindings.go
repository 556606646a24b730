package stack

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"sync/atomic"
)

// bindingState says what the shim does with a client's packets.
//
//	        Bind             Leave
//	unbound ─────► bound ─────────► leaving
//	   ▲  ▲          │ ▲               │ │
//	   │  └─ Unbind ─┘ └──── Bind ─────┘ │
//	   └────── Unbind, grace over ───────┘
type bindingState uint8

const (
	unbound bindingState = iota // nothing new comes in by its binding, what goes out is tunnelled
	bound                       // both ways by the binding
	leaving                     // comes in still, what goes out is tunnelled
)

// bindings is the shim's part of the binding update list (RFC 6275 §11.1):
// which clients send to our care-of address. It is a hash table with open
// addressing. Readers take no lock and see each change at once; writers take
// mu.
type bindings struct {
	seed  maphash.Seed // clients choose their addresses: collisions should be beyond them
	table atomic.Pointer[bindingTable]

	mu   sync.Mutex
	used int // slots with a client
	live int // of which these are not unbound
}

// bindingTable has a power of two of slots, some of them free. Of each slot there
// is a tag, which is 0 while the slot is free, and an address, which is there
// before the tag is. Once a slot has a client it keeps it, so that a reader never
// finds half of one and half of another; a client that is unbound goes when the
// table is rebuilt.
//
// The tags of a hundred thousand clients fit into a processor's own cache, so
// that a look-up goes to memory but once, for the address. Four fifths of the slots
// may have clients: the denser they are, the more addresses are in a cache, which
// saves more than the tags cost that are then looked at in vain.
type bindingTable struct {
	tags    []atomic.Uint32 // four in each, the first slot's in the lowest octet
	clients [][16]byte
}

// A tag is an octet: that there is a client, five bits of its hash, and its state.
const (
	tagUsed  = 0x80
	tagState = 3
)

const minBindingSlots = 16

func newBindingTable(slots int) *bindingTable {
	return &bindingTable{tags: make([]atomic.Uint32, slots/4), clients: make([][16]byte, slots)}
}

func newBindings() *bindings {
	b := &bindings{seed: maphash.MakeSeed()}
	b.table.Store(newBindingTable(minBindingSlots))
	return b
}

// find returns the slot of a client and its tag, or the free slot that it would
// get and 0, and what its tag is without a state.
func (b *bindings) find(t *bindingTable, client []byte) (slot uint64, tag, want uint32) {
	hash := maphash.Bytes(b.seed, client)
	want = tagUsed | uint32(hash>>57)&^tagState
	mask := uint64(len(t.clients) - 1)
	for slot = hash & mask; ; slot = (slot + 1) & mask {
		tag = t.tags[slot/4].Load() >> (slot % 4 * 8) & 0xff
		if tag == 0 || tag&^tagState == want && t.clients[slot] == [16]byte(client) {
			return slot, tag, want
		}
	}
}

// setTag changes the tag of a slot. mu is held.
func (t *bindingTable) setTag(slot uint64, tag uint32) {
	word := &t.tags[slot/4]
	shift := slot % 4 * 8
	word.Store(word.Load()&^(0xff<<shift) | tag<<shift)
}

// state takes the address as it stands in a packet.
func (b *bindings) state(client []byte) bindingState {
	_, tag, _ := b.find(b.table.Load(), client)
	return bindingState(tag & tagState)
}

func (b *bindings) set(client netip.Addr, state bindingState) {
	a := client.As16()
	b.mu.Lock()
	defer b.mu.Unlock()
	t := b.table.Load()
	slot, old, tag := b.find(t, a[:])
	if old == 0 {
		if state == unbound {
			return
		}
		if (b.used+1)*5 > len(t.clients)*4 {
			t = b.rebuild(t)
			slot, _, _ = b.find(t, a[:])
		}
		t.clients[slot] = a
		b.used++
	}
	if bindingState(old&tagState) != unbound {
		b.live--
	}
	if state != unbound {
		b.live++
	}
	t.setTag(slot, tag|uint32(state))
}

// bound are the clients that are.
func (b *bindings) bound() (clients []netip.Addr) {
	b.mu.Lock()
	defer b.mu.Unlock()
	t := b.table.Load()
	for i, client := range t.clients {
		if tag := t.tags[i/4].Load() >> (i % 4 * 8) & 0xff; bindingState(tag&tagState) == bound {
			clients = append(clients, netip.AddrFrom16(client))
		}
	}
	return clients
}

// rebuild makes a table without the clients that are unbound, with room for as
// many again. mu is held.
func (b *bindings) rebuild(old *bindingTable) *bindingTable {
	n := minBindingSlots
	for n < (b.live+1)*2 {
		n *= 2
	}
	t := newBindingTable(n)
	b.used = b.live
	for i, client := range old.clients {
		tag := old.tags[i/4].Load() >> (i % 4 * 8) & 0xff
		if bindingState(tag&tagState) == unbound {
			continue
		}
		slot, _, _ := b.find(t, client[:])
		t.clients[slot] = client
		t.setTag(slot, tag)
	}
	b.table.Store(t)
	return t
}
