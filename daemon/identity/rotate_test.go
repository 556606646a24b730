package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// certificate waits until a node has another certificate than it had.
func (n *node) another(t *testing.T, old *x509.Certificate) *x509.Certificate {
	t.Helper()
	for late := time.Now().Add(patience); time.Now().Before(late); {
		if leaf := n.keeper.Credentials().Certificate.Leaf; !leaf.Equal(old) {
			return leaf
		}
		select {
		case <-n.adopted:
		case err := <-n.faults:
			t.Logf("%s: %v", n.name, err)
		case <-time.After(5 * time.Millisecond):
		}
	}
	t.Fatalf("%s has no other certificate", n.name)
	return nil
}

func (n *node) leaf() *x509.Certificate { return n.keeper.Credentials().Certificate.Leaf }

// A node gets a new certificate for a new key when two thirds of the time are
// over, and not before.
func TestRenew(t *testing.T) {
	w, a := newWorld(t)
	b := w.must("b", a)
	b.agent.look(t.Context())
	b.stop()
	old := b.leaf()
	late := w.start("b", b.dir, func(c *Config) {
		c.Now = func() time.Time { return time.Now().Add(NodeLifetime * 2 / 3) }
		c.Interval = time.Hour // once
	})
	leaf := late.another(t, old)
	if leaf.NotAfter.Before(old.NotAfter) || leaf.DNSNames[0] != "b" {
		t.Errorf("got %v until %v", leaf.DNSNames, leaf.NotAfter)
	}
	if string(leaf.RawSubjectPublicKeyInfo) == string(old.RawSubjectPublicKeyInfo) {
		t.Error("the key is the old one")
	}
	if !due(old, mustCerts(t, a.agent.Roster())[0], time.Now().Add(NodeLifetime*2/3)) || due(old, mustCerts(t, a.agent.Roster())[0], time.Now().Add(NodeLifetime/2)) {
		t.Error("it was due at another time")
	}
}

func mustCerts(t *testing.T, r *Roster) []*x509.Certificate {
	t.Helper()
	certs, err := r.Certificates()
	if err != nil {
		t.Fatal(err)
	}
	return certs
}

