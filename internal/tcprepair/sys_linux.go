package tcprepair

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls below enter the kernel without telling the Go scheduler. None of
// them can block: every socket here is non-blocking and a connect in repair
// mode sends nothing. That saves the kernel's side of the comparison some
// tens of nanoseconds on each of about two dozen calls.
//
// They return the bare error number, 0 for success, so that nothing is
// allocated on the way.

func rawSocket() (int, unix.Errno) {
	fd, _, e := unix.RawSyscall(unix.SYS_SOCKET, unix.AF_INET6,
		unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_TCP)
	return int(fd), e
}

func rawClose(fd int) unix.Errno {
	_, _, e := unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0)
	return e
}

func rawBind(fd int, a *unix.RawSockaddrInet6) unix.Errno {
	_, _, e := unix.RawSyscall(unix.SYS_BIND, uintptr(fd),
		uintptr(unsafe.Pointer(a)), unix.SizeofSockaddrInet6)
	return e
}

func rawConnect(fd int, a *unix.RawSockaddrInet6) unix.Errno {
	_, _, e := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd),
		uintptr(unsafe.Pointer(a)), unix.SizeofSockaddrInet6)
	return e
}

// rawName is getsockname or getpeername.
func rawName(trap uintptr, fd int, a *unix.RawSockaddrInet6) unix.Errno {
	n := uint32(unix.SizeofSockaddrInet6)
	_, _, e := unix.RawSyscall(trap, uintptr(fd),
		uintptr(unsafe.Pointer(a)), uintptr(unsafe.Pointer(&n)))
	if e == 0 && (n != unix.SizeofSockaddrInet6 || a.Family != unix.AF_INET6) {
		return unix.EAFNOSUPPORT
	}
	return e
}

// rawSet and rawGet are setsockopt and getsockopt at level IPPROTO_TCP.
func rawSet(fd, opt int, v unsafe.Pointer, size uintptr) unix.Errno {
	_, _, e := unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.IPPROTO_TCP,
		uintptr(opt), uintptr(v), size, 0)
	return e
}

func rawGet(fd, opt int, v unsafe.Pointer, size uint32) unix.Errno {
	n := size
	_, _, e := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.IPPROTO_TCP,
		uintptr(opt), uintptr(v), uintptr(unsafe.Pointer(&n)), 0)
	if e == 0 && n != size {
		return unix.ENOPROTOOPT // a kernel too old to know the whole structure
	}
	return e
}

func rawSetInt(fd, opt int, v int32) unix.Errno {
	return rawSet(fd, opt, unsafe.Pointer(&v), 4)
}

func rawSetUint(fd, opt int, v uint32) unix.Errno {
	return rawSet(fd, opt, unsafe.Pointer(&v), 4)
}

func rawGetUint(fd, opt int) (uint32, unix.Errno) {
	var v uint32
	e := rawGet(fd, opt, unsafe.Pointer(&v), 4)
	return v, e
}

// rawPeek reads the queue chosen by TCP_REPAIR_QUEUE and leaves it in place.
func rawPeek(fd int, p []byte) (int, unix.Errno) {
	n, _, e := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd),
		uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)),
		unix.MSG_PEEK|unix.MSG_DONTWAIT, 0, 0)
	if e != 0 {
		return 0, e
	}
	return int(n), 0
}

func rawSend(fd int, p []byte) (int, unix.Errno) {
	n, _, e := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd),
		uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)),
		unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	if e != 0 {
		return 0, e
	}
	return int(n), 0
}
