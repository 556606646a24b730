package server

import (
	"context"
	"net/http"
	"net/netip"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
)

func (s *Server) drain(q *request) error { return s.stream(q, false, s.cfg.Backend.Drain) }

func (s *Server) move(q *request) error { return s.stream(q, true, s.cfg.Backend.Move) }

func (s *Server) undrain(q *request) error {
	dsa, err := q.dsa()
	if err != nil {
		return err
	}
	return done(q, s.cfg.Backend.Undrain(q.Context(), dsa, q.PathValue("node")))
}

// Limits of a [api.MoveRequest].
const (
	maxRate        = 1e6
	maxConcurrency = 1024
	maxWeight      = 1000
	maxClients     = 1 << 30
	maxTargets     = 1 << 10
)

// checkMove tells what of a request cannot be. counts: it says how many clients go
// where.
func checkMove(r *api.MoveRequest, counts bool) error {
	bad := func(cure, format string, args ...any) error { return api.Errorf(api.ErrInvalid, cure, format, args...) }
	switch {
	case !(r.Rate >= 0 && r.Rate <= maxRate):
		return bad("give handoffs a second, or 0 for no limit", "rate %g", r.Rate)
	case r.Concurrency < 0 || r.Concurrency > maxConcurrency:
		return bad("give 1 to 1024, or 0 for the default", "concurrency %d", r.Concurrency)
	case counts && len(r.To) == 0:
		return bad(`send {"to": [{"node": NODE, "clients": NUMBER}]}`, "no node to move clients to")
	case len(r.To) > maxTargets:
		return bad("name fewer", "%d nodes to move clients to", len(r.To))
	}
	for _, t := range r.To {
		switch {
		case t.Node == "":
			return bad("name it", "a node without name")
		case t.Weight < 0 || t.Weight > maxWeight:
			return bad("give 1 to 1000", "node %.60q: weight %d", t.Node, t.Weight)
		case counts && (t.Clients < 1 || t.Clients > maxClients):
			return bad("say how many go there", "node %.60q: %d clients", t.Node, t.Clients)
		case !counts && t.Clients != 0:
			return bad("use move to move some of them", "node %.60q: a node is drained of all of its clients", t.Node)
		}
	}
	return nil
}

// stream answers with progress, a line each.
func (s *Server) stream(q *request, counts bool, run func(context.Context, netip.Addr, string, api.MoveRequest, func(api.MoveProgress) error) error) error {
	dsa, err := q.dsa()
	if err != nil {
		return err
	}
	var r api.MoveRequest
	if err := q.body(&r); err != nil {
		return err
	}
	if err := checkMove(&r, counts); err != nil {
		return err
	}
	control := http.NewResponseController(q.w)
	begun := false
	err = run(q.Context(), dsa, q.PathValue("node"), r, func(p api.MoveProgress) error {
		if !begun {
			begun = true
			q.w.Header().Set("Content-Type", "application/x-ndjson")
			q.w.WriteHeader(http.StatusOK)
		}
		if err := control.SetWriteDeadline(time.Now().Add(watchWrite)); err != nil {
			return err
		}
		if err := encode(q.w, &p); err != nil {
			return err
		}
		return control.Flush()
	})
	if begun {
		return nil // the stream is the answer
	}
	return err
}
