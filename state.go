package ds

import (
	"context"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/distributed-servers/ds/stack"
)

// MaxState bounds the application's state of a connection, in octets.
const MaxState = 1 << 20

// drain waits until the handlers of the client's connections are at rest, if
// there is state that they change.
func (h *handoff) drain(ctx context.Context) error {
	if h.state == nil || h.only != nil {
		return nil
	}
	conns := h.node.stack.ConnsOf(h.client)
	reached := make([]<-chan struct{}, len(conns))
	for i, c := range conns {
		reached[i] = c.Rest(h.node.MoveInWrite)
	}
	h.resting = append(h.resting, conns...)
	late := time.NewTimer(h.node.patience())
	defer late.Stop()
	for i, c := range conns {
		if c.Unattended() {
			continue
		}
		select {
		case <-reached[i]:
		case <-late.C:
			return fmt.Errorf("%s: %w", c.Tuple(), ErrRestless)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// allAtRest tells whether all frozen connections are at rest: some may have come
// to an application since drain has looked.
func (h *handoff) allAtRest() bool {
	return !slices.ContainsFunc(h.donor.Served(), func(c *stack.Conn) bool {
		return c != nil && !c.Unattended() && !c.AtRest()
	})
}

// endRest lets the handlers go on.
func (h *handoff) endRest() {
	for _, c := range h.resting {
		c.EndRest()
	}
	h.resting = nil
}

// describe calls the application's function for each connection that is not
// nil. If it does not return in time it is left to itself; but not because ctx has
// ended: the handlers would go on while it looks at what they change.
func (h *handoff) describe(ctx context.Context, conns []*stack.Conn) ([][]byte, error) {
	type result struct {
		states [][]byte
		err    error
	}
	done := make(chan result, 1)
	go func() {
		states := make([][]byte, len(conns))
		for i, c := range conns {
			if c == nil {
				continue
			}
			b, err := call(h.state, Conn{c, h.node})
			if err == nil && len(b) > MaxState {
				err = fmt.Errorf("%d octets, more than the %d of MaxState", len(b), MaxState)
			}
			if err != nil {
				done <- result{err: fmt.Errorf("%w: %s: %w", ErrState, c.Tuple(), err)}
				return
			}
			states[i] = b
		}
		done <- result{states: states}
	}()
	patience := h.node.patience()
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case r := <-done:
		if r.err == nil && ctx.Err() != nil {
			r.err = context.Cause(ctx)
		}
		return r.states, r.err
	case <-late.C:
		return nil, fmt.Errorf("%w: no answer after %v", ErrState, patience)
	}
}

// call turns a panic of the function into an error.
func call(state func(net.Conn) ([]byte, error), c net.Conn) (b []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			b, err = nil, fmt.Errorf("panic: %v", p)
		}
	}()
	return state(c)
}
