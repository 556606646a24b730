package tun

import (
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
	header  int       // size of the virtual network header, 0: none
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
	q.writers.New = func() any { return newWriter() }
	return q, nil
}

func (q *queue) read(b []byte) ([]byte, Offload, error) {
	for {
		n, err := q.file.Read(b)
		if err != nil {
			return nil, Offload{}, err
		}
		if q.header == 0 {
			return b[:n], Offload{}, nil
		}
		if n < q.header {
			return nil, Offload{}, fmt.Errorf("tun: read: %d octets, fewer than the %d of the virtual network header", n, q.header)
		}
		// The kernel writes no header that does not fit its packet; one is
		// passed by rather than ending the link.
		if o, err := parseVnet(b, n-q.header); err == nil {
			return b[q.header:n], o, nil
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
