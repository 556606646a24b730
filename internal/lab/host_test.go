package lab_test

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/distributed-servers/ds/internal/lab"
	"github.com/distributed-servers/ds/stack"
)

// beacon is a machine that sends a numbered packet every period, and logs what
// it gets.
type beacon struct {
	host   *lab.Host
	to     netip.Addr
	period time.Duration // 0: it only listens
	due    time.Duration
	sent   uint32
	log    *[]string
}

func (b *beacon) say(format string, args ...any) {
	*b.log = append(*b.log, fmt.Sprintf("%v %s ", b.host.Now(), b.host.Name())+fmt.Sprintf(format, args...))
}

func (b *beacon) Receive(p []byte)                    { b.say("got %d", number(p)) }
func (b *beacon) NextDeadline() (time.Duration, bool) { return b.due, b.period > 0 }
func (b *beacon) Close() error                        { b.say("closed"); b.Tick(); return nil }
func (b *beacon) Tick() {
	b.sent++
	b.host.Send(packet(b.to, b.sent, 100))
	b.due += b.period
}

// beaconWorld is two beacons' and a switch between them.
func beaconWorld(t *testing.T, delay time.Duration) (s *lab.Sim, a, b *lab.Host, log *[]string) {
	s = lab.NewSim(1)
	t.Cleanup(func() { s.Close() })
	n := s.NewNet("net")
	log = new([]string)
	add := func(name string, own, to netip.Addr, period time.Duration) *lab.Host {
		h, err := s.NewHost(name, n, 1500, func(h *lab.Host) (lab.Program, error) {
			return &beacon{host: h, to: to, period: period, due: h.Now() + period, log: log}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		h.Port().SetImpair(lab.Impair{}, lab.Impair{Delay: delay})
		n.Route(netip.PrefixFrom(own, 128), h.Port())
		return h
	}
	return s, add("a", client, service, time.Second), add("b", service, client, 0), log
}

func wantLog(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestMachinesCrashAndRestart(t *testing.T) {
	s, a, b, log := beaconWorld(t, 300*time.Millisecond)
	var verdicts []string
	defer s.Tap(func(e lab.Event) { verdicts = append(verdicts, e.String()) })()
	s.At(2200*time.Millisecond, b.Crash) // packet 2 is on its way
	s.At(2250*time.Millisecond, func() {
		if err := b.Restart(); err != nil {
			t.Error(err)
		}
	})
	s.At(3900*time.Millisecond, a.Crash) // its deadline dies with it
	s.At(3950*time.Millisecond, func() {
		if a.Up() || a.Program() != nil {
			t.Error("a is up")
		}
	})
	s.At(8*time.Second, func() {
		if err := a.Restart(); err != nil {
			t.Error(err)
		}
	})
	s.Run(9500 * time.Millisecond)
	wantLog(t, *log,
		"1.3s b got 1",
		"2.2s b closed",
		"3.3s b got 3",
		"3.9s a closed",
		"9.3s b got 1")
	wantLog(t, verdicts,
		"1s net: a> 100 sent",
		"1.3s net: a>b 100 delivered",
		"2s net: a> 100 sent",
		"2.3s net: a>b 100 vanished",
		"3s net: a> 100 sent",
		"3.3s net: a>b 100 delivered",
		"9s net: a> 100 sent",
		"9.3s net: a>b 100 delivered")
	if err := a.Restart(); err == nil {
		t.Error("a host that is up was restarted")
	}
	if _, err := s.NewHost("a", a.Net(), 1500, nil); err == nil {
		t.Error("there are two hosts of a name")
	}
}

// A host that crashes and restarts within one event is another one after it:
// what is left of its former life can no longer send.
func TestRestartAtOnce(t *testing.T) {
	s, a, _, log := beaconWorld(t, 0)
	s.At(1500*time.Millisecond, func() {
		a.Crash()
		if err := a.Restart(); err != nil {
			t.Error(err)
		}
	})
	s.Run(2 * time.Second)
	wantLog(t, *log, "1s b got 1", "1.5s a closed")
	s.Run(time.Second)
	wantLog(t, (*log)[2:], "2.5s b got 1")

}

func TestBootFails(t *testing.T) {
	s := lab.NewSim(1)
	defer s.Close()
	n := s.NewNet("net")
	broken := errors.New("broken")
	boot := func(h *lab.Host) (lab.Program, error) {
		h.Go("never", func(*lab.Proc) { t.Error("a process ran") })
		return nil, broken
	}
	if _, err := s.NewHost("a", n, 1500, boot); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	s.Run(time.Second)
}

func TestSameTimeInOrderOfEntry(t *testing.T) {
	s := lab.NewSim(1)
	defer s.Close()
	var got []int
	for i := range 5 {
		s.At(time.Second, func() { got = append(got, i) })
	}
	timer := s.Clock().AfterFunc(time.Second, func() { t.Error("a stopped timer fired") })
	late := s.Clock().AfterFunc(time.Hour, func() { got = append(got, 5) })
	late.Reset(time.Second)
	if !timer.Stop() || timer.Stop() {
		t.Error("Stop")
	}
	s.At(-time.Second, func() { got = append(got, -1) })
	if s.RunUntil(time.Second/2, func() bool { return false }) || s.Now() != time.Second/2 {
		t.Errorf("now %v", s.Now())
	}
	if !s.RunUntil(time.Hour, func() bool { return len(got) == 4 }) || s.Now() != time.Second {
		t.Errorf("now %v, got %v", s.Now(), got)
	}
	s.Run(0)
	if want := []int{-1, 0, 1, 2, 3, 4, 5}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if late.Stop() {
		t.Error("Stop of a timer that has fired")
	}
}

func TestProcesses(t *testing.T) {
	s := lab.NewSim(1)
	defer s.Close()
	var log []string
	say := func(p *lab.Proc, what string) { log = append(log, fmt.Sprintf("%v %s %s", p.Now(), p.Name(), what)) }
	ready := false
	s.Go("boss", func(p *lab.Proc) {
		child := s.Go("child", func(p *lab.Proc) {
			p.Wait(func() bool { return ready })
			say(p, "is ready")
			p.Sleep(time.Second)
			say(p, "ends")
		})
		if p.WaitFor(time.Second, child.Done) {
			t.Error("the child has ended")
		}
		say(p, "is impatient")
		ready = true
		if !p.WaitFor(time.Hour, child.Done) {
			t.Error("the child has not ended")
		}
		say(p, "ends")
	})
	s.Run(time.Minute)
	wantLog(t, log,
		"1s boss is impatient",
		"1s child is ready",
		"2s child ends",
		"2s boss ends")
}

// A process ends with its host, where it waits, even if it waits again on its
// way out.
func TestProcessesEndWithTheirHost(t *testing.T) {
	s, a, _, log := beaconWorld(t, 0)
	say := func(what string) { *log = append(*log, fmt.Sprintf("%v %s", s.Now(), what)) }
	a.Go("victim", func(p *lab.Proc) {
		defer say("deferred")
		defer p.Sleep(time.Second)
		p.Sleep(time.Hour)
		t.Error("it went on")
	})
	a.Go("culprit", func(p *lab.Proc) {
		p.Sleep(100 * time.Millisecond)
		a.Crash()
		if err := a.Restart(); err != nil {
			t.Error(err)
		}
		say("still there")
		p.Sleep(0)
		t.Error("it went on")
	})
	s.Run(500 * time.Millisecond)
	wantLog(t, *log, "100ms deferred", "100ms a closed", "100ms still there")
	a.Crash()
	if !a.Go("late", func(*lab.Proc) { t.Error("it ran") }).Done() {
		t.Error("a process started on a host that is down")
	}
	s.Run(time.Second)
}

func TestTimeStandsStill(t *testing.T) {
	for name, start := range map[string]func(*lab.Sim){
		"events": func(s *lab.Sim) {
			var f func()
			f = func() { s.After(0, f) }
			f()
		},
		"process": func(s *lab.Sim) {
			s.Go("loop", func(p *lab.Proc) {
				for {
					p.Sleep(0)
				}
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := lab.NewSim(1)
			defer s.Close()
			start(s)
			defer func() {
				if r := recover(); r == nil || !strings.Contains(fmt.Sprint(r), "stands still") {
					t.Errorf("recovered %v", r)
				}
			}()
			s.Run(time.Second)
		})
	}
}

// A panic in a process, and the end of the test in one, come out of Run.
func TestPanicInProcess(t *testing.T) {
	s := lab.NewSim(1)
	defer s.Close()
	s.Go("panics", func(*lab.Proc) { panic("ouch") })
	defer func() {
		if r := recover(); r != "ouch" {
			t.Errorf("recovered %v", r)
		}
	}()
	s.Run(time.Second)
}

func TestRandomNumbers(t *testing.T) {
	draw := func(seed uint64, names ...string) string {
		b := make([]byte, 40)
		if _, err := io.ReadFull(lab.NewSim(seed).Rand(names...), b); err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if first, again := draw(1, "a", "b"), draw(1, "a", "b"); first != again {
		t.Error("the same stream differs")
	}
	all := map[string]bool{draw(1, "a", "b"): true, draw(2, "a", "b"): true, draw(1, "ab"): true, draw(1): true, draw(1, "a"): true}
	if len(all) != 5 {
		t.Errorf("%d streams, want 5", len(all))
	}
}

// A server that loses its memory answers what it does not know with a reset;
// its client learns of the crash only then.
func TestStackCrash(t *testing.T) {
	s := lab.NewSim(1)
	defer s.Close()
	n := s.NewNet("net")
	c, srv := addStack(t, s, "client", n, client), addStack(t, s, "server", n, service)
	c.Port().SetImpair(lab.Impair{Delay: 10 * time.Millisecond}, lab.Impair{})
	var log []string
	say := func(what string) { log = append(log, fmt.Sprintf("%v %s", s.Now().Round(time.Millisecond), what)) }
	serve := func() {
		l, err := tcpOf(srv).Listen("tcp", "[fd00:5::1]:7")
		if err != nil {
			t.Fatal(err)
		}
		srv.Go("server", func(p *lab.Proc) { get(p.Stream(accept(p, l)), 1, 1<<30) })
	}
	serve()
	c.Go("client", func(p *lab.Proc) {
		e, err := tcpOf(c).TryDial("tcp", "[fd00:5::1]:7")
		if err != nil {
			t.Fatal(err)
		}
		p.Wait(func() bool { return connected(e) })
		say("connected")
		for at := 0; ; at += 10 {
			b := make([]byte, 10)
			pattern(b, 1, at)
			if _, err := p.Stream(e).Write(b); err != nil {
				say(err.Error()[strings.LastIndex(err.Error(), ":")+2:])
				return
			}
			p.Sleep(time.Second)
		}
	})
	s.At(5500*time.Millisecond, srv.Crash)
	s.At(8800*time.Millisecond, func() {
		if err := srv.Restart(); err != nil {
			t.Error(err)
		}
		serve()
	})
	s.Run(time.Minute)
	if len(log) != 2 || log[0] != "10ms connected" || !strings.HasSuffix(log[1], "connection reset by peer") {
		t.Errorf("got %q", log)
	}
}

// A stack that its program closes is not waited for any more, and its last
// words are sent.
func TestStackCloses(t *testing.T) {
	s := lab.NewSim(1)
	defer s.Close()
	n := s.NewNet("net")
	c, srv := addStack(t, s, "client", n, client), addStack(t, s, "server", n, service)
	l, err := tcpOf(srv).Listen("tcp", "[fd00:5::1]:7")
	if err != nil {
		t.Fatal(err)
	}
	var ends []error
	for range 5 {
		c.Go("client", func(p *lab.Proc) {
			e, err := tcpOf(c).TryDial("tcp", "[fd00:5::1]:7")
			if err != nil {
				t.Fatal(err)
			}
			_, err = p.Stream(e).Read(make([]byte, 1))
			ends = append(ends, err)
		})
	}
	var accepted []*stack.Conn
	srv.Go("server", func(p *lab.Proc) {
		for {
			accepted = append(accepted, accept(p, l))
		}
	})
	s.Run(time.Second)
	srv.After(time.Second, func() { tcpOf(srv).Close() })
	s.Run(time.Minute)
	if len(accepted) != 5 || len(ends) != 5 {
		t.Errorf("%d accepted, %d ended", len(accepted), len(ends))
	}
	for _, err := range ends {
		if err == nil || !strings.Contains(err.Error(), "reset") {
			t.Errorf("a client saw %v", err)
		}
	}
}
