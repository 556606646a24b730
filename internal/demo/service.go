package demo

import (
	"errors"
	"os"
	"sync"
	"time"

	"github.com/distributed-servers/ds/stack"
)

// service runs a session for each connection.
type service struct {
	mu      sync.Mutex
	stopped bool
	workers map[*stack.Conn]*worker
}

// worker drives a session on a connection.
type worker struct {
	conn    *stack.Conn
	session *session
	done    chan struct{} // closed when nobody drives; nil: never begun
}

// past is a deadline that ends every call.
var past = time.Unix(1, 0)

func newService() *service { return &service{workers: make(map[*stack.Conn]*worker)} }

// start serves a connection, unless the service is stopped: then it waits for
// resume.
func (v *service) start(c *stack.Conn, s *session) {
	v.mu.Lock()
	defer v.mu.Unlock()
	w := &worker{conn: c, session: s}
	v.workers[c] = w
	if !v.stopped {
		v.goLocked(w)
	}
}

func (v *service) goLocked(w *worker) {
	w.done = make(chan struct{})
	go v.work(w, w.done)
}

// work drives a session until it ends, or until the service is stopped.
func (v *service) work(w *worker, done chan<- struct{}) {
	defer close(done)
	b := make([]byte, 64<<10)
	for {
		var n int
		var err, wrong error
		if out := w.session.output(b); len(out) > 0 {
			n, err = w.conn.Write(out)
			// Also when Write fails these n octets are in the send buffer.
			wrong = w.session.wrote(n)
		} else {
			n, err = w.conn.Read(b)
			wrong = w.session.input(b[:n])
		}
		switch {
		case wrong != nil || w.session.done():
		case err == nil:
			continue
		case errors.Is(err, os.ErrDeadlineExceeded):
			return // stop; the session stays as it is
		case errors.Is(err, stack.ErrMoved): // accepted while everything moved
			v.forget(w.conn)
			return
		}
		w.conn.Close()
		v.forget(w.conn)
		return
	}
}

// stop interrupts all sessions and returns when none is being driven: their
// states do not change until resume.
//
// Freezing alone would not do. It makes calls wait, but a call that waits may
// have done half its work, and tells only when it ends; a deadline ends it, and
// the session then knows exactly which octets TCP has.
func (v *service) stop() {
	v.mu.Lock()
	v.stopped = true
	var dones []chan struct{}
	for c, w := range v.workers {
		c.SetDeadline(past)
		if w.done != nil {
			dones = append(dones, w.done)
		}
	}
	v.mu.Unlock()
	for _, done := range dones {
		<-done
	}
}

// resume drives the sessions again that there are.
func (v *service) resume() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.stopped = false
	for c, w := range v.workers {
		c.SetDeadline(time.Time{})
		v.goLocked(w)
	}
}

// state returns the state of a connection's session; the service is stopped.
func (v *service) state(c *stack.Conn) []byte {
	v.mu.Lock()
	defer v.mu.Unlock()
	if w := v.workers[c]; w != nil {
		return w.session.append(nil)
	}
	return nil // not accepted yet, or closed
}

func (v *service) forget(c *stack.Conn) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.workers, c)
}
