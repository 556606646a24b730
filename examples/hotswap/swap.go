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
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

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
//	   │ listens                              ready │
//	   ├───────────────────────────────────────────►│ pauses sessions and link,
//	   │          manifest, descriptors, states,    │ freezes, exports
//	   │◄───────────────────────────── snapshots ───┤
//	   │ imports                           imported │
//	   ├───────────────────────────────────────────►│
//	   │ commit                                     │
//	   │◄━━━━━━━━━━━━━━━ point of no return ━━━━━━━━┥
//	   │                               late packets │ discards
//	   │◄───────────────────────────────────────────┤
//	   │ activates, reads, serves            active │
//	   ├───────────────────────────────────────────►│ exits
//
// The successor is the owner if and only if commit was sent. The predecessor
// decides: until it has sent commit, whatever goes wrong (refuse, the end of
// the other process, silence for too long) makes it thaw everything and serve
// on, and it will not send commit any more. The successor never serves
// without commit, and once it has said imported waits for it as long as the
// predecessor lives.
//
// Meanwhile the clients' packets wait in the TUN's queue, which both
// processes share. No packet is lost, and no answer is sent, by anybody.

// hello is what the successor says first.
type hello struct {
	Version int
	Mode    string
}

// manifest lists what is handed over: of each snapshot the connections, in its
// order. This version sends one snapshot, or none if there is nothing.
type manifest struct{ Snapshots []snapshotEntry }

type snapshotEntry struct{ Conns []connEntry }

// connEntry is one connection. Those without application state wait to be
// accepted, or the application has closed them and they are not over yet.
type connEntry struct {
	App   bool `json:",omitempty"` // a state follows
	Files int  `json:",omitempty"` // descriptors that go with it
}

// moved is what a swap was like.
type moved struct {
	clients, conns int
	still          time.Duration // how long the connections stood still
}

// swapTimeout bounds what a process waits for the other before it gives up.
var swapTimeout = 5 * time.Second

// reached is called by the successor at each stage, by name, for tests.
var reached = func(stage string, w *wire) {}

// handOver gives everything to the successor at the other end of w. After an
// error the server serves as before; otherwise it is over.
func (s *server) handOver(w *wire, control syscall.Conn) (m moved, err error) {
	committed := false
	defer func() {
		if err != nil {
			w.refuse(err)
			err = fmt.Errorf("hand over: %w", err)
		}
	}()
	w.c.SetDeadline(time.Now().Add(swapTimeout))

	var h hello
	if err := w.wantJSON(kindHello, &h); err != nil {
		return m, err
	}
	if h.Version != version || h.Mode != s.Mode {
		return m, fmt.Errorf("successor has version %d, mode %s: want version %d, mode %s", h.Version, h.Mode, version, s.Mode)
	}
	var files []syscall.Conn
	for _, f := range s.device.Files() {
		files = append(files, f)
	}
	if err := w.putJSON(kindPrepare, s.config, append(files, control)...); err != nil {
		return m, err
	}
	if _, err := w.wantBody(kindReady); err != nil {
		return m, err
	}

	start := time.Now()
	donor, err := s.freeze()
	if err != nil {
		return m, err
	}
	defer func() {
		if !committed {
			err = errors.Join(err, s.thaw(donor))
		}
	}()
	if m, err = s.export(w, donor); err != nil {
		return m, err
	}
	if _, err := w.wantBody(kindImported); err != nil {
		return m, err
	}
	// Six octets fit or do not: if this fails, the successor gets no commit.
	if err := w.send(kindCommit, nil); err != nil {
		return m, err
	}
	// ━━━ Point of no return: from here on the successor owns everything, even
	// if it dies. Nothing below may fail the swap. ━━━
	committed = true
	if donor != nil {
		late, _ := donor.Discard(nil, 0) // exported: cannot fail
		for _, p := range late {
			w.put(kindLate, p)
		}
		w.put(kindLateEnd, nil)
	}
	w.flush()
	w.wantBody(kindActive) // for the time it took, and to outlive it
	m.still = time.Since(start)
	s.abandon()
	return m, nil
}

// export sends everything that is frozen, if anything is.
func (s *server) export(w *wire, donor *migrate.Donor) (m moved, err error) {
	var list manifest
	var files []syscall.Conn
	var states [][]byte
	if donor != nil {
		var c snapshotEntry
		clients := make(map[netip.Addr]bool)
		for _, conn := range donor.Conns() {
			clients[conn.Tuple().Remote.Addr()] = true
			var e connEntry
			s.mu.Lock()
			r := s.sessions[conn]
			s.mu.Unlock()
			if r != nil {
				state, fs := r.session.save()
				e = connEntry{App: true, Files: len(fs)}
				states, files = append(states, state), append(files, fs...)
			}
			c.Conns = append(c.Conns, e)
			m.conns++
		}
		list.Snapshots = append(list.Snapshots, c)
		m.clients = len(clients)
	}
	if err := w.putJSON(kindManifest, list); err != nil {
		return m, err
	}
	for fs := range slices.Chunk(files, maxFiles) {
		if err := w.put(kindFiles, nil, fs...); err != nil {
			return m, err
		}
	}
	for _, state := range states {
		if err := w.put(kindState, state); err != nil {
			return m, err
		}
	}
	if donor != nil {
		snap, err := donor.Export(nil)
		if err != nil {
			return m, err
		}
		if err := w.put(kindSnapshot, snap); err != nil {
			return m, err
		}
	}
	return m, w.flush()
}

// arrival is a client's connections that are being received.
type arrival struct {
	target   *migrate.Target
	sessions []session // nil: no application has the connection
}

