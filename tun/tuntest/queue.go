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

// queue keeps packets for a reader.
type queue struct {
	mu       sync.Mutex
	packets  []Packet // a ring would save little: appended, popped from head
	head     int
	closed   bool
	deadline time.Time
	timer    *time.Timer
	wake     sync.Cond
	drops    uint64
}

func (q *queue) init() { q.wake.L = &q.mu }

func (q *queue) push(p Packet) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || len(q.packets)-q.head >= DefaultQueue {
		q.drops++
		return
	}
	if q.head > 0 && len(q.packets) == cap(q.packets) {
		n := copy(q.packets, q.packets[q.head:])
		clear(q.packets[n:])
		q.packets, q.head = q.packets[:n], 0
	}
	q.packets = append(q.packets, p)
	q.wake.Signal()
}

// pop returns the next packet, or without wait the zero Packet if there is none.
func (q *queue) pop(wait bool) (Packet, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		switch {
		case q.closed:
			return Packet{}, os.ErrClosed
		case !q.deadline.IsZero() && !time.Now().Before(q.deadline):
			return Packet{}, os.ErrDeadlineExceeded
		case q.head < len(q.packets):
			p := q.packets[q.head]
			q.packets[q.head] = Packet{}
			q.head++
			if q.head == len(q.packets) {
				q.packets, q.head = q.packets[:0], 0
			}
			return p, nil
		case !wait:
			return Packet{}, nil
		}
		q.wake.Wait()
	}
}

func (q *queue) setDeadline(t time.Time) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return os.ErrClosed
	}
	if q.timer != nil {
		q.timer.Stop()
		q.timer = nil
	}
	q.deadline = t
	if !t.IsZero() {
		q.timer = time.AfterFunc(time.Until(t), q.wakeAll)
	}
	q.wake.Broadcast()
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

func (q *queue) isClosed() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.closed
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return
	}
	q.closed = true
	q.packets, q.head = nil, 0
	if q.timer != nil {
		q.timer.Stop()
	}
	q.wake.Broadcast()
}
