package bedbench

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/distributed-servers/ds/handover"
	"github.com/distributed-servers/ds/internal/netns/topology"
	"github.com/distributed-servers/ds/internal/testbed"
	"github.com/distributed-servers/ds/migrate"
	"github.com/distributed-servers/ds/stack"
	"github.com/distributed-servers/ds/tun"
)

// This file is the handoff within a machine: from one process to another, without
// daemon, as for an upgrade of the program (examples/hotswap does it in full). Both
// have the TUN, and one of them reads from it. Each has processors of its own, as nodes
// have.
//
//	client's kernel TCP ── TUN ─┬─ worker a ──┐ package handover
//	                            └─ worker b ──┘

var (
	localServer = netip.MustParseAddr("fd00:9::1")
	localClient = netip.MustParsePrefix("fd00:8::1/64")
)

const (
	localTUN = "dslocal"
	localMTU = 1500
)

// local measures the gap of a client that goes from process to process.
func (e *evaluator) local(ctx context.Context) (err error) {
	n, err := topology.New()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	h, err := n.Host("local")
	if err != nil {
		return err
	}
	var dev *tun.TUN
	err = h.Do(func() (err error) {
		dev, err = tun.Open(tun.Config{
			Name: localTUN, MTU: localMTU, Offload: true, Addrs: []netip.Prefix{localClient},
			Routes: []netip.Prefix{netip.PrefixFrom(localServer, 128)},
		})
		return err
	})
	if err != nil {
		return err
	}
	defer dev.Close()
	between, err := socketPair()
	if err != nil {
		return err
	}
	var workers [2]*localWorker
	for i := range workers {
		workers[i], err = e.startLocal(ctx, h, i, dev.Files()[0], between[i])
		if err != nil {
			return err
		}
		defer workers[i].orders.Close()
	}
	conn, err := h.Dial("tcp", netip.AddrPortFrom(localServer, port).String())
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.Write([]byte{wantEcho}); err != nil {
		return err
	}
	cl := &one{addr: localClient.Addr(), conns: []net.Conn{conn}}
	var file bytes.Buffer
	capture, err := h.Capture(localTUN, &file)
	if err != nil {
		return err
	}
	defer capture.Stop()
	for i := range e.sizes.handoffs {
		if i%100 == 0 {
			e.Progress(fmt.Sprintf("gap_local_ms: handoff %d of %d", i, e.sizes.handoffs))
		}
		if err := oneByOne(cl, func() error { return workers[i%2].handOver(ctx, workers[1-i%2]) }); err != nil {
			return fmt.Errorf("%w\n%s%s", err, workers[0].process.Log, workers[1].process.Log)
		}
	}
	if err := capture.Stop(); err != nil {
		return err
	}
	gap, same, err := gaps(&file, nil, map[netip.AddrPort][]time.Time{cl.port(): nil})
	if err != nil {
		return err
	}
	if len(gap) != e.sizes.handoffs {
		return fmt.Errorf("the client saw %d handoffs of %d", len(gap), e.sizes.handoffs)
	}
	e.row("gap_local_ms", "ms", gap, false)
	slices.Sort(same)
	e.result.Notes = append(e.result.Notes, fmt.Sprintf("gap_local_ms: without a handoff, answers are %.2f ms apart (p50; p99 %.2f)", quantile(same, 0.5), quantile(same, 0.99)))
	return nil
}

// socketPair are the ends of a connection between two processes to be started.
func socketPair() (ends [2]*os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return ends, fmt.Errorf("socketpair: %w", err)
	}
	for i, fd := range fds {
		ends[i] = os.NewFile(uintptr(fd), "worker")
	}
	return ends, nil
}

// localWorker is a process that serves.
type localWorker struct {
	process *topology.Process
	orders  *os.File // a line has it hand over
	mark    int      // of its log
}

func (e *evaluator) startLocal(ctx context.Context, h *topology.Host, i int, device, other *os.File) (*localWorker, error) {
	defer other.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	args := append(slices.Clone(e.Local), fmt.Sprint(i))
	cmd := h.Command(context.Background(), filepath.Join(e.Programs, "ds"), args...)
	cmd.TimerSlack = testbed.TimerSlack
	if cmd.Processors, err = topology.Share(i, 2); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	cmd.Stdin, cmd.ExtraFiles = r, []*os.File{device, other}
	p, err := cmd.Background()
	if err != nil {
		w.Close()
		return nil, err
	}
	if _, err := p.Log.WaitFor(ctx, 0, "ready\n"); err != nil {
		w.Close()
		return nil, fmt.Errorf("%s: %w\n%s", p, err, p.Log)
	}
	return &localWorker{process: p, orders: w, mark: len(p.Log.String())}, nil
}

