package peercred

import (
	"fmt"
	"net"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Of returns the credentials of the process that conn is connected to.
func Of(conn *net.UnixConn) (Cred, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return Cred{}, fmt.Errorf("peercred: %w", err)
	}
	var c Cred
	if cerr := raw.Control(func(fd uintptr) { c, err = get(int(fd)) }); cerr != nil {
		err = cerr
	}
	if err != nil {
		return Cred{}, fmt.Errorf("peercred: %w", err)
	}
	return c, nil
}

func get(fd int) (Cred, error) {
	u, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return Cred{}, os.NewSyscallError("SO_PEERCRED", err)
	}
	groups, err := peerGroups(fd)
	if err != nil {
		return Cred{}, os.NewSyscallError("SO_PEERGROUPS", err)
	}
	return Cred{PID: int(u.Pid), UID: u.Uid, GID: u.Gid, Groups: groups}, nil
}

// maxGroups is NGROUPS_MAX of Linux.
const maxGroups = 65536

// peerGroups is the one call that golang.org/x/sys has no function for. The
// kernel writes at most the given size, and answers ERANGE with the size that
// it needs if that is more.
func peerGroups(fd int) ([]uint32, error) {
	groups := make([]uint32, 32)
	for {
		size := uint32(len(groups) * 4)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(unsafe.SliceData(groups))), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == 0:
			return groups[:min(int(size/4), len(groups))], nil
		case errno == unix.ERANGE && int(size/4) > len(groups) && size/4 <= maxGroups:
			groups = make([]uint32, size/4)
		default:
			return nil, errno
		}
	}
}
