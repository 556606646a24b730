package demo

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net/http"
	"strconv"

	"github.com/distributed-servers/ds/internal/demo/pattern"
)

// maxHead bounds a request's head, and what a session keeps unprocessed.
const maxHead = 8 << 10

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// kind is what a session is doing.
type kind uint8

const (
	kindHead     kind = iota // reading a request's head
	kindDownload             // writing a body
	kindUpload               // reading a body
	kindClosing              // writing its last octets
	kinds
)

// session is one HTTP/1.1 connection as a state machine, without the
// connection: octets read go into input, and output says what is to be
// written. All it knows travels in a handoff, by append and parse.
//
//	        GET /download?size=…
//	     ┌──────────────────────► download ──┐
//	head ┤                                   ├──► head
//	     ├──────────────────────► upload ────┘
//	     │  PUT or POST /upload
//	     └──────────────────────► closing
//	        anything else
type session struct {
	kind   kind
	in     []byte // read, not processed: part of a head, or a request too early
	out    []byte // to be written before anything else
	size   int64  // of the body
	offset int64  // octets of the body written or read
	crc    uint32 // CRC-32C of the body read
	wrong  int64  // octets of it that are not the pattern's
}

// output returns what to write next; b is room for it. Nothing means that the
// session waits for input.
func (s *session) output(b []byte) []byte {
	switch {
	case len(s.out) > 0:
		return s.out
	case s.kind == kindDownload:
		b = b[:min(int64(len(b)), s.size-s.offset)]
		pattern.Fill(b, s.offset)
		return b
	}
	return nil
}

// wrote tells that the first n octets of output are in the send buffer, and so
// belong to TCP.
func (s *session) wrote(n int) error {
	if len(s.out) > 0 {
		s.out = s.out[n:]
		return s.settle()
	}
	s.offset += int64(n)
	return s.settle()
}

// input takes what was read. It keeps no reference to p.
func (s *session) input(p []byte) error {
	if s.kind == kindUpload {
		n := int(min(int64(len(p)), s.size-s.offset))
		check := pattern.Checker{Offset: s.offset}
		check.Write(p[:n])
		s.wrong += check.Wrong
		s.crc = crc32.Update(s.crc, castagnoli, p[:n])
		s.offset += int64(n)
		p = p[n:]
	}
	s.in = append(s.in, p...)
	return s.settle()
}

// done tells that the connection is to be closed.
func (s *session) done() bool { return s.kind == kindClosing && len(s.out) == 0 }

// settle takes the steps that need neither input nor output.
func (s *session) settle() error {
	if len(s.out) > 0 {
		return nil
	}
	switch s.kind {
	case kindDownload:
		if s.offset == s.size {
			*s = session{in: s.in}
		}
	case kindUpload:
		if s.offset == s.size {
			body := fmt.Sprintf("%d %08x %d\n", s.offset, s.crc, s.wrong)
			*s = session{in: s.in, out: answer("200 OK", int64(len(body)), body)}
			return nil
		}
	}
	if s.kind == kindHead {
		if i := bytes.Index(s.in, []byte("\r\n\r\n")); i >= 0 {
			head := s.in[:i+4]
			s.in = append([]byte(nil), s.in[i+4:]...)
			return s.request(head)
		}
	}
	if len(s.in) > maxHead {
		return fmt.Errorf("demo: request head is longer than %d octets", maxHead)
	}
	return nil
}

func answer(status string, size int64, body string) []byte {
	return fmt.Appendf(nil, "HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s", status, size, body)
}

// request begins to serve a request.
func (s *session) request(head []byte) error {
	r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(head)))
	if err != nil {
		return fmt.Errorf("demo: request: %w", err)
	}
	refuse := func(status string) {
		s.kind, s.in = kindClosing, nil
		s.out = fmt.Appendf(nil, "HTTP/1.1 %s\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", status)
	}
	switch {
	case r.Method == http.MethodGet && r.URL.Path == "/download":
		size, err := strconv.ParseInt(r.URL.Query().Get("size"), 10, 64)
		if err != nil || size < 0 {
			refuse("400 Bad Request")
			return nil
		}
		s.kind, s.size, s.out = kindDownload, size, answer("200 OK", size, "")
	case (r.Method == http.MethodPut || r.Method == http.MethodPost) && r.URL.Path == "/upload":
		if r.ContentLength < 0 {
			refuse("411 Length Required")
			return nil
		}
		s.kind, s.size = kindUpload, r.ContentLength
		if r.Header.Get("Expect") == "100-continue" {
			s.out = []byte("HTTP/1.1 100 Continue\r\n\r\n")
		}
		early := s.in
		s.in = nil
		return s.input(early)
	default:
		refuse("404 Not Found")
	}
	return nil
}

const sessionVersion = 1

// append adds the session's state to b.
func (s *session) append(b []byte) []byte {
	b = append(b, sessionVersion, byte(s.kind))
	b = binary.AppendUvarint(b, uint64(s.size))
	b = binary.AppendUvarint(b, uint64(s.offset))
	b = binary.AppendUvarint(b, uint64(s.wrong))
	b = binary.BigEndian.AppendUint32(b, s.crc)
	b = appendBlob(b, s.in)
	return appendBlob(b, s.out)
}

// parseSession reads what append wrote. Nothing is the state of a connection
// on which nothing was read yet.
func parseSession(b []byte) (*session, error) {
	if len(b) == 0 {
		return &session{}, nil
	}
	r := reader{b: b}
	if v := r.octet(); v != sessionVersion {
		return nil, fmt.Errorf("demo: session state of version %d, want %d", v, sessionVersion)
	}
	s := &session{kind: kind(r.octet())}
	s.size, s.offset, s.wrong = r.int64(), r.int64(), r.int64()
	s.crc = r.uint32()
	s.in, s.out = bytes.Clone(r.blob()), bytes.Clone(r.blob())
	switch {
	case r.bad || len(r.b) != 0:
		return nil, errShort
	case s.kind >= kinds || s.offset > s.size || len(s.in) > maxHead || len(s.out) > maxHead:
		return nil, errors.New("demo: session state out of range")
	}
	return s, nil
}
