package movable

import (
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/fxamacker/cbor/v2"
)

// protocol is what a connection speaks, as a machine: where it stands is in its
// exported fields and nowhere else, so that it can be written down after any
// call.
type protocol interface {
	// input takes one request, or a piece of one, from the front of in, and
	// appends what is to be answered to out. It returns what it leaves of in:
	// all, if it needs more. On an error out is still sent, and then the
	// connection closed.
	input(in, out []byte) (rest, more []byte, err error)

	// output appends what is to be sent without being asked, some kilobytes at a
	// time, or nothing.
	output(out []byte) []byte

	// over says that nothing follows what has been sent.
	over() bool
}

// protocols makes a protocol by its name; node is the name of this node.
var protocols = map[string]func(node string) protocol{
	"http": func(node string) protocol { return &httpServer{node: node} },
	"line": func(node string) protocol { return &lineServer{node: node} },
	"resp": func(node string) protocol { return &respServer{node: node} },
}

// session is this application's part of a connection.
//
// It is at rest, and may be looked at, while its goroutine waits in Read or in a
// Write that has taken nothing (ds.Node.MoveInWrite): out has all that is not
// written, and in all that is read and not dealt with.
type session struct {
	name string
	p    protocol
	in   []byte
	out  []byte
	eof  bool // the client has sent all it will
	fail bool // the protocol is over because of an error
}

// writeSize bounds a Write, so that it takes all or nothing (stack.MaxWhole). One that
// has taken something already is not interrupted for a handoff, and a client may be slow.
const writeSize = 16 << 10

// inputSize bounds what waits for the rest of a request, in octets.
const inputSize = 256 << 10

var errTooLong = errors.New("movable: a request of more than 256 KiB")

func newSession(name, node string) *session {
	return &session{name: name, p: protocols[name](node)}
}

// serve goes on with the connection until it ends or moves; only then is the
// error a net.ErrClosed.
func (s *session) serve(c net.Conn) error {
	b := make([]byte, writeSize)
	for {
		if err := s.flush(c); err != nil {
			return err
		}
		if s.fail {
			return c.Close()
		}
		left := len(s.in)
		var err error
		if s.in, s.out, err = s.p.input(s.in, s.out); err != nil {
			s.fail = true
			continue
		}
		if len(s.in) < left || len(s.out) > 0 {
			continue
		}
		if s.eof || s.p.over() {
			return c.Close()
		}
		if len(s.in) > inputSize {
			c.Close()
			return errTooLong
		}
		n, err := c.Read(b)
		s.in = append(s.in, b[:n]...)
		if err == io.EOF {
			s.eof = true
		} else if err != nil {
			return err
		}
	}
}

// flush writes all that is to be sent.
func (s *session) flush(c net.Conn) error {
	for {
		if len(s.out) == 0 {
			if s.out = s.p.output(s.out[:0]); len(s.out) == 0 {
				return nil
			}
		}
		n, err := c.Write(s.out[:min(len(s.out), writeSize)])
		s.out = s.out[n:]
		if err != nil {
			return err
		}
	}
}

// record is a session in a handoff.
type record struct {
	Name     string          `cbor:"1,keyasint"`
	Protocol cbor.RawMessage `cbor:"2,keyasint"`
	In       []byte          `cbor:"3,keyasint,omitempty"`
	Out      []byte          `cbor:"4,keyasint,omitempty"`
	EOF      bool            `cbor:"5,keyasint,omitempty"`
	Fail     bool            `cbor:"6,keyasint,omitempty"`
}

// save describes a session that is at rest.
func (s *session) save() ([]byte, error) {
	p, err := cbor.Marshal(s.p)
	if err != nil {
		return nil, fmt.Errorf("movable: %s: %w", s.name, err)
	}
	return cbor.Marshal(record{s.name, p, s.in, s.out, s.eof, s.fail})
}

// load is the session that save has described. It comes from a node of ours,
// and is checked all the same.
func load(b []byte, node string) (*session, error) {
	var r record
	if err := cbor.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("movable: state: %w", err)
	}
	if protocols[r.Name] == nil {
		return nil, fmt.Errorf("movable: state: no protocol %q", r.Name)
	}
	s := newSession(r.Name, node)
	if err := cbor.Unmarshal(r.Protocol, s.p); err != nil {
		return nil, fmt.Errorf("movable: state of %s: %w", r.Name, err)
	}
	if v, ok := s.p.(interface{ valid() error }); ok {
		if err := v.valid(); err != nil {
			return nil, fmt.Errorf("movable: state of %s: %w", r.Name, err)
		}
	}
	s.in, s.out, s.eof, s.fail = r.In, r.Out, r.EOF, r.Fail
	return s, nil
}
