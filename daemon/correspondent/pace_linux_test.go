package correspondent_test

import (
	"math"
	"net"
	"sync"
)

// pace says how many octets may go each way of the connections that keep it, so that
// they last for as long as a test needs them, however fast or slow the machine is.
type pace struct {
	mu    sync.Mutex
	most  int64
	moved chan struct{} // closed when most is another
}

func newPace(most int64) *pace { return &pace{most: most, moved: make(chan struct{})} }

const unlimited = math.MaxInt64

// set lets more octets go.
func (p *pace) set(most int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.most = most
	close(p.moved)
	p.moved = make(chan struct{})
}

// wait waits until more than so many octets may go, and returns how many more.
func (p *pace) wait(gone int64) int64 {
	for {
		p.mu.Lock()
		most, moved := p.most, p.moved
		p.mu.Unlock()
		if most > gone {
			return most - gone
		}
		<-moved
	}
}

// paced is a connection that keeps a pace.
type paced struct {
	net.Conn
	*pace
	in, out int64
}

func (c *paced) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b[:min(int64(len(b)), c.wait(c.in))])
	c.in += int64(n)
	return n, err
}

func (c *paced) Write(b []byte) (n int, err error) {
	for len(b) > n && err == nil {
		var m int
		m, err = c.Conn.Write(b[n:][:min(int64(len(b)-n), c.wait(c.out))])
		n += m
		c.out += int64(m)
	}
	return n, err
}
