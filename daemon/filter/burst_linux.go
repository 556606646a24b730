package filter

import (
	"fmt"
	"sync"
	"syscall"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// maxBurst is how many packets are read before the first of them gets its
	// verdict, if they are small.
	maxBurst = 32
	// maxTogether is how many octets are read so, and how many octets of verdicts
	// wait for each other: a super-packet waits for nothing.
	maxTogether = 8 << 10
)

// bursts is the socket of a queue, on which what has come together is read
// together, without a look at its length before, and the verdicts on it go to the
// kernel in one write. Nothing waits for more to come.
//
// It is the transport of a [netlink.Conn], which the library of the queue uses:
// that one hands over, one by one, what Receive has returned, before it calls
// Receive again, and gives its verdicts by Send.
type bursts struct {
	*netlink.Conn // all but messages
	raw           syscall.RawConn

	// Of whoever receives.
	in   []byte
	next []netlink.Message // what ended the burst before: an error of the kernel's
	err  error             // or of a read

	mu       sync.Mutex
	handling bool   // what Receive has returned is being handled
	out      []byte // messages to the kernel until that is done
}

// inBursts returns a connection that uses the socket of c, which it owns from now
// on.
func inBursts(c *netlink.Conn) (*netlink.Conn, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var addr unix.Sockaddr
	if cerr := raw.Control(func(fd uintptr) { addr, err = unix.Getsockname(int(fd)) }); cerr != nil {
		err = cerr
	}
	if err != nil {
		return nil, err
	}
	port, ok := addr.(*unix.SockaddrNetlink)
	if !ok {
		return nil, fmt.Errorf("a netlink socket with an address of %T", addr)
	}
	// Of a message in a queue at most maxPacket octets are the packet's.
	return netlink.NewConn(&bursts{Conn: c, raw: raw, in: make([]byte, 2*maxPacket)}, port.Pid), nil
}

// Receive returns what has come, and waits for it. What was received before is
// done with.
func (b *bursts) Receive() ([]netlink.Message, error) {
	if err := b.handled(); err != nil {
		return nil, err
	}
	burst, err := b.read()
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	b.handling = true
	b.mu.Unlock()
	return burst, nil
}

// read reads a burst: packets, or an error, which stands by itself because
// [netlink.Conn] throws away what it comes with.
func (b *bursts) read() (burst []netlink.Message, err error) {
	octets := 0
	rerr := b.raw.Read(func(fd uintptr) bool {
		for len(burst) < maxBurst && octets < maxTogether && b.next == nil && b.err == nil {
			n, err := unix.Read(int(fd), b.in)
			switch err {
			case nil:
			case unix.EINTR:
				continue
			case unix.EAGAIN:
				return len(burst) > 0
			default:
				b.err = err
				continue
			}
			octets += n
			messages, err := parse(b.in[:n])
			switch {
			case err != nil:
				b.err = err
			case len(messages) > 0 && messages[0].Header.Type == netlink.Error:
				b.next = messages
			default:
				burst = append(burst, messages...)
			}
		}
		return true
	})
	switch {
	case rerr != nil:
		return nil, rerr
	case len(burst) > 0:
		return burst, nil
	}
	burst, b.next, err, b.err = b.next, nil, b.err, nil
	return burst, err
}

// parse returns the messages of what one read has brought. They have memory of
// their own.
func parse(in []byte) ([]netlink.Message, error) {
	// The last one need not end at a boundary, but its room does.
	own := make([]byte, (len(in)+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1))
	copy(own, in)
	raw, err := syscall.ParseNetlinkMessage(own)
	if err != nil {
		return nil, err
	}
	messages := make([]netlink.Message, len(raw))
	for i, m := range raw {
		messages[i] = message(m)
	}
	return messages, nil
}

func message(m syscall.NetlinkMessage) netlink.Message {
	return netlink.Message{
		Header: netlink.Header{
			Length:   m.Header.Len,
			Type:     netlink.HeaderType(m.Header.Type),
			Flags:    netlink.HeaderFlags(m.Header.Flags),
			Sequence: m.Header.Seq,
			PID:      m.Header.Pid,
		},
		Data: m.Data,
	}
}

// msgVerdict is the type of a message with the verdict on one packet.
const msgVerdict = unix.NFNL_SUBSYS_QUEUE<<8 | 1 // NFQNL_MSG_VERDICT

// Send sends a message to the kernel: a verdict after what has been received with
// others is handled, all else, by whomever, at once.
func (b *bursts) Send(m netlink.Message) error {
	p, err := m.MarshalBinary()
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.out)+len(p) > maxTogether {
		if err := b.flush(); err != nil {
			return err
		}
	}
	b.out = append(b.out, p...)
	if b.handling && m.Header.Type == msgVerdict && len(b.out) < maxTogether {
		return nil
	}
	return b.flush()
}

// SendMessages sends some.
func (b *bursts) SendMessages(all []netlink.Message) error {
	for _, m := range all {
		if err := b.Send(m); err != nil {
			return err
		}
	}
	return nil
}

// handled sends what has waited.
func (b *bursts) handled() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.handling = false
	return b.flush()
}

// flush sends what waits; b.mu is held.
func (b *bursts) flush() (err error) {
	if len(b.out) == 0 {
		return nil
	}
	werr := b.raw.Write(func(fd uintptr) bool {
		for {
			if _, err = unix.Write(int(fd), b.out); err != unix.EINTR {
				return err != unix.EAGAIN
			}
		}
	})
	b.out = b.out[:0]
	if werr != nil {
		return werr
	}
	return err
}
