package api

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
)

// SessionProtocol names a session in the Upgrade header of an attach call.
const SessionProtocol = "dsco-session/1"

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
	req.Header.Set("Upgrade", SessionProtocol)
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
	if got := res.Header.Get("Upgrade"); got != SessionProtocol {
		return nil, fmt.Errorf("api: attach to %s: the daemon speaks %q, this program %q; use the same release of both", dsa, got, SessionProtocol)
	}
	return r, nil
}
