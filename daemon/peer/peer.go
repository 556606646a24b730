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
//
// Certificates are those of the moment: a connection that is up goes on with what
// it began with, the next one has what has been read since. The form of frames is
// a protocol of TLS (ALPN, RFC 7301): nodes that have none in common refuse each
// other. Other protocols on the same port are [Service]s.
package peer

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/distributed-servers/ds/daemon/identity"
	"github.com/distributed-servers/ds/internal/framing"
)

// Handler is told what happens. Calls for one node come one after another, from
// a goroutine of its connection; those for several come at the same time.
type Handler interface {
	Up(name string)
	Down(name string, err error)
	// Received gets frames that have come together, which are others' when it returns.
	Received(name string, frames [][]byte)
}

// Config is a mesh. All but the durations and limits are required.
type Config struct {
	// Name of this node, as in its certificate.
	Name string

	// Listen is where connections are accepted.
	Listen netip.AddrPort

	// Peers are the other nodes at first.
	Peers map[string]netip.AddrPort

	// Identity has the certificate of this node, and the authorities that are
	// believed about others.
	Identity *identity.Keeper

	Handler Handler
	Logger  *slog.Logger

	// Failed, if not nil, is told why there is no connection to a node, each time
	// that the reason is another.
	Failed func(name string, err error)

	// Services are other protocols (ALPN) on the same port. Optional.
	Services map[string]Service

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
	listener net.Listener
	ctx      context.Context
	stop     context.CancelFunc
	running  sync.WaitGroup

	mu      sync.Mutex
	peers   map[string]*other
	links   map[string]*link
	refused map[netip.Addr]string // what has been logged about whom
}

// other is another node.
type other struct {
	addr netip.AddrPort
	stop context.CancelFunc // of the one that connects, if it is this node that does
	// turn orders connections of one node: the next begins when the last has
	// ended.
	turn *sync.Mutex
	told string // why there is no connection; mu
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
	m := &Mesh{cfg: cfg, peers: make(map[string]*other), links: make(map[string]*link), refused: make(map[netip.Addr]string)}
	var err error
	if m.listener, err = net.Listen("tcp", cfg.Listen.String()); err != nil {
		return nil, fmt.Errorf("peer: open: %w: is another dsco running, or is %s no address of this host?", err, cfg.Listen.Addr())
	}
	m.ctx, m.stop = context.WithCancel(context.Background())
	m.SetPeers(cfg.Peers)
	m.running.Go(m.accept)
	return m, nil
}

// SetPeers replaces the other nodes. Connections to those that are gone, or have
// another address, end; the others stay.
func (m *Mesh) SetPeers(peers map[string]netip.AddrPort) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, o := range m.peers {
		if addr, still := peers[name]; still && addr == o.addr {
			continue
		}
		if o.stop != nil {
			o.stop()
		}
		if l := m.links[name]; l != nil {
			l.fail(errors.New("the node is not a member any more, or has another address"))
		}
		if _, still := peers[name]; !still {
			delete(m.peers, name)
		}
	}
	for name, addr := range peers {
		o := m.peers[name]
		if name == m.cfg.Name || o != nil && o.addr == addr || m.ctx.Err() != nil {
			continue
		}
		if o == nil {
			o = &other{turn: new(sync.Mutex)}
			m.peers[name] = o
		}
		o.addr, o.told = addr, ""
		if m.cfg.Name < name {
			ctx, stop := context.WithCancel(m.ctx)
			o.stop = stop
			m.running.Go(func() { m.dial(ctx, name, addr) })
		}
	}
}

