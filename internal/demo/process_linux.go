package demo

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/distributed-servers/ds/internal/netns"
	"github.com/distributed-servers/ds/stack"
	"github.com/distributed-servers/ds/tun"
)

// patience bounds the end of a child process, which takes milliseconds.
const patience = 5 * time.Second

// event is what the process inside the namespaces tells the one outside, one
// JSON object a line.
type event struct {
	Progress *Progress `json:"progress,omitempty"`
	Result   *Result   `json:"result,omitempty"`
	Error    string    `json:"error,omitempty"`
}

// runProcess runs the demo in fresh namespaces: the rest is Inside's.
func runProcess(ctx context.Context, o *Options) (*Result, error) {
	if o.InsideArgs == nil || o.NodeArgs == nil {
		return nil, errors.New("demo: Options.InsideArgs and Options.NodeArgs are needed in process mode")
	}
	options, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	cmd := netns.Reexec(ctx, nil, o.InsideArgs...)
	cmd.Stderr = os.Stderr
	// Standard input is also what the process inside hangs on: when this
	// process ends, however, it does too.
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	cmd.Cancel = in.Close
	cmd.WaitDelay = patience
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("demo: start in new namespaces: %w", err)
	}
	in.Write(append(options, '\n'))
	res, err := follow(out, o.Progress)
	in.Close()
	return res, errors.Join(err, cmd.Wait())
}

// follow reads events up to a result or an error.
func follow(out io.Reader, progress func(Progress)) (*Result, error) {
	for dec := json.NewDecoder(out); ; {
		var e event
		if err := dec.Decode(&e); err != nil {
			return nil, fmt.Errorf("demo: the process inside the namespaces ended: %w", err)
		}
		switch {
		case e.Progress != nil:
			progress(*e.Progress)
		case e.Error != "":
			return nil, errors.New(e.Error)
		default:
			return e.Result, nil
		}
	}
}

// Inside runs the demo in the namespaces that this process was started in. It
// takes options from in, tells events to out and stops early when in ends.
func Inside(ctx context.Context, in io.Reader, out io.Writer) error {
	signal.Ignore(os.Interrupt) // a terminal sends it to all; the process outside decides
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	enc := json.NewEncoder(out)
	r := bufio.NewReader(in)
	line, err := r.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("demo: no options on standard input (%w); ds demo starts this by itself", err)
	}
	var o Options
	if err := json.Unmarshal(line, &o); err != nil {
		return fmt.Errorf("demo: options: %w", err)
	}
	go func() {
		io.Copy(io.Discard, r)
		cancel(errors.New("demo: interrupted"))
	}()
	events := make(chan event, 1)
	done := make(chan struct{})
	go func() { // out can be slow, the client must not be
		defer close(done)
		for e := range events {
			enc.Encode(e)
		}
	}()
	o.Progress = func(p Progress) {
		select {
		case events <- event{Progress: &p}:
		default:
		}
	}
	res, err := inside(ctx, &o)
	if err != nil {
		events <- event{Error: err.Error()}
	} else {
		events <- event{Result: res}
	}
	close(events)
	<-done
	return nil
}

func inside(ctx context.Context, o *Options) (res *Result, err error) {
	if !netns.Inside() {
		return nil, errors.New("demo: not in a network namespace of its own; ds demo starts this by itself")
	}
	clientAddr, service := o.addrs()
	dev, err := tun.Open(tun.Config{
		Offload: true,
		Addrs:   []netip.Prefix{netip.PrefixFrom(clientAddr, clientAddr.BitLen())},
		Routes:  []netip.Prefix{netip.PrefixFrom(service, service.BitLen())},
	})
	if err != nil {
		return nil, err
	}
	defer dev.Close()

	peer1, peer2, err := socketPair("peer")
	if err != nil {
		return nil, err
	}
	peers := [2]*os.File{peer1, peer2}
	defer peer1.Close()
	defer peer2.Close()
	var controls [2]io.ReadWriter
	for i := range controls {
		control, wait, e := startNode(ctx, o, dev, peers[i], nodeConfig{Owner: i == 0, MTU: dev.MTU(), Service: service})
		if e != nil {
			for _, c := range controls[:i] {
				c.(io.Closer).Close()
			}
			peers[1].Close()
			return nil, e
		}
		// The owner ends with its control connection, the other node with its
		// peer: so all are closed first, and then waited for.
		defer func() {
			if e := wait(); e != nil && err == nil {
				err = fmt.Errorf("demo: node %c: %w", 'A'+i, e)
			}
		}()
		controls[i] = control
	}
	defer func() {
		for _, c := range controls {
			c.(io.Closer).Close()
		}
	}()
	peer1.Close()
	peer2.Close()
	dev.Close() // the nodes have it
	c := &client{
		o: o, base: url(service), controls: controls,
		dial:   (&net.Dialer{}).DialContext,
		resets: kernelResets,
	}
	return c.run(ctx)
}

// socketPair returns two connected UNIX sockets.
func socketPair(name string) (a, b *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	return os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name), nil
}

