package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Causes of a [VerifyError].
var (
	ErrNoCertificate = errors.New("it has no certificate")
	ErrStranger      = errors.New("it is no node of this cluster")
	ErrExpired       = errors.New("its certificate has expired")
	ErrNotYet        = errors.New("its certificate is not valid yet")
	ErrName          = errors.New("it is another node")
	ErrUse           = errors.New("its certificate is not for this")
)

// VerifyError is why the other end of a connection is not believed.
type VerifyError struct {
	Cause  error  // one of the above
	Detail string // what was seen
	Cure   string
}

func (e *VerifyError) Error() string {
	s := e.Cause.Error()
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	return s + "; " + e.Cure
}

func (e *VerifyError) Unwrap() error { return e.Cause }

// Verify tells whether the other end of a connection is node name, or with ""
// which of the nodes: its certificate is signed by an authority that is believed,
// valid at the time now, for use.
func (c *Credentials) Verify(chain []*x509.Certificate, name string, use x509.ExtKeyUsage, now time.Time) error {
	if len(chain) == 0 {
		return &VerifyError{ErrNoCertificate, "", "is it dsco that speaks there?"}
	}
	leaf := chain[0]
	names := strings.Join(leaf.DNSNames, ", ")
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: c.Authorities, Intermediates: pool(chain[1:]), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{use},
	})
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		switch {
		case invalid.Reason == x509.Expired && now.Before(leaf.NotBefore):
			return &VerifyError{ErrNotYet, fmt.Sprintf("that of %s begins at %s, and here it is %s", names, stampOf(leaf.NotBefore), stampOf(now)),
				"set the clocks of both machines"}
		case invalid.Reason == x509.Expired && now.After(leaf.NotAfter):
			return &VerifyError{ErrExpired, fmt.Sprintf("that of %s ended at %s, and here it is %s", names, stampOf(leaf.NotAfter), stampOf(now)),
				fmt.Sprintf("make a token for it (ds token --replace %s) and have it join again (ds join --force), or set the clocks", names)}
		case invalid.Reason == x509.IncompatibleUsage:
			return &VerifyError{ErrUse, fmt.Sprintf("that of %s is not for both server and client", names), "make one that is, or join again (ds join)"}
		}
	}
	if err != nil {
		return &VerifyError{ErrStranger, fmt.Sprintf("certificate of %q, signed by %q, not by %s: %v", names, leaf.Issuer.CommonName, c.authorities(), err),
			"is it a node of another cluster? To make it one of this, run ds token at the authority and ds join there"}
	}
	if name != "" && ofNode(leaf, name) != nil {
		return &VerifyError{ErrName, fmt.Sprintf("the certificate is of %q, not of %s", names, name),
			fmt.Sprintf("correct the address of %s, here or on its host", name)}
	}
	return nil
}

// stampOf is a time as people read it.
func stampOf(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// authorities are the names of those that are believed.
func (c *Credentials) authorities() string {
	names := make([]string, len(c.roots))
	for i, r := range c.roots {
		names[i] = fmt.Sprintf("%q", r.Subject.CommonName)
	}
	return strings.Join(names, " or ")
}

// Client is a TLS configuration for a connection to node name. What is read anew
// later is for later connections.
func (k *Keeper) Client(name string, protocols ...string) *tls.Config {
	c := k.Credentials()
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{*c.Certificate},
		ServerName:   name,
		NextProtos:   protocols,
		// Verified below, with errors that tell what to do.
		InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			return c.Verify(s.PeerCertificates, name, x509.ExtKeyUsageServerAuth, time.Now())
		},
	}
}

// Server is a TLS configuration for connections of nodes. Each has the
// credentials of the moment that it begins.
func (k *Keeper) Server(protocols ...string) *tls.Config {
	return k.server(tls.RequireAnyClientCert, protocols)
}

func (k *Keeper) server(auth tls.ClientAuthType, protocols []string) *tls.Config {
	c := k.Credentials()
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{*c.Certificate},
		ClientAuth:   auth,
		NextProtos:   protocols,
		// A ticket would let a node resume whose certificate has ended.
		SessionTicketsDisabled: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 0 && auth == tls.RequestClientCert {
				return nil
			}
			return c.Verify(s.PeerCertificates, "", x509.ExtKeyUsageClientAuth, time.Now())
		},
	}
}
