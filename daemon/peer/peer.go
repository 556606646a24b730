// Package peer connects the daemons of a cluster with each other: one connection
// a pair, TLS 1.3 with certificates of the cluster's own authority on both sides
// (RFC 8446), on which frames go both ways.
//
// # Theory of operation
//
// Of two nodes the one with the lesser name connects, and goes on trying. A node
// is who its certificate says, a DNS name. A connection is up from the moment
// that both have verified that until an error, or until nothing has come for
// [Config.Timeout]; both sides send an empty frame when they have nothing to say.
// Between [Handler.Up] and [Handler.Down] of a node frames come in the order in
// which they were sent, none twice, and none of an earlier connection.
//
//	lesser name                              greater name
//	    │ ── TCP, TLS: certificate, certificate ── │
//	   Up                                          Up
//	    │ ── frame: length, octets ──────────────► │ Received
//	    │ ◄────────────────── frame: nothing ───── │
package peer

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Handler is told what happens. Calls for one node come one after another, from
// a goroutine of its connection; those for several come at the same time.
type Handler interface {
	Up(name string)
	Down(name string, err error)
	// Received gets a frame, which it may keep.
	Received(name string, frame []byte)
}

// Config is a mesh. All but the durations and limits are required.
type Config struct {
	// Name of this node, as in Certificate.
	Name string

	// Listen is where connections are accepted.
	Listen netip.AddrPort

	// Peers are the other nodes.
	Peers map[string]netip.AddrPort

	// Certificate of this node, and those of the authorities that are believed
	// about others.
	Certificate tls.Certificate
	Authorities *x509.CertPool

	Handler Handler
	Logger  *slog.Logger

	// Timeout ends a connection from which nothing comes. Default 3 s.
	Timeout time.Duration

	// Retry is how long is waited after a failed attempt to connect. Default 500 ms.
	Retry time.Duration

	// MaxFrame bounds a frame, in octets. Default 256 MiB.
	MaxFrame int

	// MaxBacklog bounds what waits to be sent to a node, in octets, before it is
	// given up. Default 512 MiB.
	MaxBacklog int
}

// Mesh is the connections of a node to all others.
type Mesh struct {
	cfg      Config
	tls      *tls.Config
	listener net.Listener
	ctx      context.Context
	stop     context.CancelFunc
	running  sync.WaitGroup

	mu    sync.Mutex
	links map[string]*link
	// turns orders connections of one node: the next begins when the last has
	// ended.
	turns map[string]*sync.Mutex
}

// ErrNotConnected is returned for nodes to which there is no connection now.
var ErrNotConnected = errors.New("peer: not connected")

// Open begins to connect and to accept connections.
func Open(cfg Config) (*Mesh, error) {
	for _, d := range []struct {
		field *time.Duration
		def   time.Duration
	}{{&cfg.Timeout, 3 * time.Second}, {&cfg.Retry, 500 * time.Millisecond}} {
		if *d.field == 0 {
			*d.field = d.def
		}
	}
	if cfg.MaxFrame == 0 {
		cfg.MaxFrame = 256 << 20
	}
	if cfg.MaxBacklog == 0 {
		cfg.MaxBacklog = 512 << 20
	}
	if _, named := cfg.Peers[cfg.Name]; named {
		return nil, fmt.Errorf("peer: open: %s is this node and one of its peers", cfg.Name)
	}
	if err := certifies(cfg.Certificate, cfg.Name); err != nil {
		return nil, fmt.Errorf("peer: open: %w", err)
	}
	m := &Mesh{cfg: cfg, links: make(map[string]*link), turns: make(map[string]*sync.Mutex)}
	for name := range cfg.Peers {
		m.turns[name] = new(sync.Mutex)
	}
	m.tls = &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{cfg.Certificate},
		RootCAs:      cfg.Authorities,
		ClientCAs:    cfg.Authorities,
		ClientAuth:   tls.RequireAndVerifyClientCert,
		NextProtos:   []string{"dsco/1"},
	}
	var err error
	if m.listener, err = net.Listen("tcp", cfg.Listen.String()); err != nil {
		return nil, fmt.Errorf("peer: open: %w: is another dsco running, or is %s no address of this host?", err, cfg.Listen.Addr())
	}
	m.ctx, m.stop = context.WithCancel(context.Background())
	m.running.Go(m.accept)
	for name, addr := range cfg.Peers {
		if cfg.Name < name {
			m.running.Go(func() { m.dial(name, addr) })
		}
	}
	return m, nil
}

