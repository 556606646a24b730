//go:build linux

package handover

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// kind says what a frame is.
type kind byte

const (
	kindMessage   kind = 1 + iota // of the application: Send
	kindFiles                     // descriptors of the next frame that is a message or a state
	kindWord                      // begins a handover, with the word's memory
	kindRehearsal                 // a snapshot, to be imported and discarded; or nothing
	kindReady                     // the target has done so
	kindLate                      // a packet that the donor had not processed
	kindState                     // the application's, with kindFiles before it
	kindSnapshot                  // migrate's, the last of what is handed over
	kindActive                    // the target serves
	kindRefuse                    // the reason why nothing will be handed over
	kinds
)

const (
	// MaxMessage is the greatest message of [Conn.Send], in octets.
	MaxMessage = 64 << 10
	// MaxState is the greatest state of [Donor.Give], in octets.
	MaxState = 256 << 20
	// MaxFiles is how many descriptors a message or a state can have.
	MaxFiles = 1 << 20

	maxRefusal   = 1 << 10
	maxRehearsal = 1 << 20
	maxLate      = 64<<10 - 1
	// maxAllLate bounds the late packets together. What is dropped the peer sends again.
	maxAllLate = 16 << 20
	// maxFrameFiles is how many descriptors the kernel takes at once: its SCM_MAX_FD.
	maxFrameFiles = 253
)

// limits bounds the body of each kind of frame, in octets.
var limits = [kinds]uint32{
	kindMessage:   MaxMessage,
	kindRehearsal: maxRehearsal,
	kindLate:      maxLate,
	kindState:     MaxState,
	kindSnapshot:  1 << 30, // what the connections can have buffered
	kindRefuse:    maxRefusal,
}

// frame is the unit of what goes between the processes:
//
//	┌──────┬───────┬──────────────────────┬────────────┐
//	│ kind │ files │ length of body       │ body …     │
//	│ 1    │ 1     │ 4, most significant  │            │
//	└──────┴───────┴─ octet first ────────┴────────────┘
//
// files counts the descriptors that accompany the header.
type frame struct {
	kind  kind
	files int
	body  []byte
}

const headerLen = 6

func appendHeader(b []byte, k kind, files, length int) []byte {
	return binary.BigEndian.AppendUint32(append(b, byte(k), byte(files)), uint32(length))
}

// readFrame reads a frame without its descriptors. Beyond 64 KiB it takes
// memory for what has arrived, not for what the header announces.
func readFrame(r io.Reader) (frame, error) {
	var h [headerLen]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return frame{}, err
	}
	f := frame{kind: kind(h[0]), files: int(h[1])}
	length := binary.BigEndian.Uint32(h[2:])
	switch {
	case f.kind == 0 || f.kind >= kinds:
		return frame{}, fmt.Errorf("frame of unknown kind %d", f.kind)
	case f.files > maxFrameFiles:
		return frame{}, fmt.Errorf("frame of kind %d with %d descriptors: at most %d fit", f.kind, f.files, maxFrameFiles)
	case length > limits[f.kind]:
		return frame{}, fmt.Errorf("frame of kind %d with %d octets: at most %d are allowed", f.kind, length, limits[f.kind])
	}
	var body bytes.Buffer
	body.Grow(int(min(length, 64<<10)) + bytes.MinRead)
	if _, err := io.CopyN(&body, r, int64(length)); err == io.EOF {
		return frame{}, io.ErrUnexpectedEOF
	} else if err != nil {
		return frame{}, err
	}
	f.body = body.Bytes()
	return f, nil
}

// Conn is what two processes say to each other, over a UNIX stream socket: messages of the
// application, and then handovers, one after another, either way. Both must be of the same
// version. It is for one goroutine at a time. After an error it can only be refused, which
// does no harm, and closed.
type Conn struct {
	c     *net.UnixConn
	r     *bufio.Reader
	w     *bufio.Writer
	oob   []byte
	files []*os.File // received, not yet taken, in order
}

// New makes a Conn of a socket, which it owns.
func New(c *net.UnixConn) *Conn {
	w := &Conn{c: c, w: bufio.NewWriterSize(c, 64<<10), oob: make([]byte, unix.CmsgSpace(maxFrameFiles*4))}
	w.r = bufio.NewReaderSize((*receiver)(w), 64<<10)
	return w
}

// Close closes the socket, and the descriptors that nobody has taken.
func (c *Conn) Close() error {
	err := c.c.Close()
	closeFiles(c.files)
	c.files = nil
	return err
}

// SetDeadline is when everything that waits for the other process fails, as for
// [net.Conn].
func (c *Conn) SetDeadline(t time.Time) error { return c.c.SetDeadline(t) }

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// Peer returns the other process, which must be of this user or of root: it is to get,
// or to give, all connections.
func (c *Conn) Peer() (pid int, err error) {
	fd, err := fdOf(c.c)
	if err != nil {
		return 0, err
	}
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return 0, os.NewSyscallError("SO_PEERCRED", err)
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Getuid() {
		return 0, fmt.Errorf("handover: process %d is of user %d: want %d or root", cred.Pid, cred.Uid, os.Getuid())
	}
	return int(cred.Pid), nil
}

// Send sends a message of the application, with descriptors, which stay the caller's.
func (c *Conn) Send(body []byte, files ...syscall.Conn) error {
	err := c.putWith(kindMessage, body, files)
	if err == nil {
		err = c.w.Flush()
	}
	return failed("send", err)
}

