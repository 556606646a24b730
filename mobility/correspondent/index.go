package correspondent

import (
	"encoding/binary"
	"math/bits"
)

// index finds the number of an entry by its key: a hash table with linear
// probing and slots of eight octets, so that a look-up among a million costs
// two cache misses, one here and one for the entry. A map costs more of them,
// and several times the memory.
//
// The hash is keyed: mobile nodes choose their addresses, and must not be able
// to choose ones that collide.
type index struct {
	slots []slot // a power of two, at most three quarters in use
	count int
	seed  [2]uint64
}

type slot struct {
	hash uint32 // 0: the slot is not in use
	id   uint32
}

func (x *index) init(seed [16]byte) {
	x.slots = make([]slot, 64)
	x.seed = [2]uint64{binary.BigEndian.Uint64(seed[:]), binary.BigEndian.Uint64(seed[8:])}
}

// hash is that of a key, never 0.
func (x *index) hash(k *key) uint32 {
	w := [4]uint64{
		binary.LittleEndian.Uint64(k.local[:]), binary.LittleEndian.Uint64(k.local[8:]),
		binary.LittleEndian.Uint64(k.home[:]), binary.LittleEndian.Uint64(k.home[8:]),
	}
	h1, l1 := bits.Mul64(w[0]^x.seed[0], w[1]^x.seed[1])
	h2, l2 := bits.Mul64(w[2]^x.seed[1], w[3]^x.seed[0])
	h, l := bits.Mul64(h1^l1^x.seed[0], bits.RotateLeft64(h2^l2, 32)^x.seed[1])
	return uint32(h^l) | 1<<31
}

// insert notes the number of an entry that is not there yet.
func (x *index) insert(hash, id uint32) {
	if x.count++; x.count > len(x.slots)/4*3 {
		old := x.slots
		x.slots = make([]slot, 2*len(old))
		for _, s := range old {
			if s.hash != 0 {
				x.put(s)
			}
		}
	}
	x.put(slot{hash, id})
}

func (x *index) put(s slot) {
	mask := uint32(len(x.slots) - 1)
	i := s.hash & mask
	for x.slots[i].hash != 0 {
		i = (i + 1) & mask
	}
	x.slots[i] = s
}

// remove forgets the number of an entry. What follows moves up, so that no
// look-up ends too early.
func (x *index) remove(hash, id uint32) {
	mask := uint32(len(x.slots) - 1)
	i := hash & mask
	for x.slots[i] != (slot{hash, id}) {
		i = (i + 1) & mask
	}
	x.count--
	for j := i; ; {
		j = (j + 1) & mask
		s := x.slots[j]
		if s.hash == 0 {
			break
		}
		// s may move to i if its own place is not behind i on the way to j.
		if (j-s.hash)&mask >= (j-i)&mask {
			x.slots[i], i = s, j
		}
	}
	x.slots[i] = slot{}
}