// Without the authority the old certificate stays, and the operator is told.
func TestRenewFails(t *testing.T) {
	w, a := newWorld(t)
	b := w.must("b", a)
	b.stop()
	a.stop()
	old := b.leaf()
	b = w.start("b", b.dir, func(c *Config) { c.Now = func() time.Time { return time.Now().Add(NodeLifetime * 9 / 10) } })
	select {
	case err := <-b.faults:
		if !strings.Contains(err.Error(), "is not renewed") || !strings.Contains(err.Error(), "is dsco running on a") {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("nobody is told")
	}
	if !b.leaf().Equal(old) {
		t.Error("it has another certificate")
	}
}

// A member gets a certificate for itself only, whatever it asks for.
func TestRenewAsAnother(t *testing.T) {
	w, a := newWorld(t)
	b := w.must("b", a)
	_, csr, err := newRequest("a")
	if err != nil {
		t.Fatal(err)
	}
	ans, err := b.agent.ask(t.Context(), "a", &request{Kind: kindRenew, CSR: csr, Name: "a"})
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(ans.Chain[0])
	if err != nil || len(leaf.DNSNames) != 1 || leaf.DNSNames[0] != "b" || leaf.Subject.CommonName != "b" || leaf.IsCA {
		t.Errorf("got a certificate for %q, %v", leaf.DNSNames, err)
	}
	// A stranger gets none, and learns nothing.
	for _, q := range []*request{{Kind: kindRenew, CSR: csr}, {Kind: kindMembers, Roster: a.agent.Roster().Encoded()}} {
		stranger := a.token(t, TokenOptions{})
		if ans, err := ask(t.Context(), w.dial, stranger.Address, stranger.client(), q); err == nil || !strings.Contains(err.Error(), "for members only") {
			t.Errorf("%s: a stranger got %+v, %v", q.Kind, ans, err)
		}
	}
	// Nobody but the authority signs.
	if _, err := a.agent.ask(t.Context(), "b", &request{Kind: kindRenew, CSR: csr}); err == nil || !strings.Contains(err.Error(), "not on this node") {
		t.Errorf("b signs: %v", err)
	}
}

// The authority is exchanged while everybody runs, and one node is away.
func TestRotate(t *testing.T) {
	w, a := newWorld(t)
	token := a.token(t, TokenOptions{}) // of before
	b, c := w.must("b", a), w.must("c", a)
	for _, n := range []*node{a, b, c} {
		n.until(t, "all", has("a", "b", "c"))
	}
	c.stop()
	oldB, oldC := b.leaf(), c.leaf()
	first := a.agent.Roster().Authorities[0]
	if _, err := Rotate(a.dir); err != nil {
		t.Fatal(err)
	}
	a.agent.Wake()
	if _, err := Rotate(a.dir); err == nil || !strings.Contains(err.Error(), "has not ended") {
		t.Errorf("twice: %v", err)
	}
	both := func(r *Roster) bool { return len(r.Authorities) == 2 }
	r := b.until(t, "two authorities", both)
	if string(r.Authorities[1]) != string(first) {
		t.Error("the old authority is not the second")
	}
	b.another(t, oldB)
	if _, err := Retire(a.dir, false); err == nil || !strings.HasPrefix(err.Error(), "identity: retire: c: no certificate of the new authority yet") {
		t.Errorf("too early: %v", err)
	}
	// The one that was away still has the old list, believes the old authority
	// only, and understands who has the new one's certificate.
	c = w.start("c", c.dir)
	c.another(t, oldC)
	c.until(t, "two authorities", both)
	if _, _, err := w.join("d", token); err != nil {
		t.Errorf("with a token from before: %v", err)
	}
	a.until(t, "d", has("a", "b", "c", "d"))
	issued := func(r *Roster) bool {
		for _, name := range []string{"a", "b", "c", "d"} {
			if r.Nodes[name].Issuer != Short(r.Authorities[0]) {
				return false
			}
		}
		return true
	}
	a.until(t, "certificates of the new authority", issued)
	if _, err := Retire(a.dir, false); err != nil {
		t.Fatal(err)
	}
	a.agent.Wake()
	for _, n := range []*node{a, b, c} {
		n.until(t, "the new authority only", func(r *Roster) bool { return len(r.Authorities) == 1 && string(r.Authorities[0]) != string(first) })
	}
	if err := c.agent.Exchange(t.Context(), "b"); err != nil {
		t.Error(err)
	}
	// What the old one has signed is worth nothing any more.
	err := b.keeper.Credentials().Verify([]*x509.Certificate{oldC}, "c", x509.ExtKeyUsageClientAuth, time.Now())
	if !errors.Is(err, ErrStranger) {
		t.Errorf("a certificate of the old authority: %v", err)
	}
	if _, err := Retire(a.dir, false); err == nil || !strings.Contains(err.Error(), "one authority only") {
		t.Errorf("twice: %v", err)
	}
}

// A rotation that ended half-way is ended by the daemon.
func TestRotateInterrupted(t *testing.T) {
	w, a := newWorld(t)
	a.stop()
	r := a.agent.Roster()
	raw := r.Encoded()
	if _, err := Rotate(a.dir); err != nil {
		t.Fatal(err)
	}
	// The list was not written, nor the authorities.
	if err := os.WriteFile(filepath.Join(a.dir, RosterFile), raw, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(a.dir, CAFile), encodeCerts(r.Authorities...), 0o644); err != nil {
		t.Fatal(err)
	}
	a = w.start("a", a.dir)
	a.until(t, "two authorities", func(r *Roster) bool { return len(r.Authorities) == 2 })
}

// Files that change are read before they are used; what cannot be read leaves
// what there is.
func TestKeeper(t *testing.T) {
	dir := t.TempDir()
	if _, err := Create(dir, "a", member("a"), false); err != nil {
		t.Fatal(err)
	}
	if _, err := Create(dir, "a", member("a"), false); err == nil || !strings.Contains(err.Error(), "--force") {
		t.Errorf("again: %v", err)
	}
	file := filepath.Join(dir, NodeFile)
	files := Files{CA: filepath.Join(dir, CAFile), Cert: file, Key: file}
	k, err := Open("a", files)
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan error, 10)
	k.Changed = func(err error) { told <- err }
	first := k.Credentials()
	if k.Credentials() != first {
		t.Error("read again without a reason")
	}
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, good[:len(good)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if k.Credentials() != first {
			t.Error("half a file is taken")
		}
	}
	if err := <-told; err == nil || len(told) > 0 {
		t.Errorf("told %v, and %d more", err, len(told))
	}
	a, err := openAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := renewHere(a, dir, "a"); err != nil {
		t.Fatal(err)
	}
	if c := k.Credentials(); c == first || c.equal(first) || <-told != nil {
		t.Error("the new certificate is not read")
	}
	if err := k.Reload(); err != nil || len(told) > 0 {
		t.Errorf("the same once more: %v, told %d things", err, len(told))
	}
	if _, err := Open("b", files); err == nil || !strings.Contains(err.Error(), `for ["a"], not for node b`) {
		t.Errorf("another's: %v", err)
	}
	if _, err := NewAgent(Config{Dir: dir, Name: "z", Keeper: k}); err == nil || !strings.Contains(err.Error(), "z, is not a member; have it join") {
		t.Errorf("not a member: %v", err)
	}
}

