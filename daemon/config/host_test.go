package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// authority signs certificates into a directory.
type authority struct {
	t    *testing.T
	dir  string
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T, dir, name string) *authority {
	t.Helper()
	a := &authority{t: t, dir: dir}
	a.key, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	a.cert, _ = x509.ParseCertificate(der)
	a.write(name, "CERTIFICATE", der)
	return a
}

func (a *authority) write(name, kind string, der []byte) {
	a.t.Helper()
	if err := os.WriteFile(filepath.Join(a.dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		a.t.Fatal(err)
	}
}

// sign makes name.pem and name.key.
func (a *authority) sign(name, dnsName string, until time.Duration, uses ...x509.ExtKeyUsage) {
	a.t.Helper()
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: []string{dnsName}, ExtKeyUsage: uses,
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(until),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	a.write(name+".pem", "CERTIFICATE", der)
	if der, err = x509.MarshalPKCS8PrivateKey(key); err != nil {
		a.t.Fatal(err)
	}
	a.write(name+".key", "PRIVATE KEY", der)
}

// Load reads what the file mentions, and says what is wrong with it.
func TestLoadHost(t *testing.T) {
	dir := t.TempDir()
	both := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	ca := newAuthority(t, dir, "ca.pem")
	ca.sign("a", "a", time.Hour, both...)
	ca.sign("b", "b", time.Hour, both...)
	ca.sign("old", "a", -time.Hour, both...)
	ca.sign("half", "a", time.Hour, x509.ExtKeyUsageServerAuth)
	newAuthority(t, dir, "other.pem").sign("foreign", "a", time.Hour, both...)
	write := func(name, text string, mode os.FileMode) {
		t.Helper()
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(name, mode); err != nil {
			t.Fatal(err)
		}
	}
	write("empty.pem", "", 0o600)
	write("good", "00112233445566778899aabbccddeeff", 0o640)
	write("open", "00112233445566778899aabbccddeeff", 0o644)
	write("short", "0011", 0o600)
	write("server.key", "00112233445566778899aabbccddeeff", 0o600)

	for _, tt := range []struct{ old, new, want string }{
		{"", "", ""},
		{"ca.pem", "nowhere.pem", "node.ca: open " + dir + "/nowhere.pem: no such file or directory; put it there"},
		{"ca.pem", "empty.pem", "node.ca: no certificate in " + dir + "/empty.pem; put the certificate"},
		{"ca.pem", "other.pem", "node.cert: " + dir + "/other.pem does not vouch for it"},
		{`"a.pem"`, `"b.pem"`, "node.cert: tls: private key does not match"},
		{`"a.pem"`, `"nowhere.pem"`, "node.cert: open "},
		{"a.pem\"\nkey = \"a.key", "b.pem\"\nkey = \"b.key", `node.cert: it is of ["b"], not of this node; make one with the DNS name a`},
		{"a.pem\"\nkey = \"a.key", "old.pem\"\nkey = \"old.key", "node.cert: it is valid from "},
		{"a.pem\"\nkey = \"a.key", "half.pem\"\nkey = \"half.key", "node.cert: " + dir + "/ca.pem does not vouch for it"},
		{"a.pem\"\nkey = \"a.key", "foreign.pem\"\nkey = \"foreign.key", "node.cert: " + dir + "/ca.pem does not vouch for it"},
		{"\"server.key\"", "\"good\"", ""},
		{"\"server.key\"", "\"" + dir + "/good\"", ""},
		{"\"server.key\"", "\"open\"", "server[0].key_file: every user may read or change it (mode -rw-r--r--); chmod o= " + dir + "/open"},
		{"\"server.key\"", "\"short\"", "server[0].key_file: read key: " + dir + "/short has 2 octets"},
		{"\"server.key\"", "\"nowhere\"", "server[0].key_file: read key: open "},
		{"contact", "users = [\"root\", \"0\", \"no-such-user\"]\ncontact", "server[0].users[2]: user: unknown user no-such-user; add the user"},
		{"contact", "user_groups = [\"root\", \"no-such-group\"]\ncontact", "server[0].user_groups[1]: group: unknown group no-such-group; add the group"},
		{"", strings.Replace(agent, "server.key", "short", 1), "home_agent.homes[0].key_file: read key"},
	} {
		text := strings.Replace(small, tt.old, tt.new, 1)
		if tt.old == "" {
			text = small + tt.new
		}
		write("dsco.toml", text, 0o644)
		c, err := Load(filepath.Join(dir, "dsco.toml"))
		if tt.want == "" {
			if err != nil || c.Node.CA != filepath.Join(dir, "ca.pem") {
				t.Errorf("%q: %v", tt.new, err)
			}
			continue
		}
		if c, err := Read(filepath.Join(dir, "dsco.toml")); err != nil || c.Node.CA == "" {
			t.Errorf("%q: the file itself: %v", tt.new, err)
		}
		ps, ok := err.(Problems)
		if !ok || len(ps) != 1 || !strings.Contains(err.Error(), tt.want) || ps[0].Line == 0 || ps[0].Cure == "" || c != nil {
			t.Errorf("%q: got %v, want %s", tt.new, err, tt.want)
		}
	}
}

func TestLoadFile(t *testing.T) {
	dir := t.TempDir()
	big := filepath.Join(dir, "big")
	if err := os.WriteFile(big, []byte(strings.Repeat("#", maxFile+1)), 0o600); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{
		filepath.Join(dir, "nowhere"): "docs/dsco.toml is an example", dir: "is a directory", big: fmt.Sprint(maxFile),
	} {
		if _, err := Load(file); err == nil || !strings.HasPrefix(err.Error(), "config: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", file, err)
		}
	}
}
