//go:build linux

package topology

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/distributed-servers/ds/internal/impair"
)

// A wire is a link of this process:
//
//	host a ── a.Name ═══ a ── packet socket │ thread │ packet socket ── b ═══ b.Name ── host b
//	          host a      ╰─────────── namespace of the wire ─────────╯        host b
//
// A thread of its own waits in ppoll for frames and for the time of the next
// one that leaves: the runtime's timers are too coarse, a millisecond, for that.
type wire struct {
	fds   [2]int // packet sockets, of the ends a and b
	wake  int    // event descriptor: look at what has changed
	begun time.Time
	done  chan struct{}

	mu       sync.Mutex
	stop     bool
	lines    [2]*impair.Line // from a to b, from b to a
	unsent   uint64          // the kernel did not take them
	failures error           // of the thread
}

// wireMTU is more than any frame has, for the wire's own interfaces.
const wireMTU = 65535

// wired makes the namespace of the wire, its interfaces, and starts its thread.
func (l *Link) wired(seed uint64, ab, ba impair.Settings) error {
	host, err := l.net.Host("link " + l.a.Host.name + "-" + l.b.Host.name)
	if err != nil {
		return err
	}
	// Nobody is at home there.
	if err := host.Sysctl("net.ipv6.conf.default.disable_ipv6", "1"); err != nil {
		return err
	}
	w := &wire{fds: [2]int{-1, -1}, wake: -1, begun: time.Now(), done: make(chan struct{})}
	w.lines = [2]*impair.Line{impair.NewLine(2*seed, ab), impair.NewLine(2*seed+1, ba)}
	for i, e := range []End{l.a, l.b} {
		port := End{Host: host, Name: [2]string{"a", "b"}[i], MTU: wireMTU}
		if err := l.pair(e, port); err != nil {
			return errors.Join(err, w.close())
		}
		if err := e.Host.Do(func() error { return offloadOff(e.Name) }); err != nil {
			return errors.Join(fmt.Errorf("%s: no offload: %w", e.Name, err), w.close())
		}
		if err := host.Do(func() (err error) { w.fds[i], err = packetSocket(port.Name); return err }); err != nil {
			return errors.Join(err, w.close())
		}
	}
	if w.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return errors.Join(os.NewSyscallError("eventfd", err), w.close())
	}
	go w.run()
	l.wire = w
	l.net.onEnd(w.end)
	return nil
}

// packetSocket opens a socket for the frames that come in on an interface of the
// thread's namespace, and to send some.
func packetSocket(name string) (fd int, err error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return -1, err
	}
	// Without a protocol it gets nothing until it is bound.
	fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	set := func(level, option, value int) {
		if err == nil {
			err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, level, option, value))
		}
	}
	set(unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
	const buffer = 8 << 20
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer) != nil {
		set(unix.SOL_SOCKET, unix.SO_RCVBUF, buffer) // an unprivileged user gets less
	}
	if err == nil {
		all := uint16(unix.ETH_P_ALL)
		err = os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrLinklayer{
			Protocol: all<<8 | all>>8, Ifindex: link.Attrs().Index,
		}))
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func (w *wire) impair(ab, ba impair.Settings) {
	w.mu.Lock()
	w.lines[0].Settings, w.lines[1].Settings = ab, ba
	w.mu.Unlock()
}

func (w *wire) counters() (ab, ba impair.Counters) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lines[0].Counters, w.lines[1].Counters
}

// end stops the thread. Packets on the link are lost.
func (w *wire) end() error {
	w.mu.Lock()
	w.stop = true
	w.mu.Unlock()
	if _, err := unix.Write(w.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
		return os.NewSyscallError("write eventfd", err)
	}
	<-w.done
	return errors.Join(w.failures, w.close())
}

func (w *wire) close() error {
	var errs []error
	for _, fd := range []int{w.fds[0], w.fds[1], w.wake} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	return errors.Join(errs...)
}

func (w *wire) run() {
	defer close(w.done)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	buf := make([]byte, wireMTU+64)
	for {
		wait, stop := w.step(buf)
		if stop {
			return
		}
		poll := []unix.PollFd{
			{Fd: int32(w.fds[0]), Events: unix.POLLIN},
			{Fd: int32(w.fds[1]), Events: unix.POLLIN},
			{Fd: int32(w.wake), Events: unix.POLLIN},
		}
		if _, err := unix.Ppoll(poll, wait, nil); err != nil && err != unix.EINTR {
			w.failures = os.NewSyscallError("ppoll", err)
			return
		}
	}
}

// batch bounds how many frames one end brings before the others have their turn.
const batch = 64

// step reads what has come, sends what is due and says how long nothing is to be
// done; nil is for ever.
func (w *wire) step(buf []byte) (wait *unix.Timespec, stop bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, line := range w.lines {
		for range batch {
			n, err := unix.Read(w.fds[i], buf)
			if err != nil { // nothing there, or the interface is down
				break
			}
			line.Send(time.Since(w.begun), append([]byte(nil), buf[:n]...))
		}
	}
	next := time.Duration(-1)
	for i, line := range w.lines {
		for p, ok := line.Receive(time.Since(w.begun)); ok; p, ok = line.Receive(time.Since(w.begun)) {
			if _, err := unix.Write(w.fds[1-i], p); err != nil {
				w.unsent++ // the interface is down, or its queue is full
			}
		}
		if at, ok := line.NextDeadline(); ok {
			if left := max(at-time.Since(w.begun), 0); next < 0 || left < next {
				next = left
			}
		}
	}
	if next < 0 {
		return nil, w.stop
	}
	ts := unix.NsecToTimespec(int64(next))
	return &ts, w.stop
}
