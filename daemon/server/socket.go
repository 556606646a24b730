package server

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/distributed-servers/ds/internal/peercred"
)

// socket is a listening UNIX socket, and the lock that says whose it is. The
// lock is a file beside it: between finding a dead daemon's socket and replacing
// it, another that starts could do the same.
type socket struct {
	*net.UnixListener
	path string
	lock *os.File
}

// listen makes the socket, in place of one that a dead daemon has left. gid
// becomes its group; -1: that of this process.
func listen(path string, gid int) (*socket, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("server: socket: %w; make the directory, or name another socket", err)
	}
	lock, err := acquire(path + ".lock")
	if err != nil {
		return nil, fmt.Errorf("server: socket %s: %w", path, err)
	}
	s := &socket{path: path, lock: lock}
	if err := s.open(gid); err != nil {
		s.unlock()
		return nil, fmt.Errorf("server: socket %s: %w", path, err)
	}
	return s, nil
}

func (s *socket) open(gid int) error {
	if err := clear(s.path); err != nil {
		return err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.path, Net: "unix"})
	if err != nil {
		if op, ok := errors.AsType[*net.OpError](err); ok {
			err = op.Err
		}
		return fmt.Errorf("%w; let this user write to the directory, or name another socket", err)
	}
	l.SetUnlinkOnClose(false) // Close does, while it has the lock
	s.UnixListener = l
	if gid >= 0 {
		if err := os.Chown(s.path, -1, gid); err != nil {
			s.remove()
			return fmt.Errorf("%w; run the daemon in that group, or as root", err)
		}
	}
	// Anyone may connect; what they may do is decided by who they are.
	if err := os.Chmod(s.path, 0o666); err != nil {
		s.remove()
		return err
	}
	return nil
}

// Cleanup removes the socket of a daemon that was killed. It is an error if the
// daemon runs; no socket is none.
func Cleanup(path string) error {
	if _, err := os.Stat(filepath.Dir(path)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	lock, err := acquire(path + ".lock")
	if err == nil {
		err = clear(path)
		(&socket{lock: lock}).unlock()
	}
	if err != nil {
		return fmt.Errorf("server: cleanup: socket %s: %w", path, err)
	}
	return nil
}

// clear removes the socket of a daemon that is dead.
func clear(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return errors.New("there is something that is not a socket; move it away, or name another socket")
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		defer conn.Close()
		return inUse(listenerOf(conn))
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("there is a socket, and whether somebody listens on it cannot be told: %w; stop whoever does, or remove it", err)
	}
	return os.Remove(path)
}

func listenerOf(conn net.Conn) string {
	c, err := peercred.Of(conn.(*net.UnixConn))
	if err != nil {
		return "unknown"
	}
	return fmt.Sprint(c.PID)
}

func inUse(pid string) error {
	return fmt.Errorf("process %s has it: another daemon runs; stop that one, or give this one a socket of its own", pid)
}

// acquire locks the file, which it makes, and writes the process id into it.
func acquire(path string) (*os.File, error) {
	const tries = 100 // each is another daemon that has just ended
	for range tries {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, fmt.Errorf("lock: %w; run the daemon as the user that it ran as before, or remove the file", err)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			pid, _ := io.ReadAll(io.LimitReader(f, 20))
			f.Close()
			if err == unix.EWOULDBLOCK {
				return nil, inUse(strings.TrimSpace(string(pid)))
			}
			return nil, fmt.Errorf("lock: %w", err)
		}
		// A daemon that ends removes the file: then the lock is one on nothing.
		if mine, err := f.Stat(); err == nil {
			if there, err := os.Stat(path); err == nil && os.SameFile(mine, there) {
				return f, sign(f)
			}
		}
		f.Close()
	}
	return nil, fmt.Errorf("lock: %s keeps changing; see which daemons start and end", path)
}

// sign writes the process id into the lock.
func sign(f *os.File) error {
	err := f.Truncate(0)
	if err == nil {
		_, err = fmt.Fprintln(f, os.Getpid())
	}
	if err != nil {
		f.Close()
		return fmt.Errorf("lock: %w", err)
	}
	return nil
}

// remove ends listening.
func (s *socket) remove() {
	s.UnixListener.Close()
	os.Remove(s.path)
}

func (s *socket) unlock() {
	os.Remove(s.lock.Name())
	s.lock.Close()
}

// Close removes the socket and the lock.
func (s *socket) Close() error {
	s.remove()
	s.unlock()
	return nil
}
