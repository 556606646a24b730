package identity

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// world is a cluster whose nodes reach each other on this host, whatever their
// addresses. Node a has the authority.
type world struct {
	t testing.TB

	mu    sync.Mutex
	ports map[netip.AddrPort]string
}

// patience is longer than a busy machine stands still.
const patience = time.Minute

var server = Server{
	Address: netip.MustParsePrefix("2001:db8:1::80/64"), HomeAgent: netip.MustParseAddr("2001:db8:1::1"), SPI: 256,
	Key: []byte("a key of sixteen octets"), Contact: "a", Users: []string{"root"},
}

// member is that of a node, by its name.
func member(name string) Member {
	return Member{Address: netip.MustParseAddr("2001:db8:5::" + fmt.Sprintf("%x", name[0])), Port: 7846}
}

// node is one of a world, and runs.
type node struct {
	name, dir string
	agent     *Agent
	keeper    *Keeper
	adopted   chan *Roster
	faults    chan error
	stop      func()
}

func newWorld(t testing.TB) (w *world, a *node) {
	w = &world{t: t, ports: make(map[netip.AddrPort]string)}
	dir := t.TempDir()
	m := member("a")
	m.CareOf = map[netip.Addr]netip.Addr{server.Address.Addr(): CareOf(m.Address, server.Address.Addr(), "a")}
	if _, err := Create(dir, "a", m, false); err != nil {
		t.Fatal(err)
	}
	return w, w.start("a", dir)
}

func (w *world) dial(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	w.mu.Lock()
	to := w.ports[addr]
	w.mu.Unlock()
	if to == "" {
		return nil, fmt.Errorf("nobody is at %s", addr)
	}
	return new(net.Dialer).DialContext(ctx, "tcp", to)
}

// start runs a node that has its identity in dir.
func (w *world) start(name, dir string, change ...func(*Config)) *node {
	w.t.Helper()
	n := &node{name: name, dir: dir, adopted: make(chan *Roster, 100), faults: make(chan error, 100)}
	file := filepath.Join(dir, NodeFile)
	var err error
	if n.keeper, err = Open(name, Files{CA: filepath.Join(dir, CAFile), Cert: file, Key: file}); err != nil {
		w.t.Fatal(err)
	}
	cfg := Config{
		Dir: dir, Name: name, Keeper: n.keeper, Logger: slog.New(slog.DiscardHandler), Dial: w.dial,
		Servers:  func() []Server { return []Server{server} },
		Adopted:  func(r *Roster) { n.adopted <- r },
		Fault:    func(err error) { n.faults <- err },
		Interval: 200 * time.Millisecond, Timeout: patience,
	}
	for _, f := range change {
		f(&cfg)
	}
	if n.agent, err = NewAgent(cfg); err != nil {
		w.t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	addr := netip.AddrPortFrom(member(name).Address, 7846)
	w.mu.Lock()
	w.ports[addr] = l.Addr().String()
	w.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { n.agent.Run(ctx) })
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer c.Close()
				conn := tls.Server(c, n.agent.Accept())
				if conn.HandshakeContext(ctx) == nil {
					n.agent.Serve(ctx, conn)
				}
			})
		}
	})
	n.stop = sync.OnceFunc(func() {
		cancel()
		l.Close()
		running.Wait()
	})
	w.t.Cleanup(n.stop)
	return n
}

