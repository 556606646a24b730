package identity

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Token is what a machine needs to join: where the authority is, how to know it,
// and a secret.
type Token struct {
	Address   netip.AddrPort // of the authority's node
	Authority string         // name of that node
	Pin       [32]byte       // [Fingerprint] of the authority's certificate
	ID        [8]byte        // of the token
	Secret    [16]byte
	Expires   time.Time // to the second
}

// Tokens are text: a word, and in base64 (URL alphabet) the fields one after
// another with a checksum (CRC-32, IEEE), big-endian.
const (
	tokenPrefix = "dsjoin1."
	tokenFixed  = 16 + 2 + 32 + 8 + 16 + 8 // without name and checksum
	maxToken    = 512                      // characters
)

// ErrToken is returned for what is not a token, or not one that is good.
var ErrToken = errors.New("identity: token")

// String is the token as it is written down. It is a secret.
func (t *Token) String() string {
	addr := t.Address.Addr().As16()
	b := append([]byte{}, addr[:]...)
	b = binary.BigEndian.AppendUint16(b, t.Address.Port())
	b = append(b, t.Pin[:]...)
	b = append(b, t.ID[:]...)
	b = append(b, t.Secret[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(t.Expires.Unix()))
	b = append(b, t.Authority...)
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(b)
}

// ParseToken reads a token.
func ParseToken(s string) (*Token, error) {
	bad := func(what string) (*Token, error) {
		return nil, fmt.Errorf("%w: %s; copy all of what ds token has printed", ErrToken, what)
	}
	s = strings.TrimSpace(s)
	text, ok := strings.CutPrefix(s, tokenPrefix)
	switch {
	case !ok && strings.HasPrefix(s, "dsjoin"):
		return nil, fmt.Errorf("%w: it is of another release; make one with the release that this machine has, or upgrade this machine", ErrToken)
	case !ok:
		return bad("it does not begin with " + tokenPrefix)
	case len(s) > maxToken:
		return bad("it is too long")
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(b) <= tokenFixed+4 || strings.ContainsAny(text, "\r\n") { // which base64 skips
		return bad("it is not whole")
	}
	body, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if crc32.ChecksumIEEE(body) != sum {
		return bad("it is not whole, or has changed on its way")
	}
	t := &Token{
		Address:   netip.AddrPortFrom(netip.AddrFrom16([16]byte(body)), binary.BigEndian.Uint16(body[16:])),
		Pin:       [32]byte(body[18:]),
		ID:        [8]byte(body[50:]),
		Secret:    [16]byte(body[58:]),
		Expires:   time.Unix(int64(binary.BigEndian.Uint64(body[74:])), 0),
		Authority: string(body[tokenFixed:]),
	}
	if err := checkName(t.Authority); err != nil {
		return bad(err.Error())
	}
	return t, nil
}

// TokenOptions say what a token is good for.
type TokenOptions struct {
	// Lifetime is until when. Default an hour, at most 30 days.
	Lifetime time.Duration

	// Uses are how many nodes may join with it. Default 1, at most 1000.
	Uses int

	// Replace is the node that may join again with it, under its old name, and
	// nobody else. "" lets nodes join that are new.
	Replace string
}

// Limits of tokens.
const (
	maxLifetime = 30 * 24 * time.Hour
	maxUses     = 1000
)

// kept is a token as the authority keeps it, in a file of its own that is named
// after its ID. The secret is not in there.
type kept struct {
	Hash    []byte    `json:"hash"` // of the secret, SHA-256
	Expires time.Time `json:"expires"`
	Uses    int       `json:"uses"`
	Replace string    `json:"replace,omitempty"`
}

// NewToken makes a token at the authority, whose node must be named by the list of
// members of the directory.
func NewToken(dir string, o TokenOptions) (*Token, error) {
	if o.Lifetime == 0 {
		o.Lifetime = time.Hour
	}
	if o.Uses == 0 {
		o.Uses = 1
	}
	switch {
	case o.Lifetime < time.Second || o.Lifetime > maxLifetime:
		return nil, fmt.Errorf("%w: good for %v: want 1s to %v", ErrToken, o.Lifetime, maxLifetime)
	case o.Uses < 1 || o.Uses > maxUses:
		return nil, fmt.Errorf("%w: good for %d nodes: want 1 to %d", ErrToken, o.Uses, maxUses)
	case o.Replace != "" && o.Uses > 1:
		return nil, fmt.Errorf("%w: one node is replaced once, not %d times", ErrToken, o.Uses)
	}
	a, err := openAuthority(dir)
	if err != nil {
		return nil, err
	}
	r, err := ReadRoster(dir)
	if err != nil {
		return nil, err
	}
	if _, known := r.Nodes[o.Replace]; o.Replace != "" && !known {
		return nil, fmt.Errorf("%w: there is no node %q to be replaced; there are %s", ErrToken, o.Replace, strings.Join(r.names(), ", "))
	}
	self := r.Nodes[r.Authority]
	t := &Token{
		Address: netip.AddrPortFrom(self.Address, self.Port), Authority: r.Authority,
		Pin: Fingerprint(a.now.cert.Raw), Expires: time.Now().Add(o.Lifetime).Truncate(time.Second),
	}
	rand.Read(t.ID[:]) // never fails
	rand.Read(t.Secret[:])
	tokens := filepath.Join(dir, tokenDir)
	if err := mkdirLike(tokens, dir); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrToken, err)
	}
	sweep(tokens, time.Now())
	hash := sha256.Sum256(t.Secret[:])
	b, err := json.Marshal(kept{hash[:], t.Expires, o.Uses, o.Replace})
	if err == nil {
		err = writeFile(t.file(dir), b, 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrToken, err)
	}
	return t, nil
}

func (t *Token) file(dir string) string {
	return filepath.Join(dir, tokenDir, hex.EncodeToString(t.ID[:])+".json")
}

// sweep removes tokens that have expired.
func sweep(dir string, now time.Time) {
	files, _ := filepath.Glob(filepath.Join(dir, "*.json"))
	for _, file := range files {
		var k kept
		if b, err := readFile(file); err == nil && json.Unmarshal(b, &k) == nil && now.After(k.Expires) {
			os.Remove(file)
		}
	}
}

// errTokenRefused does not tell which part was wrong.
var errTokenRefused = fmt.Errorf("%w: it is not known here, has been used, or has expired; make another with ds token", ErrToken)

// check finds what was kept of a token whose secret is right. It takes the same
// time whether or not there is such a token. Whoever calls holds the lock.
func (t *Token) check(dir string, now time.Time) (*kept, error) {
	k := kept{Hash: make([]byte, sha256.Size)}
	b, err := readFile(t.file(dir))
	if err == nil {
		err = json.Unmarshal(b, &k)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", ErrToken, err)
	}
	hash := sha256.Sum256(t.Secret[:])
	right := subtle.ConstantTimeCompare(hash[:], k.Hash) == 1
	if err != nil || !right || k.Uses < 1 || now.After(k.Expires) {
		return nil, errTokenRefused
	}
	return &k, nil
}

// use takes one use off a token.
func (t *Token) use(dir string, k *kept) error {
	if k.Uses <= 1 {
		return os.Remove(t.file(dir))
	}
	k.Uses--
	b, err := json.Marshal(k)
	if err != nil {
		return err
	}
	return writeFile(t.file(dir), b, 0o600)
}
