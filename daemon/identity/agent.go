package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Config is the part of a node in the identity of its cluster. Dir, Name, Keeper
// and Logger are required.
type Config struct {
	// Dir is the directory of the cluster.
	Dir string

	// Name of this node.
	Name string

	Keeper *Keeper
	Logger *slog.Logger

	// Servers are what a new node is told of. At the authority.
	Servers func() []Server

	// Admit may refuse a list with a new member. At the authority.
	Admit func(*Roster) error

	// Adopted is told that there is another list. Calls come one after another.
	Adopted func(*Roster)

	// Fault is told what an operator should know.
	Fault func(error)

	// Dial connects to an address. Default: from any address of this host.
	Dial func(ctx context.Context, addr netip.AddrPort) (net.Conn, error)

	// Interval is how often it is looked whether a certificate is to be renewed,
	// or a command has changed the directory. Default 5 s.
	Interval time.Duration

	// Timeout is for an exchange with another node. Default 10 s.
	Timeout time.Duration

	// Now is the time that certificates are renewed by. Default [time.Now].
	Now func() time.Time
}

// Agent is the part of a node in the identity of its cluster: it renews the node's
// certificate, passes the list of members on, and at the authority answers who
// wants to join. It is a service of the port on which daemons hear each other.
type Agent struct {
	cfg     Config
	joins   *rate.Limiter
	clients chan struct{} // a place for each stranger that is answered
	wake    chan struct{}

	mu     sync.Mutex // of what follows, and the order of Adopted
	roster *Roster
	spoken uint64 // serial of the list that others have been told
	failed string // what was told last
	gone   bool   // it was told that this node has been removed
}

// Limits for strangers: joins a second, in a row, and at the same time.
const (
	joinRate       = 1
	joinBurst      = 10
	joinConcurrent = 8
)