// join has a machine join with a token.
func (w *world) join(name string, t *Token, change ...func(*JoinConfig)) (*Joined, string, error) {
	cfg := JoinConfig{Token: t, Dir: w.t.TempDir(), Name: name, Address: member(name).Address, Port: 7846, Dial: w.dial}
	for _, f := range change {
		f(&cfg)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	j, err := Join(ctx, cfg)
	return j, cfg.Dir, err
}

func (n *node) token(t testing.TB, o TokenOptions) *Token {
	t.Helper()
	token, err := NewToken(n.dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// must joins and starts a node.
func (w *world) must(name string, a *node, change ...func(*Config)) *node {
	w.t.Helper()
	_, dir, err := w.join(name, a.token(w.t, TokenOptions{}))
	if err != nil {
		w.t.Fatal(err)
	}
	return w.start(name, dir, change...)
}

// until waits until the list of a node is as it should be.
func (n *node) until(t testing.TB, what string, is func(*Roster) bool) *Roster {
	t.Helper()
	late := time.After(patience)
	for {
		if r := n.agent.Roster(); is(r) {
			return r
		}
		select {
		case <-n.adopted:
		case <-late:
			t.Fatalf("%s: the list has not become one with %s: %s", n.name, what, n.agent.Roster().Encoded())
		}
	}
}

func has(names ...string) func(*Roster) bool {
	return func(r *Roster) bool { return slices.Equal(r.names(), names) }
}

// A machine joins, and all nodes know it.
func TestJoin(t *testing.T) {
	w, a := newWorld(t)
	j, dir, err := w.join("b", a.token(t, TokenOptions{}))
	if err != nil {
		t.Fatal(err)
	}
	dsa := server.Address.Addr()
	m := j.Roster.Nodes["b"]
	if m.Address != member("b").Address || m.CareOf[dsa] != CareOf(m.Address, dsa, "b") || len(j.Servers) != 1 || string(j.Servers[0].Key) != string(server.Key) {
		t.Errorf("joined: %+v", j)
	}
	for name, want := range map[string]os.FileMode{NodeFile: 0o600, CAFile: 0o644, RosterFile: 0o644} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	if info, err := os.Stat(filepath.Join(a.dir, AuthorityFile)); err != nil || info.Mode().Perm() != 0o600 || HasAuthority(dir) {
		t.Errorf("authority: %v, %v", info.Mode(), err)
	}
	a.until(t, "b", has("a", "b"))
	b := w.start("b", dir)
	c := w.must("c", a)
	for _, n := range []*node{a, b, c} {
		n.until(t, "all", has("a", "b", "c"))
	}
	// They believe each other.
	for _, n := range []*node{b, c} {
		if err := n.agent.Exchange(t.Context(), "a"); err != nil {
			t.Error(err)
		}
	}
	if err := c.agent.Exchange(t.Context(), "b"); err != nil {
		t.Error(err)
	}
}

// The key of a machine that joins stays on it: all that it says is a request for a
// certificate, the token, its name and its addresses.
func TestKeyStays(t *testing.T) {
	w, a := newWorld(t)
	var said bytes.Buffer
	var running sync.WaitGroup
	token := a.token(t, TokenOptions{})
	_, dir, err := w.join("b", token, func(c *JoinConfig) {
		c.Dial = func(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
			// Somebody with the identity of a listens in between.
			raw, err := w.dial(ctx, addr)
			if err != nil {
				return nil, err
			}
			c, between := net.Pipe()
			running.Go(func() {
				defer between.Close()
				defer raw.Close()
				front := tls.Server(between, a.agent.Accept())
				back := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{Protocol}})
				running.Go(func() { io.Copy(front, back); between.Close() })
				io.Copy(back, io.TeeReader(front, &said))
			})
			return c, nil
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	running.Wait()
	file, err := os.ReadFile(filepath.Join(dir, NodeFile))
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(file, file)
	if err != nil {
		t.Fatal(err)
	}
	key := pair.PrivateKey.(*ecdsa.PrivateKey)
	private, err := key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	if said.Len() < 4 {
		t.Fatal("it has said nothing")
	}
	r, err := parseRequest(said.Bytes()[4:])
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(r.CSR)
	if err != nil || !key.PublicKey.Equal(csr.PublicKey) {
		t.Errorf("the request for a certificate is for another key: %v", err)
	}
	if bytes.Contains(r.CSR, private) {
		t.Error("the key is in the request for a certificate")
	}
	m := member("b")
	all, err := json.Marshal(request{
		Kind: kindJoin, ID: token.ID[:], Secret: token.Secret[:], Name: "b", Member: &Member{Address: m.Address, Port: m.Port, CareOf: r.Member.CareOf}, CSR: r.CSR,
	})
	if err != nil || string(all) != string(said.Bytes()[4:]) {
		t.Errorf("it says more than it has to: %s, not %s: %v", said.Bytes()[4:], all, err)
	}
}

// Another care-of address than the one that is chosen can be brought.
func TestCareOf(t *testing.T) {
	w, a := newWorld(t)
	mine := netip.MustParseAddr("2001:db8:5::80:b")
	j, _, err := w.join("b", a.token(t, TokenOptions{}), func(c *JoinConfig) {
		c.CareOf = map[netip.Addr]netip.Addr{netip.IPv6Unspecified(): mine}
	})
	if err != nil || j.Roster.Nodes["b"].CareOf[server.Address.Addr()] != mine {
		t.Errorf("%+v, %v", j, err)
	}
}

// What is refused is refused with its cause, and the token is good afterwards.
func TestJoinRefused(t *testing.T) {
	w, a := newWorld(t)
	w.must("d", a)
	token := a.token(t, TokenOptions{})
	for _, tt := range []struct {
		name   string
		change func(*JoinConfig)
		want   string
	}{
		{"d", nil, "there is a node d already"},
		{"-b", nil, "not a name that a certificate can have"},
		{"b", func(c *JoinConfig) { c.Address = netip.MustParseAddr("fe80::1") }, "fe80::1 is not an address that other nodes reach"},
		{"b", func(c *JoinConfig) { c.Address = member("d").Address }, "is an address of"},
		{"b", func(c *JoinConfig) { c.Address = netip.MustParseAddr("2001:db8:1::5") }, "must not be in the home prefix 2001:db8:1::/64"},
		{"b", func(c *JoinConfig) {
			c.CareOf = map[netip.Addr]netip.Addr{member("d").Address: member("b").Address}
		}, "there is no distributed server"},
		{"b", func(c *JoinConfig) {
			t := *c.Token
			t.Secret[3] ^= 1
			c.Token = &t
		}, "not known here, has been used, or has expired"},
		{"b", func(c *JoinConfig) {
			t := *c.Token
			t.ID[3] ^= 1
			c.Token = &t
		}, "not known here, has been used, or has expired"},
		{"b", func(c *JoinConfig) {
			t := *c.Token
			t.Expires = time.Now().Add(-time.Minute)
			c.Token = &t
		}, "it expired at"},
		{"b", func(c *JoinConfig) {
			t := *c.Token
			t.Pin[0] ^= 1
			c.Token = &t
		}, "its authority is not the one that the token is of"},
		{"b", func(c *JoinConfig) {
			t := *c.Token
			t.Authority = "d"
			c.Token = &t
		}, "it is another node"},
		{"b", func(c *JoinConfig) {
			t := *c.Token
			t.Address = netip.MustParseAddrPort("[2001:db8:5::99]:7846")
			c.Token = &t
		}, "is dsco running there"},
		{"b", func(c *JoinConfig) { c.Dir = a.dir }, "is there already: this machine is a node of a cluster; --force replaces it"},
	} {
		a.agent.joins.SetBurst(1000)
		a.agent.joins.SetLimit(1000)
		_, dir, err := w.join(tt.name, token, func(c *JoinConfig) {
			if tt.change != nil {
				tt.change(c)
			}
		})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
		if _, err := os.Stat(filepath.Join(dir, NodeFile)); err == nil && dir != a.dir {
			t.Errorf("%q has left a key", tt.want)
		}
	}
	if _, _, err := w.join("b", token); err != nil {
		t.Errorf("after all of that: %v", err)
	}
	if _, _, err := w.join("e", token); err == nil || !strings.Contains(err.Error(), "has been used") {
		t.Errorf("a second time: %v", err)
	}
}

// A token of several uses; one of which the time is over; and one for a node that
// has lost its identity.
func TestTokenOptions(t *testing.T) {
	w, a := newWorld(t)
	twice := a.token(t, TokenOptions{Uses: 2})
	for i, name := range []string{"b", "c", "d"} {
		if _, _, err := w.join(name, twice); (err == nil) != (i < 2) {
			t.Errorf("node %d with the token: %v", i+1, err)
		}
	}
	again := a.token(t, TokenOptions{Replace: "b"})
	if _, _, err := w.join("e", again); err == nil || !strings.Contains(err.Error(), "the token is for node b") {
		t.Errorf("another one: %v", err)
	}
	if _, _, err := w.join("b", again); err != nil {
		t.Errorf("b again: %v", err)
	}
	old := a.token(t, TokenOptions{})
	b, err := os.ReadFile(old.file(a.dir))
	if err != nil {
		t.Fatal(err)
	}
	var k kept
	if err := json.Unmarshal(b, &k); err != nil {
		t.Fatal(err)
	}
	k.Expires = time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC)
	if b, err = json.Marshal(k); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(old.file(a.dir), b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.join("f", old); err == nil || !strings.Contains(err.Error(), "has expired") {
		t.Errorf("a token of 2001: %v", err)
	}
	a.token(t, TokenOptions{})
	if _, err := os.Stat(old.file(a.dir)); err == nil {
		t.Error("a token that has expired is kept")
	}
	for _, o := range []TokenOptions{{Lifetime: time.Millisecond}, {Lifetime: 1000 * time.Hour}, {Uses: -1}, {Uses: 1001}, {Replace: "nobody"}, {Replace: "b", Uses: 2}} {
		if _, err := NewToken(a.dir, o); err == nil {
			t.Errorf("%+v: a token", o)
		}
	}
	if _, err := NewToken(t.TempDir(), TokenOptions{}); !errors.Is(err, ErrNoAuthority) {
		t.Errorf("elsewhere: %v", err)
	}
}

// Whoever tries secrets is slowed down.
func TestRateLimit(t *testing.T) {
	w, a := newWorld(t)
	bad := *a.token(t, TokenOptions{})
	bad.Secret[0] ^= 1
	a.agent.joins.SetLimit(0) // however slow this machine is
	for range joinBurst + 1 {
		if _, _, err := w.join("b", &bad); err != nil && strings.Contains(err.Error(), "too many have tried") {
			return
		}
	}
	t.Error("nobody was refused for trying too often")
}
