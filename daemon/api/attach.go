package api

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
)

// sessionProtocols are the versions of a session that this release speaks, the best
// first. A release that changes what older ones must understand adds one in front,
// and keeps those of the release before.
//
//	dsco-session/1  with Commit; never released
//	dsco-session/2  with Accepted, without Decisions; never released
//	dsco-session/3
var sessionProtocols = []string{"dsco-session/3"}

// SessionProtocols are what an attach call has in its Upgrade header (RFC 9110
// section 7.8): versions of a session, the best first.
func SessionProtocols() string { return strings.Join(sessionProtocols, ", ") }

// AgreeSession picks from an Upgrade header what both ends speak; ok is false if
// there is nothing.
func AgreeSession(offered string) (protocol string, ok bool) {
	for o := range strings.SplitSeq(offered, ",") {
		for _, p := range sessionProtocols {
			if strings.EqualFold(strings.TrimSpace(o), p) {
				return p, true
			}
		}
	}
	return "", false
}

func agrees(offered string) bool {
	_, ok := AgreeSession(offered)
	return ok
}

// Attached is what [Attach] has got: a session, the daemon's Welcome, and what has come
// with it. The caller closes all of it.
type Attached struct {
	Session   *Session
	Welcome   *Message
	TUN       []*os.File // its descriptors, one for each queue; none if the Hello has HasTUN
	Decisions *Decisions
}

// Close closes everything, the session first.
func (a *Attached) Close() {
	a.Session.Close()
	for _, f := range a.TUN {
		f.Close()
	}
	a.Decisions.Close()
}

// Attach attaches this process to the distributed server dsa at the daemon
// behind socket (empty: [NodeSocket]). hello is the first message of the
// session. A refusal is of type [*Error].
//
// The context bounds the call, not the session.
func Attach(ctx context.Context, socket string, dsa netip.Addr, hello *Message) (*Attached, error) {
	if socket == "" {
		socket = NodeSocket
	}
	conn, err := dial(ctx, socket)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	fail := func(err error) (*Attached, error) {
		stop()
		conn.Close()
		if cause := ctx.Err(); cause != nil {
			err = fmt.Errorf("api: attach to %s: %w", dsa, cause)
		}
		return nil, err
	}
	r, err := upgrade(conn, dsa)
	if err != nil {
		return fail(err)
	}
	s := newSession(conn, r, application)
	if err := s.Send(hello); err != nil {
		return fail(err)
	}
	welcome, err := s.Receive()
	switch {
	case err != nil:
		err = fmt.Errorf("api: attach to %s: %w", dsa, err)
	case welcome.Kind != Welcome:
		err = fmt.Errorf("api: attach to %s: %w: %s in place of a welcome", dsa, ErrMessage, welcome.Kind)
	case welcome.Error != "":
		err = Errorf(ErrConflict, "", "%s", welcome.Error)
	}
	if err != nil {
		s.Close()
		return fail(err)
	}
	a := &Attached{Session: s, Welcome: welcome, TUN: s.in.take()}
	queues := welcome.Config.Queues
	if hello.HasTUN {
		queues = 0
	}
	if n := len(a.TUN); n != queues+1 {
		err = fmt.Errorf("%d descriptors, not %d of the interface and one of decisions; raise the limit of open files (ulimit -n)", n, queues)
	} else {
		words := a.TUN[queues]
		a.TUN = a.TUN[:queues]
		a.Decisions, err = OpenDecisions(words)
		words.Close()
	}
	if err != nil || !stop() {
		a.Close()
		return fail(fmt.Errorf("api: attach to %s: %w", dsa, err))
	}
	return a, nil
}

// upgrade makes the HTTP part of an attach call.
func upgrade(conn *net.UnixConn, dsa netip.Addr) (*bufio.Reader, error) {
	req, err := http.NewRequest(http.MethodPost, target("servers", dsa.String(), "attach").String(), nil)
	if err != nil {
		return nil, fmt.Errorf("api: attach to %s: %w", dsa, err)
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", SessionProtocols())
	if err := req.Write(conn); err != nil {
		return nil, fmt.Errorf("api: attach to %s: %w", dsa, err)
	}
	r := bufio.NewReader(conn)
	res, err := http.ReadResponse(r, req)
	if err != nil {
		return nil, fmt.Errorf("api: attach to %s: %w", dsa, err)
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		defer res.Body.Close()
		return nil, answeredError(res)
	}
	if got := res.Header.Get("Upgrade"); !agrees(got) {
		return nil, fmt.Errorf("api: attach to %s: the daemon speaks %q, this program %q; build it with the release of the daemon, or one next to it", dsa, got, SessionProtocols())
	}
	return r, nil
}
