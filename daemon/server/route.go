package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
)

// Access is who may call.
type Access uint8

const (
	Read   Access = iota + 1 // any local user
	Write                    // root, the daemon's own user, members of the group
	Attach                   // whom the backend admits
)

func (a Access) String() string {
	return [...]string{Read: "read", Write: "write", Attach: "attach"}[a]
}

// A Route is a call of the API.
type Route struct {
	Method  string
	Pattern string // below /v1, in the form of [http.ServeMux]
	Access  Access
	// Old is what the daemon of 2009 called it.
	Old string

	serve func(*Server, *request) error
}

// Routes are all calls there are.
func Routes() []Route { return append([]Route(nil), routes...) }

var routes = []Route{
	{"GET", "/status", Read, "", (*Server).status},
	{"GET", "/watch", Read, "", (*Server).watch},
	{"GET", "/servers", Read, "getAnycastAddr", (*Server).servers},
	{"GET", "/servers/{dsa}/nodes", Read, "getAllNodes", (*Server).nodes},
	{"GET", "/servers/{dsa}/nodes/local", Read, "findLocalNode", (*Server).localNode},
	{"POST", "/servers/{dsa}/nodes/{node}/drain", Write, "", (*Server).drain},
	{"DELETE", "/servers/{dsa}/nodes/{node}/drain", Write, "", (*Server).undrain},
	{"POST", "/servers/{dsa}/nodes/{node}/move", Write, "", (*Server).move},
	{"GET", "/servers/{dsa}/clients", Read, "", (*Server).clients},
	{"GET", "/servers/{dsa}/clients/{client}", Read, "", (*Server).client},
	{"GET", "/servers/{dsa}/clients/{client}/sequence", Read, "getBUSeqNo", (*Server).sequence},
	{"POST", "/servers/{dsa}/clients/{client}/optimise", Write, "startRO", (*Server).optimise},
	{"DELETE", "/servers/{dsa}/clients/{client}/binding", Write, "deleteBU", (*Server).deleteBinding},
	{"POST", "/servers/{dsa}/clients/{client}/handoff", Write, "", (*Server).handoff},
	{"PUT", "/servers/{dsa}/contact", Write, "setContactAddr", (*Server).setContact},
	{"POST", "/servers/{dsa}/contact/takeover", Write, "", (*Server).takeOver},
	{"POST", "/servers/{dsa}/attach", Attach, "", (*Server).attach},
}

// request is a call being answered.
type request struct {
	*http.Request
	w    http.ResponseWriter
	conn *conn
}

// handler checks who calls before anything of the request is looked at.
func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	for _, route := range routes {
		pattern := fmt.Sprintf("%s /v%d%s", route.Method, api.Version, route.Pattern)
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			q := &request{Request: r, w: w, conn: r.Context().Value(connKey{}).(*conn)}
			err := s.permit(route.Access, q.conn.who)
			if err == nil {
				err = route.serve(s, q)
			}
			if err != nil {
				s.answerError(q, err)
			}
			if route.Access == Write || err != nil {
				s.logCall(q, err)
			}
		})
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := s.readBody(w, r); err != nil {
			writeError(w, err)
			return
		}
		if _, pattern := mux.Handler(r); pattern == "" {
			// In JSON, where the mux would answer in plain text.
			writeError(w, api.Errorf(api.ErrNotFound, "docs/api.md lists the calls", "no call %.20s %.100q", r.Method, r.URL.Path))
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// logCall records who has changed something, or was refused.
func (s *Server) logCall(q *request, err error) {
	log := s.log.With("method", q.Method, "path", q.URL.Path, "uid", q.conn.who.UID, "pid", q.conn.who.PID)
	if err != nil {
		log.Warn("call refused", "err", err)
	} else {
		log.Info("call")
	}
}

func (s *Server) permit(a Access, who Cred) error {
	if a == Write && !s.mayWrite(who) {
		cure := "be root"
		if s.group != nil {
			cure = fmt.Sprintf("be root, or a member of group %d", *s.group)
		}
		return api.Errorf(api.ErrForbidden, cure, "user %d may read and no more", who.UID)
	}
	return nil
}

func (s *Server) answerError(q *request, err error) {
	e := api.AsError(err)
	if cause := q.Context().Err(); cause != nil && errors.Is(err, cause) {
		e = errClosing // else nobody reads it
	}
	writeError(q.w, e)
}

func writeError(w http.ResponseWriter, e *api.Error) {
	code := e.Code
	if code < 400 || code > 599 {
		code = http.StatusInternalServerError
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	encode(w, &api.Error{Code: code, Message: e.Message, Cure: e.Cure})
}

// encode writes a value as people would: < is no matter for them.
func encode(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// answer answers a call.
func answer[T any](q *request, v T, err error) error {
	if err != nil {
		return err
	}
	var b bytes.Buffer // before the header, for an error
	if err := encode(&b, v); err != nil {
		return err
	}
	q.w.Header().Set("Content-Type", "application/json")
	q.w.Write(b.Bytes())
	return nil
}

// answerList is answer, but for a list which is [] rather than null.
func answerList[T any](q *request, v []T, err error) error {
	if v == nil {
		v = []T{}
	}
	return answer(q, v, err)
}

// done answers a call that has nothing to tell.
func done(q *request, err error) error {
	if err == nil {
		q.w.WriteHeader(http.StatusNoContent)
	}
	return err
}

// dsa is the distributed server of the path.
func (q *request) dsa() (netip.Addr, error) { return q.addr("dsa", "distributed server") }

// dsaClient are the distributed server and the client of the path.
func (q *request) dsaClient() (dsa, client netip.Addr, err error) {
	if dsa, err = q.dsa(); err == nil {
		client, err = q.addr("client", "client")
	}
	return dsa, client, err
}

func (q *request) addr(name, what string) (netip.Addr, error) {
	return parseAddr(what, q.PathValue(name))
}

func parseAddr(what, s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || !a.Is6() || a.Is4In6() || a.Zone() != "" {
		return netip.Addr{}, api.Errorf(api.ErrInvalid, "name a "+what+" by its IPv6 address", "%.60q is not the address of a %s", s, what)
	}
	return a, nil
}

// readBody reads the body, as much as there may be, within its time, before
// anything is answered: what is left of a body is read afterwards, for as long
// as it takes.
func (s *Server) readBody(w http.ResponseWriter, r *http.Request) *api.Error {
	if r.ContentLength == 0 {
		return nil
	}
	control := http.NewResponseController(w)
	control.SetReadDeadline(time.Now().Add(s.cfg.RequestTimeout))
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		w.Header().Set("Connection", "close")
		return api.Errorf(api.ErrInvalid, fmt.Sprintf("send at most %d octets, within %s", maxBody, s.cfg.RequestTimeout), "body of the request: %v", err)
	}
	control.SetReadDeadline(time.Time{})
	r.Body = io.NopCloser(bytes.NewReader(data))
	return nil
}

// body decodes the body, which is one JSON object of known fields, or nothing.
func (q *request) body(v any) error {
	d := json.NewDecoder(q.Body)
	d.DisallowUnknownFields()
	err := d.Decode(v)
	if err == io.EOF {
		return nil
	}
	if err == nil && d.Decode(new(any)) != io.EOF {
		err = errors.New("more than one value")
	}
	if err != nil {
		return api.Errorf(api.ErrInvalid, "see docs/api.md", "body of the request: %v", err)
	}
	return nil
}
