package tcprepair

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

var loopback = [16]byte{15: 1}

// smallWindow is the receive buffer of a peer that is to close its window soon.
// In a much smaller one the kernel's overhead per segment can exceed what the
// window promised, and the last segment that fits is then dropped for good.
const smallWindow = 32 << 10

// A stream is the octets of one direction. Each is a function of its position,
// so that one octet lost, doubled or out of place shows.
type stream struct {
	seed          uint64
	written, read int
}

func (s *stream) at(p []byte, offset int) {
	var word [8]byte
	for i := range p {
		if n := offset + i; i == 0 || n%8 == 0 {
			// SplitMix64.
			x := s.seed + uint64(n/8)*0x9e3779b97f4a7c15
			x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
			x = (x ^ x>>27) * 0x94d049bb133111eb
			binary.LittleEndian.PutUint64(word[:], x^x>>31)
		}
		p[i] = word[(offset+i)%8]
	}
}

// write writes the next n octets, or as many as the kernel takes.
func (s *stream) write(fd, n int) (int, error) {
	p := make([]byte, n)
	s.at(p, s.written)
	n, err := unix.Write(fd, p)
	if err != nil {
		return 0, fmt.Errorf("write at octet %d: %w", s.written, err)
	}
	s.written += n
	return n, nil
}

// check reads what there is and compares it. It reports the end of the stream.
func (s *stream) check(fd int, got, want []byte) (end bool, err error) {
	n, err := unix.Read(fd, got)
	if err != nil {
		return false, fmt.Errorf("read at octet %d: %w", s.read, err)
	}
	s.at(want[:n], s.read)
	for i := range n {
		if got[i] != want[i] {
			return false, fmt.Errorf("octet %d of %d is not the one that was written", s.read+i, s.written)
		}
	}
	s.read += n
	return n == 0, nil
}

// A pair is the connection under test: the end that moves, and a peer that
// knows nothing of it. Everything here is outside the measured time.
type pair struct {
	conn *Conn
	peer int

	out stream // moved end to peer
	in  stream // peer to moved end
}

func newPair(peerBuffer int) (_ *pair, err error) {
	l, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fail("connect", "socket", err)
	}
	defer unix.Close(l)
	if peerBuffer > 0 {
		// Before the SYN, which settles the window scale.
		if err := unix.SetsockoptInt(l, unix.SOL_SOCKET, unix.SO_RCVBUF, peerBuffer); err != nil {
			return nil, fail("connect", "SO_RCVBUF", err)
		}
	}
	if err := unix.Bind(l, &unix.SockaddrInet6{Addr: loopback}); err != nil {
		return nil, fail("connect", "bind", err)
	}
	if err := unix.Listen(l, 1); err != nil {
		return nil, fail("connect", "listen", err)
	}
	addr, err := unix.Getsockname(l)
	if err != nil {
		return nil, fail("connect", "getsockname", err)
	}

	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fail("connect", "socket", err)
	}
	if err := unix.Connect(fd, addr); err != nil {
		unix.Close(fd)
		return nil, fail("connect", "connect", err)
	}
	peer, _, err := unix.Accept4(l, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	if err != nil {
		unix.Close(fd)
		return nil, fail("connect", "accept", err)
	}
	conn, err := New(fd)
	if err == nil {
		err = errors.Join(
			unix.SetNonblock(fd, true),
			// A short last segment must not wait for an acknowledgement.
			unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1))
	}
	if err != nil {
		unix.Close(fd)
		unix.Close(peer)
		return nil, err
	}
	return &pair{conn: conn, peer: peer, out: stream{seed: 1}, in: stream{seed: 2}}, nil
}

func (p *pair) close() {
	p.conn.Close()
	unix.Close(p.peer)
}

// errClosed: the peer took back a window that it had offered, and what was to
// fill it stays unsent.
var errClosed = errors.New("tcprepair: load: the peer closed its window early")

// newLoaded returns a pair with c in its queues.
func newLoaded(ctx context.Context, c Contents) (*pair, error) {
	peerBuffer := 0
	if c.Unsent > 0 {
		peerBuffer = smallWindow
	}
	for {
		p, err := newPair(peerBuffer)
		if err != nil {
			return nil, err
		}
		if err = p.load(ctx, c); err == nil {
			return p, nil
		}
		p.close()
		if !errors.Is(err, errClosed) {
			return nil, err
		}
	}
}

// load brings the queues to c and waits until neither end owes the other an
// acknowledgement: a timer of the peer that fires while the connection is in no
// socket would be answered with RST.
func (p *pair) load(ctx context.Context, c Contents) error {
	if c.Unread > 0 {
		if _, err := p.in.write(p.peer, c.Unread); err != nil {
			return fail("load", "peer", err)
		}
	}
	// Close the peer's window: each write is as large as what is left of it.
	for c.Unsent > 0 {
		info, err := p.settle(ctx)
		if err != nil {
			return err
		}
		if info.Snd_wnd == 0 {
			break
		}
		if _, err := p.out.write(p.conn.FD(), int(info.Snd_wnd)); err != nil {
			return fail("load", "moved end", err)
		}
	}
	if _, err := p.settle(ctx); err != nil {
		return err
	}
	if c.Unsent > 0 {
		if _, err := p.out.write(p.conn.FD(), c.Unsent); err != nil {
			return fail("load", "moved end", err)
		}
	}
	return p.holds(c)
}

