package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Files are what a [Keeper] reads, in PEM. Cert and Key may be the same file.
type Files struct{ CA, Cert, Key string }

// Credentials are those of a node, as they were read.
type Credentials struct {
	// Certificate of this node, with its key.
	Certificate *tls.Certificate

	// Authorities are believed about other nodes.
	Authorities *x509.CertPool

	roots []*x509.Certificate
}

// Keeper has the credentials of a node and reads them anew when the files have
// changed. Its methods may be called from any goroutine.
type Keeper struct {
	// Changed, if not nil, is called when credentials were read anew, and with
	// the cause when they cannot be; then the old ones stay. It must not call the
	// keeper. Set it before anything else.
	Changed func(err error)

	files   Files
	name    string
	current atomic.Pointer[Credentials]

	mu     sync.Mutex // of reading
	stamps [3]stamp
	failed string
}

// stamp tells whether a file is still the one that was read.
type stamp struct {
	size int64
	mod  time.Time
	info fs.FileInfo
}

func (s stamp) same(t stamp) bool {
	return s.size == t.size && s.mod.Equal(t.mod) && (s.info == nil) == (t.info == nil) && (s.info == nil || os.SameFile(s.info, t.info))
}

// Open reads the credentials of node name.
func Open(name string, files Files) (*Keeper, error) {
	k := &Keeper{files: files, name: name}
	k.stamps = k.look()
	c, err := k.read()
	if err != nil {
		return nil, err
	}
	k.current.Store(c)
	return k, nil
}

// Credentials are those of now. If a file has changed and cannot be used, the old
// ones stay.
func (k *Keeper) Credentials() *Credentials {
	k.mu.Lock()
	now := k.look()
	changed := !slices.EqualFunc(now[:], k.stamps[:], stamp.same)
	k.mu.Unlock()
	if changed {
		k.Reload()
	}
	return k.current.Load()
}

// Reload reads the files anew. After an error the old credentials stay.
func (k *Keeper) Reload() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	stamps := k.look() // before reading: what changes meanwhile is seen next time
	c, err := k.read()
	if err != nil {
		// The stamps stay, so that it is tried again until it is right; but told once.
		if told := err.Error(); told != k.failed && k.Changed != nil {
			k.failed = told
			k.Changed(err)
		}
		return err
	}
	k.stamps, k.failed = stamps, ""
	old := k.current.Swap(c)
	if k.Changed != nil && !old.equal(c) {
		k.Changed(nil)
	}
	return nil
}

func (c *Credentials) equal(d *Credentials) bool {
	return slices.EqualFunc(c.Certificate.Certificate, d.Certificate.Certificate, slices.Equal) && c.Authorities.Equal(d.Authorities)
}

func (k *Keeper) look() (all [3]stamp) {
	for i, name := range []string{k.files.CA, k.files.Cert, k.files.Key} {
		if info, err := os.Stat(name); err == nil {
			all[i] = stamp{info.Size(), info.ModTime(), info}
		}
	}
	return all
}

func (k *Keeper) read() (*Credentials, error) {
	pair, err := tls.LoadX509KeyPair(k.files.Cert, k.files.Key)
	if err != nil {
		return nil, fmt.Errorf("identity: certificate of this node: %w", err)
	}
	if err := ofNode(pair.Leaf, k.name); err != nil {
		return nil, fmt.Errorf("identity: %s: %w", k.files.Cert, err)
	}
	b, err := readFile(k.files.CA)
	if err != nil {
		return nil, fmt.Errorf("identity: authorities of the cluster: %w", err)
	}
	roots, err := decodeCerts(b)
	if err != nil {
		return nil, fmt.Errorf("identity: authorities of the cluster: %s: %w", k.files.CA, err)
	}
	if len(roots) == 0 {
		return nil, fmt.Errorf("identity: authorities of the cluster: no certificate in %s; put that of the authority there, in PEM", k.files.CA)
	}
	return &Credentials{Certificate: &pair, Authorities: pool(roots), roots: roots}, nil
}

func pool(certs []*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range certs {
		p.AddCert(c)
	}
	return p
}

// ofNode tells whether a certificate is that of a node.
func ofNode(leaf *x509.Certificate, name string) error {
	if leaf == nil {
		return errors.New("no certificate")
	}
	if !slices.Contains(leaf.DNSNames, name) {
		return fmt.Errorf("the certificate is for %q, not for node %s: make one with that DNS name", leaf.DNSNames, name)
	}
	return nil
}
