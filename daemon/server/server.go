package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"strconv"
	"sync"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
)

// Config is a server. Socket and Backend are required.
type Config struct {
	// Socket is the path of the UNIX socket. Its directory is made if need be.
	Socket string

	// Group, by name or number: its members may write. Default: dsco if there
	// is such a group, else only root may.
	Group string

	Backend Backend

	// Events are those that watch gives. Default: none but the server's own.
	Events *Events

	// Logger gets what a daemon's operator wants to know. Default: nothing.
	Logger *slog.Logger

	// PerUser limits the connections of a user, and Connections those of all
	// users but root and the daemon's own. A session is one, and somebody who
	// watches. Default 64 and 256.
	PerUser     int
	Connections int

	// RequestTimeout is how long a request may take to arrive, and AnswerTimeout
	// how long the backend and the client may take until an answer has been
	// read. Default 5 s and 2 minutes.
	RequestTimeout time.Duration
	AnswerTimeout  time.Duration
}

// Limits of a request, in octets.
const (
	maxHeader = 8 << 10
	maxBody   = 16 << 10
)

// Server serves the API.
type Server struct {
	cfg      Config
	socket   *socket
	listener net.Listener
	http     *http.Server
	log      *slog.Logger
	group    *uint32 // whose members may write
	own      uint32

	closeTimeout time.Duration // of tests, another

	ctx      context.Context // of what lasts: sessions, those who watch
	cancel   context.CancelCauseFunc
	sessions sync.WaitGroup
	closing  sync.Mutex // held while sessions grows, or closing becomes true
	closed   bool
}

// errClosing is why a context of a request ends when the server does.
var errClosing = api.Errorf(api.ErrBusy, "try again when it runs", "the daemon is stopping")

// New makes the socket. Connections wait until Serve.
func New(cfg Config) (*Server, error) {
	s := &Server{cfg: cfg, own: uint32(os.Geteuid()), log: cfg.Logger, closeTimeout: closeTimeout}
	setDefault(&s.cfg.PerUser, 64)
	setDefault(&s.cfg.Connections, 256)
	setDefault(&s.cfg.RequestTimeout, 5*time.Second)
	setDefault(&s.cfg.AnswerTimeout, 2*time.Minute)
	if s.cfg.Events == nil {
		s.cfg.Events = new(Events)
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	gid, err := lookupGroup(cfg.Group)
	if err != nil {
		return nil, err
	}
	owner := -1
	if gid != nil && (s.own == 0 || cfg.Group != "") {
		owner = int(*gid)
	}
	s.group = gid
	if s.socket, err = listen(cfg.Socket, owner); err != nil {
		return nil, err
	}
	s.listener = &listener{Listener: s.socket.UnixListener, perUser: s.cfg.PerUser, others: s.cfg.Connections, own: s.own, users: make(map[uint32]int)}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.http = &http.Server{
		Handler:           s.handler(),
		BaseContext:       func(net.Listener) context.Context { return s.ctx },
		ConnContext:       withConn,
		ReadHeaderTimeout: s.cfg.RequestTimeout,
		WriteTimeout:      s.cfg.AnswerTimeout,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
	}
	return s, nil
}

func setDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// defaultGroup may write, where there is one of that name.
const defaultGroup = "dsco"

func lookupGroup(name string) (*uint32, error) {
	if name == "" {
		if g, err := user.LookupGroup(defaultGroup); err == nil {
			return parseGID(g.Gid)
		}
		return nil, nil
	}
	if gid, err := parseGID(name); err == nil {
		return gid, nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return nil, fmt.Errorf("server: group %q: %w; add it (groupadd --system %s), or configure another", name, err, name)
	}
	return parseGID(g.Gid)
}

func parseGID(s string) (*uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("server: group %q: %w", s, err)
	}
	gid := uint32(n)
	return &gid, nil
}

// mayWrite tells whether a caller may change things.
func (s *Server) mayWrite(who Cred) bool {
	return who.UID == 0 || who.UID == s.own || s.group != nil && who.In(*s.group)
}

// Serve answers until Close, and returns nil then.
func (s *Server) Serve() error {
	if err := s.http.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("server: %w", err)
	}
	return nil
}

// closeTimeout is how long Close waits for answers that are being given.
const closeTimeout = 3 * time.Second

// Close removes the socket, ends sessions, and those who watch, and waits for
// them and for calls that are being answered, for some seconds.
func (s *Server) Close() error {
	s.closing.Lock()
	was := s.closed
	s.closed = true
	s.closing.Unlock()
	if was {
		return nil
	}
	s.cancel(errClosing)
	ctx, cancel := context.WithTimeout(context.Background(), s.closeTimeout)
	defer cancel()
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = s.http.Close()
	}
	s.sessions.Wait()
	s.socket.Close()
	return err
}

// enter counts a session in, unless the server closes.
func (s *Server) enter() bool {
	s.closing.Lock()
	defer s.closing.Unlock()
	if s.closed {
		return false
	}
	s.sessions.Add(1)
	return true
}

type connKey struct{}

func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c.(*conn))
}
