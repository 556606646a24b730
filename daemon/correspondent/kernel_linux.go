package correspondent

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/distributed-servers/ds/internal/kernelro"
	"github.com/distributed-servers/ds/mobility/correspondent"
)

// kernel puts headers into nearly all packets, and takes them off, without this
// process (package kernelro): out, on the TUN, ahead of who reads it; in, on the
// interfaces by which care-of addresses are reached, ahead of the queue, and through
// the TUN from there. nil does nothing.
type kernel struct {
	*kernelro.Kernel
	log *slog.Logger
	tun int          // number of the TUN
	in  map[int]bool // numbers of interfaces; false: no program can be there
}

func newKernel(tun, maxBindings int, log *slog.Logger) (*kernel, error) {
	part, err := kernelro.New(maxBindings)
	if err != nil {
		return nil, err
	}
	if err := part.AttachOut(kernelro.Interface{Index: tun}); err != nil {
		return nil, errors.Join(err, part.Close())
	}
	return &kernel{Kernel: part, log: log, tun: tun, in: make(map[int]bool)}, nil
}

// running is 1 if there is one, for a counter.
func (k *kernel) running() uint64 {
	if k == nil {
		return 0
	}
	return 1
}

// packets counts those that were treated.
func (k *kernel) packets() (out, in uint64) {
	if k == nil {
		return 0, 0
	}
	return k.Packets()
}

// bind is told of a binding that was made or has changed. One for which the kernel has no
// room is this process's to treat, and what the kernel knew of it before is wrong now.
func (k *kernel) bind(local, home, careOf netip.Addr, p path, lifetime time.Duration) {
	if k == nil {
		return
	}
	k.attachIn(p.out)
	err := k.Bind(local, home, kernelro.Binding{
		CareOf: careOf, Out: p.out.Attrs().Index, MTU: p.mtu + correspondent.Overhead, Until: kernelro.Now() + lifetime,
	})
	if err != nil {
		k.log.Warn("the kernel does not treat packets of a binding", "error", errors.Join(err, k.Unbind(local, home)))
	}
}

// reroute is told of another path, or the same.
func (k *kernel) reroute(local, home netip.Addr, p path) error {
	if k == nil {
		return nil
	}
	k.attachIn(p.out)
	return k.Reroute(local, home, p.out.Attrs().Index, p.mtu+correspondent.Overhead)
}

func (k *kernel) unbind(local, home netip.Addr) error {
	if k == nil {
		return nil
	}
	return k.Unbind(local, home)
}

// used is when a packet last went by way of a binding, on a clock that began at start.
func (k *kernel) used(local, home netip.Addr, start time.Time) (at time.Duration, ok bool) {
	if k == nil {
		return 0, false
	}
	if at, ok = k.Used(local, home); !ok {
		return 0, false
	}
	return at - kernelro.Now() + time.Since(start), true
}

// attachIn has a program look at what comes in by the interface by which a care-of
// address is reached. What comes in by others, or if there can be none, the queue takes.
func (k *kernel) attachIn(out netlink.Link) {
	attrs := out.Attrs()
	if _, known := k.in[attrs.Index]; known {
		return
	}
	i, err := kernelro.InterfaceOf(out)
	if err == nil {
		err = k.AttachIn(i, k.tun)
	}
	k.in[attrs.Index] = err == nil
	if err != nil {
		k.log.Warn("the kernel does not treat packets of bindings that come in by an interface", "interface", attrs.Name, "error", err)
	}
}

// watchPaths calls f when interfaces or routes have changed, but for routes into the TUN,
// until done is closed: at once, since packets go the old way until then. After that it
// rests for twice as long as f took, and calls f again if there was more.
func watchPaths(tun int, done <-chan struct{}, f func()) error {
	links := make(chan netlink.LinkUpdate)
	if err := netlink.LinkSubscribe(links, done); err != nil {
		return fmt.Errorf("watch interfaces: %w", err)
	}
	routes := make(chan netlink.RouteUpdate)
	if err := netlink.RouteSubscribe(routes, done); err != nil {
		go func() {
			for range links { // who sends them waits for that, and would not hear of done
			}
		}()
		return fmt.Errorf("watch routes: %w", err)
	}
	go func() {
		var pause <-chan time.Time
		for more := false; links != nil || routes != nil; {
			var changed bool
			select {
			case u, ok := <-links:
				if changed = ok && u.Attrs().Index != tun; !ok {
					links = nil
				}
			case u, ok := <-routes:
				if changed = ok && u.LinkIndex != tun; !ok {
					routes = nil
				}
			case <-pause:
				pause, changed, more = nil, more, false
			}
			switch {
			case changed && pause == nil:
				begun := time.Now()
				f()
				pause = time.After(2 * time.Since(begun))
			case changed:
				more = true
			}
		}
	}()
	return nil
}
