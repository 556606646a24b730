package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"time"
)

// Accept is the TLS configuration for who has something to ask: members with
// their certificate, others without one. All authorities go along, so that the
// hash in a token finds its own.
func (a *Agent) Accept() *tls.Config {
	cfg := a.cfg.Keeper.server(tls.RequestClientCert, []string{Protocol})
	pair := cfg.Certificates[0]
	pair.Certificate = slices.Clone(pair.Certificate)
	for _, root := range a.cfg.Keeper.Credentials().roots {
		pair.Certificate = append(pair.Certificate, root.Raw)
	}
	cfg.Certificates[0] = pair
	return cfg
}

// Serve answers one request.
func (a *Agent) Serve(ctx context.Context, conn *tls.Conn) {
	defer context.AfterFunc(ctx, func() { conn.NetConn().Close() })()
	conn.SetDeadline(time.Now().Add(a.cfg.Timeout))
	name, most := "", maxStranger
	if certs := conn.ConnectionState().PeerCertificates; len(certs) > 0 && len(certs[0].DNSNames) > 0 {
		name, most = certs[0].DNSNames[0], maxMessage
	} else {
		select {
		case a.clients <- struct{}{}:
			defer func() { <-a.clients }()
		default:
			send(conn, &answer{Error: "too many want to join at once; try again"})
			return
		}
	}
	b, err := receive(conn, most)
	if err != nil {
		a.cfg.Logger.Debug("a request is not read", "from", conn.RemoteAddr(), "err", err)
		return
	}
	ans, err := a.answer(name, b)
	if err != nil {
		a.cfg.Logger.Warn("a request is refused", "from", conn.RemoteAddr(), "node", name, "err", err)
		ans = &answer{Error: err.Error()}
	}
	if err := send(conn, ans); err != nil {
		a.cfg.Logger.Warn("an answer is not sent", "to", conn.RemoteAddr(), "node", name, "err", err)
	}
	conn.Close()
}

// answer answers member name, or with "" a stranger.
func (a *Agent) answer(name string, b []byte) (*answer, error) {
	q, err := parseRequest(b)
	if err != nil {
		return nil, err
	}
	if q.Kind == kindJoin {
		return a.join(q)
	}
	r := a.Roster()
	if _, member := r.Nodes[name]; !member {
		if theirs, _, err := parseRoster(q.Roster); err == nil && theirs.Cluster == r.Cluster && theirs.Serial < r.Serial {
			return &answer{Roster: r.Encoded()}, nil // it may have been one: let it know
		}
		return nil, fmt.Errorf("identity: %s: for members only, and %q is none", q.Kind, name)
	}
	if q.Kind == kindRenew {
		chain, err := a.issue(name, q.CSR)
		return &answer{Chain: chain}, err
	}
	if err := a.learn(q.Roster); err != nil {
		return nil, err
	}
	if theirs, _, err := parseRoster(q.Roster); err == nil && theirs.Serial < r.Serial {
		return &answer{Roster: r.Encoded()}, nil
	}
	return &answer{}, nil
}

