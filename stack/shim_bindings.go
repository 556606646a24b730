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
type bindingState uint32

const (
	unbound bindingState = iota // nothing comes in by its binding, what goes out is tunnelled
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

// bindingTable's slots are a power of two, some of them free.
type bindingTable struct{ slots []bindingSlot }

// bindingSlot is free while state is 0. Once it has a client it keeps it, so
// that a reader never finds half of one and half of another; a client that is
// unbound goes when the table is rebuilt.
type bindingSlot struct {
	state  atomic.Uint32 // slotUsed | bindingState, stored when client is set
	client [16]byte
}

// slotUsed distinguishes a slot whose client is unbound from a free one.
const slotUsed = 4

const minBindingSlots = 16

func newBindings() *bindings {
	b := &bindings{seed: maphash.MakeSeed()}
	b.table.Store(&bindingTable{make([]bindingSlot, minBindingSlots)})
	return b
}

// slot returns the slot of a client, or the free one that it would get, and
// what was in it.
func (b *bindings) slot(t *bindingTable, client []byte) (s *bindingSlot, state uint32) {
	mask := uint64(len(t.slots) - 1)
	for i := maphash.Bytes(b.seed, client); ; i++ {
		s = &t.slots[i&mask]
		if state = s.state.Load(); state == 0 || s.client == [16]byte(client) {
			return s, state
		}
	}
}

// state takes the address as it stands in a packet.
func (b *bindings) state(client []byte) bindingState {
	_, state := b.slot(b.table.Load(), client)
	return bindingState(state &^ slotUsed)
}

func (b *bindings) set(client netip.Addr, state bindingState) {
	a := client.As16()
	b.mu.Lock()
	defer b.mu.Unlock()
	t := b.table.Load()
	s, old := b.slot(t, a[:])
	if old == 0 {
		if state == unbound {
			return
		}
		if (b.used+1)*4 > len(t.slots)*3 {
			t = b.rebuild(t)
			s, _ = b.slot(t, a[:])
		}
		s.client = a
		b.used++
	}
	if bindingState(old&^slotUsed) != unbound {
		b.live--
	}
	if state != unbound {
		b.live++
	}
	s.state.Store(slotUsed | uint32(state))
}

// rebuild makes a table without the clients that are unbound, with room for as
// many again. mu is held.
func (b *bindings) rebuild(old *bindingTable) *bindingTable {
	n := minBindingSlots
	for n < (b.live+1)*2 {
		n *= 2
	}
	t := &bindingTable{make([]bindingSlot, n)}
	b.used = b.live
	for i := range old.slots {
		o := &old.slots[i]
		if state := o.state.Load(); state&^slotUsed != 0 {
			s, _ := b.slot(t, o.client[:])
			s.client = o.client
			s.state.Store(state)
		}
	}
	b.table.Store(t)
	return t
}
