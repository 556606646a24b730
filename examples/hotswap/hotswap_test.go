//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/distributed-servers/ds/handover"
	"github.com/distributed-servers/ds/internal/probe"
	"github.com/distributed-servers/ds/migrate"
	"github.com/distributed-servers/ds/stack"
	"github.com/distributed-servers/ds/tun/tuntest"
)

// A test binary with mainEnv set is hotswap itself. dieEnv names the stage at
// which a successor then kills itself.
const (
	mainEnv = "HOTSWAP_MAIN"
	dieEnv  = "HOTSWAP_DIE"
)

func TestMain(m *testing.M) {
	probe.Main()
	// A busy machine is no fault, of processes or of handshakes.
	handshakeWait, swapTimeout = 20*time.Second, time.Minute
	if os.Getenv(mainEnv) == "" {
		os.Exit(m.Run())
	}
	if die := os.Getenv(dieEnv); die != "" {
		reached = func(stage string, _ *handover.Conn) {
			if stage == die {
				unix.Kill(os.Getpid(), unix.SIGKILL)
				select {}
			}
		}
	}
	main()
}

// stages are those of a successor before the point of no return.
var stages = []string{"hello", "prepare", "receive", "restore", "activate"}

var (
	clientAddr  = netip.MustParseAddr("fd00:1::1")
	serviceAddr = netip.MustParseAddr("fd00:2::1")
)

// world is a client and a server on an in-memory link that one server after
// another serves:
//
//	client ─────┬── view of one server
//	            └── view of its successor
type world struct {
	t      *testing.T
	link   *tuntest.End // the servers'
	client *stack.Stack
	modeOf func() mode
	name   string
	file   *os.File
	server *server
	over   chan struct{}       // closed when the predecessor's handOver has returned
	lost   func(p []byte) bool // of what the client sends; nil: nothing
}

// view is what a process has of the link.
type view struct {
	*tuntest.End
	file *os.File // stands for the TUN's descriptor
}

func (v view) Files() []*os.File { return []*os.File{v.file} }

func (w *world) view() view { return view{w.link.Dup(), w.file} }

func newWorld(t *testing.T, name string, modeOf func() mode) *world {
	t.Helper()
	w := &world{t: t, name: name, modeOf: modeOf}
	end, link := tuntest.Pair(1500)
	end.Out = func(p []byte) {
		if w.lost == nil || !w.lost(p) {
			link.Deliver(p)
		}
	}
	w.link = link
	var err error
	if w.file, err = os.Open(os.DevNull); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.file.Close() })
	if w.client, err = stack.New(stack.Config{Device: end, Addrs: []netip.Addr{clientAddr}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.client.Close() })
	cfg := config{Mode: name, Addrs: []netip.Addr{serviceAddr}, Port: 80, MTU: 1500}
	if w.server, err = newServer(cfg, modeOf(), w.view()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.server.pauseSessions(); w.server.abandon() })
	if err := w.server.resume(); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) dial() *stack.Conn {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 20*time.Second)
	defer cancel()
	c, err := w.client.DialContext(ctx, "tcp", "[fd00:2::1]:80")
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	return c
}

func socketpair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var cs [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		cs[i] = c.(*net.UnixConn)
	}
	return cs[0], cs[1]
}

// swap performs the protocol between the server and a successor. It returns
// what the predecessor said.
func (w *world) swap() (moved, error) {
	a, b := socketpair(w.t)
	control, err := net.ListenUnix("unix", &net.UnixAddr{Name: "", Net: "unix"}) // autobound
	if err != nil {
		w.t.Fatal(err)
	}
	defer control.Close()
	type result struct {
		s   *server
		err error
	}
	taken := make(chan result, 1)
	w.over = make(chan struct{})
	go func() {
		c := handover.New(b)
		defer c.Close()
		s, control, err := takeOver(c, w.name, w.modeOf(), func([]*os.File, int) (device, error) { return w.view(), nil })
		if control != nil {
			control.Close()
		}
		taken <- result{s, err}
	}()
	c := handover.New(a)
	m, err := w.server.handOver(c, control)
	close(w.over)
	c.Close()
	r := <-taken
	if (err == nil) != (r.err == nil) {
		w.t.Errorf("the predecessor says %v, the successor %v: want them to agree", err, r.err)
	}
	if r.err == nil {
		w.server = r.s
	}
	return m, errors.Join(err, r.err)
}

