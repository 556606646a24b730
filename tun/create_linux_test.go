package tun

import (
	"errors"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/distributed-servers/ds/internal/netns/netnstest"
	"github.com/distributed-servers/ds/internal/probe"
)

// A kernel that knows less gives less; one that refuses all gives an error, and
// no descriptor is left open.
func TestOpenFallsBack(t *testing.T) {
	if !netnstest.Run(t) {
		return
	}
	probe.Skip(t, probe.TUN)
	before := openFiles(t)
	for _, c := range []struct {
		name       string
		noHeader   bool // the kernel has no virtual network header
		noQueues   bool // nor several queues
		noOffload  bool // nor what is to be offloaded
		nothing    error
		offloads   bool
		queues     int
		wantErrors bool
	}{
		{name: "all", offloads: true, queues: 2},
		{name: "no header", noHeader: true, queues: 2},
		{name: "no offload", noOffload: true, queues: 2},
		{name: "no queues", noQueues: true, offloads: true, queues: 1},
		{name: "plain", noHeader: true, noQueues: true, queues: 1},
		{name: "not allowed", nothing: unix.EPERM, wantErrors: true},
		{name: "nothing", nothing: unix.EINVAL, wantErrors: true},
	} {
		asked := 0
		k := theKernel
		k.setInterface = func(fd int, ifr *unix.Ifreq) error {
			asked++
			flags := ifr.Uint16()
			switch {
			case c.nothing != nil:
				return c.nothing
			case c.noHeader && flags&unix.IFF_VNET_HDR != 0, c.noQueues && flags&unix.IFF_MULTI_QUEUE != 0:
				return unix.EINVAL
			}
			return theKernel.setInterface(fd, ifr)
		}
		k.setOffload = func(fd, flags int) error {
			if c.noOffload {
				return unix.EINVAL
			}
			return theKernel.setOffload(fd, flags)
		}
		d, err := open(Config{Offload: true, Queues: 2}, k)
		switch {
		case c.wantErrors:
			if !errors.Is(err, c.nothing) {
				t.Errorf("%s: %v", c.name, err)
			}
			if c.nothing == unix.EPERM && asked != 1 {
				t.Errorf("%s: asked %d times", c.name, asked)
			}
		case err != nil:
			t.Errorf("%s: %v", c.name, err)
		default:
			if d.Offloads() != c.offloads || d.Queues() != c.queues || d.Name() != "ds0" {
				t.Errorf("%s: %s with offloads %v and %d queues", c.name, d.Name(), d.Offloads(), d.Queues())
			}
			d.Close()
		}
		if _, err := netlink.LinkByName("ds0"); err == nil {
			t.Errorf("%s: the interface is left", c.name)
		}
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d descriptors are open, there were %d", after, before)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
