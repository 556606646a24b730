package tcprepair

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// One process is both ends, over the loopback of a network namespace that
// holds nothing else:
//
//	          network namespace of its own
//	┌────────────────────────────────────────────┐
//	│  moved end ── [::1]:a ── lo ── [::1]:b ── peer │
//	└────────────────────────────────────────────┘

const (
	inNamespace = "TCPREPAIR_TEST_IN_NAMESPACE"
	noNamespace = 75 // exit status: the namespace is there but not usable
)

// noPrivilege says why the tests that need TCP_REPAIR are skipped.
var noPrivilege string

// TestMain runs all tests in namespaces of their own, where any user may have
// the privilege. Where those cannot be had it runs the tests here.
func TestMain(m *testing.M) {
	if os.Getenv(inNamespace) != "" {
		if err := loopbackUp(); err != nil {
			fmt.Fprintln(os.Stderr, "loopback up:", err)
			os.Exit(noNamespace)
		}
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	err := cmd.Run()
	if cmd.ProcessState != nil && cmd.ProcessState.ExitCode() != noNamespace {
		os.Exit(cmd.ProcessState.ExitCode())
	}
	noPrivilege = fmt.Sprintf("no unprivileged user and network namespace (%v): run as root, or allow them with "+
		"user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns", err)
	os.Exit(m.Run())
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}

// needRepair skips where neither a namespace nor this process has what it
// takes, or the kernel has no TCP_REPAIR.
func needRepair(t testing.TB) {
	t.Helper()
	switch err := Probe(); {
	case err == nil:
	case noPrivilege != "":
		t.Skipf("%v; %s", err, noPrivilege)
	case errors.Is(err, errors.ErrUnsupported), errors.Is(err, unix.EAFNOSUPPORT):
		t.Skip(err)
	default:
		t.Fatal(err)
	}
}

var contents = []struct {
	name string
	Contents
}{
	{"idle", Contents{}},
	{"unread", Contents{Unread: MaxQueue}},
	{"unsent", Contents{Unsent: MaxQueue}},
	{"both", Contents{Unsent: MaxQueue, Unread: MaxQueue}},
	{"one octet each", Contents{Unsent: 1, Unread: 1}},
	{"odd sizes", Contents{Unsent: 50001, Unread: 12345}},
}

func TestBench(t *testing.T) {
	needRepair(t)
	for _, tt := range contents {
		for _, probe := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/probe=%t", tt.name, probe), func(t *testing.T) {
				took, err := bench(t.Context(), 500, tt.Contents, probe)
				if err != nil {
					t.Fatal(err)
				}
				if len(took) != 500 || slices.Min(took) <= 0 {
					t.Errorf("%d times, the shortest %v", len(took), slices.Min(took))
				}
			})
		}
	}
}

// No move at all must verify too, or the verification proves nothing.
func TestBenchWithoutMoves(t *testing.T) {
	needRepair(t)
	if _, err := Bench(t.Context(), 0, Contents{Unsent: 1000, Unread: 1000}); err != nil {
		t.Fatal(err)
	}
}

func TestBenchEndsWithContext(t *testing.T) {
	needRepair(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Bench(ctx, 1<<20, Contents{}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want %v", err, context.Canceled)
	}
}

func TestContentsLimits(t *testing.T) {
	for _, c := range []Contents{{Unsent: -1}, {Unread: -1}, {Unsent: MaxQueue + 1}, {Unread: MaxQueue + 1}} {
		if _, err := Bench(t.Context(), 1, c); err == nil {
			t.Errorf("%+v: no error", c)
		}
	}
}

// hold drops every segment that reaches the peer, as a link that is down does.
func (p *pair) hold() error {
	drop := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}}
	return unix.SetsockoptSockFprog(p.peer, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: 1, Filter: &drop[0]})
}

func (p *pair) release() error {
	return unix.SetsockoptInt(p.peer, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
}

// heldPair has n octets sent, none of which arrived. The peer's buffer is large
// enough that its window does not stop them.
func heldPair(t testing.TB, n int) *pair {
	t.Helper()
	p, err := newPair(3 * MaxQueue)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.close)
	if _, err := p.settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.hold(); err != nil {
		t.Fatal(err)
	}
	if _, err := p.out.write(p.conn.FD(), n); err != nil {
		t.Fatal(err)
	}
	return p
}