func (w *world) mustSwap() moved {
	w.t.Helper()
	m, err := w.swap()
	if err != nil {
		w.t.Fatal(err)
	}
	return m
}

// testFile writes a file of random octets.
func testFile(t *testing.T, size int64) (dir string, sum [sha256.Size]byte) {
	t.Helper()
	dir = t.TempDir()
	f, err := os.Create(filepath.Join(dir, "file"))
	if err != nil {
		t.Fatal(err)
	}
	h := sha256.New()
	if _, err := io.CopyN(io.MultiWriter(f, h), rand.NewChaCha8([32]byte{1}), size); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return dir, [sha256.Size]byte(h.Sum(nil))
}

func fileModeOf(t *testing.T, dir string) func() mode {
	return func() mode {
		m, err := newFileMode(dir)
		if err != nil {
			t.Error(err)
		}
		t.Cleanup(func() { m.root.Close() })
		return m
	}
}

// get downloads the file over c, which it keeps alive, and calls step each
// time a part of it has arrived.
func get(c net.Conn, size int64, parts int, step func(part int)) (sum [sha256.Size]byte, err error) {
	if _, err := io.WriteString(c, "GET /file HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		return sum, err
	}
	head := make([]byte, 0, 1024)
	for !bytes.HasSuffix(head, []byte("\r\n\r\n")) {
		var b [1]byte
		if _, err := io.ReadFull(c, b[:]); err != nil {
			return sum, fmt.Errorf("head: %w", err)
		}
		head = append(head, b[0])
	}
	if want := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n", size); !strings.HasPrefix(string(head), want) {
		return sum, fmt.Errorf("head %q: want %q", head, want)
	}
	h := sha256.New()
	for part := range parts {
		n := size / int64(parts)
		if part == parts-1 {
			n = size - n*int64(parts-1)
		}
		if _, err := io.CopyN(h, c, n); err != nil {
			return sum, fmt.Errorf("part %d: %w", part, err)
		}
		if step != nil && part < parts-1 {
			step(part)
		}
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

func TestDownloadsGoOn(t *testing.T) {
	const size, swaps, downloads = 4 << 20, 6, 3
	dir, want := testFile(t, size)
	w := newWorld(t, "file", fileModeOf(t, dir))
	// Others download at their own pace; the first says when to swap.
	first := w.dial()
	var wg sync.WaitGroup
	for range downloads - 1 {
		c := w.dial()
		wg.Go(func() {
			for range 2 { // the second on the same connection
				if sum, err := get(c, size, 1, nil); err != nil || sum != want {
					t.Errorf("sum %x, %v: want %x", sum[:4], err, want[:4])
				}
			}
		})
	}
	sum, err := get(first, size, swaps+1, func(part int) {
		m := w.mustSwap()
		if m.clients != 1 || m.conns != downloads {
			t.Errorf("swap %d moved %d connections of %d clients: want %d of 1", part, m.conns, m.clients, downloads)
		}
		t.Logf("swap %d: still for %v", part, m.still)
	})
	if err != nil || sum != want {
		t.Errorf("sum %x, %v: want %x", sum[:4], err, want[:4])
	}
	wg.Wait()
}

// A file that has been replaced meanwhile goes on as it was.
func TestDownloadOfAReplacedFile(t *testing.T) {
	const size = 2 << 20
	dir, want := testFile(t, size)
	w := newWorld(t, "file", fileModeOf(t, dir))
	sum, err := get(w.dial(), size, 2, func(int) {
		if err := os.Remove(filepath.Join(dir, "file")); err != nil {
			t.Fatal(err)
		}
		w.mustSwap()
	})
	if err != nil || sum != want {
		t.Errorf("sum %x, %v: want %x", sum[:4], err, want[:4])
	}
}

func TestFileResponses(t *testing.T) {
	dir, _ := testFile(t, 10)
	w := newWorld(t, "file", fileModeOf(t, dir))
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		return w.client.DialContext(ctx, network, addr)
	}}}
	defer client.CloseIdleConnections()
	for _, tt := range []struct {
		method, path string
		status       int
		length       int64
	}{
		{"GET", "/file", 200, 10},
		{"HEAD", "/file", 200, 10},
		{"GET", "/", 404, 0},
		{"GET", "/none", 404, 0},
		{"GET", "/../../etc/passwd", 404, 0},
		{"DELETE", "/file", 405, 0},
	} {
		req, err := http.NewRequest(tt.method, "http://[fd00:2::1]"+tt.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatalf("%s %s: %v", tt.method, tt.path, err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode != tt.status || resp.ContentLength != tt.length {
			t.Errorf("%s %s: %s, %d octets: want %d, %d", tt.method, tt.path, resp.Status, resp.ContentLength, tt.status, tt.length)
		}
	}
}

// A request that has come only in part, and one behind it, move too.
func TestRequestInPieces(t *testing.T) {
	dir, _ := testFile(t, 10)
	w := newWorld(t, "file", fileModeOf(t, dir))
	c := w.dial()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	for _, piece := range []string{"GET /fi", "le HTTP/1.1\r\nHost: x\r\n", "\r\nGET /file HTTP/1.1\r\nHost: x\r\nConnection: clo", "se\r\n\r\n"} {
		if _, err := io.WriteString(c, piece); err != nil {
			t.Fatal(err)
		}
		w.mustSwap()
	}
	b, err := io.ReadAll(c)
	if err != nil || bytes.Count(b, []byte("200 OK")) != 2 {
		t.Errorf("got %q, %v: want two responses", b, err)
	}
}

// backend is a server of the kernel's on the loopback.
func backend(t *testing.T, serve func(c *net.TCPConn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { defer c.Close(); serve(c.(*net.TCPConn)) })
		}
	})
	return l.Addr().String()
}

