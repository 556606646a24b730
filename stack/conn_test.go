package stack_test

import (
	"net"
	"net/netip"
	"testing"

	"golang.org/x/net/nettest"

	"github.com/distributed-servers/ds/stack"
	"github.com/distributed-servers/ds/tun/tuntest"
)

var (
	client6 = netip.MustParseAddr("fd00:1::1")
	server6 = netip.MustParseAddr("fd00:2::1")
	client4 = netip.MustParseAddr("192.0.2.1")
	server4 = netip.MustParseAddr("198.51.100.1")
)

// newPair returns two stacks on one perfect link.
func newPair(t testing.TB) (client, server *stack.Stack) {
	t.Helper()
	a, b := tuntest.Pair(1500)
	client, err := stack.New(stack.Config{Device: a, Addrs: []netip.Addr{client6, client4}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	server, err = stack.New(stack.Config{Device: b, Addrs: []netip.Addr{server6, server4}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return client, server
}

// connect returns both ends of one connection.
func connect(t testing.TB, client, server *stack.Stack, addr netip.Addr) (c, s *stack.Conn) {
	t.Helper()
	l, err := server.Listen("tcp", netip.AddrPortFrom(addr, 80).String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err = client.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err = l.AcceptConn()
	if err != nil {
		t.Fatal(err)
	}
	return c, s
}

func TestNettest(t *testing.T) {
	for _, addr := range []netip.Addr{server6, server4} {
		t.Run(addr.String(), func(t *testing.T) {
			nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
				client, server := newPair(t)
				c, s := connect(t, client, server, addr)
				return c, s, func() { c.Close(); s.Close(); client.Close(); server.Close() }, nil
			})
		})
	}
}
