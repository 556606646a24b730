package tcprepair

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// From linux/tcp.h; golang.org/x/sys/unix does not carry these.
const (
	recvQueue = 1
	sendQueue = 2

	infoTimestamps  = 1 << 0 // TCPI_OPT_TIMESTAMPS
	infoSACK        = 1 << 1 // TCPI_OPT_SACK
	infoWindowScale = 1 << 2 // TCPI_OPT_WSCALE

	stateEstablished = 1

	maxUserMSS = 32767 // MAX_TCP_WINDOW
)

// repairOption is struct tcp_repair_opt.
type repairOption struct {
	code, value uint32
}

// repairWindow is struct tcp_repair_window.
type repairWindow struct {
	sendWL1, sendWindow, maxWindow uint32
	recvWindow, recvWUP            uint32
}

// infoSize is as much of struct tcp_info as Dump needs: up to and including
// tcpi_notsent_bytes, which is SIOCOUTQNSD without a call of its own.
const infoSize = uint32(unsafe.Offsetof(unix.TCPInfo{}.Notsent_bytes) + 4)

// initialBuffer holds a queue of 64 KiB with room to see that it ended.
const initialBuffer = 128 << 10

// Conn is one established IPv6 TCP connection of the kernel and the memory to
// move it with. The memory is kept from one move to the next, so that a move
// allocates nothing once the queues have had their largest size.
//
//	live --Dump--> dumped --Restore--> live
//
// A Conn is not safe for use by several goroutines.
type Conn struct {
	// WindowProbe lets the end of a restore send a window probe, as CRIU
	// does (TCP_REPAIR_OFF). The default is not to (TCP_REPAIR_OFF_NO_WP,
	// Linux 4.19): the connection is just as alive, since the retransmission
	// and persist timers run, and the kernel's time is the shorter one.
	WindowProbe bool

	fd            int // -1 while dumped
	local, remote unix.RawSockaddrInet6

	// What Dump read and Restore writes. The sequence numbers are those of
	// the first octet in each queue.
	info             unix.TCPInfo
	mss              uint32
	timestamp        uint32
	window           repairWindow
	recvSeq, sendSeq uint32
	unread           []byte // receive queue
	pending          []byte // send queue: octets sent once, then those never sent
	sent             int    // where the second part of pending starts
	options          [4]repairOption
}

// New takes over the non-blocking socket fd of an established connection. Its
// addresses are read here, not in each Dump: a program knows them already.
func New(fd int) (*Conn, error) {
	c := &Conn{
		fd:      fd,
		unread:  make([]byte, 0, initialBuffer),
		pending: make([]byte, 0, initialBuffer),
	}
	if e := rawName(unix.SYS_GETSOCKNAME, fd, &c.local); e != 0 {
		return nil, fail("new", "getsockname", e)
	}
	if e := rawName(unix.SYS_GETPEERNAME, fd, &c.remote); e != 0 {
		return nil, fail("new", "getpeername", e)
	}
	return c, nil
}

// FD is the socket; it changes with every move and is -1 between Dump and
// Restore.
func (c *Conn) FD() int { return c.fd }

// Queues reports what the last Dump found, in octets: sent and not yet
// acknowledged, not yet sent, and received but not yet read.
func (c *Conn) Queues() (sent, unsent, unread int) {
	return c.sent, len(c.pending) - c.sent, len(c.unread)
}

// Close closes the live connection in the ordinary way.
func (c *Conn) Close() error {
	if c.fd < 0 {
		return nil
	}
	e := rawClose(c.fd)
	c.fd = -1
	if e != 0 {
		return fail("close", "close", e)
	}
	return nil
}

// Dump freezes the connection, copies its state and removes it from the kernel
// without a packet. When it fails the connection is live as before.
func (c *Conn) Dump() error {
	if c.fd < 0 {
		return errors.New("tcprepair: dump: no live connection")
	}
	if e := rawSetInt(c.fd, unix.TCP_REPAIR, unix.TCP_REPAIR_ON); e != 0 {
		return fail("dump", "TCP_REPAIR", e)
	}
	if err := c.read(); err != nil {
		rawSetInt(c.fd, unix.TCP_REPAIR, unix.TCP_REPAIR_OFF)
		return err
	}
	// The point of no return: from here on only this memory knows the
	// connection. A socket closed in repair mode sends neither FIN nor RST.
	e := rawClose(c.fd)
	c.fd = -1
	if e != 0 {
		return fail("dump", "close", e)
	}
	return nil
}

