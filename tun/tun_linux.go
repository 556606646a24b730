package tun

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

var _ OffloadDevice = (*TUN)(nil)

// TUN is a Linux TUN interface: one packet, or one super-packet, per read and
// write.
//
// The interface lives as long as somebody, in any process, holds a descriptor
// of it; its addresses and routes go with it.
type TUN struct {
	queues []*queue
	name   string
	mtu    int
}

// Open creates a TUN interface in the current network namespace, gives it the
// addresses and routes of c and sets it up. It needs CAP_NET_ADMIN. After an
// error nothing is left behind.
func Open(c Config) (*TUN, error) { return open(c, theKernel) }

// kernel is what Open asks of it.
type kernel struct {
	setInterface func(fd int, ifr *unix.Ifreq) error
	setOffload   func(fd, flags int) error
}

var theKernel = kernel{
	setInterface: func(fd int, ifr *unix.Ifreq) error { return unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr) },
	setOffload:   func(fd, flags int) error { return unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, flags) },
}

func open(c Config, k kernel) (*TUN, error) {
	c = c.withDefaults()
	if err := c.check(); err != nil {
		return nil, err
	}
	// Without this look the kernel would attach us to an existing persistent
	// interface.
	if _, err := netlink.LinkByName(c.Name); err == nil {
		return nil, openError(c.Name, unix.EBUSY)
	}
	t, err := create(c, k)
	if err != nil {
		return nil, openError(c.Name, err)
	}
	if err := t.configure(c); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

// create makes the interface. A kernel that does not know what is asked for
// says EINVAL; then it is asked for less.
func create(c Config, k kernel) (t *TUN, err error) {
	for _, offload := range []bool{c.Offload, false} {
		for _, queues := range []int{c.Queues, 1} {
			t = &TUN{name: c.Name, mtu: c.MTU}
			if err = t.attach(queues, offload, k); err == nil {
				return t, nil
			}
			t.Close()
			if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EOPNOTSUPP) {
				return nil, err
			}
		}
	}
	return nil, err
}

func (t *TUN) attach(queues int, offload bool, k kernel) error {
	flags, header := uint16(unix.IFF_TUN|unix.IFF_NO_PI), 0
	if offload {
		flags |= unix.IFF_VNET_HDR
		header = vnetHeaderSize
	}
	if queues > 1 {
		flags |= unix.IFF_MULTI_QUEUE
	}
	for range queues {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		ifr, err := unix.NewIfreq(t.name)
		if err == nil {
			ifr.SetUint16(flags)
			err = k.setInterface(fd, ifr)
		}
		if err == nil && offload {
			// Congestion notification in super-packets (TSO_ECN) would need
			// CWR handled on the way in; without it the kernel cuts them up.
			err = k.setOffload(fd, unix.TUN_F_CSUM|unix.TUN_F_TSO4|unix.TUN_F_TSO6)
		}
		if err == nil {
			// Only now: a TUN can be polled when it has its interface.
			err = unix.SetNonblock(fd, true)
		}
		if err != nil {
			unix.Close(fd)
			return err
		}
		t.name = ifr.Name()
		q, err := newQueue(fd, header)
		if err != nil {
			return err
		}
		t.queues = append(t.queues, q)
	}
	return nil
}

// openError says what went wrong when the kernel refused the interface, and
// what cures it.
func openError(name string, err error) error {
	var cure string
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		cure = "no /dev/net/tun here; load the module (modprobe tun) or give the container the device"
	case errors.Is(err, unix.EACCES):
		cure = "/dev/net/tun may not be opened by this user; run as root, change the mode of the device, or take a descriptor from dsco"
	case errors.Is(err, unix.EPERM):
		cure = "this needs CAP_NET_ADMIN; run as root, or take a descriptor from dsco"
	case errors.Is(err, unix.EBUSY):
		cure = "the name is in use; choose another, or one with %d for the first free number"
	case errors.Is(err, unix.EINVAL):
		cure = "not a valid name for an interface; choose another"
	default:
		return fmt.Errorf("tun: open %s: %w", name, err)
	}
	return fmt.Errorf("tun: open %s: %w: %s", name, err, cure)
}