// nodeConfig is what a node is told at its start.
type nodeConfig struct {
	Owner   bool       `json:"owner"`
	MTU     int        `json:"mtu"`
	Service netip.Addr `json:"service"`
}

// Descriptors that a node inherits, and takes over control.
const (
	controlFD = 3 + iota
	peerFD
)

// startNode starts a node and passes it the TUN. wait returns when the process
// has ended.
func startNode(ctx context.Context, o *Options, dev *tun.TUN, peer *os.File, cfg nodeConfig) (_ *net.UnixConn, wait func() error, err error) {
	ours, theirs, err := socketPair("control")
	if err != nil {
		return nil, nil, err
	}
	defer ours.Close()
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, nil, err
	}
	control := conn.(*net.UnixConn)
	exe, err := os.Executable()
	if err != nil {
		control.Close()
		return nil, nil, err
	}
	cmd := exec.CommandContext(ctx, exe, o.NodeArgs...)
	cmd.ExtraFiles = []*os.File{theirs, peer}
	cmd.Stderr = os.Stderr
	cmd.Cancel = control.CloseWrite // which ends it
	cmd.WaitDelay = patience
	if err := cmd.Start(); err != nil {
		control.Close()
		return nil, nil, fmt.Errorf("demo: start a node: %w", err)
	}
	fail := func(err error) (*net.UnixConn, func() error, error) {
		control.Close()
		return nil, nil, errors.Join(err, cmd.Wait())
	}
	b, err := json.Marshal(cfg)
	if err != nil {
		return fail(err)
	}
	if err := passFile(control, dev.Files()[0]); err != nil {
		return fail(err)
	}
	if err := sendFrame(control, frameConfig, b); err != nil {
		return fail(err)
	}
	return control, cmd.Wait, nil
}

// passFile sends a descriptor, with one octet to carry it.
func passFile(c *net.UnixConn, f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) {
		_, _, err = c.WriteMsgUnix([]byte{0}, unix.UnixRights(int(fd)), nil)
	})
	if err = errors.Join(cerr, err); err != nil {
		return fmt.Errorf("demo: pass a descriptor: %w", err)
	}
	return nil
}

// receiveFile is the other side of passFile.
func receiveFile(c *net.UnixConn) (*os.File, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := c.ReadMsgUnix(make([]byte, 1), oob)
	if err != nil {
		return nil, fmt.Errorf("demo: receive a descriptor: %w", err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		return nil, fmt.Errorf("demo: receive a descriptor: %d control messages: %w", len(msgs), err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil {
		return nil, fmt.Errorf("demo: receive a descriptor: %w", err)
	}
	for _, fd := range fds {
		unix.CloseOnExec(fd)
	}
	return os.NewFile(uintptr(fds[0]), "tun"), nil
}

// Node is one of the two servers: a process that Inside starts.
func Node() error {
	signal.Ignore(os.Interrupt) // it ends with its control connection
	control, err := inherited(controlFD, "control")
	if err != nil {
		return err
	}
	defer control.Close()
	peer, err := inherited(peerFD, "peer")
	if err != nil {
		return err
	}
	defer peer.Close()
	file, err := receiveFile(control)
	if err != nil {
		return err
	}
	b, err := expectFrame(control, nil, frameConfig)
	if err != nil {
		return err
	}
	var cfg nodeConfig
	if err := json.Unmarshal(b, &cfg); err != nil {
		return err
	}
	dev, err := tun.FromFiles([]*os.File{file}, cfg.MTU)
	if err != nil {
		file.Close()
		return err
	}
	s, err := stack.New(stack.Config{Device: dev, Addrs: []netip.Addr{cfg.Service}, MaxBuffer: maxBuffer})
	if err != nil {
		dev.Close()
		return err
	}
	defer s.Close()
	if !cfg.Owner {
		if err := s.Pause(); err != nil {
			return err
		}
	}
	n := &node{
		stack: s, service: newService(), control: control, peer: peer,
		// Packets wait in the TUN's queue for whoever reads next: there are no
		// stragglers.
		wire: wire{leave: s.Pause, enter: s.Resume},
	}
	err = n.serve(netip.AddrPortFrom(cfg.Service, servicePort), cfg.Owner)
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) { // the run is over
		return nil
	}
	return err
}

// inherited returns a UNIX socket that this process was started with.
func inherited(fd int, name string) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("demo: descriptor %d (%s): %w; ds demo starts this by itself", fd, name, err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("demo: descriptor %d (%s) is no UNIX socket; ds demo starts this by itself", fd, name)
	}
	return u, nil
}

// kernelResets is how many connections of this network namespace were reset,
// by either side.
func kernelResets() int {
	b, err := os.ReadFile("/proc/net/snmp")
	if err != nil {
		return 0
	}
	var names []string
	resets := 0
	for line := range bytes.Lines(b) {
		f := strings.Fields(string(line))
		if len(f) == 0 || f[0] != "Tcp:" {
			continue
		}
		if names == nil {
			names = f
			continue
		}
		for i, name := range names {
			if name == "EstabResets" || name == "OutRsts" {
				n, _ := strconv.Atoi(f[i])
				resets += n
			}
		}
	}
	return resets
}
