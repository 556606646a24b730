// Package api is what a daemon, dsco, tells and takes: the types of its API, a
// [Client] for it, and the [Session] of an application that is attached.
//
// # Theory of operation
//
// The API is HTTP over a UNIX socket, in JSON, below /v1; docs/api.md has every
// call. Who may do what is decided by the credentials of the process at the
// other end: any local user may read, root and the members of one group may
// change things, and who may attach to a distributed server is in the daemon's
// configuration.
//
//	c := &api.Client{} // of the node's daemon
//	clients, err := c.Clients(ctx, dsa)
//	if errors.Is(err, api.ErrNotFound) { … }
//	for e, err := range c.Watch(ctx, api.WatchOptions{Since: api.FromNow}) { … }
//
// An application attaches once: [Attach] makes an HTTP connection a session,
// with which it gets its TUN's descriptors and takes part in handoffs. Who has the
// last word about a client that is offered is decided in [Decisions].
//
// The package is a leaf. It imports nothing of the daemon, so a program that
// talks to one does not link it.
package api

// Version is that of the API, in its paths. Within a version, fields and calls
// are added and nothing else changes; readers skip fields that they do not
// know.
const Version = 1

// Sockets of the daemons, unless configured otherwise.
const (
	NodeSocket          = "/run/dsco/dsco.sock"
	HomeAgentSocket     = "/run/dsco/home-agent.sock"
	CorrespondentSocket = "/run/dsco/correspondent.sock"
)