// settle waits until everything written by both ends has been acknowledged.
func (p *pair) settle(ctx context.Context) (*unix.TCPInfo, error) {
	for {
		info, err := unix.GetsockoptTCPInfo(p.conn.FD(), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return nil, fail("load", "TCP_INFO", err)
		}
		out, err := unix.IoctlGetInt(p.conn.FD(), unix.SIOCOUTQ)
		if err != nil {
			return nil, fail("load", "SIOCOUTQ", err)
		}
		in, err := unix.IoctlGetInt(p.peer, unix.SIOCOUTQ)
		if err != nil {
			return nil, fail("load", "SIOCOUTQ", err)
		}
		if out == 0 && in == 0 {
			return info, nil
		}
		if info.Snd_wnd == 0 && info.Unacked == 0 && in == 0 {
			return nil, errClosed
		}
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("tcprepair: load: %d and %d octets not acknowledged: %w", out, in, err)
		}
		// An acknowledgement may be delayed by a timer, and no poll event
		// tells of it: look again in a millisecond.
		if _, err := unix.Poll(nil, 1); err != nil && err != unix.EINTR {
			return nil, fail("load", "poll", err)
		}
	}
}

// holds asks the kernel, not Conn, what is in the queues.
func (p *pair) holds(c Contents) error {
	fd := p.conn.FD()
	queued, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
	if err != nil {
		return fail("load", "SIOCOUTQ", err)
	}
	unsent, err := unix.IoctlGetInt(fd, unix.SIOCOUTQNSD)
	if err != nil {
		return fail("load", "SIOCOUTQNSD", err)
	}
	unread, err := unix.IoctlGetInt(fd, unix.SIOCINQ)
	if err != nil {
		return fail("load", "SIOCINQ", err)
	}
	if queued != c.Unsent || unsent != c.Unsent || unread != c.Unread {
		return fmt.Errorf("tcprepair: queues hold %d to send, %d of them unsent, and %d to read; want %d, %d, %d",
			queued, unsent, unread, c.Unsent, c.Unsent, c.Unread)
	}
	return nil
}

// verify sends more both ways, ends both streams and reads each to its end:
// whatever was in the queues must come out once, in order and unchanged.
func (p *pair) verify(ctx context.Context, more int) error {
	// Let the rest through at once, not in pieces of a small window.
	if err := unix.SetsockoptInt(p.peer, unix.SOL_SOCKET, unix.SO_RCVBUF, 4*MaxQueue); err != nil {
		return fail("verify", "SO_RCVBUF", err)
	}
	type direction struct {
		name     string
		s        *stream
		from, to int // indexes into fds
		left     int // octets still to write
		shut     bool
		ended    bool
	}
	fds := []int{p.conn.FD(), p.peer}
	dirs := []*direction{
		{name: "moved end to peer", s: &p.out, from: 0, to: 1, left: more},
		{name: "peer to moved end", s: &p.in, from: 1, to: 0, left: more},
	}
	got, want := make([]byte, 32<<10), make([]byte, 32<<10)
	for !dirs[0].ended || !dirs[1].ended {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("tcprepair: verify: %d of %d octets arrived at the peer, %d of %d at the moved end: %w",
				p.out.read, p.out.written, p.in.read, p.in.written, err)
		}
		polls := []unix.PollFd{{Fd: int32(fds[0])}, {Fd: int32(fds[1])}}
		for _, d := range dirs {
			if !d.shut {
				polls[d.from].Events |= unix.POLLOUT
			}
			if !d.ended {
				polls[d.to].Events |= unix.POLLIN
			}
		}
		if _, err := unix.Poll(polls, 100); err != nil && err != unix.EINTR {
			return fail("verify", "poll", err)
		}
		for _, d := range dirs {
			switch {
			case d.shut || polls[d.from].Revents&unix.POLLOUT == 0:
			case d.left > 0:
				n, err := d.s.write(fds[d.from], d.left)
				if err != nil {
					return fail("verify", d.name, err)
				}
				d.left -= n
			default:
				if err := unix.Shutdown(fds[d.from], unix.SHUT_WR); err != nil {
					return fail("verify", d.name, err)
				}
				d.shut = true
			}
			if d.ended || polls[d.to].Revents&^unix.POLLOUT == 0 {
				continue
			}
			var err error
			if d.ended, err = d.s.check(fds[d.to], got, want); err != nil && !errors.Is(err, unix.EAGAIN) {
				return fail("verify", d.name, err)
			}
		}
	}
	for _, d := range dirs {
		if d.s.read != d.s.written {
			return fmt.Errorf("tcprepair: verify: %s: %d octets written, %d arrived", d.name, d.s.written, d.s.read)
		}
	}
	return nil
}
