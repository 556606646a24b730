package bedbench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/internal/testbed"
)

// crowd are many clients: addresses of networks that are routed to their hosts.
type crowd struct {
	b       *bench
	clients []*one
}

// one is a client with its connections. The first of them asks.
type one struct {
	host  *testbed.Client
	addr  netip.Addr
	conns []net.Conn
	count uint64 // of questions
}

// atOnce is for how many clients something is done at the same time.
const atOnce = 8

// gather makes a crowd whose clients, on hosts by turns, have a connection each, to the
// contact, and are all of a mode.
func (b *bench) gather(ctx context.Context, mode api.Mode, size int, hosts ...*testbed.Client) (_ *crowd, err error) {
	b.networks++
	c := &crowd{b: b}
	bases := make([][16]byte, len(hosts))
	for i, h := range hosts {
		base := h.Addr.As16()
		base[7] = byte(b.networks) // 2001:db8:c1:N::/64
		clear(base[8:])
		bases[i] = base
		network := netip.PrefixFrom(netip.AddrFrom16(base), 64)
		if err := b.bed.Router.Route(network, h.Addr); err != nil {
			return nil, err
		}
		if mode == api.Relayed {
			if err := allLocal(h, network); err != nil {
				return nil, err
			}
		}
	}
	for i := range size {
		a, host := bases[i%len(hosts)], hosts[i%len(hosts)]
		binary.BigEndian.PutUint32(a[12:], uint32(i+1))
		cl := &one{host: host, addr: netip.AddrFrom16(a)}
		c.clients = append(c.clients, cl)
		if mode == api.Optimised { // a correspondent takes part with addresses that its host has
			if err := host.AddAddr("eth0", netip.PrefixFrom(cl.addr, 128)); err != nil {
				return nil, err
			}
		}
	}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	if err := c.connect(ctx, 1); err != nil {
		return nil, err
	}
	contact := b.bed.Nodes[0]
	if mode == api.Optimised {
		return c, c.all(ctx, contact, string(mode), func(i api.ClientInfo) bool { return i.Mode == mode })
	}
	if err := c.all(ctx, contact, "known", func(i api.ClientInfo) bool { return true }); err != nil {
		return nil, err
	}
	// It takes the node a quarter of a minute to find out by itself.
	return c, c.each(func(cl *one) error { return contact.API.DeleteBinding(ctx, b.server.Addr.Addr(), cl.addr) })
}

// allLocal makes all addresses of a network the host's own.
func allLocal(host *testbed.Client, network netip.Prefix) error {
	if err := host.Sysctl("net.ipv6.ip_nonlocal_bind", "1"); err != nil {
		return err
	}
	return host.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{
			LinkIndex: lo.Attrs().Index, Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL, Scope: unix.RT_SCOPE_HOST,
			Dst: &net.IPNet{IP: network.Addr().AsSlice(), Mask: net.CIDRMask(network.Bits(), 128)},
		})
	})
}

// connect has each client open more connections, over which nothing is asked yet.
func (c *crowd) connect(ctx context.Context, more int) error {
	return c.each(func(cl *one) error {
		for range more {
			if err := c.dial(ctx, cl); err != nil {
				return err
			}
		}
		return nil
	})
}

// each does something for each client, several at the same time.
func (c *crowd) each(do func(*one) error) error {
	work := make(chan *one)
	errs := make([]error, atOnce)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			for cl := range work {
				if errs[i] == nil {
					errs[i] = do(cl)
				}
			}
		})
	}
	for i, cl := range c.clients {
		if i%500 == 0 && len(c.clients) > 500 {
			c.b.Progress(fmt.Sprintf("preparing clients: %d of %d", i, len(c.clients)))
		}
		work <- cl
	}
	close(work)
	wg.Wait()
	return errors.Join(errs...)
}

// part takes clients out of a crowd, which are one of their own then.
func (c *crowd) part(n int) *crowd {
	p := &crowd{b: c.b, clients: c.clients[:n]}
	c.clients = c.clients[n:]
	return p
}

func (c *crowd) dial(ctx context.Context, cl *one) error {
	var conn net.Conn
	err := cl.host.Do(func() (err error) {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: cl.addr.AsSlice()}, Timeout: 20 * time.Second}
		conn, err = d.DialContext(ctx, "tcp", c.b.target())
		return err
	})
	if err != nil {
		return err
	}
	cl.conns = append(cl.conns, conn)
	_, err = conn.Write([]byte{wantEcho})
	return err
}

