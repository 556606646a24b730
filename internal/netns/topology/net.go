//go:build linux

package topology

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/distributed-servers/ds/internal/netns"
)

// Net is a network of hosts. Its methods may be called from any goroutine.
type Net struct {
	mu     sync.Mutex
	hosts  []*Host
	onends []func() error // what Close does, last one first
	closed bool
}

// ErrOutside is returned by [New] in a process whose network is not its own.
var ErrOutside = errors.New("the network of this process is not its own: start it with netns.Command or netns.Reexec")

// New makes a network without hosts. It is refused outside of [netns.Command],
// so that a mistake cannot touch the machine's network.
func New() (*Net, error) {
	if !netns.Inside() {
		return nil, fmt.Errorf("topology: new: %w", ErrOutside)
	}
	return &Net{}, nil
}

// Close ends captures, kills programs, cuts links and lets the namespaces go,
// in the opposite order of their beginning. It returns what went wrong, such as
// packets that a capture has missed.
func (n *Net) Close() error {
	n.mu.Lock()
	ends := n.onends
	n.onends, n.closed = nil, true
	n.mu.Unlock()
	var errs []error
	for _, end := range slices.Backward(ends) {
		errs = append(errs, end())
	}
	return errors.Join(errs...)
}

// Hosts are the hosts, switches too, in the order in which they were made.
func (n *Net) Hosts() []*Host {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.hosts)
}

// onEnd registers what Close does. After Close, it is done at once.
func (n *Net) onEnd(f func() error) {
	n.mu.Lock()
	closed := n.closed
	if !closed {
		n.onends = append(n.onends, f)
	}
	n.mu.Unlock()
	if closed {
		_ = f() // too late for anyone to hear
	}
}

// Host adds a host: a network namespace with its loopback interface up. The
// name is for messages.
func (n *Net) Host(name string) (*Host, error) {
	h := &Host{net: n, name: name, fd: -1}
	err := inThread(func() error { return unix.Unshare(unix.CLONE_NEWNET) }, func() (err error) {
		h.fd, err = unix.Open(threadNS, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		return h.prepare()
	})
	if err != nil {
		if h.fd >= 0 {
			unix.Close(h.fd)
		}
		return nil, fmt.Errorf("topology: host %s: %w", name, err)
	}
	n.mu.Lock()
	n.hosts = append(n.hosts, h)
	n.mu.Unlock()
	n.onEnd(func() error { return unix.Close(h.fd) })
	return h, nil
}