// join makes a stranger with a token a member.
func (a *Agent) join(q *request) (*answer, error) {
	if !a.joins.Allow() {
		return nil, errors.New("too many have tried to join; try again in a minute")
	}
	unlock, err := lock(a.cfg.Dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	t := Token{ID: [8]byte(q.ID), Secret: [16]byte(q.Secret)}
	k, err := t.check(a.cfg.Dir, a.cfg.Now())
	if err != nil {
		return nil, err
	}
	// Whoever has a token may know what follows.
	authority, err := openAuthority(a.cfg.Dir)
	if err != nil {
		return nil, err
	}
	r, err := ReadRoster(a.cfg.Dir)
	if err != nil {
		return nil, err
	}
	r = r.with()
	servers := a.cfg.Servers()
	m, err := admit(r, k, q.Name, *q.Member, servers)
	if err != nil {
		return nil, err
	}
	m.Issuer = Short(authority.now.cert.Raw)
	r.Nodes[q.Name] = m
	if err := r.seal(authority); err != nil {
		return nil, err
	}
	if err := r.check(); err != nil {
		return nil, err
	}
	if a.cfg.Admit != nil {
		if err := a.cfg.Admit(r); err != nil {
			return nil, err
		}
	}
	chain, err := authority.issue(q.Name, q.CSR)
	if err != nil {
		return nil, err
	}
	if err := t.use(a.cfg.Dir, k); err != nil {
		return nil, err
	}
	if err := r.write(a.cfg.Dir); err != nil {
		return nil, err
	}
	a.cfg.Logger.Info("a node has joined", "node", q.Name, "addr", m.Address)
	a.adopt(r)
	return &answer{Chain: chain, Roster: r.Encoded(), Servers: servers}, nil
}

// admit decides whether a node may join, and gives it the care-of addresses that
// it does not bring.
func admit(r *Roster, k *kept, name string, m Member, servers []Server) (Member, error) {
	if err := checkName(name); err != nil {
		return m, err
	}
	switch _, there := r.Nodes[name]; {
	case k.Replace != "" && k.Replace != name:
		return m, fmt.Errorf("the token is for node %s, and this one wants to be %s; name it so (--name %[1]s)", k.Replace, name)
	case k.Replace == "" && there:
		return m, fmt.Errorf("there is a node %s already; take another name (--name), or if it is to be that node again make a token with ds token --replace %[1]s", name)
	}
	if !usable(m.Address) {
		return m, fmt.Errorf("%s is not an address that other nodes reach; give another (--address)", m.Address)
	}
	wanted := m.CareOf
	m.CareOf = make(map[netip.Addr]netip.Addr)
	if a, ok := wanted[netip.IPv6Unspecified()]; ok {
		if len(servers) != 1 {
			return m, fmt.Errorf("there are %d distributed servers; say of which it is (--care-of SERVER=ADDRESS)", len(servers))
		}
		wanted = map[netip.Addr]netip.Addr{servers[0].Address.Addr(): a}
	}
	for _, s := range servers {
		dsa := s.Address.Addr()
		a, ok := wanted[dsa]
		if !ok {
			a = CareOf(m.Address, dsa, name)
		}
		if s.Address.Contains(a) || s.Address.Contains(m.Address) {
			return m, fmt.Errorf("%s and %s must not be in the home prefix %s: take addresses of the server network", m.Address, a, s.Address.Masked())
		}
		m.CareOf[dsa] = a
	}
	for dsa := range wanted {
		if _, ok := m.CareOf[dsa]; !ok {
			return m, fmt.Errorf("there is no distributed server %s (--care-of)", dsa)
		}
	}
	return m, nil
}

// JoinConfig is a machine that is to be a node. All but Dial and CareOf are
// required.
type JoinConfig struct {
	Token *Token

	// Dir is the directory for its identity. It is there, and nothing in it is
	// replaced unless by force.
	Dir   string
	Force bool

	// Name of the node, and its own address and port.
	Name    string
	Address netip.Addr
	Port    uint16

	// CareOf are care-of addresses by distributed server; :: is the only server.
	// Those that are not there are chosen by the authority.
	CareOf map[netip.Addr]netip.Addr

	Dial func(ctx context.Context, addr netip.AddrPort) (net.Conn, error)
}

// Joined is what a new member has been told.
type Joined struct {
	Roster  *Roster
	Servers []Server
}

// Join makes this machine a node: it makes a key, has the authority sign a
// certificate for it, and writes both to the directory.
func Join(ctx context.Context, cfg JoinConfig) (j *Joined, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("identity: join: %w", err)
		}
	}()
	t := cfg.Token
	if now := time.Now(); now.After(t.Expires) {
		return nil, fmt.Errorf("%w: it expired at %s, and here it is %s; make another with ds token on %s, or set the clock", ErrToken, stampOf(t.Expires), stampOf(now), t.Authority)
	}
	if err := checkName(cfg.Name); err != nil {
		return nil, err
	}
	if err := Vacant(cfg.Dir, cfg.Force); err != nil {
		return nil, err
	}
	// What fails should fail before the token is used.
	unlock, err := lock(cfg.Dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	key, csr, err := newRequest(cfg.Name)
	if err != nil {
		return nil, err
	}
	if cfg.Dial == nil {
		cfg.Dial = func(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", addr.String())
		}
	}
	ans, err := ask(ctx, cfg.Dial, t.Address, t.client(), &request{
		Kind: kindJoin, ID: t.ID[:], Secret: t.Secret[:], Name: cfg.Name, CSR: csr,
		Member: &Member{Address: cfg.Address, Port: cfg.Port, CareOf: cfg.CareOf},
	})
	if err != nil {
		return nil, fmt.Errorf("node %s, %s: %w", t.Authority, t.Address, err)
	}
	r, _, err := parseRoster(ans.Roster)
	if err != nil {
		return nil, err
	}
	b, err := encodePair(key, ans.Chain...)
	if err != nil {
		return nil, err
	}
	// The answer is the authority's, whose hash was in the token.
	pair, err := tls.X509KeyPair(b, b)
	if err == nil {
		err = ofNode(pair.Leaf, cfg.Name)
	}
	if _, member := r.Nodes[cfg.Name]; err == nil && !member {
		err = fmt.Errorf("%w: this node is not in it", ErrRoster)
	}
	if err == nil {
		err = writeFile(filepath.Join(cfg.Dir, NodeFile), b, 0o600)
	}
	if err == nil {
		err = r.write(cfg.Dir)
	}
	if err != nil {
		return nil, err
	}
	return &Joined{r, ans.Servers}, nil
}

