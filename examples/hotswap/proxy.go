//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"github.com/distributed-servers/ds/stack"
)

// proxyMode connects each client with a backend of the kernel's network.
type proxyMode struct{ backend string }

func (m proxyMode) open() session { return &proxied{backend: m.backend} }

// proxied is the session of a client of a proxyMode. Its connection with the
// backend moves as a descriptor: the kernel keeps it alive meanwhile.
type proxied struct {
	Up, Down half // to and from the backend

	backend string
	back    *net.TCPConn // nil: not yet connected
}

// half is one direction.
type half struct {
	Pending []byte // read from one side, not yet written to the other
	Ended   bool   // the one side has ended its stream
	Shut    bool   // and the other side knows

	buf []byte
}

// side is either side's connection.
type side interface {
	net.Conn
	CloseWrite() error
}

// run copies until the stream has ended on both sides. When it fails, the half
// says exactly how far it got.
func (h *half) run(from, to side) error {
	if h.buf == nil {
		h.buf = make([]byte, chunk)
	}
	for !h.Shut {
		for len(h.Pending) > 0 {
			n, err := to.Write(h.Pending)
			h.Pending = h.Pending[n:]
			if err != nil {
				return err
			}
		}
		if h.Ended {
			if err := to.CloseWrite(); err != nil {
				return err
			}
			h.Shut = true
			return nil
		}
		n, err := from.Read(h.buf)
		h.Pending = h.buf[:n]
		h.Ended = err == io.EOF
		if err != nil && !h.Ended {
			return err
		}
	}
	return nil
}

func (p *proxied) run(ctx context.Context, front *stack.Conn) error {
	if p.back == nil {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", p.backend)
		if err != nil {
			return err
		}
		p.back = c.(*net.TCPConn)
	}
	defer interruptible(ctx, front, p.back)()
	errs := make(chan error, 2)
	go func() { errs <- p.Up.run(front, p.back) }()
	go func() { errs <- p.Down.run(p.back, front) }()
	var stopped, failed error
	for range 2 {
		err := <-errs
		switch {
		case err == nil:
		case interrupted(err):
			stopped = err
		default:
			failed = errors.Join(failed, err)
			front.SetDeadline(past) // the other half ends, too
			p.back.SetDeadline(past)
		}
	}
	if failed != nil {
		p.back.SetLinger(0) // what was reset on one side is on the other
		return failed
	}
	return stopped
}

func (p *proxied) save() (state []byte, files []syscall.Conn) {
	state, err := json.Marshal(p)
	if err != nil {
		panic(err) // octets and booleans: cannot be
	}
	if p.back != nil {
		files = append(files, p.back)
	}
	return state, files
}

func (m proxyMode) restore(state []byte, files []*os.File) (session, error) {
	defer closeFiles(files) // FileConn makes a duplicate
	p := &proxied{backend: m.backend}
	if err := json.Unmarshal(state, p); err != nil {
		return nil, fmt.Errorf("state of a proxied connection: %w", err)
	}
	if len(p.Up.Pending) > chunk || len(p.Down.Pending) > chunk || len(files) > 1 {
		return nil, fmt.Errorf("state of a proxied connection: %d and %d octets, %d descriptors",
			len(p.Up.Pending), len(p.Down.Pending), len(files))
	}
	if len(files) == 1 {
		c, err := net.FileConn(files[0])
		if err != nil {
			return nil, err
		}
		var ok bool
		if p.back, ok = c.(*net.TCPConn); !ok {
			c.Close()
			return nil, fmt.Errorf("state of a proxied connection: backend is a %T", c)
		}
	}
	return p, nil
}

func (p *proxied) close() {
	if p.back != nil {
		p.back.Close()
		p.back = nil
	}
}
