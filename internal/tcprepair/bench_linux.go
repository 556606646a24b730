package tcprepair

import (
	"context"
	"fmt"
	"runtime"
	"time"
)

const (
	setupLimit  = 10 * time.Second // to fill the queues, or to verify them
	verifyBytes = 64 << 10         // sent each way after the last move
)

// Bench moves one connection over ::1 as often as moves says, with c in its
// queues, and returns how long each whole move took: dump, close, re-create,
// restore. Afterwards it verifies with real octets, to the end of both
// streams, that the connection works both ways and that nothing of what was in
// the queues is lost, doubled or changed. It returns times only if that holds.
//
// The caller sees to it that [Probe] is nil. Bench stays on the thread it is
// called on and so in that thread's network namespace; a namespace of its own
// is best, as no other process can then take the port during a move.
func Bench(ctx context.Context, moves int, c Contents) ([]time.Duration, error) {
	return bench(ctx, moves, c, false)
}

func bench(ctx context.Context, moves int, c Contents, probe bool) ([]time.Duration, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	if moves < 0 {
		return nil, fmt.Errorf("tcprepair: bench: %d moves", moves)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	setup, cancel := context.WithTimeout(ctx, setupLimit)
	defer cancel()
	p, err := newLoaded(setup, c)
	if err != nil {
		return nil, err
	}
	defer p.close()
	p.conn.WindowProbe = probe
	took, err := p.measure(ctx, moves, c)
	if err != nil {
		return nil, err
	}
	if err := p.holds(c); err != nil {
		return nil, err
	}
	setup, cancel = context.WithTimeout(ctx, setupLimit)
	defer cancel()
	if err := p.verify(setup, verifyBytes); err != nil {
		return nil, err
	}
	return took, nil
}

func (p *pair) measure(ctx context.Context, moves int, c Contents) ([]time.Duration, error) {
	took := make([]time.Duration, moves)
	for i := range took {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("tcprepair: bench: after %d moves: %w", i, err)
		}
		start := time.Now()
		if err := p.conn.Dump(); err != nil {
			return nil, err
		}
		if err := p.conn.Restore(); err != nil {
			return nil, err
		}
		took[i] = time.Since(start)

		if sent, unsent, unread := p.conn.Queues(); sent != 0 || unsent != c.Unsent || unread != c.Unread {
			return nil, fmt.Errorf("tcprepair: bench: move %d carried %d sent, %d unsent, %d unread; want 0, %d, %d",
				i, sent, unsent, unread, c.Unsent, c.Unread)
		}
	}
	return took, nil
}