// client is the TLS configuration of who has a token: the other end must have a
// certificate of the authority whose hash is in it, as the node that is named.
func (t *Token) client() *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		ServerName:         t.Authority,
		NextProtos:         []string{Protocol},
		InsecureSkipVerify: true, // verified by the hash
		VerifyConnection: func(s tls.ConnectionState) error {
			for _, c := range s.PeerCertificates {
				if Fingerprint(c.Raw) == t.Pin {
					believed := &Credentials{Authorities: pool([]*x509.Certificate{c}), roots: []*x509.Certificate{c}}
					return believed.Verify(s.PeerCertificates, t.Authority, x509.ExtKeyUsageServerAuth, time.Now())
				}
			}
			return &VerifyError{ErrStranger, "its authority is not the one that the token is of",
				"is it the node that made the token? Make another with ds token, and copy it by a way that nobody can change"}
		},
	}
}

// ask sends a request and waits for the answer.
func ask(ctx context.Context, dial func(context.Context, netip.AddrPort) (net.Conn, error), addr netip.AddrPort, cfg *tls.Config, q *request) (*answer, error) {
	c, err := dial(ctx, addr)
	if err != nil {
		return nil, fmt.Errorf("%w; is dsco running there, and does a firewall let TCP port %d pass?", err, addr.Port())
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	conn := tls.Client(c, cfg)
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, explain(err)
	}
	if conn.ConnectionState().NegotiatedProtocol != Protocol {
		return nil, errors.New("it does not speak " + Protocol + ": what answers there is no dsco, or of an older release")
	}
	if err := send(conn, q); err != nil {
		return nil, err
	}
	b, err := receive(conn, maxMessage)
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, explain(err)
	}
	ans := new(answer)
	if err := json.Unmarshal(b, ans); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMessage, err)
	}
	if ans.Error != "" {
		return nil, errors.New(ans.Error)
	}
	return ans, nil
}

// explain says what an alert of the other side means.
func explain(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" {
		switch op.Err.Error() {
		case "tls: no application protocol":
			return fmt.Errorf("%w: it does not know %s: its release is older, or its configuration has no cluster", err, Protocol)
		case "tls: bad certificate":
			return fmt.Errorf("%w: it refuses the certificate of this node; the log there says why", err)
		}
	}
	return err
}
