//go:build linux

package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/distributed-servers/ds/internal/netns/netnstest"
	"github.com/distributed-servers/ds/internal/probe"
)

// The tests of this file run hotswap as a process in a network of their own:
//
//	curl, ssh ── kernel ── hs0 ── hotswap fd00:2::1, 10.2.0.1
//	   fd00:2::ff, 10.2.0.255        │ proxy mode
//	                                sshd 127.0.0.1
const (
	service6 = "fd00:2::1"
	service4 = "10.2.0.1"
)

// own reports whether the test is inside that network.
func own(t *testing.T, programs ...string) bool {
	t.Helper()
	for _, p := range programs {
		probe.Skip(t, probe.Program(p))
	}
	if !netnstest.Run(t) {
		return false
	}
	probe.Skip(t, probe.TUN)
	return true
}

// swapper runs hotswap processes, each the successor of the one before.
type swapper struct {
	t       *testing.T
	control string
	args    []string // mode and argument

	mu  sync.Mutex
	now *process // which serves
}

// process is a running hotswap.
type process struct {
	cmd   *exec.Cmd
	lines chan string   // of its standard output
	ended chan struct{} // closed when it has ended:
	err   error         // how
	log   *bytes.Buffer // its standard error
}

func (p *process) wait() error {
	<-p.ended
	return p.err
}

func newSwapper(t *testing.T, args ...string) *swapper {
	t.Helper()
	s := &swapper{t: t, control: filepath.Join(t.TempDir(), "control"), args: args}
	s.now = s.start()
	s.expect(s.now, "^hotswap: serving at ")
	return s
}

func (s *swapper) start(env ...string) *process {
	s.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		s.t.Fatal(err)
	}
	p := &process{lines: make(chan string, 16), ended: make(chan struct{}), log: new(bytes.Buffer)}
	args := append([]string{"-control", s.control, "-addr", service6, "-host", "fd00:2::ff/64",
		"-addr", service4, "-host", "10.2.0.255/16"}, s.args...)
	p.cmd = exec.Command(exe, args...)
	p.cmd.Env = append(append(os.Environ(), mainEnv+"=1"), env...)
	p.cmd.Stderr = p.log
	out, err := p.cmd.StdoutPipe()
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { p.cmd.Process.Kill(); p.wait() })
	go func() {
		for r := bufio.NewScanner(out); r.Scan(); {
			p.lines <- r.Text()
		}
		close(p.lines)
		p.err = p.cmd.Wait()
		close(p.ended)
	}()
	return p
}

// expect waits for a line of a process and returns it.
func (s *swapper) expect(p *process, pattern string) string {
	s.t.Helper()
	select {
	case line, ok := <-p.lines:
		if !ok {
			s.t.Fatalf("process ended, %v, log %q: want a line %q", p.wait(), p.log, pattern)
		}
		if !regexp.MustCompile(pattern).MatchString(line) {
			s.t.Fatalf("process says %q: want %q", line, pattern)
		}
		return line
	case <-time.After(time.Minute):
		s.t.Fatalf("process does not say %q", pattern)
	}
	panic("not reached")
}

// swap starts a successor and sees its predecessor off.
func (s *swapper) swap() {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	next := s.start()
	s.expect(next, fmt.Sprintf("^hotswap: took over from process %d, serving$", s.now.cmd.Process.Pid))
	s.t.Log(s.expect(s.now, fmt.Sprintf(`^hotswap: handed \d+ connections of \d+ clients to process %d; `, next.cmd.Process.Pid)))
	if err := s.now.wait(); err != nil {
		s.t.Errorf("the predecessor ended with %v, log %q: want 0", err, s.now.log)
	}
	s.now = next
}

// dying starts a successor that dies at a stage.
func (s *swapper) dying(stage string) {
	s.t.Helper()
	p := s.start(dieEnv + "=" + stage)
	if err := p.wait(); err == nil || p.cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
		s.t.Errorf("successor that is to die at %s: %v, log %q", stage, err, p.log)
	}
}

// terminate asks the present process to end, in good order.
func (s *swapper) terminate() {
	s.t.Helper()
	s.now.cmd.Process.Signal(unix.SIGTERM)
	if err := s.now.wait(); err != nil {
		s.t.Errorf("after SIGTERM: %v, log %q: want exit code 0", err, s.now.log)
	}
	if _, err := os.Stat(s.control); !os.IsNotExist(err) {
		s.t.Errorf("after SIGTERM the control socket is still there: %v", err)
	}
}

// meter hashes a stream and calls step each time a part of it has arrived; a
// step runs beside the stream, and the next one waits for it.
type meter struct {
	hash.Hash
	n, next, part int64
	step          func()
	running       chan struct{}
}

func newMeter(part int64, step func()) *meter {
	m := &meter{Hash: sha256.New(), part: part, next: part, step: step, running: make(chan struct{}, 1)}
	return m
}

func (m *meter) Write(b []byte) (int, error) {
	for m.n += int64(len(b)); m.n >= m.next; m.next += m.part {
		m.running <- struct{}{}
		go func() {
			defer func() { <-m.running }()
			m.step()
		}()
	}
	return m.Hash.Write(b)
}

