package bedbench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"

	"github.com/distributed-servers/ds"
)

// What a client asks for, in its first octet.
const (
	wantDown = 'd' // octets, as fast as they can come
	wantUp   = 'u' // nothing but to take them
	wantEcho = 'e' // answers of messageLen octets
)

const messageLen = 64

// port is the service's.
const port = 9

// service is the application on a node.
type service struct {
	name     byte // the node's, in answers
	mu       sync.Mutex
	sessions map[net.Conn]*session
	wg       sync.WaitGroup
}

// session is what moves along with a connection.
type session struct {
	want    byte
	message []byte // the part of one that has been read
}

// Serve is the application, until the context ends. It says "ready on NAME" on
// out.
func Serve(ctx context.Context, socket string, addr netip.Addr, out io.Writer) error {
	s := &service{sessions: make(map[net.Conn]*session)}
	node := &ds.Node{Socket: socket, Addr: addr, State: s.state, MoveInWrite: true, Logger: slog.New(slog.DiscardHandler)}
	l, err := node.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		return err
	}
	arrivals, err := node.ListenHandoff()
	if err != nil {
		return errors.Join(err, node.Close())
	}
	name, err := node.Name(ctx)
	if err != nil {
		return errors.Join(err, node.Close())
	}
	s.name = name[0]
	s.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.start(c, new(session))
		}
	})
	s.wg.Go(func() {
		for {
			in, err := arrivals.Accept()
			if err != nil {
				return
			}
			for i, c := range in.Conns {
				x := new(session)
				if st := in.State[i]; len(st) > 0 {
					x.want, x.message = st[0], st[1:]
				}
				s.start(c, x)
			}
		}
	})
	fmt.Fprintf(out, "ready on %s\n", name)
	<-ctx.Done()
	err = node.Close()
	s.wg.Wait()
	return err
}

func (s *service) start(c net.Conn, x *session) {
	s.mu.Lock()
	s.sessions[c] = x
	s.mu.Unlock()
	s.wg.Go(func() {
		defer func() {
			s.mu.Lock()
			delete(s.sessions, c)
			s.mu.Unlock()
		}()
		if err := s.serve(c, x); !errors.Is(err, ds.ErrMoved) {
			c.Close()
		}
	})
}

// state is called while the session's goroutine waits.
func (s *service) state(c net.Conn) ([]byte, error) {
	s.mu.Lock()
	x := s.sessions[c]
	s.mu.Unlock()
	if x == nil || x.want == 0 {
		return nil, nil
	}
	return append([]byte{x.want}, x.message...), nil
}

func (s *service) serve(c net.Conn, x *session) error {
	if x.want == 0 {
		var b [1]byte
		if _, err := c.Read(b[:]); err != nil {
			return err
		}
		x.want = b[0]
	}
	var buf []byte
	if x.want == wantEcho {
		buf = make([]byte, messageLen)
	} else {
		buf = make([]byte, 256<<10)
	}
	for {
		switch x.want {
		case wantDown:
			if _, err := c.Write(buf); err != nil {
				return err
			}
		case wantUp:
			if _, err := c.Read(buf); err != nil {
				return err
			}
		case wantEcho:
			n, err := c.Read(buf[:messageLen-len(x.message)])
			if err != nil {
				return err
			}
			if x.message = append(x.message, buf[:n]...); len(x.message) < messageLen {
				continue
			}
			x.message[0] = s.name
			if _, err := c.Write(x.message); err != nil {
				return err
			}
			x.message = x.message[:0]
		default:
			return fmt.Errorf("bedbench: a client wants %q", x.want)
		}
	}
}
