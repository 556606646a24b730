package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
)

// protocols are the forms of frames that are spoken here, the best first (ALPN).
// A release adds its own in front and keeps those of the release before.
var protocols = []string{"dsco/1"}

// A Service is another protocol on the port of a mesh.
type Service interface {
	// Accept returns the TLS configuration for a connection. Its only protocol is
	// that of the service.
	Accept() *tls.Config

	// Serve is a connection after its handshake. It is closed afterwards.
	Serve(ctx context.Context, conn *tls.Conn)
}

// VersionError is that two nodes have no protocol in common.
type VersionError struct {
	Here  []string // what this node speaks
	There string   // what is known of the other
}

func (e *VersionError) Error() string {
	there := e.There
	if there == "" {
		there = "none of it"
	}
	return fmt.Sprintf("peer: version: this node speaks %s, the other %s; the releases are too far apart: upgrade the older one, one release at a time",
		strings.Join(e.Here, ", "), there)
}

// server is a connection that has come, a mesh's or a service's. offered are the
// protocols that the other side has offered, after the handshake.
func (m *Mesh) server(c net.Conn) (conn *tls.Conn, offered func() []string) {
	var seen []string
	cfg := m.cfg.Identity.Server(protocols...)
	cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		seen = hello.SupportedProtos
		for name, s := range m.cfg.Services {
			if slices.Contains(seen, name) {
				return s.Accept(), nil
			}
		}
		return nil, nil
	}
	return tls.Server(&outbox{Conn: c}, cfg), func() []string { return seen }
}

// versions tells whether what a node has offered is why it is refused.
func (m *Mesh) versions(offered []string) error {
	known := func(p string) bool { return slices.Contains(protocols, p) || m.cfg.Services[p] != nil }
	if slices.ContainsFunc(offered, known) {
		return nil
	}
	return &VersionError{protocols, strings.Join(offered, ", ")}
}

// explain says of what TLS says of the other side what it means: an alert has
// no more than a number.
func explain(name string, err error) error {
	op, ok := errors.AsType[*net.OpError](err)
	if !ok || op.Op != "remote error" {
		return err
	}
	if name == "" {
		name = "the other node"
	}
	switch alert := op.Err.Error(); {
	case strings.Contains(alert, "application protocol"):
		return &VersionError{Here: protocols}
	case strings.Contains(alert, "certificate"):
		return fmt.Errorf("%s refuses the certificate of this node (%w); the log there says why: it may have expired, be of another cluster, or that node does not know this one yet", name, err)
	}
	return err
}
