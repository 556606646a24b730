package server

import (
	"bytes"
	"context"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/internal/version"
)

func (s *Server) status(q *request) error {
	v, err := s.cfg.Backend.Status(q.Context())
	if err == nil {
		v.API, v.PID, v.Version = api.Version, os.Getpid(), version.String()
		v.LastEvent = s.cfg.Events.Last()
	}
	return answer(q, v, err)
}

func (s *Server) servers(q *request) error {
	v, err := s.cfg.Backend.Servers(q.Context())
	return answerList(q, v, err)
}

func (s *Server) nodes(q *request) error {
	dsa, err := q.dsa()
	if err != nil {
		return err
	}
	v, err := s.cfg.Backend.Nodes(q.Context(), dsa)
	return answerList(q, v, err)
}

func (s *Server) localNode(q *request) error {
	dsa, err := q.dsa()
	if err != nil {
		return err
	}
	v, err := s.cfg.Backend.LocalNode(q.Context(), dsa)
	return answer(q, v, err)
}

func (s *Server) clients(q *request) error {
	dsa, err := q.dsa()
	if err != nil {
		return err
	}
	v, err := s.cfg.Backend.Clients(q.Context(), dsa)
	return answerList(q, v, err)
}

// maxHistory is how many events a trace has.
const maxHistory = 50

func (s *Server) client(q *request) error {
	dsa, client, err := q.dsaClient()
	if err != nil {
		return err
	}
	v, err := s.cfg.Backend.Client(q.Context(), dsa, client)
	if err == nil && v.History == nil {
		v.History = s.cfg.Events.About(api.WatchOptions{Server: dsa, Client: client}, maxHistory)
	}
	return answer(q, v, err)
}

func (s *Server) sequence(q *request) error {
	dsa, client, err := q.dsaClient()
	if err != nil {
		return err
	}
	v, err := s.cfg.Backend.Sequence(q.Context(), dsa, client)
	return answer(q, v, err)
}

func (s *Server) optimise(q *request) error {
	dsa, client, err := q.dsaClient()
	if err != nil {
		return err
	}
	return done(q, s.cfg.Backend.Optimise(q.Context(), dsa, client))
}

func (s *Server) deleteBinding(q *request) error {
	dsa, client, err := q.dsaClient()
	if err != nil {
		return err
	}
	return done(q, s.cfg.Backend.DeleteBinding(q.Context(), dsa, client))
}

func (s *Server) handoff(q *request) error {
	dsa, client, err := q.dsaClient()
	if err != nil {
		return err
	}
	var body api.HandoffRequest
	if err := q.body(&body); err != nil {
		return err
	}
	if body.To == "" {
		return api.Errorf(api.ErrInvalid, `send {"to": NODE}`, "no node to hand off to")
	}
	v, err := s.cfg.Backend.Handoff(q.Context(), dsa, client, body.To)
	return answer(q, v, err)
}

func (s *Server) setContact(q *request) error {
	dsa, err := q.dsa()
	if err != nil {
		return err
	}
	var body api.ContactRequest
	if err := q.body(&body); err != nil {
		return err
	}
	if body.Node == "" {
		return api.Errorf(api.ErrInvalid, `send {"node": NODE}`, "no node that is the contact")
	}
	v, err := s.cfg.Backend.SetContact(q.Context(), dsa, body.Node)
	return answer(q, v, err)
}

func (s *Server) takeOver(q *request) error {
	dsa, err := q.dsa()
	if err != nil {
		return err
	}
	var body api.TakeoverRequest
	if err := q.body(&body); err != nil {
		return err
	}
	v, err := s.cfg.Backend.TakeOver(q.Context(), dsa, body.Force)
	return answer(q, v, err)
}

// Times of a stream of events.
const (
	watchWrite = 10 * time.Second // for a reader to take what it is sent
	watchLife  = 15 * time.Second // an empty line is sent after so long without an event
)

// watch streams events, one in a line.
func (s *Server) watch(q *request) error {
	o, err := watchOptions(q)
	if err != nil {
		return err
	}
	control := http.NewResponseController(q.w)
	var lines bytes.Buffer
	write := func(events []api.Event) error {
		lines.Reset()
		for i := range events {
			if err := encode(&lines, &events[i]); err != nil {
				return err
			}
		}
		if len(events) == 0 {
			lines.WriteByte('\n')
		}
		if err := control.SetWriteDeadline(time.Now().Add(watchWrite)); err != nil {
			return err
		}
		if _, err := q.w.Write(lines.Bytes()); err != nil {
			return err
		}
		return control.Flush()
	}
	if o.Since == api.FromNow {
		o.Since = s.cfg.Events.Last() // that is now, for who has the headers
	}
	q.w.Header().Set("Content-Type", "application/x-ndjson")
	q.w.WriteHeader(http.StatusOK)
	if err := control.Flush(); err != nil {
		return nil
	}
	s.cfg.Events.Watch(q.Context(), o, watchLife, write)
	return nil // the stream is the answer
}

func watchOptions(q *request) (o api.WatchOptions, err error) {
	o.Since = api.FromNow
	for name, values := range q.URL.Query() {
		switch v := values[0]; name {
		case "since":
			if o.Since, err = strconv.ParseUint(v, 10, 64); err != nil {
				return o, api.Errorf(api.ErrInvalid, "give the number of an event", "since=%.30q is not a number", v)
			}
		case "server":
			o.Server, err = parseAddr("distributed server", v)
		case "client":
			o.Client, err = parseAddr("client", v)
		default:
			err = api.Errorf(api.ErrInvalid, "use since, server and client", "no parameter %.30q", name)
		}
		if err != nil {
			return o, err
		}
	}
	return o, nil
}

// attach makes a session of the connection.
func (s *Server) attach(q *request) error {
	dsa, err := q.dsa()
	if err != nil {
		return err
	}
	protocol, ok := api.AgreeSession(q.Header.Get("Upgrade"))
	if !ok {
		return api.Errorf(api.ErrInvalid, "build the program with the release of the daemon, or one next to it (daemon/api's Attach)",
			"attach wants Upgrade: %s, and the program speaks %.100q", api.SessionProtocols(), q.Header.Get("Upgrade"))
	}
	if err := s.cfg.Backend.Admit(q.Context(), dsa, q.conn.who); err != nil {
		return err
	}
	if !s.enter() {
		return errClosing
	}
	defer s.sessions.Done()
	c, rw, err := http.NewResponseController(q.w).Hijack()
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Time{})
	c.SetReadDeadline(time.Now().Add(s.cfg.RequestTimeout)) // for the hello
	if _, err := rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + protocol + "\r\n\r\n"); err != nil {
		return nil
	}
	if rw.Flush() != nil {
		return nil
	}
	session := api.NewSession(q.conn.UnixConn, rw.Reader)
	defer session.Close()
	defer context.AfterFunc(s.ctx, func() { session.Close() })()
	log := s.log.With("server", dsa, "pid", q.conn.who.PID, "uid", q.conn.who.UID)
	log.Info("session begins")
	defer log.Info("session has ended")
	if err := s.cfg.Backend.Attach(s.ctx, dsa, q.conn.who, session); err != nil {
		if !session.Used() {
			session.Send(&api.Message{Kind: api.Welcome, Error: err.Error()})
			// The application reads that once it has sent its hello, and hangs up.
			q.conn.SetReadDeadline(time.Now().Add(s.cfg.RequestTimeout))
			for err := error(nil); err == nil; {
				_, err = session.Receive()
			}
		}
		if s.ctx.Err() == nil {
			log.Warn("session fails", "err", err)
		}
	}
	return nil
}