func (c *crowd) close() {
	for _, cl := range c.clients {
		cl.close()
	}
}

// port is where it asks from.
func (cl *one) port() netip.AddrPort { return cl.conns[0].LocalAddr().(*net.TCPAddr).AddrPort() }

func (cl *one) close() {
	for _, conn := range cl.conns {
		if t, ok := conn.(*net.TCPConn); ok {
			t.SetLinger(0)
		}
		conn.Close()
	}
	cl.conns = nil
}

// exchange asks once and takes the answer.
func (cl *one) exchange() (answer [messageLen]byte, err error) {
	m := answer
	cl.count++
	binary.BigEndian.PutUint64(m[8:], cl.count)
	conn := cl.conns[0]
	if _, err := conn.Write(m[:]); err != nil {
		return m, err
	}
	if _, err := io.ReadFull(conn, m[:]); err != nil {
		return m, err
	}
	if n := binary.BigEndian.Uint64(m[8:]); n != cl.count {
		return m, fmt.Errorf("%s: answer %d is to question %d", cl.addr, n, cl.count)
	}
	return m, nil
}

// askDuring asks without a pause, before, while and after something happens.
func (cl *one) askDuring(something func() error, before, after int) error {
	var ended chan error
	for left := before; ; left-- {
		if left == 0 && ended != nil {
			return nil
		}
		if left == 0 {
			ended = make(chan error, 1)
			go func() { ended <- something() }()
		}
		if _, err := cl.exchange(); err != nil {
			return err
		}
		if ended != nil && left < 0 {
			select {
			case err := <-ended:
				if err != nil {
					return err
				}
				left = after + 1
			default:
			}
		}
	}
}

// all waits until something is true of all clients of the crowd, as the daemon of
// the contact and their owner see them.
func (c *crowd) all(ctx context.Context, n *testbed.Node, what string, is func(api.ClientInfo) bool) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	mine := make(map[netip.Addr]bool)
	for _, cl := range c.clients {
		mine[cl.addr] = true
	}
	return testbed.Eventually(ctx, fmt.Sprintf("%d clients are %s", len(c.clients), what), func() (bool, error) {
		all, err := n.API.Clients(ctx, c.b.server.Addr.Addr())
		count := 0
		var other api.ClientInfo
		for _, i := range all {
			switch {
			case !mine[i.Client]:
			case is(i):
				count++
			default:
				other = i
			}
		}
		return count == len(c.clients), errors.Join(err, fmt.Errorf("%d are; %+v is not", count, other))
	})
}

// move has clients of a node handed to others, and says how long it took.
func (b *bench) move(ctx context.Context, from *testbed.Node, r api.MoveRequest, drain bool) (api.MoveProgress, time.Duration, error) {
	stream := from.API.Move
	if drain {
		stream = from.API.Drain
	}
	begin := time.Now()
	var last api.MoveProgress
	for p, err := range stream(ctx, b.server.Addr.Addr(), from.Name(), r) {
		if err != nil {
			return last, 0, err
		}
		for _, f := range p.Failures {
			b.note("a handoff failed: %s", f.Error)
		}
		b.Progress(fmt.Sprintf("%s hands clients off: %d gone, %d left, %.0f/s", from.Name(), p.Moved, p.Left, p.Rate))
		last = p
	}
	took := time.Since(begin)
	if last.Error != "" {
		return last, took, errors.New(last.Error)
	}
	return last, took, nil
}

// queue has each client open a connection from which it does not read, and waits
// until the application has written so many octets to it, most of which cannot go
// out.
func (c *crowd) queue(ctx context.Context, octets int) error {
	for _, cl := range c.clients {
		var conn net.Conn
		err := cl.host.Do(func() (err error) {
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: cl.addr.AsSlice()}, Timeout: 20 * time.Second, Control: smallBuffer}
			conn, err = d.DialContext(ctx, "tcp", c.b.target())
			return err
		})
		if err != nil {
			return err
		}
		cl.conns = append(cl.conns, conn)
		if _, err := conn.Write(binary.BigEndian.AppendUint32([]byte{wantQueue}, uint32(octets))); err != nil {
			return err
		}
		// The application says so on the connection that asks.
		for queued := false; !queued; {
			m, err := cl.exchange()
			if err != nil {
				return err
			}
			queued = m[2] == 1
		}
	}
	return nil
}

// smallBuffer is for a client that takes little before the window is shut.
func smallBuffer(_, _ string, c syscall.RawConn) (err error) {
	e := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4096) })
	return errors.Join(e, err)
}