func curl(out io.Writer, args ...string) error {
	cmd := exec.Command("curl", append([]string{"-sS", "--fail", "--max-time", "480"}, args...)...)
	var msg bytes.Buffer
	cmd.Stdout, cmd.Stderr = out, &msg
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("curl: %w: %s", err, &msg)
	}
	return nil
}

func url(host string) string { return "http://" + net.JoinHostPort(host, "80") + "/file" }

func downloadSize() int64 {
	if testing.Short() || raceEnabled {
		return 32 << 20
	}
	return 256 << 20
}

func TestCurl(t *testing.T) {
	if !own(t, "curl") {
		return
	}
	const swaps = 8
	size := downloadSize()
	dir, want := testFile(t, size)
	s := newSwapper(t, "file", dir)
	begin := time.Now()
	m := newMeter(size/(swaps+1)+1, s.swap)
	var wg sync.WaitGroup
	for _, host := range []string{service6, service6, service4} {
		wg.Go(func() {
			h := sha256.New()
			if err := curl(h, url(host)); err != nil || [sha256.Size]byte(h.Sum(nil)) != want {
				t.Errorf("beside: %v, sum %x: want %x", err, h.Sum(nil)[:4], want[:4])
			}
		})
	}
	if err := curl(m, url(service6)); err != nil || [sha256.Size]byte(m.Sum(nil)) != want {
		t.Errorf("%v, %d octets, sum %x: want %x", err, m.n, m.Sum(nil)[:4], want[:4])
	}
	m.running <- struct{}{}
	wg.Wait()
	t.Logf("4 × %d MiB and %d swaps in %v", size>>20, m.next/m.part-1, time.Since(begin))
	s.terminate()
}

// One connection that keeps alive serves several requests, with swaps between
// and behind them.
func TestCurlKeepsAlive(t *testing.T) {
	if !own(t, "curl") {
		return
	}
	const size, files = 1 << 20, 6
	dir, _ := testFile(t, size)
	s := newSwapper(t, "file", dir)
	m := newMeter(size, s.swap)
	var args []string
	for range files {
		args = append(args, url(service6))
	}
	if err := curl(m, append(args, "-w", "%{stderr}%{num_connects}")...); err != nil {
		t.Error(err)
	}
	m.running <- struct{}{}
	if m.n != files*size {
		t.Errorf("%d octets: want %d", m.n, files*size)
	}
	s.terminate()
}

// Clients that come and go all the time are never turned away: handshakes and
// connections not yet accepted live through swaps as well.
func TestManyShortConnections(t *testing.T) {
	if !own(t) {
		return
	}
	const swaps, clients = 20, 8
	dir, want := testFile(t, 20000)
	s := newSwapper(t, "file", dir)
	stop := make(chan struct{})
	var served atomic.Int64
	var wg sync.WaitGroup
	for i := range clients {
		host := []string{service6, service4}[i%2]
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				c, err := net.Dial("tcp", net.JoinHostPort(host, "80"))
				if err != nil {
					t.Error(err)
					return
				}
				c.SetDeadline(time.Now().Add(time.Minute))
				if sum, err := get(c, 20000, 1, nil); err != nil || sum != want {
					t.Errorf("from %v: %v, sum %x: want %x", c.LocalAddr(), err, sum[:4], want[:4])
				}
				c.Close()
				served.Add(1)
			}
		})
	}
	for range swaps {
		s.swap()
	}
	close(stop)
	wg.Wait()
	t.Logf("%d connections served across %d swaps", served.Load(), swaps)
	s.terminate()
}

// A successor that is killed, at any stage before it has the word, leaves the
// predecessor serving.
func TestSuccessorIsKilled(t *testing.T) {
	if !own(t, "curl") {
		return
	}
	size := downloadSize() / 2
	dir, want := testFile(t, size)
	s := newSwapper(t, "file", dir)
	pid, i := s.now.cmd.Process.Pid, 0
	m := newMeter(size/int64(len(stages)+2)+1, func() {
		if i < len(stages) {
			s.dying(stages[i])
			i++
		} else {
			if s.now.cmd.Process.Pid != pid {
				t.Errorf("process %d serves: want still %d", s.now.cmd.Process.Pid, pid)
			}
			s.swap()
		}
	})
	if err := curl(m, url(service6)); err != nil || [sha256.Size]byte(m.Sum(nil)) != want {
		t.Errorf("%v, %d octets, sum %x: want %x", err, m.n, m.Sum(nil)[:4], want[:4])
	}
	m.running <- struct{}{}
	s.terminate()
}

// The control socket of a process that was killed is no obstacle, nor does it
// start anything without addresses.
func TestStaleControlSocket(t *testing.T) {
	if !own(t) {
		return
	}
	dir, _ := testFile(t, 10)
	s := newSwapper(t, "file", dir)
	s.now.cmd.Process.Kill()
	if err := s.now.wait(); err == nil {
		t.Error("killed, and ended with 0")
	}
	if _, err := os.Stat(s.control); err != nil {
		t.Error(err)
	}
	s.now = s.start()
	s.expect(s.now, "^hotswap: serving at ")
	s.terminate()
}

