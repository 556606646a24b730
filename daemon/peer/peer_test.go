package peer

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/distributed-servers/ds/daemon/identity"
	"github.com/distributed-servers/ds/internal/framing"
	"github.com/distributed-servers/ds/internal/testcert"
)

// heard is what a handler was told.
type heard struct {
	what, name string
	frame      []byte
	err        error
}

// recorder is a handler that writes down what it is told.
type recorder chan heard

func (r recorder) Up(name string)              { r <- heard{what: "up", name: name} }
func (r recorder) Down(name string, err error) { r <- heard{what: "down", name: name, err: err} }
func (r recorder) Received(name string, frames [][]byte) {
	for _, f := range frames {
		r <- heard{what: "frame", name: name, frame: bytes.Clone(f)}
	}
}

func (r recorder) next(t testing.TB, what string) heard {
	t.Helper()
	select {
	case h := <-r:
		if h.what != what {
			t.Fatalf("was told %+v, want %s", h, what)
		}
		return h
	case <-time.After(patience):
		t.Fatalf("was not told %s", what)
	}
	panic("not reached")
}

// patience is longer than a busy machine stands still. Meshes have it too, unless what
// they do without it is the point: connections do not end because nobody had his turn.
const patience = time.Minute

type logBuffer struct{ c chan string }

func (l logBuffer) Write(b []byte) (int, error) {
	select {
	case l.c <- string(b):
	default:
	}
	return len(b), nil
}

// world is an authority and addresses that nobody else uses.
type world struct {
	*testcert.Authority
	addrs map[string]netip.AddrPort
}

func newWorld(t testing.TB, names ...string) *world {
	t.Helper()
	a, err := testcert.New()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{a, make(map[string]netip.AddrPort)}
	for _, name := range names {
		w.addrs[name] = unused()
	}
	return w
}

// ports are how many have been given away.
var ports atomic.Uint32

// unused is an address where nobody else listens before a node does, and from which
// nobody connects: this process's own, on Linux, and a port that the system does not
// choose.
func unused() netip.AddrPort {
	ip := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if runtime.GOOS == "linux" {
		pid := os.Getpid()
		ip = netip.AddrFrom4([4]byte{127, 64 | byte(pid>>16)&63, byte(pid >> 8), byte(pid)})
	}
	return netip.AddrPortFrom(ip, uint16(20000+ports.Add(1)%10000))
}

