package httpmove

import (
	"errors"
	"io"
	"net/http"
	"strings"
)

// Repeatable says that a handler gives the same response to the same request on
// each node: one whose connection may move in the middle. At the target the
// handler is called with the same request once more; of what it writes then, what
// the client has already is dropped.
//
// The same response: the same status, the same octets in the body, and the same
// Content-Length, Content-Type, Content-Encoding, Content-Range, ETag and
// Last-Modified. Other fields may differ; the client gets those of the first. A
// body without a Content-Length must be flushed at the same places, if at all. If
// it is another response after all the connection is reset.
//
// Files are served so by [http.FileServer], [http.ServeContent] and others that
// copy from an [io.Seeker] with io.CopyN, if there is an ETag or a Last-Modified:
// then what the client has is not read again. The nodes must have the same file
// under the same time or tag.
//
// Several ranges at once, and other multipart bodies, are finished first.
//
// What the handler does beside responding, it does again too. Outside of a
// [Server] Repeatable does nothing.
func Repeatable(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := connOf(r)
		if c == nil || !c.mayRepeat() {
			h.ServeHTTP(w, r)
			return
		}
		rw := &writer{ResponseWriter: w, conn: c, head: r.Method == http.MethodHead}
		h.ServeHTTP(rw, r)
		rw.flush()
	})
}

// blockSize is what a body without a Content-Length is cut into, so that its
// chunks on the wire are the same however the handler comes by the octets.
const blockSize = 8 << 10

// writer is the http.ResponseWriter of a Repeatable handler.
type writer struct {
	http.ResponseWriter
	conn    *conn
	head    bool   // nobody gets the body
	begun   bool   // the head
	wrote   bool   // something of the body
	blocks  bool   // there is no Content-Length
	pending []byte // a block that is not full
}

// Unwrap is for [http.ResponseController].
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *writer) begin() {
	if w.begun {
		return
	}
	w.begun = true
	w.blocks = w.Header().Get("Content-Length") == "" && !w.head
	if strings.HasPrefix(w.Header().Get("Content-Type"), "multipart/") {
		w.conn.pin() // http.ServeContent's boundaries are random; if this fails, so does all that follows
	}
}

// WriteHeader implements [http.ResponseWriter].
func (w *writer) WriteHeader(code int) {
	if code >= 200 {
		w.begin()
	}
	w.ResponseWriter.WriteHeader(code)
}

// Write implements [http.ResponseWriter].
func (w *writer) Write(b []byte) (n int, err error) {
	w.begin()
	w.wrote = true
	if !w.blocks {
		return w.ResponseWriter.Write(b)
	}
	for n < len(b) {
		k := min(len(b)-n, blockSize-len(w.pending))
		w.pending = append(w.pending, b[n:n+k]...)
		n += k
		if len(w.pending) == blockSize {
			if err := w.flush(); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

func (w *writer) flush() error {
	if len(w.pending) == 0 {
		return nil
	}
	_, err := w.ResponseWriter.Write(w.pending)
	w.pending = w.pending[:0]
	return err
}

// FlushError is for [http.ResponseController].
func (w *writer) FlushError() error {
	w.begin()
	return errors.Join(w.flush(), http.NewResponseController(w.ResponseWriter).Flush())
}

// Flush implements [http.Flusher].
func (w *writer) Flush() { w.FlushError() }

// ReadFrom implements [io.ReaderFrom]. It does not read what the client has, if
// the reader can go there at once.
func (w *writer) ReadFrom(src io.Reader) (n int64, err error) {
	w.begin()
	if l, ok := src.(*io.LimitedReader); ok && !w.wrote {
		if n, err = w.pass(l); err != nil {
			return n, err
		}
	}
	w.wrote = true
	var m int64
	if rf, ok := w.ResponseWriter.(io.ReaderFrom); ok && !w.blocks {
		m, err = rf.ReadFrom(src)
	} else {
		m, err = io.Copy(struct{ io.Writer }{w}, src)
	}
	return n + m, err
}

var zeros [64 << 10]byte

// pass passes over what the client has.
func (w *writer) pass(l *io.LimitedReader) (n int64, err error) {
	s, ok := l.R.(io.Seeker)
	if !ok {
		return 0, nil
	}
	skip := min(w.conn.ahead(w.Header()), l.N)
	if skip == 0 {
		return 0, nil
	}
	if _, err := s.Seek(skip, io.SeekCurrent); err != nil {
		return 0, err
	}
	l.N -= skip
	for n < skip { // net/http counts what it sends
		k, err := w.ResponseWriter.Write(zeros[:min(skip-n, int64(len(zeros)))])
		n += int64(k)
		if err != nil {
			return n, err
		}
	}
	return n, nil
}
