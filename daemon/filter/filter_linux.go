package filter

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/florianl/go-nfqueue/v2"
	"golang.org/x/sys/unix"
)

// Filter is a bound queue with its rules.
type Filter struct {
	cfg  Config
	stop context.CancelFunc
	work sync.WaitGroup // supervise, watch

	mu     sync.Mutex // rules and closing
	closed bool

	bind func() (*socket, error)
	sock atomic.Pointer[socket]
	lost chan error // capacity 1: the socket is lost

	overran time.Time // last overrun; of the queue's goroutine
	stats   struct {
		packets, accepted, replaced, dropped, failed, overruns, reopened, restored atomic.Uint64
	}
}

// Open binds the queue and puts the rules there; what a daemon that was killed
// left of the same queue is replaced by them. It needs CAP_NET_ADMIN. After an
// error nothing has changed.
//
// Errors name cause and cure: the queue is another process's ([unix.EBUSY]), no
// permission ([unix.EPERM]), no program to change rules with
// ([exec.ErrNotFound]), a kernel without Netfilter queues.
func Open(cfg Config) (*Filter, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := check(cfg.Rules); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	f := &Filter{cfg: cfg, stop: cancel, lost: make(chan error, 1)}
	f.bind = func() (*socket, error) { return bind(&f.cfg, f.packet, f.failed) }
	s, err := f.bind()
	if err != nil {
		cancel()
		return nil, err
	}
	f.sock.Store(s)
	if err := install(cfg.Queue, cfg.Rules); err != nil {
		cancel()
		s.close()
		return nil, err
	}
	f.work.Go(func() { f.supervise(ctx) })
	if cfg.Watch > 0 {
		f.work.Go(func() { f.watch(ctx) })
	}
	return f, nil
}

// check finds errors before anything is changed.
func check(r Rules) error {
	if r.err != nil {
		return r.err
	}
	for _, name := range []string{ipv6.save, ipv6.restore, ipv4.save, ipv4.restore} {
		if _, err := find(name); err != nil {
			return err
		}
	}
	return nil
}

// Usable returns a check, which changes nothing, whether a filter with this
// queue could be opened now.
func Usable(queue uint16) func() error {
	return func() error {
		if err := check(Rules{}); err != nil {
			return err
		}
		return whileBound(queue, func() error { return nil })
	}
}

// Cleanup removes the rules that a daemon that was killed left of a queue. It is
// an error if the queue is in use: then they are needed. No rules are no error.
func Cleanup(queue uint16) error {
	if err := check(Rules{}); err != nil {
		return err
	}
	return whileBound(queue, func() error { return install(queue, Rules{}) })
}

// whileBound calls do while nobody else can have the queue. Packets that come
// to the queue meanwhile are dropped.
func whileBound(queue uint16, do func() error) error {
	cfg := Config{Queue: queue, QueueLen: 1, Buffer: 1 << 16}
	s, err := bind(&cfg,
		func(nfq *nfqueue.Nfqueue, a nfqueue.Attribute) {
			if a.PacketID != nil {
				_ = nfq.SetVerdict(*a.PacketID, nfqueue.NfDrop) // closing drops it too
			}
		},
		func(error) bool { return true })
	if err != nil {
		return err
	}
	defer s.close()
	return do()
}

// SetRules replaces the rules. After an error the old ones are in force.
func (f *Filter) SetRules(r Rules) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return errors.New("filter: set rules: closed")
	}
	old := f.cfg.Rules
	if err := install(f.cfg.Queue, r); err != nil {
		if r.err == nil && len(old.v4) > 0 {
			err = errors.Join(err, ipv4.apply(f.cfg.Queue, old.v4))
		}
		return err
	}
	f.cfg.Rules = r
	return nil
}

// Stats returns the counts so far.
func (f *Filter) Stats() Stats {
	s := &f.stats
	k, _ := kernelState(f.cfg.Queue)
	return Stats{
		Packets: s.packets.Load(), Accepted: s.accepted.Load(), Replaced: s.replaced.Load(),
		Dropped: s.dropped.Load(), Failed: s.failed.Load(),
		Overruns: s.overruns.Load(), Reopened: s.reopened.Load(), Restored: s.restored.Load(),
		Queued: k.queued, QueueFull: k.queueFull, BufferFull: k.bufferFull,
	}
}

