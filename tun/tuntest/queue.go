package tuntest

import (
	"os"
	"sync"
	"time"

	"github.com/distributed-servers/ds/tun"
)

// Packet is a packet with what is known of it.
type Packet struct {
	Data    []byte
	Offload tun.Offload
}

// queue keeps packets for its readers: each packet is for the first that comes.
type queue struct {
	mu      sync.Mutex
	packets []Packet // a ring would save little: appended, popped from head
	head    int
	open    int // readers; with none it drops
	wake    sync.Cond
	drops   uint64
}

// reader reads a queue until its own deadline or close.
type reader struct {
	*queue
	closed   bool // as the other fields, under the queue's lock
	deadline time.Time
	timer    *time.Timer
}

func newReader() *reader {
	q := &queue{open: 1}
	q.wake.L = &q.mu
	return &reader{queue: q}
}

// dup returns another reader of the queue.
func (r *reader) dup() *reader {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closed {
		r.open++
	}
	return &reader{queue: r.queue, closed: r.closed}
}

func (q *queue) push(p Packet) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.open == 0 || len(q.packets)-q.head >= DefaultQueue {
		q.drops++
		return
	}
	if q.head > 0 && len(q.packets) == cap(q.packets) {
		n := copy(q.packets, q.packets[q.head:])
		clear(q.packets[n:])
		q.packets, q.head = q.packets[:n], 0
	}
	q.packets = append(q.packets, p)
	q.wake.Broadcast()
}

// pop returns the next packet, or without wait the zero Packet if there is none.
func (r *reader) pop(wait bool) (Packet, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		switch {
		case r.closed:
			return Packet{}, os.ErrClosed
		case !r.deadline.IsZero() && !time.Now().Before(r.deadline):
			return Packet{}, os.ErrDeadlineExceeded
		case r.head < len(r.packets):
			p := r.packets[r.head]
			r.packets[r.head] = Packet{}
			r.head++
			if r.head == len(r.packets) {
				r.packets, r.head = r.packets[:0], 0
			}
			return p, nil
		case !wait:
			return Packet{}, nil
		}
		r.wake.Wait()
	}
}

func (r *reader) setDeadline(t time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return os.ErrClosed
	}
	if r.timer != nil {
		r.timer.Stop()
		r.timer = nil
	}
	r.deadline = t
	if !t.IsZero() {
		r.timer = time.AfterFunc(time.Until(t), r.wakeAll)
	}
	r.wake.Broadcast()
	return nil
}

func (q *queue) wakeAll() {
	q.mu.Lock()
	q.wake.Broadcast()
	q.mu.Unlock()
}

func (q *queue) dropped() uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.drops
}

func (r *reader) isClosed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.closed
}

func (r *reader) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	r.closed = true
	if r.open--; r.open == 0 {
		r.packets, r.head = nil, 0
	}
	if r.timer != nil {
		r.timer.Stop()
	}
	r.wake.Broadcast()
}
