package rawip

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// openError says what cures the failure to open a socket.
func openError(operation string, err error) error {
	var cure string
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		cure = "raw sockets need CAP_NET_RAW; run as root, or give the program the capability (setcap cap_net_raw+ep)"
	case errors.Is(err, unix.EADDRNOTAVAIL):
		cure = "not an address of this host, or not usable yet; add it to an interface (ip -6 address add … nodad)"
	case errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.EPROTONOSUPPORT):
		cure = "this kernel has no IPv6; is it disabled (ipv6.disable=1)?"
	default:
		return fmt.Errorf("rawip: %s: %w", operation, err)
	}
	return fmt.Errorf("rawip: %s: %w: %s", operation, err, cure)
}

// setQueue makes the socket's queue long, beyond what the system allows if we
// may (CAP_NET_ADMIN), as far as it goes otherwise.
func setQueue(conn syscall.Conn, force, allowed int) error {
	return control(conn, func(fd int) error {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, socketQueue) == nil {
			return nil
		}
		return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_SOCKET, allowed, socketQueue))
	})
}

func control(conn syscall.Conn, f func(fd int) error) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	if err := raw.Control(func(fd uintptr) { ferr = f(int(fd)) }); err != nil {
		return err
	}
	return ferr
}

func closeConn(conn *net.IPConn) error {
	if err := conn.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}
