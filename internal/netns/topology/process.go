//go:build linux

package topology

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Cmd is an [exec.Cmd] whose program runs in a host. It is killed when this
// process ends.
type Cmd struct {
	*exec.Cmd
	host *Host

	// TimerSlack is how late timers of the program may be: TimerSlackNSec= of a systemd
	// unit. 0: as those of this process.
	TimerSlack time.Duration

	// Processors are those that the program may run on. Nil: those of this process.
	Processors *unix.CPUSet
}

// Share are the processors of a program that is one of n, by its number, when each is to
// have its own of those that this process may run on. Where there are fewer than
// programs, those that follow each other have different ones.
func Share(number, n int) (*unix.CPUSet, error) {
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return nil, fmt.Errorf("processors: %w", err)
	}
	return share(all, number, n), nil
}

func share(all unix.CPUSet, number, n int) *unix.CPUSet {
	own, shares := new(unix.CPUSet), min(n, all.Count())
	for cpu, i := 0, 0; i < all.Count(); cpu++ {
		if all.IsSet(cpu) {
			if i%shares == number%shares {
				own.Set(cpu)
			}
			i++
		}
	}
	return own
}

// Command is [exec.CommandContext] in the host.
func (h *Host) Command(ctx context.Context, name string, arg ...string) *Cmd {
	cmd := exec.CommandContext(ctx, name, arg...)
	// What the program leaves running must not keep Wait.
	cmd.WaitDelay = 5 * time.Second
	return &Cmd{Cmd: cmd, host: h}
}

// Start is [exec.Cmd.Start] in the host.
func (c *Cmd) Start() error {
	if c.SysProcAttr == nil {
		c.SysProcAttr = &syscall.SysProcAttr{}
	}
	// The signal comes when the thread ends that has started the program. That
	// of Do goes back to the runtime, which keeps it.
	c.SysProcAttr.Pdeathsig = syscall.SIGKILL
	return c.host.Do(func() error {
		if c.TimerSlack != 0 {
			// The program has it from this thread, which gets back what it had.
			if err := unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(c.TimerSlack), 0, 0, 0); err != nil {
				return fmt.Errorf("timer slack: %w", err)
			}
			defer unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0)
		}
		if c.Processors != nil { // these too
			var before unix.CPUSet
			err := unix.SchedGetaffinity(0, &before)
			if err == nil {
				err = unix.SchedSetaffinity(0, c.Processors)
			}
			if err != nil {
				return fmt.Errorf("processors of the program: %w", err)
			}
			defer unix.SchedSetaffinity(0, &before)
		}
		return c.Cmd.Start()
	})
}

// Run is [exec.Cmd.Run] in the host.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output is [exec.Cmd.Output] in the host. The error has what the program wrote
// to its standard error.
func (c *Cmd) Output() ([]byte, error) {
	if c.Stdout != nil {
		return nil, errors.New("topology: Stdout already set")
	}
	var stdout, stderr bytes.Buffer
	c.Stdout = &stdout
	if c.Stderr == nil {
		c.Stderr = &stderr
	}
	err := c.Run()
	if err != nil && stderr.Len() > 0 {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return stdout.Bytes(), err
}

// CombinedOutput is [exec.Cmd.CombinedOutput] in the host.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	if c.Stdout != nil || c.Stderr != nil {
		return nil, errors.New("topology: Stdout or Stderr already set")
	}
	var b bytes.Buffer
	c.Stdout, c.Stderr = &b, &b
	err := c.Run()
	return b.Bytes(), err
}

// Process is a program that runs in a host until it is stopped. What it writes
// is kept.
type Process struct {
	Log *Log

	cmd   *Cmd
	ended chan struct{}
	err   error // set before ended is closed
}

// Start starts a program in the host. It is killed by [Net.Close].
func (h *Host) Start(name string, arg ...string) (*Process, error) {
	return h.Command(context.Background(), name, arg...).Background()
}

// Background starts the command, for which Stdout and Stderr must not be set. It
// is killed by [Net.Close].
func (c *Cmd) Background() (*Process, error) {
	p := &Process{cmd: c, Log: newLog(), ended: make(chan struct{})}
	c.Stdout, c.Stderr = p.Log, p.Log
	if err := c.Start(); err != nil {
		return nil, fmt.Errorf("topology: %s: start %s: %w", c.host.name, c.Path, err)
	}
	go func() {
		p.err = c.Wait()
		p.Log.close()
		close(p.ended)
	}()
	c.host.net.onEnd(func() error { p.Kill(); return nil })
	return p, nil
}

// String is the host and the program's command line.
func (p *Process) String() string { return p.cmd.host.name + ": " + p.cmd.String() }

// PID is the program's process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Ended is closed when the program has ended and all it wrote is in its Log.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Wait waits for the end and tells how it was.
func (p *Process) Wait() error {
	<-p.ended
	return p.err
}

// Signal sends a signal.
func (p *Process) Signal(s os.Signal) error { return p.cmd.Process.Signal(s) }

// Kill kills the program, with SIGKILL, and waits for its end.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // fails when it has ended
	<-p.ended
}

// Stop asks the program to end, with SIGTERM, and waits for that. One that has
// not ended within the time is killed, which is an error, as is an exit status
// other than zero.
func (p *Process) Stop(within time.Duration) error {
	_ = p.Signal(syscall.SIGTERM) // fails when it has ended
	t := time.NewTimer(within)
	defer t.Stop()
	select {
	case <-p.ended:
		if p.err != nil {
			return fmt.Errorf("topology: stop %s: %w", p, p.err)
		}
		return nil
	case <-t.C:
		p.Kill()
		return fmt.Errorf("topology: stop %s: it had not ended after %v", p, within)
	}
}

// Log keeps what a program writes, and lets one wait for it.
type Log struct {
	mu     sync.Mutex
	b      []byte
	grown  chan struct{} // closed at the next write
	closed bool
}

func newLog() *Log { return &Log{grown: make(chan struct{})} }

// Write implements [io.Writer].
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b = append(l.b, p...)
	close(l.grown)
	l.grown = make(chan struct{})
	return len(p), nil
}

func (l *Log) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	close(l.grown)
}

// String is what has been written.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.b)
}

// Len is how much has been written, in octets.
func (l *Log) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.b)
}

// WaitFor waits until s has been written behind the first from octets, and
// returns the offset behind it. It fails when the context or the program ends
// before.
func (l *Log) WaitFor(ctx context.Context, from int, s string) (int, error) {
	for {
		l.mu.Lock()
		i := bytes.Index(l.b[min(from, len(l.b)):], []byte(s))
		grown, closed := l.grown, l.closed
		l.mu.Unlock()
		switch {
		case i >= 0:
			return from + i + len(s), nil
		case closed:
			return 0, fmt.Errorf("topology: the program ended and has not written %q: %w", s, os.ErrProcessDone)
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return 0, fmt.Errorf("topology: the program has not written %q: %w", s, context.Cause(ctx))
		}
	}
}
