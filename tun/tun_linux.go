package tun

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/songgao/water"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

var _ Device = (*TUN)(nil)

// TUN is a Linux TUN interface that carries one packet per read and write.
//
// The interface lives as long as somebody, in any process, holds a descriptor
// of it; its addresses and routes go with it.
type TUN struct {
	file *os.File
	name string
	mtu  int
}

// Open creates a TUN interface in the current network namespace, gives it the
// addresses and routes of c and sets it up. It needs CAP_NET_ADMIN. After an
// error nothing is left behind.
func Open(c Config) (*TUN, error) {
	c = c.withDefaults()
	if err := c.check(); err != nil {
		return nil, err
	}
	// Without this look the kernel would attach us to an existing persistent
	// interface, and water would take its persistence away.
	if _, err := netlink.LinkByName(c.Name); err == nil {
		return nil, openError(c.Name, unix.EBUSY)
	}
	ifce, err := water.New(water.Config{
		DeviceType:             water.TUN,
		PlatformSpecificParams: water.PlatformSpecificParams{Name: c.Name},
	})
	if err != nil {
		return nil, openError(c.Name, err)
	}
	t := &TUN{name: ifce.Name(), mtu: c.MTU}
	var ok bool
	if t.file, ok = ifce.ReadWriteCloser.(*os.File); !ok {
		ifce.Close()
		return nil, fmt.Errorf("tun: open %s: water returned a %T instead of a file; use the version in go.mod", t.name, ifce.ReadWriteCloser)
	}
	if err := t.configure(c); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
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
	// water opens without O_CLOEXEC; an inherited descriptor would keep the
	// interface alive for as long as the child runs.
	if err := control(t.file, func(fd int) error {
		unix.CloseOnExec(fd)
		return nil
	}); err != nil {
		return t.errorf("close-on-exec", err)
	}
	link, err := netlink.LinkByName(t.name)
	if err != nil {
		return t.errorf("find", err)
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

func (t *TUN) errorf(operation string, err error) error {
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EACCES) {
		err = fmt.Errorf("%w: is IPv6 disabled (sysctl net.ipv6.conf.all.disable_ipv6)?", err)
	}
	return fmt.Errorf("tun: %s: %s: %w", t.name, operation, err)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// FromFile makes a device of a descriptor that another process opened, as
// [TUN.File] gives it: a TUN without packet information and without virtual
// network headers. mtu is the interface's, in octets; this process may not see
// the interface itself.
//
// On success the TUN owns f, which must not be used any more; on failure the
// caller keeps it. Closing the TUN leaves the interface to its other holders.
func FromFile(f *os.File, mtu int) (*TUN, error) {
	if mtu < 68 || mtu > 65535 {
		return nil, fmt.Errorf("tun: from file: MTU %d is out of range; use 68 to 65535", mtu)
	}
	// A duplicate, since an os.File decides on the poller when it is made.
	dup := -1
	var name string
	err := control(f, func(fd int) (err error) {
		if name, err = interfaceOf(fd); err != nil {
			return err
		}
		if dup, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.SetNonblock(dup, true)
	})
	if err != nil {
		if dup >= 0 {
			unix.Close(dup)
		}
		return nil, fmt.Errorf("tun: from file: %w", err)
	}
	f.Close()
	return &TUN{file: os.NewFile(uintptr(dup), "tun"), name: name, mtu: mtu}, nil
}

// interfaceOf returns the interface behind a descriptor, or an error when its
// packets do not look as Read and Write expect them.
func interfaceOf(fd int) (string, error) {
	ifr, err := unix.NewIfreq("")
	if err != nil {
		return "", err
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, ifr); err != nil {
		return "", fmt.Errorf("%w: not the descriptor of a TUN interface; pass the one of TUN.File", err)
	}
	const framing = unix.IFF_TUN | unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR
	if flags := ifr.Uint16() & framing; flags != unix.IFF_TUN|unix.IFF_NO_PI {
		return "", fmt.Errorf("%s has flags %#x; open it with IFF_TUN and IFF_NO_PI only", ifr.Name(), flags)
	}
	return ifr.Name(), nil
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

// File returns the descriptor, to be passed to another process, where
// [FromFile] takes it. It stays the TUN's: do not close it.
func (t *TUN) File() *os.File { return t.file }

// Read implements [Device].
func (t *TUN) Read(p []byte) (int, error) { return t.file.Read(p) }

// Write implements [Device]. A packet that is neither IPv4 nor IPv6 is an
// error, and so is any packet while the interface is down.
func (t *TUN) Write(p []byte) (int, error) {
	n, err := t.file.Write(p)
	if errors.Is(err, unix.ENOBUFS) {
		return len(p), nil
	}
	return n, err
}

// SetReadDeadline implements [Device].
func (t *TUN) SetReadDeadline(d time.Time) error { return t.file.SetReadDeadline(d) }

// Name implements [Device]. It is the name at the time of opening.
func (t *TUN) Name() string { return t.name }

// MTU implements [Device]. It is the one the TUN was opened with.
func (t *TUN) MTU() int { return t.mtu }

// Close implements [Device]. The last holder's Close removes the interface
// with its addresses and routes.
func (t *TUN) Close() error {
	if err := t.file.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}
