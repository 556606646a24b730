package server

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

const daemonEnv = "DS_TEST_DAEMON"

// daemonOnly is a daemon that lasts until it is killed.
func daemonOnly(path string) int {
	s, err := New(Config{Socket: path, Backend: new(fake)})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println("listening")
	s.Serve()
	return 0
}

// A daemon in the way is named, and one that is dead is no hindrance.
func TestOtherDaemon(t *testing.T) {
	path := filepath.Join(temp(t), "run", "s")
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), daemonEnv+"="+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 9)); err != nil {
		t.Fatal(err)
	}
	pid := strconv.Itoa(cmd.Process.Pid)
	_, err = New(Config{Socket: path, Backend: new(fake)})
	if err == nil || !strings.Contains(err.Error(), "process "+pid+" has it") {
		t.Errorf("got %v, want process %s named", err, pid)
	}
	os.Remove(path + ".lock") // somebody has tidied up
	_, err = New(Config{Socket: path, Backend: new(fake)})
	if err == nil || !strings.Contains(err.Error(), "process "+pid+" has it") {
		t.Errorf("without lock: got %v, want process %s named", err, pid)
	}
	if err := Cleanup(path); err == nil || !strings.Contains(err.Error(), "process "+pid+" has it") {
		t.Errorf("cleanup: got %v, want process %s named", err, pid)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	_, c := serve(t, Config{Socket: path})
	if _, err := c.Status(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestSocketFile(t *testing.T) {
	dir := temp(t)
	path := filepath.Join(dir, "s")
	cfg := Config{Socket: path, Backend: new(fake), Group: strconv.Itoa(os.Getegid())}
	if os.Geteuid() == 0 {
		cfg.Group = "4300"
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	gid := strconv.Itoa(int(info.Sys().(*syscall.Stat_t).Gid))
	if info.Mode() != fs.ModeSocket|0o666 || gid != cfg.Group {
		t.Errorf("mode %v, group %s", info.Mode(), gid)
	}
	if info, err := os.Stat(path + ".lock"); err != nil || info.Mode() != 0o600 {
		t.Errorf("lock: %v, %v", info, err)
	}
	// Never served, and closed twice.
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// What a daemon leaves that is killed, cleanup removes.
func TestCleanup(t *testing.T) {
	dir := temp(t)
	path := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if err := os.WriteFile(path+".lock", []byte("1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time there is nothing
		if err := Cleanup(path); err != nil {
			t.Error(err)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if err := Cleanup(filepath.Join(dir, "nowhere", "s")); err != nil {
		t.Error(err)
	}
}

func TestSocketMistakes(t *testing.T) {
	dir := temp(t)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		cfg  Config
		want string
	}{
		{"a file", Config{Socket: file}, "not a socket"},
		{"below a file", Config{Socket: file + "/s"}, "name another"},
		{"too long", Config{Socket: filepath.Join(dir, strings.Repeat("x", 200))}, "name another"},
		{"no such group", Config{Socket: filepath.Join(dir, "s"), Group: "no-such-group"}, "groupadd"},
	} {
		tt.cfg.Backend = new(fake)
		s, err := New(tt.cfg)
		if err == nil {
			s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// Of many that start over a dead daemon's socket, one gets it.
func TestManyStart(t *testing.T) {
	path := filepath.Join(temp(t), "s")
	for range 20 {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		l.Close()
		var wg sync.WaitGroup
		var mu sync.Mutex
		var got []*Server
		for range 8 {
			wg.Go(func() {
				if s, err := New(Config{Socket: path, Backend: new(fake)}); err == nil {
					mu.Lock()
					got = append(got, s)
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		if len(got) != 1 {
			t.Errorf("%d daemons", len(got))
		}
		for _, s := range got {
			s.Close()
		}
	}
}