// NewAgent reads the list of members.
func NewAgent(cfg Config) (*Agent, error) {
	if cfg.Interval == 0 {
		cfg.Interval = 5 * time.Second
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 10 * time.Second
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Dial == nil {
		cfg.Dial = func(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", addr.String())
		}
	}
	r, err := ReadRoster(cfg.Dir)
	if err != nil {
		return nil, err
	}
	if _, member := r.Nodes[cfg.Name]; !member {
		return nil, fmt.Errorf("identity: %s: this node, %s, is not a member; have it join (ds join)", filepath.Join(cfg.Dir, RosterFile), cfg.Name)
	}
	return &Agent{
		cfg: cfg, roster: r, joins: rate.NewLimiter(joinRate, joinBurst),
		clients: make(chan struct{}, joinConcurrent), wake: make(chan struct{}, 1),
	}, nil
}

// Roster is the list of members.
func (a *Agent) Roster() *Roster {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.roster
}

// Wake has the agent look at once whether something has changed.
func (a *Agent) Wake() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// Run renews the certificate when it is time, and takes over what commands have
// changed in the directory, until the context ends.
func (a *Agent) Run(ctx context.Context) {
	tick := time.NewTicker(a.cfg.Interval)
	defer tick.Stop()
	for {
		a.look(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-a.wake:
		}
	}
}

// look does what Run does, once.
func (a *Agent) look(ctx context.Context) {
	err := a.mend()
	if e := a.reread(); e != nil {
		err = errors.Join(err, e)
	}
	if e := a.renew(ctx); e != nil && ctx.Err() == nil {
		err = errors.Join(err, e)
	}
	a.spread(ctx)
	told := fmt.Sprint(err)
	a.mu.Lock()
	news := told != a.failed
	a.failed = told
	a.mu.Unlock()
	if err != nil && news {
		a.cfg.Logger.Error("the identity of this node", "err", err)
		if a.cfg.Fault != nil {
			a.cfg.Fault(err)
		}
	}
}

// mend ends a rotation that was interrupted: the list has what the authority has.
func (a *Agent) mend() error {
	if !HasAuthority(a.cfg.Dir) {
		return nil
	}
	unlock, err := lock(a.cfg.Dir)
	if err != nil {
		return err
	}
	defer unlock()
	authority, err := openAuthority(a.cfg.Dir)
	if err != nil {
		return err
	}
	r, err := ReadRoster(a.cfg.Dir)
	if err != nil {
		return err
	}
	if equalAll(r.Authorities, authority.certs()) {
		return nil
	}
	r = r.with()
	if err := r.seal(authority); err != nil {
		return err
	}
	return r.write(a.cfg.Dir)
}

// reread takes over a list that a command has written.
func (a *Agent) reread() error {
	r, err := ReadRoster(a.cfg.Dir)
	if err != nil {
		return err
	}
	if r.Serial > a.Roster().Serial {
		a.adopt(r)
	}
	return nil
}

// adopt makes a list that is in the directory the one that counts.
func (a *Agent) adopt(r *Roster) {
	a.cfg.Keeper.Reload() // a failure is told by Keeper.Changed
	a.mu.Lock()
	defer a.mu.Unlock()
	if r.Serial <= a.roster.Serial {
		return
	}
	a.roster = r
	a.cfg.Logger.Info("the list of members has changed", "serial", r.Serial, "nodes", r.names(), "authorities", len(r.Authorities))
	if a.cfg.Adopted != nil {
		a.cfg.Adopted(r)
	}
	a.Wake() // others are to be told, and perhaps there is another authority
}

// learn takes a list from another member, if it is later than this node's.
func (a *Agent) learn(raw []byte) error {
	r, err := ParseRoster(raw, a.cfg.Keeper.Credentials().roots)
	if err != nil {
		return err
	}
	unlock, err := lock(a.cfg.Dir)
	if err != nil {
		return err
	}
	defer unlock()
	have, err := ReadRoster(a.cfg.Dir)
	if err != nil {
		return err
	}
	switch _, member := r.Nodes[a.cfg.Name]; {
	case r.Cluster != have.Cluster:
		return fmt.Errorf("identity: list of members of cluster %s, and this node is of %s", r.Cluster, have.Cluster)
	case r.Serial <= have.Serial:
		return nil
	case !member:
		return fmt.Errorf("%w: list of members %d is without %s; if it is to be one again, run ds token at the authority, %s, and ds join --force here", ErrRemoved, r.Serial, a.cfg.Name, r.Authority)
	}
	if err := r.write(a.cfg.Dir); err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	a.adopt(r)
	return nil
}

// spread tells all members of a list that they have not been told of.
func (a *Agent) spread(ctx context.Context) {
	a.mu.Lock()
	r := a.roster
	news := a.spoken < r.Serial
	a.spoken = r.Serial
	a.mu.Unlock()
	if !news {
		return
	}
	var all sync.WaitGroup
	for _, name := range r.names() {
		if name != a.cfg.Name {
			all.Go(func() { a.Exchange(ctx, name) })
		}
	}
	all.Wait()
}

// Exchange makes this node and another know the later of their lists. A node that
// cannot be reached now is told when a connection to it begins.
func (a *Agent) Exchange(ctx context.Context, name string) error {
	ans, err := a.ask(ctx, name, &request{Kind: kindMembers, Roster: a.Roster().Encoded()})
	if err == nil && len(ans.Roster) > 0 {
		err = a.learn(ans.Roster)
	}
	if err != nil {
		a.cfg.Logger.Debug("lists of members are not exchanged", "node", name, "err", err)
	}
	if errors.Is(err, ErrRemoved) {
		a.mu.Lock()
		told := a.gone
		a.gone = true
		a.mu.Unlock()
		if !told {
			a.cfg.Logger.Error("this node has been removed", "node", name, "err", err)
			if a.cfg.Fault != nil {
				a.cfg.Fault(err)
			}
		}
	}
	return err
}

// ask asks another member.
func (a *Agent) ask(ctx context.Context, name string, q *request) (*answer, error) {
	m, ok := a.Roster().Nodes[name]
	if !ok {
		return nil, fmt.Errorf("identity: there is no node %q", name)
	}
	ctx, cancel := context.WithTimeout(ctx, a.cfg.Timeout)
	defer cancel()
	return ask(ctx, a.cfg.Dial, netip.AddrPortFrom(m.Address, m.Port), a.cfg.Keeper.Client(name, Protocol), q)
}

// due tells whether a certificate is to be renewed: two thirds of its life are
// over, or it is not of the authority that signs now.
func due(leaf, signer *x509.Certificate, now time.Time) bool {
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	return now.After(leaf.NotBefore.Add(life*2/3)) || leaf.CheckSignatureFrom(signer) != nil
}

// renew gets a new certificate for a new key, if it is time.
func (a *Agent) renew(ctx context.Context) error {
	r := a.Roster()
	certs, err := r.Certificates()
	if err != nil {
		return err
	}
	leaf := a.cfg.Keeper.Credentials().Certificate.Leaf
	if !due(leaf, certs[0], a.cfg.Now()) {
		return nil
	}
	key, csr, err := newRequest(a.cfg.Name)
	if err != nil {
		return err
	}
	var chain [][]byte
	if r.Authority == a.cfg.Name {
		chain, err = a.issue(a.cfg.Name, csr)
	} else {
		var ans *answer
		if ans, err = a.ask(ctx, r.Authority, &request{Kind: kindRenew, CSR: csr}); err == nil {
			chain = ans.Chain
		}
	}
	if err != nil {
		return fmt.Errorf("identity: the certificate of this node, good until %s, is not renewed: %w; it is tried again every %v; is dsco running on %s, where the authority is?",
			stampOf(leaf.NotAfter), err, a.cfg.Interval, r.Authority)
	}
	b, err := encodePair(key, chain...)
	if err != nil {
		return err
	}
	// What is not usable must not replace what is.
	pair, err := tls.X509KeyPair(b, b)
	if err == nil {
		err = ofNode(pair.Leaf, a.cfg.Name)
	}
	if err == nil {
		err = writeFile(filepath.Join(a.cfg.Dir, NodeFile), b, 0o600)
	}
	if err != nil {
		return fmt.Errorf("identity: the certificate that %s has sent: %w", r.Authority, err)
	}
	a.cfg.Logger.Info("this node has a new certificate", "until", stampOf(pair.Leaf.NotAfter), "issuer", pair.Leaf.Issuer.CommonName)
	return a.cfg.Keeper.Reload()
}

// issue signs a certificate for a member, and notes by which authority.
func (a *Agent) issue(name string, csr []byte) (chain [][]byte, err error) {
	unlock, err := lock(a.cfg.Dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	authority, err := openAuthority(a.cfg.Dir)
	if err != nil {
		return nil, err
	}
	r, err := ReadRoster(a.cfg.Dir)
	if err != nil {
		return nil, err
	}
	m, ok := r.Nodes[name]
	if !ok {
		return nil, fmt.Errorf("node %s is not a member", name)
	}
	if chain, err = authority.issue(name, csr); err != nil {
		return nil, err
	}
	if issuer := Short(authority.now.cert.Raw); m.Issuer != issuer {
		m.Issuer = issuer
		r = r.with()
		r.Nodes[name] = m
		if err := errors.Join(r.seal(authority), r.write(a.cfg.Dir)); err != nil {
			return nil, err
		}
		a.adopt(r)
	}
	return chain, nil
}

func equalAll(a, b [][]byte) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if string(a[i]) != string(b[i]) {
			return false
		}
	}
	return true
}

// ErrRemoved is what a node hears that has been removed.
var ErrRemoved = errors.New("identity: this node is not a member of the cluster any more, and the others refuse it")

// Left tells whether a directory has an identity.
func Left(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, RosterFile))
	return !errors.Is(err, fs.ErrNotExist)
}