func (c *Conn) read() error {
	if e := rawGet(c.fd, unix.TCP_INFO, unsafe.Pointer(&c.info), infoSize); e != 0 {
		return fail("dump", "TCP_INFO", e)
	}
	if c.info.State != stateEstablished {
		return fmt.Errorf("tcprepair: dump: connection is in state %d, not established", c.info.State)
	}
	var e unix.Errno
	// In repair mode this is the clamp that the peer's MSS option set.
	if c.mss, e = rawGetUint(c.fd, unix.TCP_MAXSEG); e != 0 {
		return fail("dump", "TCP_MAXSEG", e)
	}
	if c.info.Options&infoTimestamps != 0 {
		if c.timestamp, e = rawGetUint(c.fd, unix.TCP_TIMESTAMP); e != 0 {
			return fail("dump", "TCP_TIMESTAMP", e)
		}
	}
	if e = rawGet(c.fd, unix.TCP_REPAIR_WINDOW, unsafe.Pointer(&c.window), uint32(unsafe.Sizeof(c.window))); e != 0 {
		return fail("dump", "TCP_REPAIR_WINDOW", e)
	}

	end, err := c.selectQueue(recvQueue)
	if err != nil {
		return err
	}
	if c.unread, err = c.peek(c.unread); err != nil {
		return err
	}
	c.recvSeq = end - uint32(len(c.unread))

	if end, err = c.selectQueue(sendQueue); err != nil {
		return err
	}
	c.pending = c.pending[:0]
	if c.info.Unacked != 0 || c.info.Notsent_bytes != 0 {
		if c.pending, err = c.peek(c.pending); err != nil {
			return err
		}
	}
	c.sendSeq = end - uint32(len(c.pending))
	c.sent = len(c.pending) - int(c.info.Notsent_bytes)
	if c.sent < 0 {
		return fmt.Errorf("tcprepair: dump: send queue holds %d octets, of which %d unsent",
			len(c.pending), c.info.Notsent_bytes)
	}
	return nil
}

// selectQueue makes queue the one that the next calls mean and returns the
// sequence number after its last octet.
func (c *Conn) selectQueue(queue int32) (uint32, error) {
	if e := rawSetInt(c.fd, unix.TCP_REPAIR_QUEUE, queue); e != 0 {
		return 0, fail("dump", "TCP_REPAIR_QUEUE", e)
	}
	seq, e := rawGetUint(c.fd, unix.TCP_QUEUE_SEQ)
	if e != 0 {
		return 0, fail("dump", "TCP_QUEUE_SEQ", e)
	}
	return seq, nil
}

// peek copies the whole selected queue into the memory of p. One call tells
// size and contents; only a queue that may have been cut short costs more.
func (c *Conn) peek(p []byte) ([]byte, error) {
	for {
		n, e := rawPeek(c.fd, p[:cap(p)])
		switch {
		case e == unix.EAGAIN: // an empty receive queue
			return p[:0], nil
		case e == 0 && n >= cap(p):
			// Cut short. For the send queue n is what there is, for the
			// receive queue what was copied.
			p = make([]byte, 0, 2*n)
		case e != 0:
			return p[:0], fail("dump", "recv", e)
		default:
			return p[:n], nil
		}
	}
}

// Restore puts the dumped connection back on a new socket. When it fails no
// socket is left and no packet was sent, except where the error comes from the
// last step, sending what had never been sent; the dump is kept.
func (c *Conn) Restore() error {
	if c.fd >= 0 {
		return errors.New("tcprepair: restore: the connection is live")
	}
	fd, e := rawSocket()
	if e != 0 {
		return fail("restore", "socket", e)
	}
	if err := c.write(fd); err != nil {
		rawSetInt(fd, unix.TCP_REPAIR, unix.TCP_REPAIR_ON) // else close would speak
		rawClose(fd)
		return err
	}
	c.fd = fd
	return nil
}

