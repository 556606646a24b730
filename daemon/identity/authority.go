package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

// How long certificates are valid, and how long before their making: clocks
// differ.
const (
	NodeLifetime      = 90 * 24 * time.Hour
	AuthorityLifetime = 10 * 365 * 24 * time.Hour
	skew              = time.Hour
)

// Authority is what signs certificates and the list of members. In the middle of
// a rotation it has the authority of before, too.
type Authority struct {
	now signer
	old *signer // nil: there is none
}

// signer is a key with its certificate; of a later one also what the one before
// has signed of it.
type signer struct {
	key   *ecdsa.PrivateKey
	cert  *x509.Certificate
	cross []byte // nil: the first
}

// newSigner makes an authority of a cluster; the one before vouches for it.
func newSigner(cluster string, before *signer) (s signer, err error) {
	if s.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return s, err
	}
	t, err := template(AuthorityLifetime)
	if err != nil {
		return s, err
	}
	t.Subject = pkix.Name{Organization: []string{"Distributed Servers"}, CommonName: "cluster " + cluster + ", authority of " + t.NotBefore.Add(skew).UTC().Format("2006-01-02 15:04:05")}
	t.IsCA, t.BasicConstraintsValid, t.KeyUsage = true, true, x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, t, t, &s.key.PublicKey, s.key)
	if err != nil {
		return s, err
	}
	if s.cert, err = x509.ParseCertificate(der); err != nil || before == nil {
		return s, err
	}
	t.NotAfter = before.cert.NotAfter
	s.cross, err = x509.CreateCertificate(rand.Reader, t, before.cert, &s.key.PublicKey, before.key)
	return s, err
}

func template(lifetime time.Duration) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	return &x509.Certificate{SerialNumber: serial, NotBefore: now.Add(-skew), NotAfter: now.Add(lifetime)}, nil
}

// pem is the file of a signer.
func (s *signer) pem() ([]byte, error) {
	certs := [][]byte{s.cert.Raw}
	if s.cross != nil {
		certs = append(certs, s.cross)
	}
	return encodePair(s.key, certs...)
}

func readSigner(path string) (s signer, err error) {
	b, err := readFile(path)
	if err != nil {
		return s, err
	}
	pair, err := tls.X509KeyPair(b, b)
	if err != nil {
		return s, fmt.Errorf("%s: %w", path, err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || !pair.Leaf.IsCA {
		return s, fmt.Errorf("%s: not the key and certificate of an authority", path)
	}
	s = signer{key: key, cert: pair.Leaf}
	if len(pair.Certificate) > 1 {
		s.cross = pair.Certificate[1]
	}
	return s, nil
}

// ErrNoAuthority is returned on nodes that have no authority.
var ErrNoAuthority = errors.New("identity: the authority of the cluster is not on this node; run this where ds init was run")

// openAuthority reads the authority of a directory.
func openAuthority(dir string) (*Authority, error) {
	s, err := readSigner(filepath.Join(dir, AuthorityFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, ErrNoAuthority
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("identity: authority: %w; run it as root or as the daemon's user", err)
	case err != nil:
		return nil, fmt.Errorf("identity: authority: %w", err)
	}
	a := &Authority{now: s}
	old, err := readSigner(filepath.Join(dir, oldFile))
	switch {
	case err == nil && !old.cert.Equal(s.cert): // else a rotation has ended half-way
		a.old = &old
	case err == nil:
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("identity: authority: %w", err)
	}
	return a, nil
}

// HasAuthority tells whether the authority is in a directory.
func HasAuthority(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, AuthorityFile))
	return err == nil
}

// issue signs a certificate for a node's key. The request must be signed with that
// key; what else it says does not count.
func (a *Authority) issue(name string, request []byte) (chain [][]byte, err error) {
	csr, err := x509.ParseCertificateRequest(request)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		return nil, fmt.Errorf("request for a certificate: %w", err)
	}
	pub, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return nil, errors.New("request for a certificate: its key is not of P-256")
	}
	t, err := template(NodeLifetime)
	if err != nil {
		return nil, err
	}
	t.Subject = pkix.Name{CommonName: name}
	t.DNSNames = []string{name}
	t.KeyUsage = x509.KeyUsageDigitalSignature
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	if t.NotAfter.After(a.now.cert.NotAfter) {
		t.NotAfter = a.now.cert.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.now.cert, pub, a.now.key)
	if err != nil {
		return nil, err
	}
	chain = [][]byte{der}
	if a.now.cross != nil && a.old != nil {
		chain = append(chain, a.now.cross)
	}
	return chain, nil
}

// certs are those that are believed, the one that signs first.
func (a *Authority) certs() [][]byte {
	all := [][]byte{a.now.cert.Raw}
	if a.old != nil {
		all = append(all, a.old.cert.Raw)
	}
	return all
}

// sign signs what is signed as a list of members, with all keys.
func (a *Authority) sign(body []byte) (signatures [][]byte, err error) {
	hash := sha256.Sum256(append([]byte(rosterPrefix), body...))
	for _, s := range []*signer{&a.now, a.old} {
		if s == nil {
			continue
		}
		sig, err := s.key.Sign(rand.Reader, hash[:], crypto.SHA256)
		if err != nil {
			return nil, err
		}
		signatures = append(signatures, sig)
	}
	return signatures, nil
}

// Fingerprint is the hash of a certificate in DER (SHA-256).
func Fingerprint(der []byte) [32]byte { return sha256.Sum256(der) }

// Short is a fingerprint for people.
func Short(der []byte) string {
	f := Fingerprint(der)
	return hex.EncodeToString(f[:8])
}

// newRequest makes a key and a request for a certificate.
func newRequest(name string) (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}}, key)
	return key, csr, err
}
