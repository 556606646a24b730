package netbench

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"
)

// client does jobs with the kernel's TCP.
type client struct {
	idle []net.Conn
}

func (c *client) do(cmd command) (float64, error) {
	if cmd.Do != "job" {
		return 0, fmt.Errorf("a client does not %q", cmd.Do)
	}
	a, ok := map[service]netip.Addr{serviceKernel: serverAddr, servicePlain: plainHome, serviceBound: boundHome}[cmd.Service]
	if !ok {
		return 0, fmt.Errorf("no service %q", cmd.Service)
	}
	to := netip.AddrPortFrom(a, ports[cmd.Job.Kind]).String()
	switch cmd.Job.Kind {
	case kindUp, kindDown:
		return bulk(to, cmd.Job, cmd.Duration)
	case kindEcho:
		return echoes(to, cmd.Duration)
	case kindConnect:
		return connections(to, cmd.Duration)
	case kindIdle:
		return 0, c.keep(to, cmd.Job.Streams)
	}
	return 0, fmt.Errorf("no job %q", cmd.Job.Kind)
}

func dial(to string) (net.Conn, error) { return net.DialTimeout("tcp", to, patience) }

// bulk returns the throughput of all streams together, in Gbit/s. The first
// fifth of the time does not count: windows grow.
func bulk(to string, j job, d time.Duration) (float64, error) {
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for range j.Streams {
		c, err := dial(to)
		if err != nil {
			return 0, err
		}
		conns = append(conns, c)
	}
	type outcome struct {
		rate float64
		err  error
	}
	outcomes := make(chan outcome)
	begin := time.Now()
	for _, c := range conns {
		op := c.Read
		if j.Kind == kindUp {
			op = c.Write
		}
		go func() {
			rate, err := stream(op, begin.Add(d/5), begin.Add(d+d/5))
			outcomes <- outcome{rate, err}
		}()
	}
	for _, c := range conns {
		// Only if nothing moves: a stream ends by itself.
		if err := c.SetDeadline(begin.Add(2*d + patience)); err != nil {
			return 0, err
		}
	}
	var total float64
	var errs []error
	for range conns {
		o := <-outcomes
		total += o.rate
		errs = append(errs, o.err)
	}
	return total / 1e9, errors.Join(errs...)
}

// stream reads or writes until end, and returns the rate since from, in bit/s.
func stream(op func([]byte) (int, error), from, end time.Time) (float64, error) {
	b := make([]byte, bulkSize)
	var octets int64
	var first time.Time
	for {
		n, err := op(b)
		if err != nil {
			return 0, err
		}
		now := time.Now()
		if first.IsZero() {
			if now.After(from) {
				first = now
			}
			continue
		}
		if octets += int64(n); now.After(end) {
			return float64(octets) * 8 / now.Sub(first).Seconds(), nil
		}
	}
}

// exchange sends some octets and waits until they are back.
func exchange(c net.Conn, b []byte) error {
	if _, err := c.Write(b); err != nil {
		return err
	}
	_, err := io.ReadFull(c, b)
	return err
}

// echoes returns how many exchanges a connection does in a second.
func echoes(to string, d time.Duration) (float64, error) {
	c, err := dial(to)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	b := make([]byte, echoSize)
	for range 100 {
		if err := exchange(c, b); err != nil {
			return 0, err
		}
	}
	n := 0
	begin := time.Now()
	for n == 0 || time.Since(begin) < d {
		if err := exchange(c, b); err != nil {
			return 0, err
		}
		n++
	}
	return float64(n) / time.Since(begin).Seconds(), nil
}

// connections returns how many connections begin, exchange and end in a second.
func connections(to string, d time.Duration) (float64, error) {
	n := 0
	b := make([]byte, echoSize)
	begin := time.Now()
	for n == 0 || time.Since(begin) < d {
		c, err := dial(to)
		if err != nil {
			return 0, err
		}
		err = exchange(c, b)
		c.Close()
		if err != nil {
			return 0, err
		}
		n++
	}
	return float64(n) / time.Since(begin).Seconds(), nil
}

// keep opens connections that stay, instead of those it had.
func (c *client) keep(to string, n int) error {
	for _, conn := range c.idle {
		conn.Close()
	}
	c.idle = c.idle[:0]
	for range n {
		conn, err := dial(to)
		if err != nil {
			return fmt.Errorf("connection %d: %w", len(c.idle), err)
		}
		c.idle = append(c.idle, conn)
	}
	return nil
}