func (c *Conn) write(fd int) error {
	// Repair mode also forces address reuse, so SO_REUSEADDR would be a call
	// for nothing.
	if e := rawSetInt(fd, unix.TCP_REPAIR, unix.TCP_REPAIR_ON); e != 0 {
		return fail("restore", "TCP_REPAIR", e)
	}
	// The receive queue comes second, because it is then still the selected
	// one when its contents are written.
	if err := setQueue(fd, sendQueue, c.sendSeq); err != nil {
		return err
	}
	if err := setQueue(fd, recvQueue, c.recvSeq); err != nil {
		return err
	}
	if len(c.pending) > 0 {
		// The kernel sizes the send buffer from the segment size known at
		// connect, and without this that is the 1220 octets of a minimal
		// path: too small a buffer for the queue. It is a hint; the exact
		// value follows with the other options.
		if e := rawSetInt(fd, unix.TCP_MAXSEG, int32(min(c.mss, maxUserMSS))); e != 0 {
			return fail("restore", "TCP_MAXSEG", e)
		}
	}
	if e := rawBind(fd, &c.local); e != 0 {
		return fail("restore", "bind", e)
	}
	if e := rawConnect(fd, &c.remote); e != 0 {
		return fail("restore", "connect", e)
	}

	opts := c.negotiated()
	if e := rawSet(fd, unix.TCP_REPAIR_OPTIONS, unsafe.Pointer(unsafe.SliceData(opts)),
		uintptr(len(opts))*unsafe.Sizeof(repairOption{})); e != 0 {
		return fail("restore", "TCP_REPAIR_OPTIONS", e)
	}
	if c.info.Options&infoTimestamps != 0 {
		if e := rawSetUint(fd, unix.TCP_TIMESTAMP, c.timestamp); e != 0 {
			return fail("restore", "TCP_TIMESTAMP", e)
		}
	}

	if err := fill(fd, "receive queue", c.unread); err != nil {
		return err
	}
	if c.sent > 0 {
		// An acknowledgement may come for these, so they go in as sent.
		if e := rawSetInt(fd, unix.TCP_REPAIR_QUEUE, sendQueue); e != 0 {
			return fail("restore", "TCP_REPAIR_QUEUE", e)
		}
		if err := fill(fd, "send queue", c.pending[:c.sent]); err != nil {
			return err
		}
	}
	// After the queues: the kernel checks the window against them.
	if e := rawSet(fd, unix.TCP_REPAIR_WINDOW, unsafe.Pointer(&c.window), unsafe.Sizeof(c.window)); e != 0 {
		return fail("restore", "TCP_REPAIR_WINDOW", e)
	}
	off := int32(unix.TCP_REPAIR_OFF_NO_WP)
	if c.WindowProbe {
		off = unix.TCP_REPAIR_OFF
	}
	if e := rawSetInt(fd, unix.TCP_REPAIR, off); e != 0 {
		return fail("restore", "TCP_REPAIR", e)
	}
	// What was never sent is an ordinary write on the live connection.
	return fill(fd, "unsent data", c.pending[c.sent:])
}

func setQueue(fd int, queue int32, seq uint32) error {
	if e := rawSetInt(fd, unix.TCP_REPAIR_QUEUE, queue); e != 0 {
		return fail("restore", "TCP_REPAIR_QUEUE", e)
	}
	if e := rawSetUint(fd, unix.TCP_QUEUE_SEQ, seq); e != 0 {
		return fail("restore", "TCP_QUEUE_SEQ", e)
	}
	return nil
}

// negotiated is what the two ends agreed on in their SYNs.
func (c *Conn) negotiated() []repairOption {
	opts := append(c.options[:0], repairOption{unix.TCPOPT_MAXSEG, c.mss})
	if c.info.Options&infoWindowScale != 0 {
		send, recv := c.scales()
		opts = append(opts, repairOption{unix.TCPOPT_WINDOW, send | recv<<16})
	}
	if c.info.Options&infoSACK != 0 {
		opts = append(opts, repairOption{unix.TCPOPT_SACK_PERMITTED, 0})
	}
	if c.info.Options&infoTimestamps != 0 {
		opts = append(opts, repairOption{unix.TCPOPT_TIMESTAMP, 0})
	}
	return opts
}

var littleEndian = binary.NativeEndian.Uint16([]byte{1, 0}) == 1

// scales reads the two window scales. They are bit fields, for which
// unix.TCPInfo has only padding: tcpi_snd_wscale first, then tcpi_rcv_wscale,
// four bits each, in the octet after tcpi_options.
func (c *Conn) scales() (send, recv uint32) {
	b := uint32(*(*byte)(unsafe.Add(unsafe.Pointer(&c.info.Options), 1)))
	if littleEndian {
		return b & 15, b >> 4
	}
	return b >> 4, b & 15
}

// fill writes p to the socket: in smaller pieces where the kernel finds no
// memory for a large one, and with a larger send buffer where that is full.
func fill(fd int, what string, p []byte) error {
	chunk, grown := len(p), false
	for len(p) > 0 {
		n, e := rawSend(fd, p[:min(chunk, len(p))])
		switch {
		case e == unix.ENOMEM && chunk > 1024:
			chunk /= 2
		case e == unix.EAGAIN && !grown:
			// The kernel counts its own overhead too and caps the value at
			// net.core.wmem_max.
			grown = true
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 4*len(p)+initialBuffer); err != nil {
				return fail("restore", "SO_SNDBUF", err)
			}
		case e != 0:
			return fail("restore", what, e)
		default:
			p = p[n:]
		}
	}
	return nil
}

func fail(op, call string, err error) error {
	return fmt.Errorf("tcprepair: %s: %s: %w", op, call, err)
}
