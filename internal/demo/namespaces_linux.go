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
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/internal/netns"
	"github.com/distributed-servers/ds/internal/testbed"
)

const (
	// patience bounds the end of a child process, which takes milliseconds.
	patience = 20 * time.Second
	// startTime bounds the start of all programs, which takes a second or two.
	startTime = 20 * time.Second
)

// event is what the process inside the namespaces tells the one outside, one
// JSON object a line.
type event struct {
	Progress   *Progress `json:"progress,omitempty"`
	Result     *Result   `json:"result,omitempty"`
	Error      string    `json:"error,omitempty"`
	Impossible string    `json:"impossible,omitempty"` // nothing has begun
}

// runNamespaces runs the demo in fresh namespaces: the rest is Inside's.
func runNamespaces(ctx context.Context, o *Options) (*Result, error) {
	options, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	cmd := netns.Reexec(ctx, nil, o.Inside...)
	cmd.SysProcAttr.Setpgid = true // a terminal's interrupt is for this process, which ends all in order
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
	in.Write(append(options, '\n')) // it tells if that fails
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
		case e.Impossible != "":
			return nil, impossible{e.Impossible}
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
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// If the process outside has been killed, out is broken, and there is still
	// something to do: to clean up.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	r := bufio.NewReader(in)
	line, err := r.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("demo: no options on standard input (%w); ds demo starts this by itself", err)
	}
	var o Options
	if err := json.Unmarshal(line, &o); err != nil {
		return fmt.Errorf("demo: options: %w", err)
	}
	if !netns.Inside() {
		return errors.New("demo: not in a network namespace of its own; ds demo starts this by itself")
	}
	go func() {
		io.Copy(io.Discard, r)
		cancel(errors.New("demo: interrupted"))
	}()
	events := make(chan event, 1)
	done := make(chan struct{})
	go func() { // out can be slow, the clients must not be
		defer close(done)
		for enc := json.NewEncoder(out); ; {
			e, ok := <-events
			if !ok {
				return
			}
			enc.Encode(e)
		}
	}()
	o.Progress = func(p Progress) {
		select {
		case events <- event{Progress: &p}:
		default:
		}
	}
	events <- inside(ctx, &o)
	close(events)
	<-done
	return nil
}

func inside(ctx context.Context, o *Options) event {
	bed, err := testbed.New(testbed.Setup{Programs: o.Programs, App: o.App, Clients: clients})
	if err != nil {
		return event{Impossible: firstLine(err)}
	}
	starting, cancel := context.WithTimeoutCause(ctx, startTime, fmt.Errorf("not up after %v", startTime))
	defer cancel()
	if err := bed.Start(starting, 0); err != nil {
		bed.Close()
		return event{Impossible: firstLine(err)}
	}
	res, err := newBedWorld(bed).run(ctx, o)
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, bed.Logs())
	}
	if err := errors.Join(err, bed.Close()); err != nil {
		return event{Error: err.Error()}
	}
	return event{Result: res}
}

// firstLine is what an error says, without the programs' logs that may follow.
func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

// newBedWorld is a network of real programs, in which the first client is a
// correspondent.
func newBedWorld(bed *testbed.Bed) *world {
	server := bed.Servers[0]
	dsa := server.Addr.Addr()
	askers := make([]*asker, len(bed.Nodes))
	for i, n := range bed.Nodes {
		askers[i] = newAsker(n.Socket)
	}
	w := &world{
		address:  netip.AddrPortFrom(dsa, servicePort).String(),
		problems: func() []string { return nil },
	}
	for i, mode := range []api.Mode{api.Optimised, api.Relayed} {
		c := bed.Clients[i]
		w.hosts = append(w.hosts, &host{
			name: "client " + c.Addr.String(), redirect: string(mode),
			dial: func(_ context.Context, network, address string) (net.Conn, error) {
				return c.Dial(network, address)
			},
			ready: func(ctx context.Context) error { return bed.Mode(ctx, server, c, mode) },
			handoff: func(ctx context.Context, from, to int) (*move, error) {
				return askers[from].handoff(ctx, c.Addr, nodes[to])
			},
			resets: func() (n int, err error) {
				err = c.Do(func() error { n, err = kernelResets(); return err })
				return n, err
			},
		})
	}
	return w
}

// kernelResets is how many connections of this thread's network namespace were
// reset, by either side.
func kernelResets() (int, error) {
	const file = "/proc/thread-self/net/snmp"
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	n, ok := parseResets(b)
	if !ok {
		return 0, fmt.Errorf("demo: no EstabResets and OutRsts in %s", file)
	}
	return n, nil
}

// parseResets adds up the two counters of resets: a line of names is followed by
// one of values (proc_pid_net(5)).
func parseResets(snmp []byte) (resets int, ok bool) {
	var names []string
	found := 0
	for line := range bytes.Lines(snmp) {
		f := strings.Fields(string(line))
		if len(f) == 0 || f[0] != "Tcp:" {
			continue
		}
		if names == nil {
			names = f
			continue
		}
		for i, name := range names[:min(len(names), len(f))] {
			if name == "EstabResets" || name == "OutRsts" {
				n, err := strconv.Atoi(f[i])
				if err != nil {
					return 0, false
				}
				resets += n
				found++
			}
		}
	}
	return resets, found == 2
}