// handOver has a worker hand everything over to the other one, and waits until that
// serves.
func (w *localWorker) handOver(ctx context.Context, to *localWorker) error {
	if _, err := w.orders.WriteString("go\n"); err != nil {
		return err
	}
	if _, err := to.process.Log.WaitFor(ctx, to.mark, "serves\n"); err != nil {
		return err
	}
	to.mark = len(to.process.Log.String())
	return nil
}

// LocalServe is a worker: number 0 begins. Descriptor 3 is the TUN's, 4 a connection
// to the other worker. It ends with its input.
func LocalServe(ctx context.Context, number int, in io.Reader, out io.Writer) error {
	dev, err := tun.FromFiles([]*os.File{os.NewFile(3, "tun")}, localMTU)
	if err != nil {
		return err
	}
	// The other one may be reading.
	if err := dev.SetReadDeadline(time.Unix(1, 0)); err != nil {
		return err
	}
	s, err := stack.New(stack.Config{Device: dev, Addrs: []netip.Addr{localServer}})
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.Pause(); err != nil {
		return err
	}
	file := os.NewFile(4, "other")
	peer, err := net.FileConn(file)
	if err != nil {
		return err
	}
	file.Close()
	l := &localServe{stack: s, name: byte('a' + number), peer: handover.New(peer.(*net.UnixConn))}
	listener, err := s.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := listener.AcceptConn()
			if err != nil {
				return
			}
			l.serve(c, true)
		}
	}()
	if err := migrate.Check(); err != nil {
		return err
	}
	if number == 0 {
		if err := s.Resume(); err != nil {
			return err
		}
	}
	fmt.Fprintln(out, "ready")
	orders := bufio.NewScanner(in)
	for turn := number == 0; ctx.Err() == nil; turn = !turn {
		if turn {
			if !orders.Scan() {
				return orders.Err()
			}
			if err := l.give(); err != nil {
				return err
			}
			continue
		}
		if err := l.take(); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		fmt.Fprintln(out, "serves")
	}
	return nil
}

type localServe struct {
	stack *stack.Stack
	name  byte
	peer  *handover.Conn

	mu    sync.Mutex
	conns []*stack.Conn
}

// serve answers on a connection; the first octet of a new one says what is wanted.
func (l *localServe) serve(c *stack.Conn, begins bool) {
	l.mu.Lock()
	l.conns = append(l.conns, c)
	l.mu.Unlock()
	go func() {
		var m [messageLen]byte
		if begins {
			if _, err := io.ReadFull(c, m[:1]); err != nil {
				return
			}
		}
		for {
			if _, err := io.ReadFull(c, m[:]); err != nil {
				return // moved, or over
			}
			m[0] = l.name
			if _, err := c.Write(m[:]); err != nil {
				return
			}
		}
	}()
}

// give hands everything over.
func (l *localServe) give() error {
	h, err := handover.Prepare(l.peer, l.stack)
	if err != nil {
		return err
	}
	l.mu.Lock()
	conns := l.conns
	l.conns = nil
	l.mu.Unlock()
	for _, c := range conns {
		<-c.Rest(false)
	}
	if err := l.stack.Pause(); err != nil {
		return err
	}
	donor := migrate.NewStackDonor(l.stack)
	if err := donor.Freeze(); err != nil {
		return err
	}
	if err := h.Give(donor, nil); err != nil {
		return err
	}
	for _, c := range conns {
		c.EndRest()
	}
	return nil
}

// take takes everything over.
func (l *localServe) take() error {
	t, err := handover.Receive(l.peer, l.stack)
	if err != nil {
		return err
	}
	conns, err := t.Activate()
	if err != nil {
		return err
	}
	for _, c := range conns {
		if c != nil {
			l.serve(c, false)
		}
	}
	if err := l.stack.Resume(); err != nil {
		return err
	}
	return t.Confirm()
}