// Whatever is wrong with the other end is told, with a cure.
func TestVerify(t *testing.T) {
	_, a := newWorld(t)
	creds := a.keeper.Credentials()
	authority, err := openAuthority(a.dir)
	if err != nil {
		t.Fatal(err)
	}
	_, csr, err := newRequest("b")
	if err != nil {
		t.Fatal(err)
	}
	chain, err := authority.issue("b", csr)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := t.TempDir()
	if _, err := Create(elsewhere, "b", member("b"), false); err != nil {
		t.Fatal(err)
	}
	other, err := tls.LoadX509KeyPair(filepath.Join(elsewhere, NodeFile), filepath.Join(elsewhere, NodeFile))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	const use = x509.ExtKeyUsageServerAuth
	for _, tt := range []struct {
		what string
		cert *x509.Certificate
		name string
		use  x509.ExtKeyUsage
		now  time.Time
		want error
		text string
	}{
		{"right", leaf, "b", use, now, nil, ""},
		{"anybody", leaf, "", x509.ExtKeyUsageClientAuth, now, nil, ""},
		{"none", nil, "b", use, now, ErrNoCertificate, "is it dsco that speaks there?"},
		{"expired", leaf, "b", use, now.Add(NodeLifetime + time.Hour), ErrExpired, "ds token --replace b"},
		{"too early", leaf, "b", use, now.Add(-2 * skew), ErrNotYet, "set the clocks"},
		{"another cluster", other.Leaf, "b", use, now, ErrStranger, "is it a node of another cluster?"},
		{"another name", leaf, "c", use, now, ErrName, `the certificate is of "b", not of c; correct the address of c`},
		{"another use", leaf, "b", x509.ExtKeyUsageCodeSigning, now, ErrUse, "both server and client"},
	} {
		var chain []*x509.Certificate
		if tt.cert != nil {
			chain = append(chain, tt.cert)
		}
		err := creds.Verify(chain, tt.name, tt.use, tt.now)
		if !errors.Is(err, tt.want) || err != nil && !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: %v", tt.what, err)
		}
	}
}
