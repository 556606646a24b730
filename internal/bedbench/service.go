package bedbench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/distributed-servers/ds"
)

// What a client asks for, in its first octet.
const (
	wantDown = 'd' // octets, as fast as they can come
	wantUp   = 'u' // nothing but to take them
	wantEcho = 'e' // answers of messageLen octets
	// So many octets as four octets say, which the client does not read. When they
	// are written an answer to the same client says so.
	wantQueue = 'q'
)

const messageLen = 64

// port is the service's.
const port = 9

// service is the application on a node.
type service struct {
	name     byte // the node's, in answers
	mu       sync.Mutex
	sessions map[net.Conn]*session
	queued   map[netip.Addr]bool // clients for whom everything is written
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
	s := &service{sessions: make(map[net.Conn]*session), queued: make(map[netip.Addr]bool)}
	node := &ds.Node{Socket: socket, Addr: addr, State: s.state, MoveInWrite: true, Patience: 10 * time.Second, Logger: slog.New(slog.DiscardHandler)}
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
	size := messageLen
	if x.want != wantEcho {
		size = 256 << 10
	}
	buf := make([]byte, size)
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
			x.message[0], x.message[2] = s.name, s.told(c)
			if _, err := c.Write(x.message); err != nil {
				return err
			}
			x.message = x.message[:0]
		case wantQueue:
			n, err := c.Read(buf[:max(1, 4-len(x.message))])
			if err != nil {
				return err
			}
			if x.message = append(x.message, buf[:n]...); len(x.message) == 4 {
				if err := s.queue(c, int(binary.BigEndian.Uint32(x.message))); err != nil {
					return err
				}
			}
		default:
			return fmt.Errorf("bedbench: a client wants %q", x.want)
		}
	}
}

// queue writes so many octets at once: as many as the client does not take stay in
// the send buffer.
func (s *service) queue(c net.Conn, octets int) error {
	if b, ok := c.(interface{ SetWriteBuffer(int) error }); ok {
		if err := b.SetWriteBuffer(octets + 64<<10); err != nil {
			return err
		}
	}
	if _, err := c.Write(make([]byte, octets)); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queued[client(c)] = true
	return nil
}

// told is 1 if everything is written for the client of a connection.
func (s *service) told(c net.Conn) byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.queued[client(c)] {
		return 1
	}
	return 0
}

func client(c net.Conn) netip.Addr {
	a, _ := netip.ParseAddrPort(c.RemoteAddr().String())
	return a.Addr()
}
