package daemon

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/daemon/member"
	"github.com/distributed-servers/ds/daemon/server"
	"github.com/distributed-servers/ds/tun"
)

// maxBurst is how many messages that have come together are done together.
const maxBurst = 256

// session is an attached application.
type session struct {
	*api.Session
	who   server.Cred
	since time.Time
	hello *api.Message
	s     *service

	// decisions about offers, which the application shares: of AppGone still, and closed
	// after that.
	decisions *api.Decisions
}

// send sends messages of the member. The welcome has the descriptors with it.
func (a *session) send(all ...*api.Message) {
	if a == nil || len(all) == 0 {
		return
	}
	var err error
	if first := all[0]; first.Kind == api.Welcome {
		var files []*os.File
		if !a.hello.HasTUN {
			discard(a.s.device)
			first.Config.Queues = a.s.device.Queues()
			files = a.s.device.Files()
		}
		words := a.decisions.File()
		err = a.SendFiles(first, append(files, words)...)
		words.Close()
		all = all[1:]
	}
	if err == nil {
		err = a.Send(all...)
	}
	if err != nil {
		a.Close() // whoever receives from it finds out
	}
}

// Admit decides who may attach.
func (n *Node) Admit(_ context.Context, dsa netip.Addr, who server.Cred) error {
	s, err := n.service(dsa)
	if err != nil {
		return err
	}
	switch {
	case who.UID == 0, slices.Contains(s.users().uids, who.UID):
		return nil
	case slices.ContainsFunc(s.users().gids, who.In):
		return nil
	}
	return api.Errorf(api.ErrForbidden, "add the user to users of the server in the configuration, or one of its groups to user_groups, and reload",
		"user %d may not serve %s", who.UID, dsa)
}

// Attach is an application's session, from beginning to end.
func (n *Node) Attach(ctx context.Context, dsa netip.Addr, who server.Cred, conn *api.Session) error {
	s, err := n.service(dsa)
	if err != nil {
		return err
	}
	hello, err := conn.Receive()
	switch {
	case err != nil:
		return err
	case hello.Kind != api.Hello:
		return api.Errorf(api.ErrInvalid, "", "the first message is %s, not hello", hello.Kind)
	}
	a := &session{Session: conn, who: who, since: time.Now(), hello: hello, s: s}
	if err := s.attach(a); err != nil {
		return err
	}
	defer a.decisions.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	var in []member.Input
	var messages []*api.Message // those of in, and others for what comes
	for {
		if len(messages) == len(in) {
			messages = append(messages, new(api.Message))
		}
		m := messages[len(in)]
		err := conn.ReceiveTo(m)
		if err == nil {
			in = append(in, member.App{Message: m})
			if conn.Ready() && len(in) < maxBurst {
				continue
			}
		}
		if len(in) > 0 {
			s.step(in...)
			for _, m := range messages[:len(in)] {
				*m = api.Message{} // and what it refers to
			}
			in = in[:0]
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			s.detach(a)
			return nil
		default:
			s.detach(a)
			return err
		}
	}
}

func (s *service) attach(a *session) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.session != nil {
		return api.Errorf(api.ErrConflict, "stop it first, or let it hand its clients off",
			"%s is served by process %d (%s)", s.home, s.session.who.PID, s.session.hello.Program)
	}
	switch {
	case a.hello.HasTUN && s.device != nil:
		// It is still there although this daemon has had time to make another:
		// the one that it has is gone, or was never this server's.
		return api.Errorf(api.ErrConflict, "start the application anew", "the descriptors that it has are not those of %s any more", s.tun)
	case !a.hello.HasTUN && s.device == nil:
		if err := s.openDevice(); err != nil {
			return api.Errorf(api.ErrBusy, "stop the application that has it: it was attached before the daemon was started, and has not come back",
				"no interface for %s: %v", s.home, err)
		}
	}
	var err error
	if a.decisions, err = api.ShareDecisions(); err != nil {
		return api.Errorf(api.ErrFailed, "", "no memory to share with the application: %v", err)
	}
	s.session, s.words.Decisions = a, a.decisions
	s.entrance.stale = true
	s.stepLocked(member.App{Message: a.hello})
	return nil
}

// words are the member's: of the application that is attached, and in the step in which
// it hears that it is not any more.
type words struct{ *api.Decisions }

// discard discards what has come while no application was there to read it. It may be
// of clients that the one before has handed off, whom a new application would reset;
// what begins a connection is sent again.
func discard(d *tun.TUN) {
	const most = 500 // in a queue, unless somebody has changed it (txqueuelen)
	b := make([]byte, tun.HeaderRoom+tun.MaxPacket)
	for q := range d.Queues() {
		for range most {
			if p, _, err := d.ReadPacket(q, b, false); err != nil || p == nil {
				break
			}
		}
	}
}

// detach is that the application has gone, and its connections with it: one that
// ends its session without ending has lost them as well, for others may attach.
func (s *service) detach(a *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.session = nil
	s.stepLocked(member.AppGone{Lost: true})
}