// What was sent and not acknowledged goes back in as sent, moves any number of
// times, and arrives when the link is back.
func TestSentButLost(t *testing.T) {
	needRepair(t)
	p := heldPair(t, 50000)
	for i := range 100 {
		if err := p.conn.Dump(); err != nil {
			t.Fatal(err)
		}
		if sent, unsent, unread := p.conn.Queues(); sent != 50000 || unsent != 0 || unread != 0 {
			t.Fatalf("move %d: %d sent, %d unsent, %d unread", i, sent, unsent, unread)
		}
		if err := p.conn.Restore(); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.release(); err != nil {
		t.Fatal(err)
	}
	if err := p.verify(t.Context(), verifyBytes); err != nil {
		t.Error(err)
	}
}

// A Dump that fails leaves the connection as it was; Restore can be tried again
// from the same dump.
func TestFailure(t *testing.T) {
	needRepair(t)
	p, err := newPair(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.close)
	c := p.conn
	if err := p.load(t.Context(), Contents{Unread: 1000}); err != nil {
		t.Fatal(err)
	}
	if err := c.Restore(); err == nil {
		t.Error("Restore of a live connection: no error")
	}
	if err := c.Dump(); err != nil {
		t.Fatal(err)
	}
	if err := c.Dump(); err == nil {
		t.Error("Dump of a dumped connection: no error")
	}
	if c.FD() != -1 {
		t.Errorf("FD %d after Dump", c.FD())
	}

	// A window that the queues contradict fails late in Restore.
	good := c.window
	c.window.recvWUP = c.recvSeq + 1<<20
	if err := c.Restore(); !errors.Is(err, unix.EINVAL) {
		t.Errorf("Restore with an impossible window: %v, want %v", err, unix.EINVAL)
	}
	if c.FD() != -1 {
		t.Errorf("FD %d after a failed Restore", c.FD())
	}
	c.window = good
	if err := c.Restore(); err != nil {
		t.Fatal(err)
	}
	if err := p.holds(Contents{Unread: 1000}); err != nil {
		t.Error(err)
	}
	if err := p.verify(t.Context(), 1000); err != nil {
		t.Error(err)
	}

	// The stream has ended: not established, so not moved, and not broken.
	if err := c.Dump(); err == nil {
		t.Error("Dump of an ended connection: no error")
	}
	if c.FD() < 0 {
		t.Error("a failed Dump took the socket")
	}
}

// Both kinds of octets in the send queue, in buffers that must grow first.
func TestSentAndUnsent(t *testing.T) {
	needRepair(t)
	if testing.Short() {
		t.Skip("the first retransmission after a restore can take the kernel 3 s; run without -short")
	}
	p := heldPair(t, 300000)
	p.conn.pending, p.conn.unread = make([]byte, 0, 16), make([]byte, 0, 16)
	if _, err := p.in.write(p.peer, 30000); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := p.conn.Dump(); err != nil {
			t.Fatal(err)
		}
		sent, unsent, unread := p.conn.Queues()
		if sent == 0 || unsent == 0 || sent+unsent != 300000 || unread != 30000 {
			t.Fatalf("%d sent, %d unsent, %d unread", sent, unsent, unread)
		}
		if err := p.conn.Restore(); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.release(); err != nil {
		t.Fatal(err)
	}
	if err := p.verify(t.Context(), verifyBytes); err != nil {
		t.Error(err)
	}
}

func TestMoveAllocatesNothing(t *testing.T) {
	needRepair(t)
	p, err := newLoaded(t.Context(), Contents{Unsent: MaxQueue, Unread: MaxQueue})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.close)
	if n := testing.AllocsPerRun(100, func() {
		if err := errors.Join(p.conn.Dump(), p.conn.Restore()); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations in a move", n)
	}
}

// The verification must see each kind of fault.
func TestStreamSeesFaults(t *testing.T) {
	whole := make([]byte, 1000)
	(&stream{seed: 1}).at(whole, 0)
	for _, tt := range []struct {
		name string
		got  []byte
	}{
		{"lost", slices.Concat(whole[:500], whole[501:])},
		{"doubled", slices.Concat(whole[:500], whole[492:])},
		{"changed", slices.Concat(whole[:500], []byte{whole[500] ^ 1}, whole[501:])},
		{"other direction", func() []byte {
			p := make([]byte, 1000)
			(&stream{seed: 2}).at(p, 0)
			return p
		}()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var fds [2]int
			if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fds[0])
			if _, err := unix.Write(fds[1], tt.got); err != nil {
				t.Fatal(err)
			}
			unix.Close(fds[1])
			s := stream{seed: 1, written: 1000}
			if _, err := s.check(fds[0], make([]byte, 2000), make([]byte, 2000)); err == nil {
				t.Error("no error")
			}
		})
	}
}

// Probe names cause and cure. Each case spoils a thread of its own, which the
// runtime ends with its goroutine.
func TestProbe(t *testing.T) {
	needRepair(t)
	for _, tt := range []struct {
		name  string
		spoil func() error
		is    error
		cure  string
	}{
		{"no capability", func() error {
			hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var none [2]unix.CapUserData
			return unix.Capset(&hdr, &none[0])
		}, fs.ErrPermission, "unshare -Urn"},
		{"loopback down", func() error {
			return unix.Unshare(unix.CLONE_NEWNET)
		}, unix.EADDRNOTAVAIL, "ip link set lo up"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var spoiled, err error
			done := make(chan struct{})
			go func() {
				defer close(done)
				runtime.LockOSThread() // and never unlock
				if spoiled = tt.spoil(); spoiled == nil {
					err = Probe()
				}
			}()
			<-done
			if spoiled != nil {
				t.Fatal(spoiled)
			}
			if !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.cure) {
				t.Errorf("got %v, want %v and the cure %q", err, tt.is, tt.cure)
			}
		})
	}
}

// BenchmarkMove reports the median and the 99th percentile of b.N moves.
func BenchmarkMove(b *testing.B) {
	needRepair(b)
	report := func(b *testing.B, took []time.Duration) {
		slices.Sort(took)
		b.ReportMetric(float64(took[len(took)/2].Nanoseconds()), "p50-ns")
		b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds()), "p99-ns")
	}
	for _, tt := range contents[:4] {
		for _, probe := range []bool{false, true} {
			b.Run(fmt.Sprintf("%s/probe=%t", tt.name, probe), func(b *testing.B) {
				took, err := bench(b.Context(), b.N, tt.Contents, probe)
				if err != nil {
					b.Fatal(err)
				}
				report(b, took)
			})
		}
	}
	b.Run("sent but lost", func(b *testing.B) {
		p := heldPair(b, MaxQueue)
		took := make([]time.Duration, 0, b.N)
		for b.Loop() {
			start := time.Now()
			if err := errors.Join(p.conn.Dump(), p.conn.Restore()); err != nil {
				b.Fatal(err)
			}
			took = append(took, time.Since(start))
		}
		report(b, took)
	})
}