// Close removes the rules and unbinds the queue, in which the packets that wait
// are dropped. It waits for the Handler to return. If the rules cannot be
// removed, that is the error; the queue is unbound all the same.
func (f *Filter) Close() error {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return nil
	}
	f.closed = true
	// Rules first: what is on its way then finds nobody waiting for it, and is
	// treated as if there had never been a daemon.
	err := install(f.cfg.Queue, Rules{})
	f.mu.Unlock()
	f.stop()
	f.work.Wait()
	f.sock.Load().close()
	return err
}

// packet gives a packet to the Handler, and the kernel its verdict.
func (f *Filter) packet(nfq *nfqueue.Nfqueue, a nfqueue.Attribute) {
	if a.PacketID == nil {
		return
	}
	s := &f.stats
	p, whole := packetOf(&a)
	if !whole {
		s.failed.Add(1)
		_ = nfq.SetVerdict(*a.PacketID, nfqueue.NfDrop)
		return
	}
	s.packets.Add(1)
	v := f.cfg.Handler(p)
	if v.kind == replace && len(v.payload) > maxPacket {
		s.failed.Add(1)
		v = Drop()
	} else {
		// Before the verdict: who sees the packet finds it counted.
		[]*atomic.Uint64{drop: &s.dropped, accept: &s.accepted, replace: &s.replaced}[v.kind].Add(1)
	}
	var err error
	switch v.kind {
	case accept:
		err = nfq.SetVerdict(*a.PacketID, nfqueue.NfAccept)
	case replace:
		if p.Partial {
			CompleteChecksum(v.payload)
		}
		err = nfq.SetVerdictWithOption(*a.PacketID, nfqueue.NfAccept, nfqueue.WithAlteredPacket(v.payload))
	default:
		err = nfq.SetVerdict(*a.PacketID, nfqueue.NfDrop)
	}
	if err != nil {
		s.failed.Add(1)
	}
}

// quiet is how long there must be no overrun for the next one to be logged.
const quiet = 5 * time.Second

// failed takes an error of the socket; false: it is lost.
func (f *Filter) failed(err error) bool {
	if errors.Is(err, unix.ENOBUFS) {
		f.stats.overruns.Add(1)
		if now := time.Now(); now.Sub(f.overran) > quiet {
			f.cfg.Logger.Warn("filter: packets come faster than they are handled: some are dropped",
				"queue", f.cfg.Queue, "overruns", f.stats.overruns.Load())
			f.overran = now
		} else {
			f.overran = now
		}
		return true
	}
	select {
	case f.lost <- err:
	default:
	}
	return false
}

// Bounds of the time between attempts to open a lost socket again.
const (
	minBackoff = 10 * time.Millisecond
	logBackoff = 4 * minBackoff
	maxBackoff = time.Second
)

// supervise opens the socket again when it is lost. The rules stay meanwhile.
func (f *Filter) supervise(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case err := <-f.lost:
			f.cfg.Logger.Warn("filter: the queue's socket is lost: opening it again", "queue", f.cfg.Queue, "err", err)
		}
		f.sock.Load().close()
		for wait := minBackoff; ; wait = min(2*wait, maxBackoff) {
			s, err := f.bind()
			if err == nil {
				f.sock.Store(s)
				f.stats.reopened.Add(1)
				f.cfg.Logger.Info("filter: the queue is open again", "queue", f.cfg.Queue)
				break
			}
			if wait == logBackoff { // it is not over at once
				f.cfg.Logger.Error("filter: the queue cannot be opened again: trying on", "queue", f.cfg.Queue, "err", err)
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(wait):
			}
		}
	}
}

// watch puts the rules back when somebody has thrown them away.
func (f *Filter) watch(ctx context.Context) {
	tick := time.NewTicker(f.cfg.Watch)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			f.look()
		}
	}
}

func (f *Filter) look() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return
	}
	there, err := installed(f.cfg.Queue, f.cfg.Rules)
	if err == nil && !there {
		f.cfg.Logger.Warn("filter: the rules are gone, as when a firewall is loaded again: putting them back", "queue", f.cfg.Queue)
		if err = install(f.cfg.Queue, f.cfg.Rules); err == nil {
			f.stats.restored.Add(1)
		}
	}
	if err != nil {
		f.cfg.Logger.Error("filter: the rules cannot be looked at or put back", "queue", f.cfg.Queue, "err", err)
	}
}