// Receive waits for a message of the application. The descriptors are the caller's. A
// refusal is an error that has the reason.
func (c *Conn) Receive() (body []byte, files []*os.File, err error) {
	f, files, err := c.wantWith(kindMessage)
	return f.body, files, failed("receive", err)
}

// Refuse tells the other process why there will be no handover, if it still listens.
// [Donor.Give] fails with that, and so does what waits for a message.
func (c *Conn) Refuse(reason error) {
	s := reason.Error()
	if c.put(kindRefuse, []byte(s[:min(len(s), maxRefusal)])) == nil {
		c.w.Flush()
	}
}

func failed(op string, err error) error {
	if err != nil {
		err = fmt.Errorf("handover: %s: %w", op, err)
	}
	return err
}

// receiver is a Conn's reading side. The kernel delivers descriptors together
// with the octets they were sent with, or earlier, never later: whoever has
// read a header finds its descriptors in files.
type receiver Conn

func (r *receiver) Read(b []byte) (int, error) {
	n, oobn, flags, _, err := r.c.ReadMsgUnix(b, r.oob) // sets close-on-exec
	messages, perr := unix.ParseSocketControlMessage(r.oob[:oobn])
	for _, m := range messages {
		fds, rerr := unix.ParseUnixRights(&m)
		perr = errors.Join(perr, rerr)
		for _, fd := range fds {
			r.files = append(r.files, os.NewFile(uintptr(fd), "received"))
		}
	}
	switch {
	case err != nil:
		return 0, err
	case perr != nil:
		return 0, perr
	case flags&unix.MSG_CTRUNC != 0:
		return 0, errors.New("descriptors were lost: too many open files?")
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// put writes a frame. What was written is sent by c.w.Flush, and frames with descriptors,
// with what is before them, at once.
func (c *Conn) put(k kind, body []byte, files ...syscall.Conn) error {
	if len(body) > int(limits[k]) {
		return fmt.Errorf("frame of kind %d with %d octets: at most %d are allowed", k, len(body), limits[k])
	}
	header := appendHeader(make([]byte, 0, headerLen), k, len(files), len(body))
	if len(files) == 0 {
		c.w.Write(header)
		_, err := c.w.Write(body) // a bufio.Writer remembers its first error
		return err
	}
	fds := make([]int, len(files))
	for i, f := range files {
		fd, err := fdOf(f)
		if err != nil {
			return err
		}
		fds[i] = fd
	}
	if err := c.w.Flush(); err != nil {
		return err
	}
	if _, _, err := c.c.WriteMsgUnix(header, unix.UnixRights(fds...), nil); err != nil {
		return err
	}
	_, err := c.w.Write(body)
	return err
}

// putWith writes a frame with as many descriptors as there are.
func (c *Conn) putWith(k kind, body []byte, files []syscall.Conn) error {
	if len(files) > MaxFiles {
		return fmt.Errorf("%d descriptors: at most %d are allowed", len(files), MaxFiles)
	}
	for len(files) > 0 {
		n := min(len(files), maxFrameFiles)
		if err := c.put(kindFiles, nil, files[:n]...); err != nil {
			return err
		}
		files = files[n:]
	}
	return c.put(k, body)
}

// send writes a frame and sends it.
func (c *Conn) send(k kind, body []byte, files ...syscall.Conn) error {
	if err := c.put(k, body, files...); err != nil {
		return err
	}
	return c.w.Flush()
}

// next reads a frame, with its descriptors, which are the caller's.
func (c *Conn) next() (frame, []*os.File, error) {
	f, err := readFrame(c.r)
	if err != nil {
		return frame{}, nil, err
	}
	if f.files > len(c.files) {
		return frame{}, nil, fmt.Errorf("frame of kind %d announces %d descriptors: %d came", f.kind, f.files, len(c.files))
	}
	files := c.files[:f.files:f.files]
	c.files = c.files[f.files:]
	if f.kind == kindRefuse {
		closeFiles(files)
		return frame{}, nil, fmt.Errorf("refused: %q", f.body)
	}
	return f, files, nil
}

// nextWith reads a frame, with what putWith has written before it.
func (c *Conn) nextWith() (frame, []*os.File, error) {
	var all []*os.File
	for {
		f, files, err := c.next()
		all = append(all, files...)
		if err == nil && len(all) > MaxFiles {
			err = fmt.Errorf("more than %d descriptors", MaxFiles)
		}
		if err != nil {
			closeFiles(all)
			return frame{}, nil, err
		}
		if f.kind != kindFiles {
			return f, all, nil
		}
	}
}

// wantWith is nextWith for a frame of kind k.
func (c *Conn) wantWith(k kind) (frame, []*os.File, error) {
	f, files, err := c.nextWith()
	if err == nil && f.kind != k {
		closeFiles(files)
		return frame{}, nil, fmt.Errorf("frame of kind %d: want %d", f.kind, k)
	}
	return f, files, err
}

// want reads a frame of kind k that has no descriptors.
func (c *Conn) want(k kind) (frame, error) {
	f, files, err := c.wantWith(k)
	closeFiles(files)
	return f, err
}

// fdOf returns a descriptor without changing its mode, as Fd would. It is
// valid for as long as nobody closes c.
func fdOf(c syscall.Conn) (fd int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	err = raw.Control(func(d uintptr) { fd = int(d) })
	return fd, err
}
