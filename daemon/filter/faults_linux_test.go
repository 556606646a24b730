package filter

import (
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/distributed-servers/ds/mobility/wire"
)

// eventually waits for what comes about in another goroutine.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline, look := time.After(patience), time.NewTicker(time.Millisecond)
	defer look.Stop()
	for !ok() {
		select {
		case <-look.C:
		case <-deadline:
			t.Fatalf("waited for: %s", what)
		}
	}
}

// logs counts messages by their level.
type logs struct{ warnings, errors atomic.Int64 }

func (l *logs) Enabled(context.Context, slog.Level) bool { return true }
func (l *logs) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *logs) WithGroup(string) slog.Handler            { return l }
func (l *logs) Handle(_ context.Context, r slog.Record) error {
	switch r.Level {
	case slog.LevelWarn:
		l.warnings.Add(1)
	case slog.LevelError:
		l.errors.Add(1)
	}
	return nil
}

// A handler that stalls costs the packets that do not fit, and nothing else.
func TestOverload(t *testing.T) {
	if !own(t) {
		return
	}
	s := newScene(t)
	for name, cfg := range map[string]Config{
		"queue":  {QueueLen: 10},
		"buffer": {Buffer: 1 << 12, QueueLen: 1 << 16},
	} {
		const packets = 1000
		stall, entered := make(chan struct{}), make(chan struct{}, 1)
		l, begin := new(logs), time.Now()
		cfg.Queue, cfg.Rules, cfg.Logger = 7846, nodeRules, slog.New(l)
		var seen atomic.Bool
		cfg.Handler = func(p Packet) Verdict {
			if p.Payload[42] == byte(wire.TypeBindingRefreshRequest) {
				seen.Store(true)
			}
			select {
			case entered <- struct{}{}:
			default:
			}
			<-stall
			return Accept()
		}
		f, err := Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		_, readable := kernelState(7846) // by root only
		signal := mobility(t, wire.Packet{Src: away, Dst: careOf}, &wire.CareOfTest{})
		for range packets {
			s.net.trySend(signal) // nor need all of them come so far
		}
		<-entered
		// Data goes its way meanwhile.
		data := udp(t, away, careOf, name)
		s.net.send(data)
		s.tun.receive(is(data))
		close(stall)
		// It works again: one behind all others, sent until there is room for it.
		last := mobility(t, wire.Packet{Src: away, Dst: careOf}, &wire.BindingRefreshRequest{})
		eventually(t, "the last packet", func() bool {
			s.net.trySend(last)
			return seen.Load()
		})
		st := f.Stats()
		t.Logf("%s: %+v", name, st)
		if st.Packets >= packets {
			t.Errorf("%s: nothing was dropped: %+v", name, st)
		}
		if full := map[string]uint64{"queue": st.QueueFull, "buffer": st.BufferFull}[name]; readable && full < packets/2 {
			t.Errorf("%s: the kernel does not tell: %+v", name, st)
		}
		// One, and where it has been quiet on a machine that stood still, another.
		most := 1 + int64(time.Since(begin)/quiet)
		if (st.Overruns > 0) != (l.warnings.Load() > 0) || l.warnings.Load() > most || name == "buffer" && st.Overruns == 0 {
			t.Errorf("%s: %d warnings of %d overruns", name, l.warnings.Load(), st.Overruns)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}

// A socket that is lost is opened again; if it cannot be at once, later.
func TestSocketLost(t *testing.T) {
	if !own(t) {
		return
	}
	s := newScene(t)
	l := new(logs)
	var handled atomic.Int64
	f, err := Open(Config{Queue: 7846, Rules: nodeRules, Logger: slog.New(l), Handler: func(Packet) Verdict {
		handled.Add(1)
		return Accept()
	}})
	if err != nil {
		t.Fatal(err)
	}
	signal := mobility(t, wire.Packet{Src: away, Dst: careOf}, &wire.CareOfTest{})
	with := tables(t)

	for lost := uint64(1); lost <= 3; lost++ {
		f.sock.Load().nfq.Con.Close()
		eventually(t, "an open socket", func() bool { return f.Stats().Reopened == lost })
		before := handled.Load()
		s.net.send(signal)
		eventually(t, "a packet from it", func() bool { return handled.Load() > before })
		s.tun.receive(is(signal))
	}
	if l.errors.Load() != 0 || l.warnings.Load() != 3 {
		t.Errorf("%d errors, %d warnings", l.errors.Load(), l.warnings.Load())
	}

	// Somebody has taken the number, and gives it back.
	var tries atomic.Int64
	again := f.bind
	f.bind = func() (*socket, error) {
		if tries.Add(1) <= 4 {
			return nil, unix.EBUSY
		}
		return again()
	}
	f.sock.Load().nfq.Con.Close()
	eventually(t, "an open socket", func() bool { return f.Stats().Reopened == 4 })
	if tries.Load() < 5 || l.errors.Load() != 1 {
		t.Errorf("%d tries, %d errors", tries.Load(), l.errors.Load())
	}
	if got := tables(t); got != with {
		t.Errorf("the rules have changed:\n%s\nwere\n%s", got, with)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if err := Usable(7846)(); err != nil {
		t.Error(err)
	}
}

// Packets that wait go with the interface that they came by; the verdict on one
// comes too late then.
func TestInterfaceDown(t *testing.T) {
	if !own(t) {
		return
	}
	s := newScene(t)
	entered, stall := make(chan struct{}, 1), make(chan struct{})
	f, q := open(t, nodeRules, func(Packet) Verdict {
		select {
		case entered <- struct{}{}:
		default:
		}
		<-stall
		return Accept()
	})
	signal := mobility(t, wire.Packet{Src: away, Dst: careOf}, &wire.CareOfTest{})
	s.net.send(signal)
	<-entered
	link, err := netlink.LinkByName("va")
	if err == nil {
		err = netlink.LinkSetDown(link)
	}
	if err != nil {
		t.Fatal(err)
	}
	close(stall)
	q.next(t)
	if err := netlink.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another packet", func() bool {
		s.net.trySend(signal)
		return len(q) > 0
	})
	if st := f.Stats(); st.Reopened != 0 {
		t.Errorf("%+v", st)
	}
}

// Close ends attempts to open a lost socket.
func TestCloseWhileLost(t *testing.T) {
	if !own(t) {
		return
	}
	l := new(logs)
	f, err := Open(Config{Queue: 7846, Rules: nodeRules, Logger: slog.New(l), Handler: accepting})
	if err != nil {
		t.Fatal(err)
	}
	f.bind = func() (*socket, error) { return nil, unix.EBUSY }
	f.sock.Load().nfq.Con.Close()
	eventually(t, "an error", func() bool { return l.errors.Load() == 1 })
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

// A firewall that is loaded again throws the rules away; they come back.
func TestRulesThrownAway(t *testing.T) {
	if !own(t) {
		return
	}
	l := new(logs)
	f, err := Open(Config{Queue: 7846, Rules: nodeRules, Handler: accepting, Logger: slog.New(l), Watch: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	with := tables(t)
	for i, thrown := range []string{
		"*raw\n-F PREROUTING\nCOMMIT\n",
		"*raw\n-F\nCOMMIT\n",
		"*raw\n-F\n-X\nCOMMIT\n",
		"*raw\n-D DSCO-7846 1\nCOMMIT\n",
	} {
		// It may come between our look and our change, too.
		if _, _, err := runProgram(ipv6.restore, thrown, "--noflush", "-w", "5"); err != nil {
			t.Fatal(err)
		}
		eventually(t, "rules put back", func() bool { return f.Stats().Restored >= uint64(i)+1 && tables(t) == with })
	}
	if l.warnings.Load() < 4 || l.errors.Load() != 0 {
		t.Errorf("%d warnings, %d errors", l.warnings.Load(), l.errors.Load())
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if got := tables(t); strings.Contains(got, "DSCO") {
		t.Errorf("after Close:\n%s", got)
	}
}

// Rules that a killed daemon left send packets while its successor opens.
func TestOpenUnderFlood(t *testing.T) {
	if !own(t) {
		return
	}
	s := newScene(t)
	if err := install(7846, nodeRules); err != nil {
		t.Fatal(err)
	}
	signal := mobility(t, wire.Packet{Src: away, Dst: careOf}, &wire.CareOfTest{})
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				s.net.trySend(signal) // which may be more than the link takes
			}
		}
	}()
	for range 4 {
		var handled atomic.Int64
		f, err := Open(Config{Queue: 7846, QueueLen: 64, Rules: nodeRules, Logger: slog.New(slog.DiscardHandler), Handler: func(Packet) Verdict {
			handled.Add(1)
			return Accept()
		}})
		if err != nil {
			t.Fatal(err)
		}
		// More than fit the queue: none of them still waits for its verdict.
		eventually(t, "packets", func() bool { return handled.Load() > 200 })
		f.sock.Load().close() // as if it was killed
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if err := install(7846, nodeRules); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	<-stopped
	if err := Cleanup(7846); err != nil {
		t.Fatal(err)
	}
}
