//go:build linux

package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// version is that of the messages. A process hands over only to one that
// speaks the same; the snapshots inside carry a version of their own.
const version = 1

// kind says what a frame is. The order is that of a swap.
type kind byte

const (
	kindHello    kind = 1 + iota // hello: who the successor is
	kindPrepare                  // prepare, with the TUN and the control socket
	kindReady                    // the successor has a stack and listens
	kindManifest                 // manifest: what follows
	kindFiles                    // descriptors that the states refer to
	kindState                    // application state of one connection
	kindSnapshot                 // migrate's snapshot of one client
	kindImported                 // the successor has rebuilt everything
	kindCommit                   // the successor owns everything
	kindLate                     // a packet that the predecessor did not process
	kindLateEnd                  // no more such packets of this client
	kindActive                   // the successor serves
	kindRefuse                   // the reason why there will be no swap
	kinds
)

// limits bounds the body of each kind of frame, in octets.
var limits = [kinds]uint32{
	kindHello:    1 << 10,
	kindPrepare:  64 << 10,
	kindManifest: 16 << 20,
	kindState:    256 << 10,
	kindSnapshot: 1 << 30, // what a client's connections can have buffered
	kindLate:     64<<10 - 1,
	kindRefuse:   1 << 10,
}

// maxFiles is how many descriptors the kernel takes in one message: its
// SCM_MAX_FD.
const maxFiles = 253

// frame is the unit of the protocol:
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
	case f.files > maxFiles:
		return frame{}, fmt.Errorf("frame of kind %d with %d descriptors: at most %d fit", f.kind, f.files, maxFiles)
	case length > limits[f.kind]:
		return frame{}, fmt.Errorf("frame of kind %d with %d octets: at most %d are allowed", f.kind, length, limits[f.kind])
	}
	var body bytes.Buffer
	body.Grow(int(min(length, 64<<10)))
	if _, err := io.CopyN(&body, r, int64(length)); err == io.EOF {
		return frame{}, io.ErrUnexpectedEOF
	} else if err != nil {
		return frame{}, err
	}
	f.body = body.Bytes()
	return f, nil
}

// wire carries frames and descriptors over a UNIX stream socket. After an
// error it can only be closed.
type wire struct {
	c     *net.UnixConn
	r     *bufio.Reader
	w     *bufio.Writer
	files []*os.File // received, not yet taken, in order
}

func newWire(c *net.UnixConn) *wire {
	w := &wire{c: c, w: bufio.NewWriterSize(c, 64<<10)}
	w.r = bufio.NewReaderSize((*receiver)(w), 64<<10)
	return w
}

func (w *wire) close() {
	w.c.Close()
	closeFiles(w.files)
	w.files = nil
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// receiver is a wire's reading side. The kernel delivers descriptors together
// with the octets they were sent with, or earlier, never later: whoever has
// read a header finds its descriptors in files.
type receiver wire

func (r *receiver) Read(b []byte) (int, error) {
	oob := make([]byte, unix.CmsgSpace(maxFiles*4))
	n, oobn, flags, _, err := r.c.ReadMsgUnix(b, oob) // sets close-on-exec
	messages, perr := unix.ParseSocketControlMessage(oob[:oobn])
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

// put writes a frame; flush sends what was put. Frames with descriptors are
// sent at once.
func (w *wire) put(k kind, body []byte, files ...syscall.Conn) error {
	if len(body) > int(limits[k]) {
		return fmt.Errorf("frame of kind %d with %d octets: at most %d are allowed", k, len(body), limits[k])
	}
	header := appendHeader(nil, k, len(files), len(body))
	if len(files) == 0 {
		w.w.Write(header)
		_, err := w.w.Write(body) // a bufio.Writer remembers its first error
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
	if err := w.w.Flush(); err != nil {
		return err
	}
	if _, _, err := w.c.WriteMsgUnix(header, unix.UnixRights(fds...), nil); err != nil {
		return err
	}
	w.w.Write(body)
	return w.w.Flush()
}

func (w *wire) flush() error { return w.w.Flush() }

// send is put and flush.
func (w *wire) send(k kind, body []byte) error {
	if err := w.put(k, body); err != nil {
		return err
	}
	return w.flush()
}

func (w *wire) putJSON(k kind, v any, files ...syscall.Conn) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return w.put(k, body, files...)
}

// next reads a frame, with its descriptors, which are the caller's.
func (w *wire) next() (frame, []*os.File, error) {
	f, err := readFrame(w.r)
	if err != nil {
		return frame{}, nil, err
	}
	if f.files > len(w.files) {
		return frame{}, nil, fmt.Errorf("frame of kind %d announces %d descriptors: %d came", f.kind, f.files, len(w.files))
	}
	files := w.files[:f.files:f.files]
	w.files = w.files[f.files:]
	return f, files, nil
}

// want reads a frame of kind k. A refusal becomes an error.
func (w *wire) want(k kind) ([]byte, []*os.File, error) {
	f, files, err := w.next()
	switch {
	case err != nil:
		return nil, nil, err
	case f.kind == kindRefuse:
		err = fmt.Errorf("refused: %q", f.body)
	case f.kind != k:
		err = fmt.Errorf("frame of kind %d: want %d", f.kind, k)
	}
	if err != nil {
		closeFiles(files)
		return nil, nil, err
	}
	return f.body, files, nil
}

// wantBody is want for a frame without descriptors.
func (w *wire) wantBody(k kind) ([]byte, error) {
	body, files, err := w.want(k)
	closeFiles(files)
	return body, err
}

// wantJSON is wantBody for a body that is the JSON of v.
func (w *wire) wantJSON(k kind, v any) error {
	body, err := w.wantBody(k)
	if err != nil {
		return err
	}
	return json.Unmarshal(body, v)
}

// refuse tells the other side why there will be no swap, if it still listens.
func (w *wire) refuse(reason error) {
	s := reason.Error()
	w.send(kindRefuse, []byte(s[:min(len(s), int(limits[kindRefuse]))]))
}

// peer returns the other side's process, which must be of this user or of
// root: it is to get, or to give, all connections.
func (w *wire) peer() (pid int, err error) {
	fd, err := fdOf(w.c)
	if err != nil {
		return 0, err
	}
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return 0, os.NewSyscallError("SO_PEERCRED", err)
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Getuid() {
		return 0, fmt.Errorf("process %d is of user %d: want %d or root", cred.Pid, cred.Uid, os.Getuid())
	}
	return int(cred.Pid), nil
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