// identity is that of a node: of the authority of this world, unless it is another.
func (w *world) identity(t testing.TB, name string, authority ...*testcert.Authority) *identity.Keeper {
	t.Helper()
	dir := t.TempDir()
	for _, a := range append([]*testcert.Authority{w.Authority}, authority...) {
		if err := a.Write(dir, name); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Write(dir); err != nil { // ca.pem is that of this world
		t.Fatal(err)
	}
	return open(t, name, dir)
}

func open(t testing.TB, name, dir string) *identity.Keeper {
	t.Helper()
	k, err := identity.Open(name, identity.Files{
		CA: filepath.Join(dir, "ca.pem"), Cert: filepath.Join(dir, name+".pem"), Key: filepath.Join(dir, name+".key"),
	})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// dial connects as a stranger would, with a certificate of this world.
func (w *world) dial(t testing.TB, as, to string, protocols ...string) *tls.Conn {
	t.Helper()
	cert, err := w.Issue(as)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := tls.Dial("tcp", w.addrs[to].String(), &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: w.Pool(), ServerName: to, NextProtos: protocols})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func (w *world) open(t testing.TB, name string, change ...func(*Config)) (*Mesh, recorder, logBuffer) {
	t.Helper()
	r, log := make(recorder, 1<<16), logBuffer{make(chan string, 100)}
	cfg := Config{
		Name: name, Listen: w.addrs[name], Peers: make(map[string]netip.AddrPort),
		Identity: w.identity(t, name), Handler: r, Logger: slog.New(slog.NewTextHandler(log, nil)),
		Timeout: patience, Retry: 10 * time.Millisecond,
	}
	for other, addr := range w.addrs {
		if other != name {
			cfg.Peers[other] = addr
		}
	}
	for _, f := range change {
		f(&cfg)
	}
	m, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m, r, log
}

func TestFramesBothWaysInOrder(t *testing.T) {
	w := newWorld(t, "a", "b")
	a, ra, _ := w.open(t, "a")
	b, rb, _ := w.open(t, "b")
	ra.next(t, "up")
	rb.next(t, "up")
	const n = 1000
	for i := range n {
		frame := bytes.Repeat([]byte{byte(i)}, 1+i*17)
		if err := errors.Join(a.Send("b", frame), b.Send("a", frame)); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range []recorder{ra, rb} {
		for i := range n {
			if h := r.next(t, "frame"); len(h.frame) != 1+i*17 || h.frame[0] != byte(i) {
				t.Fatalf("frame %d has %d octets and begins with %d", i, len(h.frame), h.frame[0])
			}
		}
	}
}

// Frames that are sent together arrive in order, without the one that is none.
func TestFramesTogether(t *testing.T) {
	w := newWorld(t, "a", "b")
	a, ra, _ := w.open(t, "a")
	_, rb, _ := w.open(t, "b")
	ra.next(t, "up")
	rb.next(t, "up")
	const n = 600
	var all [][]byte
	for i := range n {
		all = append(all, bytes.Repeat([]byte{byte(i)}, 1+i*3))
	}
	for at := 0; at < n; at += 200 {
		together := slices.Insert(slices.Clone(all[at:at+200]), 100, nil)
		if err := a.Send("b", together...); err == nil || errors.Is(err, ErrNotConnected) {
			t.Fatalf("with an empty frame: %v", err)
		}
	}
	for i := range n {
		if h := rb.next(t, "frame"); !bytes.Equal(h.frame, all[i]) {
			t.Fatalf("frame %d has %d octets and begins with %d", i, len(h.frame), h.frame[0])
		}
	}
}

func TestNodeComesBack(t *testing.T) {
	w := newWorld(t, "a", "b")
	a, ra, _ := w.open(t, "a")
	if err := a.Send("b", []byte("x")); !errors.Is(err, ErrNotConnected) {
		t.Fatalf("before there is a connection: %v", err)
	}
	for range 3 {
		b, rb, _ := w.open(t, "b")
		ra.next(t, "up")
		rb.next(t, "up")
		if err := b.Send("a", []byte("here")); err != nil {
			t.Fatal(err)
		}
		ra.next(t, "frame")
		b.Close()
		rb.next(t, "down")
		ra.next(t, "down")
	}
}

// Whoever does not prove that it is a node of the cluster is refused, and never
// up.
func TestStrangers(t *testing.T) {
	w := newWorld(t, "a", "b", "c")
	others := newWorld(t, "a") // another cluster
	refused := func(t *testing.T, log logBuffer, what string) {
		t.Helper()
		for line := ""; !strings.Contains(line, what); {
			select {
			case line = <-log.c:
			case <-time.After(patience):
				t.Fatalf("nothing is said of %q", what)
			}
		}
	}
	for name, tt := range map[string]struct {
		change func(*Config)
		b, a   string // what their logs say
	}{
		"other authority": {
			func(c *Config) { c.Identity = w.identity(t, "a", others.Authority) },
			"it is no node of this cluster", "b refuses the certificate of this node",
		},
		"believes in others": {
			func(c *Config) { c.Identity = others.identity(t, "a", w.Authority) },
			"the other node refuses the certificate", "it is no node of this cluster",
		},
	} {
		t.Run(name, func(t *testing.T) {
			b, rb, logB := w.open(t, "b", func(c *Config) { delete(c.Peers, "c") })
			failed := make(chan error, 10)
			a, ra, logA := w.open(t, "a", tt.change, func(c *Config) {
				delete(c.Peers, "c")
				c.Failed = func(name string, err error) { failed <- err }
			})
			refused(t, logA, tt.a)
			refused(t, logB, tt.b)
			a.Close()
			b.Close()
			if len(ra) > 0 || len(rb) > 0 {
				t.Errorf("a was told %d things, b %d", len(ra), len(rb))
			}
			if err := <-failed; !strings.Contains(err.Error(), tt.a) {
				t.Errorf("failed because of: %v", err)
			}
		})
	}
	for name, tt := range map[string]struct {
		shift time.Duration
		want  string
	}{
		"expired":       {-48 * time.Hour, "its certificate has expired: that of a ended at"},
		"not yet valid": {48 * time.Hour, "its certificate is not valid yet: that of a begins at"},
	} {
		t.Run(name, func(t *testing.T) {
			w.Shift = tt.shift
			defer func() { w.Shift = 0 }()
			a := w.identity(t, "a")
			w.Shift = 0
			_, _, logB := w.open(t, "b")
			_, ra, logA := w.open(t, "a", func(c *Config) { c.Identity = a })
			refused(t, logB, tt.want)
			refused(t, logA, "b refuses the certificate of this node")
			if len(ra) > 0 {
				t.Errorf("a was told %d things", len(ra))
			}
		})
	}
	t.Run("no certificate", func(t *testing.T) {
		_, _, log := w.open(t, "b")
		conn, err := tls.Dial("tcp", w.addrs["b"].String(), &tls.Config{RootCAs: w.Pool(), ServerName: "b", NextProtos: protocols})
		if err == nil {
			conn.Read(make([]byte, 1))
			conn.Close()
		}
		refused(t, log, "didn't provide a certificate")
	})
	t.Run("another host", func(t *testing.T) {
		_, _, _ = w.open(t, "b")
		_, _, log := w.open(t, "a", func(c *Config) { c.Peers["c"] = w.addrs["b"] })
		refused(t, log, `it is another node: the certificate is of \"b\", not of c`)
	})
	t.Run("another version", func(t *testing.T) {
		_, _, log := w.open(t, "b")
		cert, err := w.Issue("a")
		if err != nil {
			t.Fatal(err)
		}
		conn, err := tls.Dial("tcp", w.addrs["b"].String(), &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: w.Pool(), ServerName: "b", NextProtos: []string{"dsco/99"}})
		if err == nil {
			conn.Close()
			t.Fatal("connected")
		}
		if v := explain("b", err); !errors.As(v, new(*VersionError)) {
			t.Errorf("the newer node reads %v", v)
		}
		refused(t, log, "this node speaks dsco/1, the other dsco/99; the releases are too far apart")
	})
	t.Run("no protocol", func(t *testing.T) {
		_, _, log := w.open(t, "b")
		w.dial(t, "a", "b")
		refused(t, log, "this node speaks dsco/1, the other none of it")
	})
	t.Run("a greater name connects", func(t *testing.T) {
		_, rb, log := w.open(t, "b")
		if _, err := w.dial(t, "c", "b", protocols...).Read(make([]byte, 1)); err == nil {
			t.Error("it was answered")
		}
		refused(t, log, "names no node")
		if len(rb) > 0 {
			t.Errorf("%d events", len(rb))
		}
	})
}

// A peer that says nothing is given up, and so is one that reads nothing.
func TestSilence(t *testing.T) {
	w := newWorld(t, "a", "b")
	dial := func(rb recorder) *tls.Conn {
		conn := w.dial(t, "a", "b", protocols...)
		if _, err := conn.Write(make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
		rb.next(t, "up")
		return conn
	}
	// Enough for who has just connected to say so, on a busy machine too.
	b, rb, _ := w.open(t, "b", func(c *Config) { c.Timeout = 10 * time.Second })
	dial(rb)
	if h := rb.next(t, "down"); !errors.Is(h.err, os.ErrDeadlineExceeded) {
		t.Errorf("given up because of: %v", h.err)
	}
	b.Close()

	b, rb, _ = w.open(t, "b", func(c *Config) { c.MaxBacklog = 8 << 20 })
	dial(rb)
	var failed error
	for i := 0; failed == nil && i < 1000; i++ {
		failed = b.Send("a", make([]byte, 1<<20))
	}
	rb.next(t, "down")
	if !errors.Is(failed, ErrNotConnected) {
		t.Errorf("sent 1000 MiB to who reads nothing: %v", failed)
	}

	// One frame is too long.
	conn := dial(rb)
	if _, err := conn.Write([]byte{0xff, 0xff, 0xff, 0xff}); err != nil {
		t.Fatal(err)
	}
	if h := rb.next(t, "down"); !errors.Is(h.err, framing.ErrTooLong) {
		t.Errorf("given up because of: %v", h.err)
	}
}

func TestAddressInUse(t *testing.T) {
	w := newWorld(t, "a")
	w.open(t, "a")
	_, err := Open(Config{Name: "a", Listen: w.addrs["a"], Identity: w.identity(t, "a")})
	if err == nil || !strings.Contains(err.Error(), "is another dsco running") {
		t.Errorf("opened: %v", err)
	}
}

func BenchmarkRoundTrip(b *testing.B) {
	for _, size := range []int{100, 1000, 100_000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			w := newWorld(b, "a", "b")
			ma, ra, _ := w.open(b, "a")
			mb, rb, _ := w.open(b, "b")
			ra.next(b, "up")
			rb.next(b, "up")
			frame := make([]byte, size)
			for b.Loop() {
				ma.Send("b", frame)
				h := <-rb
				mb.Send("a", h.frame)
				<-ra
			}
		})
	}
}
