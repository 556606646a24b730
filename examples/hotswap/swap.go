//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/distributed-servers/ds/handover"
	"github.com/distributed-servers/ds/migrate"
	"github.com/distributed-servers/ds/stack"
)

// # Theory of operation
//
// The successor connects to the predecessor's control socket, and then:
//
//	successor                                  predecessor
//	   │ hello: version, mode                       │ serves
//	   ├───────────────────────────────────────────►│
//	   │      prepare: addresses, port; descriptors │
//	   │◄───────────── of the TUN, control socket ──┤
//	   │ builds a stack that reads nothing yet,     │
//	   │ listens, is ready     (package handover)   │
//	   ├───────────────────────────────────────────►│ pauses sessions and link,
//	   │        states, descriptors, late packets,  │ freezes, exports
//	   │◄────────────────────────────── snapshot ───┤
//	   │ imports, takes the word                    │
//	   ┝━━━━━━━━━━━━━━━ point of no return ━━━━━━━━━│
//	   │ activates, reads, serves            active │
//	   ├───────────────────────────────────────────►│ discards, exits
//
// The successor is the owner if and only if it has taken the word, which package
// handover keeps in memory of both. Until then, whatever goes wrong (a refusal, the
// end of the other process, silence for too long) makes the predecessor take
// the word itself, thaw everything and serve on; the successor cannot take it any
// more, and ends.
//
// Meanwhile the clients' packets wait in the TUN's queue, which both
// processes share. No packet is lost, and no answer is sent, by anybody.

// version is that of the messages, and of package handover's. A process hands
// over only to one that speaks the same; the snapshots inside carry a version
// of their own.
const version = 2

// hello is what the successor says first.
type hello struct {
	Version int
	Mode    string
}

// manifest is the state of all sessions: an entry for each connection, in the
// order of the snapshot.
type manifest struct{ Conns []connEntry }

// connEntry is one connection. Those without a state wait to be accepted, or
// the application has closed them and they are not over yet.
type connEntry struct {
	State []byte `json:",omitempty"`
	Files int    `json:",omitempty"` // descriptors that go with it
}

const maxState = 256 << 10 // octets of a session's state

// moved is what a swap was like.
type moved struct {
	clients, conns int
	// still is how long the connections stood still, and some more: until the
	// predecessor knew that they do not any more.
	still time.Duration
}

// swapTimeout bounds what a process waits for the other before it gives up.
var swapTimeout = 5 * time.Second

// reached is called by the successor at each stage, by name, for tests.
var reached = func(stage string, c *handover.Conn) {}

// handOver gives everything to the successor at the other end of c. After an
// error the server serves as before; otherwise it is over.
func (s *server) handOver(c *handover.Conn, control syscall.Conn) (m moved, err error) {
	defer func() {
		if err != nil {
			c.Refuse(err)
			err = fmt.Errorf("hand over: %w", err)
		}
	}()
	c.SetDeadline(time.Now().Add(swapTimeout))

	var h hello
	files, err := receiveJSON(c, &h)
	closeFiles(files)
	if err != nil {
		return m, err
	}
	if h.Version != version || h.Mode != s.Mode {
		return m, fmt.Errorf("successor has version %d, mode %s: want version %d, mode %s", h.Version, h.Mode, version, s.Mode)
	}
	var ours []syscall.Conn
	for _, f := range s.device.Files() {
		ours = append(ours, f)
	}
	if err := sendJSON(c, s.config, append(ours, control)...); err != nil {
		return m, err
	}
	to, err := handover.Prepare(c, s.stack)
	if err != nil {
		return m, err
	}

	start := time.Now()
	donor, err := s.freeze()
	if err != nil {
		to.Cancel(err)
		return m, err
	}
	m, state, ours := s.save(donor)
	if err := to.Give(donor, state, ours...); err != nil {
		return m, errors.Join(err, s.thaw(donor))
	}
	// ━━━ The successor is past the point of no return: it owns everything,
	// even if it is dead by now. ━━━
	m.still = time.Since(start)
	s.abandon()
	return m, nil
}

// save describes the sessions of everything that is frozen.
func (s *server) save(donor *migrate.Donor) (m moved, state []byte, files []syscall.Conn) {
	var list manifest
	clients := make(map[netip.Addr]bool)
	for _, conn := range donor.Conns() {
		clients[conn.Tuple().Remote.Addr()] = true
		var e connEntry
		s.mu.Lock()
		r := s.sessions[conn]
		s.mu.Unlock()
		if r != nil {
			state, fs := r.session.save()
			e = connEntry{state, len(fs)}
			files = append(files, fs...)
		}
		list.Conns = append(list.Conns, e)
	}
	state, err := json.Marshal(list)
	if err != nil {
		panic(err) // octets and numbers: cannot be
	}
	return moved{clients: len(clients), conns: len(list.Conns)}, state, files
}