// takeOver receives everything from the predecessor at the other end of w and
// returns a server that serves it, and the control socket. openDevice is
// tun.FromFiles. After an error the predecessor serves on.
func takeOver(w *wire, modeName string, m mode, openDevice func(files []*os.File, mtu int) (device, error)) (s *server, control *net.UnixListener, err error) {
	var arrivals []arrival
	defer func() {
		if err == nil {
			return
		}
		w.refuse(err)
		for _, a := range arrivals {
			for _, se := range a.sessions {
				if se != nil {
					se.close()
				}
			}
			if a.target != nil {
				a.target.Discard()
			}
		}
		if s != nil {
			s.abandon()
		}
		if control != nil {
			control.Close()
		}
		s, control, err = nil, nil, fmt.Errorf("take over: %w", err)
	}()
	w.c.SetDeadline(time.Now().Add(swapTimeout))

	reached("hello", w)
	if err := w.putJSON(kindHello, hello{version, modeName}); err != nil {
		return s, control, err
	}
	if err := w.flush(); err != nil {
		return s, control, err
	}
	reached("prepare", w)
	body, files, err := w.want(kindPrepare)
	if err != nil {
		return s, control, err
	}
	if s, control, err = prepare(body, files, m, openDevice); err != nil {
		return s, control, err
	}
	reached("ready", w)
	if err := w.send(kindReady, nil); err != nil {
		return s, control, err
	}

	reached("import", w)
	if arrivals, err = s.receive(w); err != nil {
		return s, control, err
	}
	reached("imported", w)
	if err := w.send(kindImported, nil); err != nil {
		return s, control, err
	}
	// Commit may have been sent already: only the predecessor's word, or its
	// end, can tell that it will not be.
	w.c.SetReadDeadline(time.Time{})
	if _, err := w.wantBody(kindCommit); err != nil {
		return s, control, err
	}
	// ━━━ Point of no return: from here on this process owns everything. What
	// fails below fails for single connections, as a network does. ━━━
	w.c.SetDeadline(time.Now().Add(swapTimeout)) // the late packets can be done without
	for _, a := range arrivals {
		s.activate(a, latePackets(w))
	}
	if err := s.resume(); err != nil {
		return s, control, err // the link is gone
	}
	// The kernel shows those who connect the credentials of who listened last.
	if fd, err := fdOf(control); err == nil {
		unix.Listen(fd, unix.SOMAXCONN)
	}
	w.send(kindActive, nil)
	return s, control, nil
}

// prepare builds a server that stands still, and the control socket, of what
// the predecessor sent.
func prepare(body []byte, files []*os.File, m mode, openDevice func([]*os.File, int) (device, error)) (*server, *net.UnixListener, error) {
	defer closeFiles(files) // those that are taken have closed theirs
	var cfg config
	if err := json.Unmarshal(body, &cfg); err != nil {
		return nil, nil, err
	}
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

// receive imports everything that the predecessor exports.
func (s *server) receive(w *wire) (arrivals []arrival, err error) {
	var list manifest
	if err := w.wantJSON(kindManifest, &list); err != nil {
		return nil, err
	}
	var files []*os.File
	defer func() { closeFiles(files) }() // those that no session took
	announced := 0
	for _, c := range list.Snapshots {
		for _, e := range c.Conns {
			if e.Files < 0 || e.Files > maxFiles || e.Files > 0 && !e.App {
				return nil, fmt.Errorf("connection with %d descriptors", e.Files)
			}
			announced += e.Files
		}
	}
	for len(files) < announced {
		_, fs, err := w.want(kindFiles)
		files = append(files, fs...)
		if err != nil {
			return nil, err
		}
		if len(fs) == 0 || len(files) > announced {
			return nil, fmt.Errorf("%d descriptors: want %d", len(files), announced)
		}
	}
	for _, c := range list.Snapshots {
		a := arrival{sessions: make([]session, len(c.Conns))}
		arrivals = append(arrivals, a)
		for i, e := range c.Conns {
			if !e.App {
				continue
			}
			state, err := w.wantBody(kindState)
			if err != nil {
				return arrivals, err
			}
			mine := files[:e.Files]
			files = files[e.Files:]
			if a.sessions[i], err = s.mode.restore(state, mine); err != nil {
				a.sessions[i] = nil
				return arrivals, err
			}
		}
	}
	for i := range arrivals {
		snap, err := w.wantBody(kindSnapshot)
		if err != nil {
			return arrivals, err
		}
		a := &arrivals[i]
		if a.target, err = migrate.Import(s.stack, snap); err != nil {
			a.target = nil
			return arrivals, err
		}
		if a.target.Len() != len(a.sessions) {
			return arrivals, fmt.Errorf("snapshot of %d connections: want %d", a.target.Len(), len(a.sessions))
		}
	}
	return arrivals, nil
}

// maxLate bounds the late packets of one client, in octets. What is dropped
// the client sends again.
const maxLate = 16 << 20

// latePackets reads what the predecessor had received of a client without
// processing it. Should the predecessor have died, that is nothing.
func latePackets(w *wire) (late [][]byte) {
	for octets := 0; ; {
		f, files, err := w.next()
		closeFiles(files)
		if err != nil || f.kind != kindLate {
			return late
		}
		if octets += len(f.body); octets <= maxLate {
			late = append(late, f.body)
		}
	}
}

// activate makes the connections of an arrival live. Their sessions start with
// the server's resume.
func (s *server) activate(a arrival, late [][]byte) {
	conns, err := a.target.Activate(late...)
	if err != nil {
		slog.Error("connections lost", "error", err)
		conns = make([]*stack.Conn, len(a.sessions))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, se := range a.sessions {
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
