package identity

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
)

// Roster is the list of members, with what all of them must agree about.
type Roster struct {
	// Cluster names the cluster: 16 hexadecimal digits, drawn by ds init.
	Cluster string `json:"cluster"`

	// Serial grows with every change.
	Serial uint64 `json:"serial"`

	// Authority is the node that has the authority.
	Authority string `json:"authority"`

	// Authorities are the certificates (DER) that are believed. The first signs.
	Authorities [][]byte `json:"authorities"`

	// Nodes are the members by name.
	Nodes map[string]Member `json:"nodes"`

	raw []byte // as it was signed
}

// Member is a node of the cluster.
type Member struct {
	// Address is the daemon's, Port where daemons accept each other's
	// connections.
	Address netip.Addr `json:"address"`
	Port    uint16     `json:"port"`

	// CareOf are its care-of addresses, by distributed server.
	CareOf map[netip.Addr]netip.Addr `json:"care_of"`

	// Issuer tells which authority has signed its certificate last.
	Issuer string `json:"issuer,omitempty"`
}

// Limits of a list.
const (
	maxRoster      = 1 << 20 // octets
	maxNodes       = 4096
	maxServers     = 256 // of a node
	maxAuthorities = 4
	maxNameLen     = 253
)

// rosterPrefix is in front of what is signed, so that nothing else that an
// authority signs can be taken for a list.
const rosterPrefix = "distributed servers: members, 1\n"

// ErrRoster is returned for what is not a list of members.
var ErrRoster = errors.New("identity: not a list of members")

// Encoded is the list as it was signed: a JSON object, and after the last line
// break the signatures, in base64, with commas between.
func (r *Roster) Encoded() []byte { return r.raw }

// seal signs a list.
func (r *Roster) seal(a *Authority) error {
	r.Authorities = a.certs()
	body, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	signatures, err := a.sign(body)
	if err != nil {
		return err
	}
	raw := append(body, '\n')
	for i, s := range signatures {
		if i > 0 {
			raw = append(raw, ',')
		}
		raw = base64.StdEncoding.AppendEncode(raw, s)
	}
	if len(raw) > maxRoster || len(r.Nodes) > maxNodes {
		return fmt.Errorf("identity: %d members, %d octets: too many for a list", len(r.Nodes), len(raw))
	}
	r.raw = raw
	return nil
}

// parseRoster reads a list, whoever has signed it.
func parseRoster(raw []byte) (r *Roster, signatures [][]byte, err error) {
	raw = bytes.TrimRight(raw, "\n")
	if len(raw) > maxRoster {
		return nil, nil, fmt.Errorf("%w: more than %d octets", ErrRoster, maxRoster)
	}
	i := bytes.LastIndexByte(raw, '\n')
	if i < 0 {
		return nil, nil, fmt.Errorf("%w: no signature", ErrRoster)
	}
	body := raw[:i]
	for s := range bytes.SplitSeq(raw[i+1:], []byte(",")) {
		sig, err := base64.StdEncoding.Strict().DecodeString(string(s))
		if err != nil || len(signatures) == maxAuthorities {
			return nil, nil, fmt.Errorf("%w: its last line is not of signatures", ErrRoster)
		}
		signatures = append(signatures, sig)
	}
	r = new(Roster)
	if err := json.Unmarshal(body, r); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrRoster, err)
	}
	if err := r.check(); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrRoster, err)
	}
	r.raw = raw
	return r, signatures, nil
}

// ParseRoster reads a list that one of the authorities has signed.
func ParseRoster(raw []byte, authorities []*x509.Certificate) (*Roster, error) {
	r, signatures, err := parseRoster(raw)
	if err != nil {
		return nil, err
	}
	body := append([]byte(rosterPrefix), r.raw[:bytes.LastIndexByte(r.raw, '\n')]...)
	for _, a := range authorities {
		for _, s := range signatures {
			if a.CheckSignature(x509.ECDSAWithSHA256, body, s) == nil {
				return r, nil
			}
		}
	}
	return nil, fmt.Errorf("identity: list of members %d of cluster %s: no authority that this node believes has signed it", r.Serial, r.Cluster)
}

