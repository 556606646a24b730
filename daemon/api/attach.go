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
//	dsco-session/2
var sessionProtocols = []string{"dsco-session/2"}

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

// Attach attaches this process to the distributed server dsa at the daemon
// behind socket (empty: [NodeSocket]). hello is the first message of the
// session, welcome the daemon's answer, and files are descriptors of the TUN,
// one for each queue, which the caller closes; none if hello.HasTUN. A refusal
// is of type [*Error].
//
// The context bounds the call, not the session.
func Attach(ctx context.Context, socket string, dsa netip.Addr, hello *Message) (s *Session, welcome *Message, files []*os.File, err error) {
	if socket == "" {
		socket = NodeSocket
	}
	conn, err := dial(ctx, socket)
	if err != nil {
		return nil, nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	fail := func(err error) (*Session, *Message, []*os.File, error) {
		stop()
		conn.Close()
		if cause := ctx.Err(); cause != nil {
			err = fmt.Errorf("api: attach to %s: %w", dsa, cause)
		}
		return nil, nil, nil, err
	}
	r, err := upgrade(conn, dsa)
	if err != nil {
		return fail(err)
	}
	s = newSession(conn, r, application)
	if err := s.Send(hello); err != nil {
		return fail(err)
	}
	welcome, err = s.Receive()
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
	files = s.in.take()
	if want := welcome.Config.Queues; !hello.HasTUN && len(files) != want || !stop() {
		for _, f := range files {
			f.Close()
		}
		s.Close()
		return fail(fmt.Errorf("api: attach to %s: %d descriptors for %d queues; raise the limit of open files (ulimit -n)", dsa, len(files), want))
	}
	return s, welcome, files, nil
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