func echo(c *net.TCPConn) { io.Copy(c, c) }

func TestProxiedStreamsGoOn(t *testing.T) {
	const size, swaps = 4 << 20, 6
	to := backend(t, echo)
	w := newWorld(t, "proxy", func() mode { return proxyMode{to} })
	c := w.dial()
	sent := sha256.New()
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := io.CopyN(io.MultiWriter(c, sent), rand.NewChaCha8([32]byte{2}), size); err != nil {
			t.Errorf("send: %v", err)
		}
		c.CloseWrite()
	})
	got := sha256.New()
	for range swaps {
		if _, err := io.CopyN(got, c, size/(swaps+1)); err != nil {
			t.Fatal(err)
		}
		w.mustSwap()
	}
	if n, err := io.Copy(got, c); err != nil { // until the end of the stream
		t.Errorf("after %d octets: %v", n, err)
	}
	wg.Wait()
	if !bytes.Equal(got.Sum(nil), sent.Sum(nil)) {
		t.Error("got other octets than were sent")
	}
}

// Half-closed connections move in either direction, and swaps do not end them.
func TestHalfClosed(t *testing.T) {
	next := make(chan struct{})
	to := backend(t, func(c *net.TCPConn) {
		b, err := io.ReadAll(c) // up to the client's FIN
		<-next
		fmt.Fprintf(c, "%d octets, %v", len(b), err)
		c.CloseWrite()
	})
	w := newWorld(t, "proxy", func() mode { return proxyMode{to} })
	c := w.dial()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Write(make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	w.mustSwap()
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	w.mustSwap()
	w.mustSwap()
	close(next)
	if b, err := io.ReadAll(c); err != nil || string(b) != "1000 octets, <nil>" {
		t.Errorf("got %q, %v", b, err)
	}
	w.mustSwap()
}

// A reset of the backend reaches the client as a reset, after a swap too.
func TestBackendResets(t *testing.T) {
	reset := make(chan struct{})
	to := backend(t, func(c *net.TCPConn) { <-reset; c.SetLinger(0) })
	w := newWorld(t, "proxy", func() mode { return proxyMode{to} })
	c := w.dial()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	w.mustSwap()
	close(reset)
	if n, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("Read: %d, %v: want a reset", n, err)
	}
}