// certifies tells whether a certificate is that of a node.
func certifies(c tls.Certificate, name string) error {
	if len(c.Certificate) == 0 {
		return errors.New("no certificate")
	}
	leaf, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		return fmt.Errorf("certificate: %w", err)
	}
	if !slices.Contains(leaf.DNSNames, name) {
		return fmt.Errorf("the certificate is for %q, not for node %s: make one with that DNS name", leaf.DNSNames, name)
	}
	return nil
}

// Addr is where connections are accepted.
func (m *Mesh) Addr() netip.AddrPort { return m.listener.Addr().(*net.TCPAddr).AddrPort() }

// Close ends all connections and waits for the handler's last call.
func (m *Mesh) Close() error {
	m.stop()
	err := m.listener.Close()
	m.mu.Lock()
	for _, l := range m.links {
		l.fail(net.ErrClosed)
	}
	m.mu.Unlock()
	m.running.Wait()
	return err
}

func (m *Mesh) accept() {
	for {
		c, err := m.listener.Accept()
		if err != nil {
			if m.ctx.Err() != nil {
				return
			}
			m.cfg.Logger.Warn("accepting a node's connection", "err", err)
			m.pause()
			continue
		}
		m.running.Go(func() { m.accepted(c) })
	}
}

// accepted finds out who has connected.
func (m *Mesh) accepted(c net.Conn) {
	defer c.Close()
	conn := tls.Server(c, m.tls)
	if err := m.handshake(conn); err != nil {
		m.cfg.Logger.Warn("a node's connection is refused", "from", c.RemoteAddr(), "err", err)
		return
	}
	for _, name := range conn.ConnectionState().PeerCertificates[0].DNSNames {
		if _, known := m.cfg.Peers[name]; known && name < m.cfg.Name {
			m.serve(name, conn)
			return
		}
	}
	m.cfg.Logger.Warn("a node's connection is refused", "from", c.RemoteAddr(),
		"names", conn.ConnectionState().PeerCertificates[0].DNSNames, "err", "its certificate names no node that connects to this one")
}

func (m *Mesh) handshake(conn *tls.Conn) error {
	ctx, cancel := context.WithTimeout(m.ctx, m.cfg.Timeout)
	defer cancel()
	return conn.HandshakeContext(ctx)
}

// dial keeps a connection to a node.
func (m *Mesh) dial(name string, addr netip.AddrPort) {
	told := ""
	for m.ctx.Err() == nil {
		conn, err := m.connect(name, addr)
		if err == nil {
			told = ""
			m.serve(name, conn)
			conn.Close()
		} else if err.Error() != told && m.ctx.Err() == nil {
			told = err.Error()
			m.cfg.Logger.Warn("no connection to a node", "node", name, "addr", addr, "err", err)
		}
		m.pause()
	}
}

func (m *Mesh) connect(name string, addr netip.AddrPort) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(m.ctx, m.cfg.Timeout)
	defer cancel()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: m.cfg.Listen.Addr().AsSlice()}}
	c, err := d.DialContext(ctx, "tcp", addr.String())
	if err != nil {
		return nil, err
	}
	cfg := m.tls.Clone()
	cfg.ServerName = name
	conn := tls.Client(c, cfg)
	if err := conn.HandshakeContext(ctx); err != nil {
		c.Close()
		return nil, err
	}
	// TLS 1.3: the other side may refuse our certificate only now, with its
	// first octets. It sends some at once.
	return conn, nil
}

func (m *Mesh) pause() {
	select {
	case <-m.ctx.Done():
	case <-time.After(m.cfg.Retry):
	}
}

// serve is a connection, from beginning to end. One that there is already ends
// first: that a node connects again means that it has given that one up.
func (m *Mesh) serve(name string, conn *tls.Conn) {
	m.mu.Lock()
	if old := m.links[name]; old != nil {
		old.fail(errors.New("the node has connected anew"))
	}
	turn := m.turns[name]
	m.mu.Unlock()
	turn.Lock()
	defer turn.Unlock()

	l := newLink(conn, m.cfg.MaxBacklog)
	m.mu.Lock()
	if m.ctx.Err() != nil {
		m.mu.Unlock()
		return
	}
	m.links[name] = l
	m.mu.Unlock()

	var writing sync.WaitGroup
	writing.Go(func() { l.write(m.cfg.Timeout) })
	err := m.read(name, l)
	l.fail(err)
	writing.Wait()
	m.mu.Lock()
	if m.links[name] == l {
		delete(m.links, name)
	}
	m.mu.Unlock()
	if l.up {
		m.cfg.Handler.Down(name, l.err)
	}
}

