package lab_test

import (
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"github.com/distributed-servers/ds/internal/lab"
	"github.com/distributed-servers/ds/stack"
)

// stackProgram is a host that is nothing but a TCP/IP stack.
type stackProgram struct{ *stack.Stack }

func (p stackProgram) Receive(b []byte)                    { p.Arrive(b) }
func (p stackProgram) NextDeadline() (time.Duration, bool) { return 0, false }
func (p stackProgram) Tick()                               {}

func newStack(h *lab.Host, addrs ...netip.Addr) (stackProgram, error) {
	d := h.Device(1500, nil)
	s, err := stack.New(stack.Config{Device: d, Addrs: addrs, Clock: h.Clock(), Rand: h.Rand("stack")})
	if err != nil {
		return stackProgram{}, err
	}
	d.Watch(s.Netstack())
	return stackProgram{s}, nil
}

// tcpOf is the stack that runs on a host.
func tcpOf(h *lab.Host) *stack.Stack { return h.Program().(stackProgram).Stack }

func addStack(t testing.TB, s *lab.Sim, name string, on *lab.Net, a netip.Addr) *lab.Host {
	t.Helper()
	h, err := s.NewHost(name, on, 1500, func(h *lab.Host) (lab.Program, error) { return newStack(h, a) })
	if err != nil {
		t.Fatal(err)
	}
	on.Route(netip.PrefixFrom(a, 128), h.Port())
	return h
}

// connected tells whether the handshake of TryDial is over, either way.
func connected(c *stack.Conn) bool {
	switch c.Endpoint().EndpointState() {
	case tcp.StateConnecting, tcp.StateSynSent, tcp.StateSynRecv:
		return false
	}
	return true
}

// accept waits for a connection.
func accept(p *lab.Proc, l *stack.Listener) (c *stack.Conn) {
	p.Wait(func() bool {
		var err error
		c, err = l.TryAccept()
		return err == nil
	})
	return c
}

// pattern fills b with the octets of stream id at an offset.
func pattern(b []byte, id, offset int) {
	for i := range b {
		o := offset + i
		b[i] = byte(o) ^ byte(o>>8) ^ byte(o>>16) ^ byte(id)
	}
}

// put sends n octets of a stream.
func put(w io.Writer, id, n int) error {
	b := make([]byte, 3000)
	for at := 0; at < n; {
		chunk := b[:min(len(b), n-at)]
		pattern(chunk, id, at)
		if _, err := w.Write(chunk); err != nil {
			return fmt.Errorf("stream %d: at octet %d of %d: %w", id, at, n, err)
		}
		at += len(chunk)
	}
	return nil
}

// get reads n octets of a stream and checks them.
func get(r io.Reader, id, n int) error {
	b, want := make([]byte, 4096), make([]byte, 4096)
	for at := 0; at < n; {
		m, err := r.Read(b[:min(len(b), n-at)])
		pattern(want[:m], id, at)
		if !bytes.Equal(b[:m], want[:m]) {
			return fmt.Errorf("stream %d: wrong octets from %d on", id, at)
		}
		if at += m; err != nil {
			return fmt.Errorf("stream %d: at octet %d of %d: %w", id, at, n, err)
		}
	}
	return nil
}