func (m *Mesh) peer(name string) *other {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.peers[name]
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

// accepted finds out who has connected, and for what.
func (m *Mesh) accepted(c net.Conn) {
	defer c.Close()
	conn, offered := m.server(c)
	if err := m.handshake(conn); err != nil {
		if v := m.versions(offered()); v != nil && len(offered()) > 0 {
			err = v
		}
		m.refuse(c, explain("", err))
		return
	}
	state := conn.ConnectionState()
	if s := m.cfg.Services[state.NegotiatedProtocol]; s != nil {
		s.Serve(m.ctx, conn)
		return
	}
	if state.NegotiatedProtocol == "" {
		m.refuse(c, m.versions(nil))
		return
	}
	for _, name := range state.PeerCertificates[0].DNSNames {
		if m.peer(name) != nil && name < m.cfg.Name {
			m.serve(name, conn)
			return
		}
	}
	m.refuse(c, fmt.Errorf("its certificate, of %q, names no node that connects to this one; is it among the peers here, or has it the name of another?", state.PeerCertificates[0].DNSNames))
}

// refuse logs that a connection is refused; what keeps coming, once.
func (m *Mesh) refuse(c net.Conn, err error) {
	from := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr()
	m.mu.Lock()
	known := m.refused[from] == err.Error()
	if len(m.refused) >= maxRefused {
		clear(m.refused)
	}
	m.refused[from] = err.Error()
	m.mu.Unlock()
	if !known && m.ctx.Err() == nil {
		m.cfg.Logger.Warn("a node's connection is refused", "from", c.RemoteAddr(), "err", err)
	}
}

// maxRefused bounds how many addresses are remembered to have been refused.
const maxRefused = 256

func (m *Mesh) handshake(conn *tls.Conn) error {
	ctx, cancel := context.WithTimeout(m.ctx, m.cfg.Timeout)
	defer cancel()
	return conn.HandshakeContext(ctx)
}

// dial keeps a connection to a node.
func (m *Mesh) dial(ctx context.Context, name string, addr netip.AddrPort) {
	for ctx.Err() == nil {
		conn, err := m.connect(ctx, name, addr)
		if err == nil {
			m.serve(name, conn)
			conn.Close()
		} else if ctx.Err() == nil {
			m.failed(name, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(m.cfg.Retry):
		}
	}
}

// failed tells why there is no connection to a node.
func (m *Mesh) failed(name string, err error) {
	err = explain(name, err)
	m.mu.Lock()
	o := m.peers[name]
	known := o == nil || o.told == err.Error() || m.ctx.Err() != nil
	var addr netip.AddrPort
	if !known {
		o.told, addr = err.Error(), o.addr
	}
	m.mu.Unlock()
	if known {
		return
	}
	m.cfg.Logger.Warn("no connection to a node", "node", name, "addr", addr, "err", err)
	if m.cfg.Failed != nil {
		m.cfg.Failed(name, err)
	}
}

func (m *Mesh) connect(ctx context.Context, name string, addr netip.AddrPort) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Timeout)
	defer cancel()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: m.cfg.Listen.Addr().AsSlice()}}
	c, err := d.DialContext(ctx, "tcp", addr.String())
	if err != nil {
		return nil, err
	}
	conn := tls.Client(&outbox{Conn: c}, m.cfg.Identity.Client(name, protocols...))
	if err := conn.HandshakeContext(ctx); err != nil {
		c.Close()
		return nil, err
	}
	if conn.ConnectionState().NegotiatedProtocol == "" {
		c.Close()
		return nil, m.versions(nil)
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
	o := m.peers[name]
	m.mu.Unlock()
	if o == nil {
		return // it is not a member any more
	}
	o.turn.Lock()
	defer o.turn.Unlock()

	l := newLink(conn, m.cfg.MaxBacklog, m.cfg.Timeout)
	m.mu.Lock()
	if m.ctx.Err() != nil || m.peers[name] != o {
		m.mu.Unlock()
		return
	}
	m.links[name] = l
	m.mu.Unlock()

	var writing sync.WaitGroup
	writing.Go(l.write)
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
	} else if !errors.Is(l.err, net.ErrClosed) {
		m.failed(name, l.err)
	}
}

// read takes frames until an error. The first one, which is empty, says that the
// other side has accepted us.
func (m *Mesh) read(name string, l *link) error {
	r := bufio.NewReaderSize(&patient{l.conn, m.cfg.Timeout}, 64<<10)
	var frames [][]byte
	for {
		// While the next frame is there whole, nothing is read and this one stays.
		b, err := framing.Next(r, m.cfg.MaxFrame)
		if err != nil {
			return err
		}
		if !l.up {
			l.up = true
			m.heard(name)
			m.cfg.Handler.Up(name)
		}
		if len(b) > 0 {
			frames = append(frames, b)
		}
		if len(frames) > 0 && !(len(frames) < maxBurst && framing.Ready(r)) {
			m.cfg.Handler.Received(name, frames)
			clear(frames) // which may be large
			frames = frames[:0]
		}
	}
}

// heard forgets why there was no connection.
func (m *Mesh) heard(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if o := m.peers[name]; o != nil {
		o.told = ""
	}
}

// Send sends frames to a node, together, or queues copies; it does not wait. That it
// has no error does not mean that they arrive: if they do not, Down follows. A frame
// of the wrong size is left out, with an error.
func (m *Mesh) Send(name string, frames ...[]byte) error {
	m.mu.Lock()
	l := m.links[name]
	m.mu.Unlock()
	if l == nil {
		return ErrNotConnected
	}
	var errs []error
	frames = slices.DeleteFunc(slices.Clone(frames), func(f []byte) bool {
		bad := len(f) == 0 || len(f) > m.cfg.MaxFrame
		if bad {
			errs = append(errs, fmt.Errorf("peer: send to %s: %d octets, want 1 to %d", name, len(f), m.cfg.MaxFrame))
		}
		return bad
	})
	return errors.Join(append(errs, l.send(frames))...)
}