// More connections than descriptors fit into a message.
func TestManyConnections(t *testing.T) {
	const conns = 2*253 + 7 // SCM_MAX_FD
	to := backend(t, echo)
	w := newWorld(t, "proxy", func() mode { return proxyMode{to} })
	var cs []*stack.Conn
	say := func(i int) {
		t.Helper()
		c, b := cs[i], make([]byte, 4)
		c.SetDeadline(time.Now().Add(20 * time.Second))
		if err := binary.Write(c, binary.BigEndian, uint32(i)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, b); err != nil || binary.BigEndian.Uint32(b) != uint32(i) {
			t.Fatalf("connection %d: %v, %v", i, b, err)
		}
	}
	for i := range conns {
		cs = append(cs, w.dial())
		say(i)
	}
	for range 2 {
		m := w.mustSwap()
		t.Logf("%d connections, still for %v", m.conns, m.still)
		if m.conns != conns {
			t.Errorf("%d connections moved: want %d", m.conns, conns)
		}
		for i := range conns {
			say(i)
		}
	}
}

// Connections that nobody has accepted move, and are accepted after the swap.
func TestUnaccepted(t *testing.T) {
	dir, want := testFile(t, 1000)
	w := newWorld(t, "file", fileModeOf(t, dir))
	w.server.pauseSessions()
	c := w.dial()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if m := w.mustSwap(); m.conns != 1 {
		t.Errorf("%d connections moved: want 1", m.conns)
	}
	if sum, err := get(c, 1000, 1, nil); err != nil || sum != want {
		t.Errorf("sum %x, %v: want %x", sum[:4], err, want[:4])
	}
}

// A swap waits for a handshake to finish, but not for ever.
func TestHandshakeInProgress(t *testing.T) {
	defer func(wait time.Duration) { handshakeWait = wait }(handshakeWait)
	handshakeWait = 50 * time.Millisecond
	dir, want := testFile(t, 1000)
	w := newWorld(t, "file", fileModeOf(t, dir))

	// Packets behind the SYN are lost while there is a swap to be disturbed.
	var mu sync.Mutex
	losing := true
	started := make(chan struct{}, 16)
	w.lost = func(p []byte) bool {
		mu.Lock()
		defer mu.Unlock()
		const flags = 40 + 13 // of a TCP header behind an IPv6 header
		if len(p) > flags && p[6] == unix.IPPROTO_TCP && p[flags]&0x2 != 0 {
			return false
		}
		if losing {
			started <- struct{}{}
		}
		return losing
	}
	c := w.dial()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	<-started // the server has sent SYN-ACK
	if _, err := w.swap(); !errors.Is(err, migrate.ErrHandshake) {
		t.Errorf("swap: %v: want %v", err, migrate.ErrHandshake)
	}
	handshakeWait = 20 * time.Second // the server sends its SYN-ACK again after one
	mu.Lock()
	losing = false
	mu.Unlock()
	w.mustSwap()
	if sum, err := get(c, 1000, 1, nil); err != nil || sum != want {
		t.Errorf("sum %x, %v: want %x", sum[:4], err, want[:4])
	}
}

// Whatever goes wrong before the point of no return, the predecessor serves
// on, in the middle of a response, and a later swap succeeds.
func TestFailedSwaps(t *testing.T) {
	const size = 4 << 20
	dir, want := testFile(t, size)
	w := newWorld(t, "file", fileModeOf(t, dir))
	defer func() { reached = func(string, *handover.Conn) {} }()

	var failures []func()
	// fail has a real successor that something happens to at a stage.
	fail := func(at, want string, happen func(c *handover.Conn)) {
		failures = append(failures, func() {
			reached = func(stage string, c *handover.Conn) {
				if stage == at {
					happen(c)
				}
			}
			before := w.server
			if _, err := w.swap(); err == nil || w.server != before || !strings.Contains(err.Error(), want) {
				t.Errorf("at %s: %v: want %q", at, err, want)
			}
			reached = func(string, *handover.Conn) {}
		})
	}
	for _, stage := range stages {
		// With everything received, this successor could go on and take over: it
		// is no end until the predecessor has noticed.
		fail(stage, "", func(c *handover.Conn) {
			c.Close()
			if stage == "restore" || stage == "activate" {
				<-w.over
			}
		})
	}
	fail("activate", "no thanks", func(c *handover.Conn) {
		c.Refuse(errors.New("no thanks"))
		<-w.over
	})
	fail("activate", "i/o timeout", func(c *handover.Conn) { <-w.over })
	last := failures[len(failures)-1]
	failures[len(failures)-1] = func() {
		defer func(d time.Duration) { swapTimeout = d }(swapTimeout)
		swapTimeout = 500 * time.Millisecond
		last()
	}
	// speak plays a successor by hand.
	speak := func(name, want string, successor func(c *handover.Conn)) {
		failures = append(failures, func() {
			a, b := socketpair(t)
			theirs := handover.New(b)
			done := make(chan struct{})
			go func() {
				defer close(done)
				successor(theirs)
				io.Copy(io.Discard, b) // the rehearsal can be more than the socket takes
			}()
			ours := handover.New(a)
			_, err := w.server.handOver(ours, w.file)
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v: want %q", name, err, want)
			}
			ours.Close()
			<-done
			theirs.Close()
		})
	}
	speak("version", "version", func(c *handover.Conn) { sendJSON(c, hello{version + 1, "file"}) })
	speak("mode", "mode", func(c *handover.Conn) { sendJSON(c, hello{version, "proxy"}) })
	speak("not a hello", "invalid character", func(c *handover.Conn) { c.Send([]byte("hello")) })
	speak("message instead of ready", "frame of kind", func(c *handover.Conn) {
		sendJSON(c, hello{version, "file"})
		sendJSON(c, hello{version, "file"})
	})

	c := w.dial()
	c.SetDeadline(time.Now().Add(2 * time.Minute))
	sum, err := get(c, size, len(failures)+2, func(part int) {
		if part < len(failures) {
			failures[part]()
		} else {
			w.mustSwap()
		}
	})
	if err != nil || sum != want {
		t.Errorf("sum %x, %v: want %x", sum[:4], err, want[:4])
	}
}

