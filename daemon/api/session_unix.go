//go:build unix

package api

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"
)

// writeFiles writes b or the beginning of it, with descriptors.
func writeFiles(conn *net.UnixConn, b []byte, files []*os.File) (n int, err error) {
	fds := make([]int, len(files))
	for i, f := range files {
		// Fd would make the descriptor block.
		raw, err := f.SyscallConn()
		if err != nil {
			return 0, err
		}
		if err := raw.Control(func(fd uintptr) { fds[i] = int(fd) }); err != nil {
			return 0, err
		}
	}
	n, _, err = conn.WriteMsgUnix(b, syscall.UnixRights(fds...), nil)
	runtime.KeepAlive(files)
	return n, err
}

// descriptors reads from a connection and keeps the descriptors that come with
// what is read.
type descriptors struct {
	conn *net.UnixConn
	oob  []byte

	mu     sync.Mutex
	files  []*os.File
	closed bool
}

func (d *descriptors) Read(p []byte) (int, error) {
	if d.oob == nil {
		d.oob = make([]byte, syscall.CmsgSpace(4*maxFiles))
	}
	n, oobn, _, _, err := d.conn.ReadMsgUnix(p, d.oob)
	if errors.Is(err, io.EOF) {
		err = io.EOF // without the decoration that ReadMsgUnix gives it
	}
	if oobn > 0 {
		err = errors.Join(err, d.keep(d.oob[:oobn]))
	}
	return max(n, 0), err
}

// keep takes the descriptors of control messages. The kernel has closed those
// for which there was no room.
func (d *descriptors) keep(oob []byte) error {
	messages, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return fmt.Errorf("api: session: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range messages {
		fds, err := syscall.ParseUnixRights(&messages[i])
		if err != nil {
			continue // not descriptors
		}
		for _, fd := range fds {
			if d.closed || len(d.files) == maxFiles {
				syscall.Close(fd)
				continue
			}
			d.files = append(d.files, os.NewFile(uintptr(fd), "of a session"))
		}
	}
	return nil
}

// take returns what was kept.
func (d *descriptors) take() []*os.File {
	d.mu.Lock()
	defer d.mu.Unlock()
	files := d.files
	d.files = nil
	return files
}

func (d *descriptors) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	for _, f := range d.files {
		f.Close()
	}
	d.files = nil
}

// SessionPair returns both ends of a session within a process.
func SessionPair() (app, dsco *Session, err error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("api: session: socketpair", err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		syscall.CloseOnExec(fd)
		f := os.NewFile(uintptr(fd), "session")
		c, ferr := net.FileConn(f)
		f.Close()
		if ferr != nil {
			err = errors.Join(err, ferr)
			continue
		}
		ends[i] = c.(*net.UnixConn)
	}
	if err != nil {
		for _, c := range ends {
			if c != nil {
				c.Close()
			}
		}
		return nil, nil, fmt.Errorf("api: session: %w", err)
	}
	return newSession(ends[0], nil, application), newSession(ends[1], nil, daemon), nil
}
