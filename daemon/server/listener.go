package server

import (
	"net"
	"sync"

	"github.com/distributed-servers/ds/internal/peercred"
)

// listener accepts connections, as many as are allowed, and finds out whose
// they are.
type listener struct {
	net.Listener
	perUser, others int // limits: of one user, and of all but root
	own             uint32

	mu    sync.Mutex
	users map[uint32]int
	sum   int // of users but root and the daemon's own
}

// conn is a connection of the API.
type conn struct {
	*net.UnixConn
	who  Cred
	gone func()
}

// Accept closes what is too many at once: whoever waits in vain holds nothing
// but a place in the kernel's queue.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		u := c.(*net.UnixConn)
		who, err := peercred.Of(u)
		if err != nil || !l.enter(who.UID) {
			u.Close()
			continue
		}
		return &conn{UnixConn: u, who: who, gone: sync.OnceFunc(func() { l.leave(who.UID) })}, nil
	}
}

func (c *conn) Close() error {
	c.gone()
	return c.UnixConn.Close()
}

func (l *listener) privileged(uid uint32) bool { return uid == 0 || uid == l.own }

func (l *listener) enter(uid uint32) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.users[uid] >= l.perUser || !l.privileged(uid) && l.sum >= l.others {
		return false
	}
	l.users[uid]++
	if !l.privileged(uid) {
		l.sum++
	}
	return true
}

func (l *listener) leave(uid uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.users[uid]--; l.users[uid] == 0 {
		delete(l.users, uid)
	}
	if !l.privileged(uid) {
		l.sum--
	}
}