// terminal is an ssh session with a terminal at the far end.
type terminal struct {
	t   *testing.T
	in  io.WriteCloser
	out *bufio.Reader
}

// say types a command and returns what appears up to a line that ends in mark.
func (c *terminal) say(command, mark string) (lines []string) {
	c.t.Helper()
	if _, err := io.WriteString(c.in, command+"\n"); err != nil {
		c.t.Fatal(err)
	}
	for {
		line, err := c.out.ReadString('\n')
		if err != nil {
			c.t.Fatalf("%q: after %q and %q: %v", command, lines, line, err)
		}
		line = strings.TrimRight(line, "\r\n")
		if strings.HasSuffix(line, mark) {
			return append(lines, line)
		}
		lines = append(lines, line)
	}
}

// TestSSH runs an interactive session through the proxy across swaps.
func TestSSH(t *testing.T) {
	if !own(t, "ssh", "ssh-keygen", "/usr/sbin/sshd") {
		return
	}
	probe.Skip(t, probe.Users) // for sshd's separation of privileges
	address, options := startSSHD(t)
	s := newSwapper(t, "-port", "22", "proxy", address)

	cmd := exec.Command("ssh", append(options, "-tt", service6, "exec /bin/sh")...)
	var msg bytes.Buffer
	cmd.Stderr = &msg
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(5*time.Minute, func() { cmd.Process.Kill() })
	defer timer.Stop()
	c := &terminal{t, in, bufio.NewReader(out)}
	c.say("PS1= PS2=; stty -echo; echo rea''dy", "ready")
	if got := c.say("tty; echo ok", "ok"); len(got) != 2 || !strings.HasPrefix(got[0], "/dev/pts/") {
		t.Errorf("tty says %q: want a terminal", got)
	}
	shell := c.say("echo $$; echo ok", "ok")[0]
	const swaps = 6
	for i := range swaps {
		s.swap()
		if got := c.say(fmt.Sprintf("echo $$ $((%d * 7)); echo ok", i), "ok")[0]; got != fmt.Sprint(shell, " ", i*7) {
			t.Errorf("after swap %d: %q: want shell %s", i, got, shell)
		}
	}
	// Output that streams while the processes change.
	const lines = 50000
	m := newMeter(100<<10, s.swap)
	c.out = bufio.NewReader(io.TeeReader(c.out, m))
	got := c.say(fmt.Sprintf("seq %d; echo o''k", lines), "ok")
	m.running <- struct{}{}
	for i, line := range got[:len(got)-1] {
		if line != fmt.Sprint(i+1) {
			t.Fatalf("line %d is %q", i+1, line)
		}
	}
	if len(got) != lines+1 {
		t.Errorf("%d lines: want %d", len(got)-1, lines)
	}
	fmt.Fprintln(in, "exit 7")
	io.Copy(io.Discard, c.out)
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 7 {
		t.Errorf("ssh ends with %v, %q: want the shell's exit code 7", err, &msg)
	}
	s.terminate()
}

// startSSHD starts a private sshd on the loopback and returns its address and
// the options with which ssh can log in.
func startSSHD(t *testing.T) (address string, options []string) {
	t.Helper()
	dir := t.TempDir()
	for _, key := range []string{"host", "user"} {
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, key)).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v: %s", err, out)
		}
	}
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	at := netip.MustParseAddrPort("127.0.0.1:2222")
	cfg := fmt.Sprintf(`ListenAddress %s
HostKey %s/host
AuthorizedKeysFile %s/user.pub
PidFile none
StrictModes no
PermitRootLogin yes
UsePAM no
UseDNS no
PrintMotd no
PrintLastLog no
`, at, dir, dir)
	if err := os.WriteFile(filepath.Join(dir, "config"), []byte(cfg), 0o600); err != nil {
		t.Fatal(err)
	}
	// sshd wants /run/sshd; it gets one in a mount namespace of its own.
	sshd := exec.Command("/bin/sh", "-c", `mount -t tmpfs none /run && mkdir /run/sshd && exec /usr/sbin/sshd -D -e -f "$0"`, filepath.Join(dir, "config"))
	sshd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	r, err := sshd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := sshd.Start(); err != nil {
		t.Fatal(err)
	}
	log := bufio.NewReader(r)
	var said strings.Builder
	drained := make(chan struct{})
	t.Cleanup(func() {
		sshd.Process.Kill()
		<-drained
		sshd.Wait()
		if t.Failed() {
			t.Logf("sshd says %s", &said)
		}
	})
	for !strings.Contains(said.String(), "Server listening on") {
		line, err := log.ReadString('\n')
		said.WriteString(line)
		if err != nil {
			close(drained)
			t.Fatalf("sshd: %v: %s", err, &said)
		}
	}
	go func() { defer close(drained); io.Copy(&said, log) }()
	return at.String(), []string{"-F", "none", "-q", "-i", filepath.Join(dir, "user"), "-l", me.Username,
		"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes", "-o", "ConnectTimeout=20"}
}
