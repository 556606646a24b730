package peercred

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/distributed-servers/ds/internal/netns/netnstest"
	"github.com/distributed-servers/ds/internal/probe"
)

const dialEnv = "DS_TEST_DIAL"

func TestMain(m *testing.M) {
	probe.Main()
	if path := os.Getenv(dialEnv); path != "" {
		c, err := net.Dial("unix", path)
		if err == nil {
			_, err = io.ReadAll(c)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestOwn(t *testing.T) {
	c := connected(t, nil)
	groups, err := os.Getgroups()
	if err != nil {
		t.Fatal(err)
	}
	if int(c.UID) != os.Geteuid() || int(c.GID) != os.Getegid() {
		t.Errorf("got %+v", c)
	}
	for _, g := range groups {
		if !c.In(uint32(g)) {
			t.Errorf("not in group %d: %+v", g, c)
		}
	}
}

// Few groups, and more than the first guess.
func TestOtherUser(t *testing.T) {
	if !netnstest.Run(t) { // where an ordinary user is root, but alone
		return
	}
	probe.Skip(t, probe.Users)
	for _, n := range []uint32{0, 1, 32, 33, 1000} {
		var groups []uint32
		for g := range n {
			groups = append(groups, 5000+g)
		}
		c := connected(t, &syscall.Credential{Uid: 4242, Gid: 4343, Groups: groups})
		if c.UID != 4242 || c.GID != 4343 || !slices.Equal(c.Groups, groups) {
			t.Errorf("%d groups: got %+v", n, c)
		}
		if !c.In(4343) || c.In(4242) || n > 0 && !c.In(5000+n-1) {
			t.Errorf("%d groups: In is wrong: %+v", n, c)
		}
	}
}

// connected returns the credentials of a child that has connected.
func connected(t *testing.T, cred *syscall.Credential) Cred {
	t.Helper()
	dir, err := os.MkdirTemp("", "peercred")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.SetDeadline(time.Now().Add(20 * time.Second))
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), dialEnv+"="+path, "GORACE=atexit_sleep_ms=0")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	conn, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c, err := Of(conn)
	if err != nil {
		t.Fatal(err)
	}
	if c.PID != cmd.Process.Pid {
		t.Errorf("PID %d, want %d", c.PID, cmd.Process.Pid)
	}
	return c
}
