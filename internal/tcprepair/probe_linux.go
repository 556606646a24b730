package tcprepair

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Probe is nil if this process may use TCP_REPAIR in its network namespace and
// has ::1 there. Otherwise the error tells what is missing and how to get it.
// A missing privilege is [io/fs.ErrPermission], a kernel without the option
// [errors.ErrUnsupported].
func Probe() error {
	fd, e := rawSocket()
	if e != 0 {
		return fmt.Errorf("tcprepair: probe: socket: %w: this kernel has no IPv6; enable it", e)
	}
	defer rawClose(fd)

	switch e := rawSetInt(fd, unix.TCP_REPAIR, unix.TCP_REPAIR_ON); {
	case e == unix.EPERM:
		return fmt.Errorf("tcprepair: probe: TCP_REPAIR: %w: it needs CAP_NET_ADMIN in the user namespace "+
			"that owns this network namespace; run as root, or in a new one: unshare -Urn", e)
	case e != 0:
		return fmt.Errorf("tcprepair: probe: TCP_REPAIR: %w: this kernel does not have the option; use Linux 4.19 or later",
			errors.Join(e, errors.ErrUnsupported))
	}

	lo := &unix.SockaddrInet6{Addr: loopback}
	if err := unix.Bind(fd, lo); err != nil {
		return fmt.Errorf("tcprepair: probe: bind ::1: %w: the loopback interface is down or has no IPv6; "+
			"run: ip link set lo up", err)
	}
	var w repairWindow
	if e := rawGet(fd, unix.TCP_REPAIR_WINDOW, unsafe.Pointer(&w), uint32(unsafe.Sizeof(w))); e != 0 {
		return fmt.Errorf("tcprepair: probe: TCP_REPAIR_WINDOW: %w: use Linux 4.19 or later",
			errors.Join(e, errors.ErrUnsupported))
	}
	return nil
}
