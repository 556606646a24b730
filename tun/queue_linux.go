package tun

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// queue is one descriptor of an interface. Reading waits in the runtime's
// poller. Writing does not wait, so several goroutines may do it at once.
type queue struct {
	file    *os.File
	conn    syscall.RawConn
	header  int // size of the virtual network header, 0: none
	reader  reader
	writers sync.Pool // of *writer
}

// newQueue takes a descriptor that does not block.
func newQueue(fd, header int) (*queue, error) {
	q := &queue{file: os.NewFile(uintptr(fd), "/dev/net/tun"), header: header}
	var err error
	if q.conn, err = q.file.SyscallConn(); err != nil {
		q.file.Close()
		return nil, err
	}
	q.reader.call = q.reader.read
	q.writers.New = func() any { return newWriter() }
	return q, nil
}

// reader is what a read needs, so that it allocates nothing.
type reader struct {
	b    []byte
	wait bool
	n    int
	err  error
	call func(fd uintptr) bool // read, bound once
}

// read tells whether it is done, or has to wait.
func (r *reader) read(fd uintptr) bool {
	for {
		switch r.n, r.err = unix.Read(int(fd), r.b); r.err {
		case unix.EINTR:
		case unix.EAGAIN:
			return !r.wait
		default:
			return true
		}
	}
}

func (q *queue) read(b []byte, wait bool) ([]byte, Offload, error) {
	r := &q.reader
	for {
		r.b, r.wait = b, wait
		err := q.conn.Read(r.call)
		r.b = nil
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil, Offload{}, err
		case err != nil:
			return nil, Offload{}, os.ErrClosed // the other thing it fails for
		case r.err == unix.EAGAIN:
			return nil, Offload{}, nil
		case r.err != nil:
			return nil, Offload{}, fmt.Errorf("tun: read: %w", r.err)
		case q.header == 0:
			return b[:r.n], Offload{}, nil
		case r.n < q.header:
			return nil, Offload{}, fmt.Errorf("tun: read: %d octets, fewer than the %d of the virtual network header", r.n, q.header)
		}
		// The kernel writes no header that does not fit its packet; one is
		// passed by rather than ending the link.
		if o, err := parseVnet(b, r.n-q.header); err == nil {
			return b[q.header:r.n], o, nil
		}
	}
}

// writer is what a write needs, so that it allocates nothing.
type writer struct {
	header [HeaderRoom]byte
	parts  [][]byte
	err    error
	call   func(fd uintptr) // writev, bound once
}

func newWriter() *writer {
	w := &writer{parts: make([][]byte, 0, 1+MaxParts)}
	w.call = w.writev
	return w
}

// writev is not a raw system call: one that takes long, as forwarding 64 KiB
// does, must not keep a processor of the Go scheduler.
func (w *writer) writev(fd uintptr) {
	for {
		if _, w.err = unix.Writev(int(fd), w.parts); w.err != unix.EINTR {
			return
		}
	}
}

func (q *queue) write(o Offload, parts [][]byte) error {
	if len(parts) == 0 || len(parts) > MaxParts || len(parts[0]) == 0 {
		return fmt.Errorf("tun: write: %w: %d parts, want 1 to %d and the IP header in the first", unix.EINVAL, len(parts), MaxParts)
	}
	w := q.writers.Get().(*writer)
	if q.header > 0 {
		o.putVnet(w.header[:], parts[0][0])
		w.parts = append(w.parts, w.header[:q.header])
	}
	w.parts = append(w.parts, parts...)
	err := q.conn.Control(w.call)
	if err != nil {
		err = os.ErrClosed // the one thing it fails for
	} else {
		err = w.err
	}
	clear(w.parts) // keep no memory alive
	w.parts = w.parts[:0]
	q.writers.Put(w)
	switch err {
	case unix.ENOBUFS, unix.EAGAIN:
		return nil // the queue was full
	}
	return err
}
