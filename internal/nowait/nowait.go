//go:build unix

// Package nowait writes to sockets without waiting for them.
package nowait

import (
	"errors"
	"os"
	"syscall"
)

// Write writes as much of b as the socket takes at once, which may be nothing, and
// returns how much that is. c is a connection of package net.
func Write(c syscall.Conn, b []byte) (n int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	// The descriptor does not block, as those of package net do not.
	werr := raw.Write(func(fd uintptr) bool {
		for {
			n, err = syscall.Write(int(fd), b)
			if err != syscall.EINTR {
				return true
			}
		}
	})
	switch {
	case werr != nil:
		return 0, werr
	case errors.Is(err, syscall.EAGAIN):
		return 0, nil
	case err != nil:
		return 0, os.NewSyscallError("write", err)
	}
	return n, nil
}