func sendJSON(c *handover.Conn, v any, files ...syscall.Conn) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return c.Send(body, files...)
}

// receiveJSON returns the descriptors of a message, too.
func receiveJSON(c *handover.Conn, v any) ([]*os.File, error) {
	body, files, err := c.Receive()
	if err != nil {
		return nil, err
	}
	return files, json.Unmarshal(body, v)
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// takeOver receives everything from the predecessor at the other end of c and
// returns a server that serves it, and the control socket. openDevice is
// tun.FromFiles. After an error the predecessor serves on.
func takeOver(c *handover.Conn, modeName string, m mode, openDevice func(files []*os.File, mtu int) (device, error)) (s *server, control *net.UnixListener, err error) {
	var arrived *handover.Target
	var sessions []session
	defer func() {
		if err == nil {
			return
		}
		c.Refuse(err)
		for _, se := range sessions {
			if se != nil {
				se.close()
			}
		}
		if arrived != nil {
			arrived.Discard()
		}
		if s != nil {
			s.abandon()
		}
		if control != nil {
			control.Close()
		}
		s, control, err = nil, nil, fmt.Errorf("take over: %w", err)
	}()
	c.SetDeadline(time.Now().Add(swapTimeout))

	reached("hello", c)
	if err := sendJSON(c, hello{version, modeName}); err != nil {
		return s, control, err
	}
	reached("prepare", c)
	var cfg config
	files, err := receiveJSON(c, &cfg)
	if err == nil {
		s, control, err = prepare(cfg, files, m, openDevice)
	}
	closeFiles(files) // those that are taken have closed theirs
	if err != nil {
		return s, control, err
	}
	reached("receive", c)
	if arrived, err = handover.Receive(c, s.stack); err != nil {
		return s, control, err
	}
	reached("restore", c)
	if sessions, err = s.restore(arrived); err != nil {
		return s, control, err
	}
	reached("activate", c)
	conns, err := arrived.Activate()
	if errors.Is(err, handover.ErrOverruled) {
		return s, control, err
	}
	// ━━━ Point of no return: this process owns everything. What fails below
	// fails for single connections, as a network does. ━━━
	if err != nil {
		slog.Error("connections lost", "error", err)
	}
	s.adopt(conns, sessions)
	sessions = nil
	if err := s.resume(); err != nil {
		return s, control, err // the link is gone
	}
	// The kernel shows those who connect the credentials of who listened last.
	if raw, err := control.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { unix.Listen(int(fd), unix.SOMAXCONN) })
	}
	arrived.Confirm() // or the predecessor finds out by itself
	return s, control, nil
}

// prepare builds a server that stands still, and the control socket, of what
// the predecessor sent.
func prepare(cfg config, files []*os.File, m mode, openDevice func([]*os.File, int) (device, error)) (*server, *net.UnixListener, error) {
	last := len(files) - 1
	if last < 1 {
		return nil, nil, fmt.Errorf("%d descriptors to prepare with: want those of the device and the control socket", len(files))
	}
	l, err := net.FileListener(files[last])
	if err != nil {
		return nil, nil, err
	}
	control, ok := l.(*net.UnixListener)
	if !ok {
		l.Close()
		return nil, nil, fmt.Errorf("control socket is a %T", l)
	}
	dev, err := openDevice(files[:last], cfg.MTU)
	if err != nil {
		return nil, control, err
	}
	s, err := newServer(cfg, m, dev)
	return s, control, err
}

// restore restores the sessions of what has arrived: nil where no application has the
// connection.
func (s *server) restore(t *handover.Target) (sessions []session, err error) {
	files := t.Files
	defer func() { closeFiles(files) }() // those that no session took
	var list manifest
	if err := json.Unmarshal(t.State, &list); err != nil {
		return nil, err
	}
	if len(list.Conns) != t.Len() {
		return nil, fmt.Errorf("states of %d connections: want %d", len(list.Conns), t.Len())
	}
	for _, e := range list.Conns {
		if len(e.State) > maxState || e.Files < 0 || e.Files > len(files) {
			return sessions, fmt.Errorf("connection with a state of %d octets and %d descriptors", len(e.State), e.Files)
		}
		if e.State == nil {
			sessions = append(sessions, nil)
			continue
		}
		mine := files[:e.Files]
		files = files[e.Files:]
		se, err := s.mode.restore(e.State, mine)
		if err != nil {
			return sessions, err
		}
		sessions = append(sessions, se)
	}
	return sessions, nil
}

// adopt gives connections that are live to their sessions, which start with
// the server's resume.
func (s *server) adopt(conns []*stack.Conn, sessions []session) {
	if conns == nil { // all are lost
		conns = make([]*stack.Conn, len(sessions))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, se := range sessions {
		switch c := conns[i]; {
		case se != nil && c != nil:
			s.sessions[c] = &running{session: se}
		case se != nil:
			se.close()
		case c != nil:
			c.Close() // no session: nobody could serve it
		}
	}
}
