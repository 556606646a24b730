package peer

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/distributed-servers/ds/daemon/identity"
	"github.com/distributed-servers/ds/internal/testcert"
)

// exchange sends a frame each way.
func exchange(t *testing.T, a, b *Mesh, ra, rb recorder, what string) {
	t.Helper()
	if err := a.Send("b", []byte(what)); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if h := rb.next(t, "frame"); string(h.frame) != what {
		t.Errorf("%s: b got %q", what, h.frame)
	}
	if err := b.Send("a", []byte(what)); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if h := ra.next(t, "frame"); string(h.frame) != what {
		t.Errorf("%s: a got %q", what, h.frame)
	}
}

// again ends the connection, so that the next one begins.
func again(t *testing.T, m *Mesh, to string, ra, rb recorder) {
	t.Helper()
	m.mu.Lock()
	m.links[to].fail(context.Canceled)
	m.mu.Unlock()
	ra.next(t, "down")
	rb.next(t, "down")
	ra.next(t, "up")
	rb.next(t, "up")
}

// Certificates and the authority change while both nodes run: frames go on on
// the connection that there is, and the next connection has the new ones.
func TestRotation(t *testing.T) {
	w := newWorld(t, "a", "b")
	dirs := map[string]string{"a": t.TempDir(), "b": t.TempDir()}
	write := func(authority *testcert.Authority, node string) {
		t.Helper()
		if err := authority.Write(dirs[node], node); err != nil {
			t.Fatal(err)
		}
	}
	believe := func(node string, authorities ...*testcert.Authority) {
		t.Helper()
		var all []byte
		for _, a := range authorities {
			dir := t.TempDir()
			if err := a.Write(dir); err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, b...)
		}
		if err := os.WriteFile(filepath.Join(dirs[node], "ca.pem"), all, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	keepers := make(map[string]*identity.Keeper)
	for node, dir := range dirs {
		write(w.Authority, node)
		keepers[node] = open(t, node, dir)
	}
	use := func(c *Config) { c.Identity = keepers[c.Name] }
	a, ra, logA := w.open(t, "a", use)
	b, rb, _ := w.open(t, "b", use)
	ra.next(t, "up")
	rb.next(t, "up")
	exchange(t, a, b, ra, rb, "before")

	// A certificate is renewed, and read without anybody's doing.
	write(w.Authority, "b")
	exchange(t, a, b, ra, rb, "a new certificate, the old connection")
	again(t, a, "b", ra, rb)
	exchange(t, a, b, ra, rb, "a new certificate, a new connection")

	// The authority is rotated: both believe both, one after the other gets a new
	// certificate, then the old one is not believed any more.
	next, err := testcert.New()
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		what string
		do   func()
	}{
		{"a believes both", func() { believe("a", w.Authority, next) }},
		{"b believes both", func() { believe("b", next, w.Authority) }},
		{"a is renewed", func() { write(next, "a"); believe("a", w.Authority, next) }},
		{"b is renewed", func() { write(next, "b"); believe("b", next, w.Authority) }},
		{"a believes the new one", func() { believe("a", next) }},
		{"b believes the new one", func() { believe("b", next) }},
	} {
		step.do()
		exchange(t, a, b, ra, rb, step.what+", the old connection")
		again(t, a, "b", ra, rb)
		exchange(t, a, b, ra, rb, step.what+", a new connection")
	}

	// One that missed it is refused, and says why.
	write(w.Authority, "b")
	believe("b", next)
	a.mu.Lock()
	a.links["b"].fail(context.Canceled)
	a.mu.Unlock()
	ra.next(t, "down")
	for line := ""; !strings.Contains(line, "it is no node of this cluster"); {
		line = <-logA.c
	}
}

// Nodes come and go while the mesh runs.
func TestSetPeers(t *testing.T) {
	w := newWorld(t, "a", "b", "c")
	a, ra, _ := w.open(t, "a", func(c *Config) { delete(c.Peers, "c") })
	b, rb, _ := w.open(t, "b")
	ra.next(t, "up")
	rb.next(t, "up")
	_, rc, _ := w.open(t, "c")
	if h := rb.next(t, "up"); h.name != "c" {
		t.Fatalf("up: %s", h.name)
	}
	rc.next(t, "up")
	exchange(t, a, b, ra, rb, "before")
	peers := a.cfg.Peers
	peers["c"] = w.addrs["c"]
	a.SetPeers(peers)
	if h := ra.next(t, "up"); h.name != "c" {
		t.Fatalf("up: %s", h.name)
	}
	rc.next(t, "up")
	exchange(t, a, b, ra, rb, "the connection stays")
	delete(peers, "b")
	a.SetPeers(peers)
	if h := ra.next(t, "down"); h.name != "b" || !strings.Contains(h.err.Error(), "not a member any more") {
		t.Errorf("down: %+v", h)
	}
	rb.next(t, "down")
	if err := a.Send("b", []byte("x")); err == nil {
		t.Error("sent to who is not a member")
	}
	if err := a.Send("c", []byte("x")); err != nil {
		t.Error(err)
	}
}