// read takes frames until an error. The first one, which is empty, says that the
// other side has accepted us.
func (m *Mesh) read(name string, l *link) error {
	r := bufio.NewReaderSize(&patient{l.conn, m.cfg.Timeout}, 64<<10)
	for {
		b, err := readFrame(r, m.cfg.MaxFrame)
		if err != nil {
			return err
		}
		if !l.up {
			l.up = true
			m.cfg.Handler.Up(name)
		}
		if len(b) > 0 {
			m.cfg.Handler.Received(name, b)
		}
	}
}

// Send sends a frame to a node, or queues it; it does not wait. That it has no
// error does not mean that the frame arrives: if it does not, Down follows.
func (m *Mesh) Send(name string, frame []byte) error {
	m.mu.Lock()
	l := m.links[name]
	m.mu.Unlock()
	if l == nil {
		return ErrNotConnected
	}
	if len(frame) == 0 || len(frame) > m.cfg.MaxFrame {
		return fmt.Errorf("peer: send to %s: %d octets, want 1 to %d", name, len(frame), m.cfg.MaxFrame)
	}
	return l.send(frame)
}

// link is one connection.
type link struct {
	conn *tls.Conn
	max  int
	up   bool // the reader's
	wake chan struct{}

	mu     sync.Mutex
	queue  []byte
	closed bool
	err    error
}

func newLink(conn *tls.Conn, maxBacklog int) *link {
	return &link{conn: conn, max: maxBacklog, wake: make(chan struct{}, 1)}
}

func (l *link) send(frame []byte) error {
	l.mu.Lock()
	switch {
	case l.closed:
		l.mu.Unlock()
		return ErrNotConnected
	case len(l.queue)+len(frame)+4 > l.max:
		l.mu.Unlock()
		l.fail(fmt.Errorf("more than %d octets wait for it", l.max))
		return ErrNotConnected
	}
	l.queue = binary.BigEndian.AppendUint32(l.queue, uint32(len(frame)))
	l.queue = append(l.queue, frame...)
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return nil
}

// write sends what is queued, and an empty frame at once and whenever there has
// been nothing for a third of the timeout.
func (l *link) write(timeout time.Duration) {
	idle := time.NewTimer(0)
	defer idle.Stop()
	var out []byte
	for {
		select {
		case <-l.wake:
		case <-idle.C:
		}
		l.mu.Lock()
		out, l.queue = l.queue, out[:0]
		closed := l.closed
		l.mu.Unlock()
		if closed {
			return
		}
		if len(out) == 0 {
			out = append(out, 0, 0, 0, 0)
		}
		for rest := out; len(rest) > 0; {
			n := min(len(rest), 1<<20)
			l.conn.SetWriteDeadline(time.Now().Add(timeout))
			if _, err := l.conn.Write(rest[:n]); err != nil {
				l.fail(err)
				return
			}
			rest = rest[n:]
		}
		if cap(out) > 1<<20 {
			out = nil
		}
		idle.Reset(timeout / 3)
	}
}

// fail ends the connection; the first reason counts.
func (l *link) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.closed, l.err = true, err
	l.queue = nil
	l.conn.NetConn().Close() // not TLS's: it would wait for a writer
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// patient is a connection that fails when nothing has come for a time, however
// long the whole takes.
type patient struct {
	conn    *tls.Conn
	timeout time.Duration
}

func (p *patient) Read(b []byte) (int, error) {
	p.conn.SetReadDeadline(time.Now().Add(p.timeout))
	return p.conn.Read(b)
}

// readFrame reads a frame. Memory grows with what has arrived, not with what the
// length says.
func readFrame(r io.Reader, max int) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint32(head[:]))
	if n > max {
		return nil, fmt.Errorf("peer: a frame of %d octets, more than %d", n, max)
	}
	const step = 1 << 20
	b := make([]byte, 0, min(n, step))
	for len(b) < n {
		k := min(n-len(b), step)
		b = append(b, make([]byte, k)...)
		if _, err := io.ReadFull(r, b[len(b)-k:]); err != nil {
			return nil, err
		}
	}
	return b, nil
}