func (t *TUN) configure(c Config) error {
	link, err := netlink.LinkByName(t.name)
	if err != nil {
		return t.errorf("find", err)
	}
	if c.Alias != "" {
		if err := netlink.LinkSetAlias(link, c.Alias); err != nil {
			return t.errorf(fmt.Sprintf("set alias %q", c.Alias), err)
		}
	}
	if err := netlink.LinkSetMTU(link, c.MTU); err != nil {
		return t.errorf(fmt.Sprintf("set MTU %d", c.MTU), err)
	}
	for _, p := range c.Addrs {
		addr := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return t.errorf(fmt.Sprintf("add address %v", p), err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return t.errorf("set up", err)
	}
	for _, p := range c.Addrs {
		if err := await(p.Addr()); err != nil {
			return t.errorf(fmt.Sprintf("wait for address %v", p), err)
		}
	}
	for _, p := range c.Routes {
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(p.Masked()), Scope: netlink.SCOPE_LINK}
		err := netlink.RouteAdd(route)
		if errors.Is(err, unix.EEXIST) {
			err = fmt.Errorf("%w: another interface has it; remove that route first", err)
		}
		if err != nil {
			return t.errorf(fmt.Sprintf("add route %v", p), err)
		}
	}
	return nil
}

// await waits until the kernel takes packets to an address of its own, which is
// a moment after it has got it: it makes IPv6 addresses usable in a work queue.
func await(a netip.Addr) error {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		routes, err := netlink.RouteGet(a.AsSlice())
		switch {
		case err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL:
			return nil
		case time.Now().After(deadline):
			return errors.Join(os.ErrDeadlineExceeded, err)
		}
	}
}

func (t *TUN) errorf(operation string, err error) error {
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EACCES) {
		err = fmt.Errorf("%w: is IPv6 disabled (sysctl net.ipv6.conf.all.disable_ipv6)?", err)
	}
	return fmt.Errorf("tun: %s: %s: %w", t.name, operation, err)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// FromFiles makes a device of the descriptors of a TUN interface that another
// process opened, one for each queue, as [TUN.Files] gives them. It finds out by
// itself whether they come with offloads. mtu is the interface's, in octets; this
// process may not see the interface itself.
//
// On success the TUN owns the files, which must not be used any more; on failure
// the caller keeps them. Closing the TUN leaves the interface to its other
// holders.
func FromFiles(files []*os.File, mtu int) (*TUN, error) {
	if mtu < 68 || mtu > MaxPacket {
		return nil, fmt.Errorf("tun: from files: MTU %d is out of range; use 68 to %d", mtu, MaxPacket)
	}
	if len(files) == 0 {
		return nil, errors.New("tun: from files: there are none; pass those of TUN.Files")
	}
	t := &TUN{mtu: mtu}
	for _, f := range files {
		if err := t.adopt(f); err != nil {
			t.Close()
			return nil, fmt.Errorf("tun: from files: %w", err)
		}
	}
	for _, f := range files {
		f.Close()
	}
	return t, nil
}

// adopt makes a queue of a duplicate of f, since an os.File decides on the
// poller when it is made.
func (t *TUN) adopt(f *os.File) error {
	dup, header := -1, 0
	err := control(f, func(fd int) error {
		name, size, err := interfaceOf(fd)
		switch {
		case err != nil:
			return err
		case len(t.queues) > 0 && name != t.name:
			return fmt.Errorf("one is of %s and another of %s; pass those of one interface", t.name, name)
		}
		t.name, header = name, size
		if dup, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.SetNonblock(dup, true)
	})
	if err != nil {
		if dup >= 0 {
			unix.Close(dup)
		}
		return err
	}
	q, err := newQueue(dup, header)
	if err != nil {
		return err
	}
	t.queues = append(t.queues, q)
	return nil
}