// check finds what makes no sense.
func (r *Roster) check() error {
	switch {
	case r.Cluster == "" || len(r.Cluster) > 64:
		return errors.New("no name of a cluster")
	case len(r.Nodes) == 0 || len(r.Nodes) > maxNodes:
		return fmt.Errorf("%d nodes", len(r.Nodes))
	case len(r.Authorities) == 0 || len(r.Authorities) > maxAuthorities:
		return fmt.Errorf("%d authorities", len(r.Authorities))
	}
	if _, ok := r.Nodes[r.Authority]; !ok {
		return fmt.Errorf("the authority is at %q, which is no member", r.Authority)
	}
	seen := make(map[netip.Addr]string)
	for name, m := range r.Nodes {
		if err := m.check(name); err != nil {
			return err
		}
		for _, a := range m.addrs() {
			if other, ok := seen[a]; ok {
				return fmt.Errorf("%s is an address of %s and of %s", a, other, name)
			}
			seen[a] = name
		}
	}
	_, err := r.Certificates()
	return err
}

// check tells what is wrong with a member.
func (m *Member) check(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	if m.Port == 0 || len(m.CareOf) > maxServers {
		return fmt.Errorf("node %s: port %d, %d servers", name, m.Port, len(m.CareOf))
	}
	for _, a := range m.addrs() {
		if !usable(a) {
			return fmt.Errorf("node %s: %s is not an address that others reach: take a global or unique local one of IPv6", name, a)
		}
	}
	for server := range m.CareOf {
		if !usable(server) {
			return fmt.Errorf("node %s: %s is not a distributed server's address", name, server)
		}
	}
	return nil
}

// addrs are all of a member's.
func (m *Member) addrs() []netip.Addr {
	all := []netip.Addr{m.Address}
	for _, a := range m.CareOf {
		all = append(all, a)
	}
	return all
}

func usable(a netip.Addr) bool {
	return a.Is6() && !a.Is4In6() && a.Zone() == "" && a.IsGlobalUnicast()
}

// checkName wants a name that a certificate can have.
func checkName(name string) error {
	label := 0
	for i, c := range []byte(name) {
		switch {
		case c == '.' && label > 0:
			label = 0
			continue
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_', c == '-' && label > 0:
			label++
		default:
			return fmt.Errorf("%.80q is not a name that a certificate can have: use letters, digits, hyphens and dots", name)
		}
		if label > 63 || i >= maxNameLen {
			return fmt.Errorf("%.80q is too long for a name in a certificate", name)
		}
	}
	if label == 0 {
		return fmt.Errorf("%.80q is not a name that a certificate can have: use letters, digits, hyphens and dots", name)
	}
	return nil
}

// Certificates are those of Authorities.
func (r *Roster) Certificates() (certs []*x509.Certificate, err error) {
	for _, der := range r.Authorities {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("authority: %w", err)
		}
		if !c.IsCA {
			return nil, errors.New("authority: its certificate is of none")
		}
		certs = append(certs, c)
	}
	return certs, nil
}

// with is a copy that can be changed, one number later.
func (r *Roster) with() *Roster {
	c := *r
	c.Serial++
	c.raw = nil
	c.Nodes = make(map[string]Member, len(r.Nodes)+1)
	for name, m := range r.Nodes {
		c.Nodes[name] = m
	}
	return &c
}

// names are the members in order.
func (r *Roster) names() []string {
	var names []string
	for name := range r.Nodes {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// ReadRoster reads the list of a directory, which ca.pem beside it vouches for.
func ReadRoster(dir string) (*Roster, error) {
	ca, err := readFile(filepath.Join(dir, CAFile))
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	roots, err := decodeCerts(ca)
	if err != nil {
		return nil, fmt.Errorf("identity: %s: %w", filepath.Join(dir, CAFile), err)
	}
	raw, err := readFile(filepath.Join(dir, RosterFile))
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	return ParseRoster(raw, roots)
}

// write puts a list and its authorities into a directory. The authorities come
// first while they grow, for the list needs one that is believed.
func (r *Roster) write(dir string) error {
	if err := writeFile(filepath.Join(dir, CAFile), encodeCerts(r.Authorities...), 0o644); err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, RosterFile), r.raw, 0o644)
}
