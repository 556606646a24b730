package server

import (
	"context"
	"net/netip"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/internal/peercred"
)

// Cred is who calls.
type Cred = peercred.Cred

// Backend is a daemon, as the API sees it. Its methods are called at the same
// time, and answer until the context ends: the caller has gone, or the server
// closes. Errors should be of type [*api.Error]; others are answered with status
// 500. A role that lacks calls embeds [Unsupported].
type Backend interface {
	// Status need not fill in Version, API, PID and LastEvent: the server does.
	Status(ctx context.Context) (*api.Status, error)
	Servers(ctx context.Context) ([]api.Server, error)
	Nodes(ctx context.Context, dsa netip.Addr) ([]api.NodeInfo, error)
	LocalNode(ctx context.Context, dsa netip.Addr) (*api.NodeInfo, error)

	// Clients are in the order of their addresses.
	Clients(ctx context.Context, dsa netip.Addr) ([]api.ClientInfo, error)
	// Client need not fill in History: the server does, from its events.
	Client(ctx context.Context, dsa, client netip.Addr) (*api.ClientInfo, error)
	Sequence(ctx context.Context, dsa, client netip.Addr) (*api.Sequence, error)
	Optimise(ctx context.Context, dsa, client netip.Addr) error
	DeleteBinding(ctx context.Context, dsa, client netip.Addr) error
	Handoff(ctx context.Context, dsa, client netip.Addr, to string) (*api.Handoff, error)

	// Drain and Move tell how far they are until they are done or the context
	// ends. An error before anything was told is answered; later ones end the
	// stream. If tell fails, nobody listens any more.
	Drain(ctx context.Context, dsa netip.Addr, node string, r api.MoveRequest, tell func(api.MoveProgress) error) error
	Move(ctx context.Context, dsa netip.Addr, node string, r api.MoveRequest, tell func(api.MoveProgress) error) error
	Undrain(ctx context.Context, dsa netip.Addr, node string) error

	SetContact(ctx context.Context, dsa netip.Addr, node string) (*api.Contact, error)
	TakeOver(ctx context.Context, dsa netip.Addr, force bool) (*api.Contact, error)

	// Admit decides whether a process may attach; its error is what the
	// process is answered.
	Admit(ctx context.Context, dsa netip.Addr, who Cred) error
	// Attach has the session until it returns; then it is closed. ctx ends
	// when the server closes. The first message is still to be received. An
	// error before anything was sent is sent, in a Welcome.
	Attach(ctx context.Context, dsa netip.Addr, who Cred, s *api.Session) error
}

// Unsupported is the backend of a role that has none of the calls: each fails
// with [api.ErrUnsupported]. Embed it and write those that the role has.
type Unsupported struct {
	Role api.Role
}

var _ Backend = Unsupported{}

func (u Unsupported) err() error {
	return api.Errorf(api.ErrUnsupported, "ask a node's daemon, at "+api.NodeSocket, "this daemon is a %s, which has no such call", u.Role)
}

func (u Unsupported) Status(context.Context) (*api.Status, error)   { return nil, u.err() }
func (u Unsupported) Servers(context.Context) ([]api.Server, error) { return nil, u.err() }

func (u Unsupported) Nodes(context.Context, netip.Addr) ([]api.NodeInfo, error) { return nil, u.err() }

func (u Unsupported) LocalNode(context.Context, netip.Addr) (*api.NodeInfo, error) {
	return nil, u.err()
}

func (u Unsupported) Clients(context.Context, netip.Addr) ([]api.ClientInfo, error) {
	return nil, u.err()
}

func (u Unsupported) Client(context.Context, netip.Addr, netip.Addr) (*api.ClientInfo, error) {
	return nil, u.err()
}

func (u Unsupported) Sequence(context.Context, netip.Addr, netip.Addr) (*api.Sequence, error) {
	return nil, u.err()
}

func (u Unsupported) Optimise(context.Context, netip.Addr, netip.Addr) error { return u.err() }

func (u Unsupported) DeleteBinding(context.Context, netip.Addr, netip.Addr) error { return u.err() }

func (u Unsupported) Handoff(context.Context, netip.Addr, netip.Addr, string) (*api.Handoff, error) {
	return nil, u.err()
}

func (u Unsupported) Drain(context.Context, netip.Addr, string, api.MoveRequest, func(api.MoveProgress) error) error {
	return u.err()
}

func (u Unsupported) Move(context.Context, netip.Addr, string, api.MoveRequest, func(api.MoveProgress) error) error {
	return u.err()
}

func (u Unsupported) Undrain(context.Context, netip.Addr, string) error { return u.err() }

func (u Unsupported) SetContact(context.Context, netip.Addr, string) (*api.Contact, error) {
	return nil, u.err()
}

func (u Unsupported) TakeOver(context.Context, netip.Addr, bool) (*api.Contact, error) {
	return nil, u.err()
}

func (u Unsupported) Admit(context.Context, netip.Addr, Cred) error { return u.err() }

func (u Unsupported) Attach(context.Context, netip.Addr, Cred, *api.Session) error { return u.err() }