// interfaceOf returns the interface behind a descriptor and the size of the
// headers before its packets, or an error when they do not look as we expect.
func interfaceOf(fd int) (name string, header int, err error) {
	ifr, err := unix.NewIfreq("")
	if err != nil {
		return "", 0, err
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, ifr); err != nil {
		return "", 0, fmt.Errorf("%w: not the descriptor of a TUN interface; pass those of TUN.Files", err)
	}
	flags := ifr.Uint16()
	if flags&(unix.IFF_TUN|unix.IFF_TAP|unix.IFF_NO_PI) != unix.IFF_TUN|unix.IFF_NO_PI {
		return "", 0, fmt.Errorf("%s has flags %#x; open it with IFF_TUN and IFF_NO_PI", ifr.Name(), flags)
	}
	if flags&unix.IFF_VNET_HDR != 0 {
		if header, err = unix.IoctlGetInt(fd, unix.TUNGETVNETHDRSZ); err != nil {
			return "", 0, fmt.Errorf("%s: size of the virtual network header: %w", ifr.Name(), err)
		}
		if header < vnetHeaderSize || header > HeaderRoom {
			return "", 0, fmt.Errorf("%s has virtual network headers of %d octets; use %d to %d", ifr.Name(), header, vnetHeaderSize, HeaderRoom)
		}
	}
	return ifr.Name(), header, nil
}

// control runs f on the descriptor of file without changing its mode.
func control(file *os.File, f func(fd int) error) error {
	conn, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	if err := conn.Control(func(fd uintptr) { ferr = f(int(fd)) }); err != nil {
		return err
	}
	return ferr
}

// Files returns the descriptors, one for each queue, to be passed to another
// process, where [FromFiles] takes them. They stay the TUN's: do not close them.
func (t *TUN) Files() []*os.File {
	files := make([]*os.File, len(t.queues))
	for i, q := range t.queues {
		files[i] = q.file
	}
	return files
}

// Queues implements [OffloadDevice].
func (t *TUN) Queues() int { return len(t.queues) }

// Offloads implements [OffloadDevice]. It is false when the kernel has refused
// what [Config] asked for.
func (t *TUN) Offloads() bool { return t.queues[0].header > 0 }

// ReadPacket implements [OffloadDevice].
func (t *TUN) ReadPacket(queue int, b []byte, wait bool) ([]byte, Offload, error) {
	return t.queues[queue].read(b, wait)
}

// WritePacket implements [OffloadDevice]. A packet that is neither IPv4 nor
// IPv6 is an error, and so is any packet while the interface is down.
func (t *TUN) WritePacket(queue int, o Offload, parts [][]byte) error {
	return t.queues[queue].write(o, parts)
}

// Read implements [Device].
func (t *TUN) Read(p []byte) (int, error) {
	if t.Offloads() || len(t.queues) > 1 {
		return 0, fmt.Errorf("tun: %s: read: with offloads or several queues it takes ReadPacket", t.name)
	}
	return t.queues[0].file.Read(p)
}

// Write implements [Device], with the errors of WritePacket.
func (t *TUN) Write(p []byte) (int, error) {
	if err := t.WritePacket(0, Offload{}, [][]byte{p}); err != nil {
		return 0, err
	}
	return len(p), nil
}

// SetReadDeadline implements [Device], for all queues.
func (t *TUN) SetReadDeadline(d time.Time) error {
	for _, q := range t.queues {
		if err := q.file.SetReadDeadline(d); err != nil {
			return err
		}
	}
	return nil
}

// Name implements [Device]. It is the name at the time of opening.
func (t *TUN) Name() string { return t.name }

// MTU implements [Device]. It is the one the TUN was opened with.
func (t *TUN) MTU() int { return t.mtu }

// Close implements [Device]. The last holder's Close removes the interface
// with its addresses and routes.
func (t *TUN) Close() error {
	var failed error
	for _, q := range t.queues {
		if err := q.file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			failed = err
		}
	}
	return failed
}
