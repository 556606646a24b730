package identity

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// Create makes a cluster with this node as its only member, in a directory that
// is there: an authority, and key and certificate of the node. What is there
// already is replaced only by force; nodes that have joined do not know the new
// authority then. The old one stays in a file beside it.
func Create(dir, name string, m Member, force bool) (*Roster, error) {
	if err := m.check(name); err != nil {
		return nil, fmt.Errorf("identity: create: %w", err)
	}
	unlock, err := lock(dir)
	if err != nil {
		return nil, fmt.Errorf("identity: create: %w", err)
	}
	defer unlock()
	if err := Vacant(dir, force); err != nil {
		return nil, err
	}
	err = os.Rename(filepath.Join(dir, AuthorityFile), filepath.Join(dir, AuthorityFile+".old"))
	if e := os.Remove(filepath.Join(dir, oldFile)); err == nil || errors.Is(err, fs.ErrNotExist) {
		err = e
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("identity: create: %w", err)
	}
	var id [8]byte
	rand.Read(id[:])
	cluster := hex.EncodeToString(id[:])
	s, err := newSigner(cluster, nil)
	if err != nil {
		return nil, fmt.Errorf("identity: create: %w", err)
	}
	a := &Authority{now: s}
	m.Issuer = Short(s.cert.Raw)
	r := &Roster{Cluster: cluster, Serial: 1, Authority: name, Nodes: map[string]Member{name: m}}
	if err := errors.Join(r.seal(a), writeSigner(dir, AuthorityFile, &s)); err != nil {
		return nil, fmt.Errorf("identity: create: %w", err)
	}
	if err := r.write(dir); err != nil {
		return nil, fmt.Errorf("identity: create: %w", err)
	}
	if err := renewHere(a, dir, name); err != nil {
		return nil, fmt.Errorf("identity: create: %w", err)
	}
	return r, nil
}

// Vacant tells whether a directory is free for the identity of a node.
func Vacant(dir string, force bool) error {
	for _, name := range []string{AuthorityFile, NodeFile, RosterFile} {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil && !force {
			return fmt.Errorf("identity: %s is there already: this machine is a node of a cluster; --force replaces it", filepath.Join(dir, name))
		}
	}
	return nil
}

func writeSigner(dir, name string, s *signer) error {
	b, err := s.pem()
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, name), b, 0o600)
}

// renewHere makes a new key and certificate for the node of the authority.
func renewHere(a *Authority, dir, name string) error {
	key, csr, err := newRequest(name)
	if err != nil {
		return err
	}
	chain, err := a.issue(name, csr)
	if err != nil {
		return err
	}
	b, err := encodePair(key, chain...)
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, NodeFile), b, 0o600)
}

// Rotate makes a new authority. The nodes believe both from then on, and get
// certificates of the new one by themselves.
func Rotate(dir string) (*Roster, error) {
	return change(dir, "rotate", func(a *Authority, r *Roster) (*Authority, error) {
		if a.old != nil {
			return nil, errors.New("the last rotation has not ended; end it with ds ca retire")
		}
		s, err := newSigner(r.Cluster, &a.now)
		if err != nil {
			return nil, err
		}
		// Whatever is written when this ends too early, there is an authority, and
		// what it signs is believed.
		if err := writeSigner(dir, oldFile, &a.now); err != nil {
			return nil, err
		}
		if err := writeSigner(dir, AuthorityFile, &s); err != nil {
			return nil, err
		}
		next := &Authority{now: s, old: &a.now}
		if err := renewHere(next, dir, r.Authority); err != nil {
			return nil, err
		}
		self := r.Nodes[r.Authority]
		self.Issuer = Short(s.cert.Raw)
		r.Nodes[r.Authority] = self
		return next, nil
	})
}

// Retire ends the overlap of a rotation: the old authority is believed no more.
// Nodes that have no certificate of the new one are told in the error, unless by
// force: they have to join again.
func Retire(dir string, force bool) (*Roster, error) {
	return change(dir, "retire", func(a *Authority, r *Roster) (*Authority, error) {
		if a.old == nil {
			return nil, errors.New("there is one authority only; ds ca rotate makes another")
		}
		var late []string
		for _, name := range r.names() {
			if r.Nodes[name].Issuer != Short(a.now.cert.Raw) {
				late = append(late, name)
			}
		}
		if len(late) > 0 && !force {
			return nil, fmt.Errorf("%s: no certificate of the new authority yet; start dsco there, or with --force leave them out: they have to join again then", strings.Join(late, ", "))
		}
		if err := os.Remove(filepath.Join(dir, oldFile)); err != nil {
			return nil, err
		}
		next := &Authority{now: a.now}
		return next, renewHere(next, dir, r.Authority) // without what vouches for the new one
	})
}

// Remove takes a node out of the list, which admit may refuse: members refuse it from
// the moment that they have heard of that.
func Remove(dir, name string, admit func(*Roster) error) (*Roster, error) {
	return change(dir, "remove", func(a *Authority, r *Roster) (*Authority, error) {
		switch _, there := r.Nodes[name]; {
		case !there:
			return nil, fmt.Errorf("there is no node %s; there are %s", name, strings.Join(r.names(), ", "))
		case name == r.Authority:
			return nil, fmt.Errorf("the authority of the cluster is on %s, so it cannot go", name)
		}
		delete(r.Nodes, name)
		return a, admit(r)
	})
}

// change changes the authority, or the list alone.
func change(dir, what string, f func(*Authority, *Roster) (*Authority, error)) (r *Roster, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("identity: %s: %w", what, err)
		}
	}()
	unlock, err := lock(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	a, err := openAuthority(dir)
	if err != nil {
		return nil, err
	}
	if r, err = ReadRoster(dir); err != nil {
		return nil, err
	}
	r = r.with()
	if a, err = f(a, r); err != nil {
		return nil, err
	}
	if err := r.seal(a); err != nil {
		return nil, err
	}
	return r, r.write(dir)
}

// CareOf is a care-of address for a node, in the network (/64) of its own address:
// the same each time, and another for each node and server (as in RFC 7217).
func CareOf(address netip.Addr, server netip.Addr, node string) netip.Addr {
	a, s := address.As16(), server.As16()
	h := sha256.New()
	h.Write([]byte("care-of address\n"))
	h.Write(a[:8])
	h.Write(s[:])
	h.Write([]byte(node))
	sum := h.Sum(nil)
	copy(a[8:], sum)
	a[8] &= 0x7f // none of the reserved ones, which begin with fd ff (RFC 5453)
	a[15] |= 1   // nor that of all routers
	return netip.AddrFrom16(a)
}