// The successor refuses what it cannot restore, and leaves nothing behind.
func TestSuccessorRefuses(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		state      string
		files      int
	}{
		{"not a manifest", "invalid character", `manifest`, 0},
		{"too few", "states of 0 connections", `{}`, 0},
		{"not a state", "state of a download", `{"Conns":[{"State":"ew=="}]}`, 0},
		{"impossible state", "state of a download", `{"Conns":[{"State":"eyJPZmZzZXQiOjEsIlNpemUiOjJ9"}]}`, 0},
		{"descriptors without a state", "state of a download", `{"Conns":[{"State":"e30=", "Files":1}]}`, 1},
		{"descriptors missing", "2 descriptors", `{"Conns":[{"State":"e30=", "Files":2}]}`, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, _ := testFile(t, 10)
			w := newWorld(t, "file", fileModeOf(t, dir))
			w.dial()
			a, b := socketpair(t)
			done := make(chan error, 1)
			go func() {
				p := handover.New(a)
				defer p.Close()
				done <- func() error {
					control, err := net.ListenUnix("unix", &net.UnixAddr{Name: "", Net: "unix"})
					if err != nil {
						return err
					}
					defer control.Close()
					p.Receive() // hello
					sendJSON(p, w.server.config, w.file, control)
					to, err := handover.Prepare(p, w.server.stack)
					if err != nil {
						return err
					}
					donor, err := w.server.freeze()
					if err != nil {
						return err
					}
					var files []syscall.Conn
					for range tt.files {
						files = append(files, w.file)
					}
					return errors.Join(to.Give(donor, []byte(tt.state), files...), w.server.thaw(donor))
				}()
			}()
			c := handover.New(b)
			_, _, err := takeOver(c, "file", w.modeOf(), func([]*os.File, int) (device, error) { return w.view(), nil })
			c.Close()
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v: want %q", err, tt.want)
			}
			if err := <-done; err == nil || !strings.Contains(err.Error(), "refused") || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("the predecessor got %v: want %q", err, tt.want)
			}
		})
	}
}

func FuzzState(f *testing.F) {
	f.Add([]byte(`{"In":"R0VUIA==","Out":null,"Offset":0,"Size":0,"Last":false}`))
	f.Add([]byte(`{"Up":{"Pending":"AAEC","Ended":true,"Shut":false},"Down":{"Pending":null}}`))
	f.Add([]byte(`{"Offset":-1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, m := range []mode{&fileMode{}, proxyMode{"localhost:1"}} {
			s, err := m.restore(b, nil)
			if err != nil {
				continue
			}
			state, _ := s.save()
			again, err := m.restore(state, nil)
			if err != nil {
				t.Errorf("%s restored, its %s not: %v", b, state, err)
				continue
			}
			if twice, _ := again.save(); !bytes.Equal(twice, state) {
				t.Errorf("%s saved again as %s", state, twice)
			}
		}
	})
}
