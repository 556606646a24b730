package movable

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/distributed-servers/ds/internal/demo/pattern"
)

// httpServer speaks HTTP/1.1 (RFC 9112), with as many requests on a connection
// as the client likes:
//
//	GET /pattern/N   N octets of the stream of package pattern
//	PUT /upload      how many octets of that stream came, how many were wrong,
//	                 and the SHA-256 of all
//	GET /count       the request's number on this connection, and the node
//
// net/http does not serve here because where it stands in a connection is on
// the stack of a goroutine.
type httpServer struct {
	Count  int     `cbor:"1,keyasint"` // requests so far
	Close  bool    `cbor:"2,keyasint"` // after this answer
	Offset int64   `cbor:"3,keyasint"` // of the pattern that is being sent
	End    int64   `cbor:"4,keyasint"`
	Upload *upload `cbor:"5,keyasint"` // under way

	node string
}

// upload is the body of a request.
type upload struct {
	Left   int64  `cbor:"1,keyasint"`
	Offset int64  `cbor:"2,keyasint"`
	Wrong  int64  `cbor:"3,keyasint"`
	Hash   []byte `cbor:"4,keyasint"` // state of SHA-256
}

const (
	maxHeader  = 32 << 10
	maxPattern = 1 << 40
)

var errHeader = errors.New("movable: bad HTTP request")

// valid checks a state from elsewhere.
func (h *httpServer) valid() error {
	switch u := h.Upload; {
	case h.Offset < 0, h.End < h.Offset, h.End > maxPattern:
		return fmt.Errorf("octets %d to %d of the pattern", h.Offset, h.End)
	case u != nil && (u.Left < 0 || u.Offset < 0):
		return fmt.Errorf("upload at %d, %d left", u.Offset, u.Left)
	case u != nil:
		return sha256.New().(encoding.BinaryUnmarshaler).UnmarshalBinary(u.Hash)
	}
	return nil
}

func (h *httpServer) over() bool { return h.Close && h.Upload == nil }

func (h *httpServer) output(out []byte) []byte {
	n := min(h.End-h.Offset, writeSize)
	if n == 0 {
		return out
	}
	at := len(out)
	out = append(out, make([]byte, n)...)
	pattern.Fill(out[at:], h.Offset)
	h.Offset += n
	return out
}

func (h *httpServer) input(in, out []byte) (rest, more []byte, err error) {
	switch {
	case h.Upload != nil:
		return h.body(in, out)
	case h.Close:
		return nil, out, nil
	}
	head, rest, ok := bytes.Cut(in, []byte("\r\n\r\n"))
	switch {
	case !ok && len(in) > maxHeader:
		return in, answer(out, http.StatusRequestHeaderFieldsTooLarge, true, ""), errHeader
	case !ok:
		return in, out, nil
	}
	req, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(in[:len(head)+4])))
	if err != nil {
		return in, answer(out, http.StatusBadRequest, true, ""), errHeader
	}
	h.Count++
	h.Close = req.Close
	path := req.URL.Path
	upload := path == "/upload" && (req.Method == http.MethodPut || req.Method == http.MethodPost)
	switch {
	case req.ContentLength < 0 || req.ContentLength > 0 && !upload:
		return rest, answer(out, http.StatusLengthRequired, true, ""), errHeader
	case upload:
		return h.begin(req, rest, out)
	case req.Method != http.MethodGet && req.Method != http.MethodHead:
		return rest, answer(out, http.StatusMethodNotAllowed, h.Close, ""), nil
	case path == "/count":
		return rest, answer(out, http.StatusOK, h.Close, fmt.Sprintf("%d %s\n", h.Count, h.node)), nil
	}
	if size, ok := strings.CutPrefix(path, "/pattern/"); ok {
		if n, err := strconv.ParseInt(size, 10, 64); err == nil && n >= 0 && n <= maxPattern {
			out = header(out, http.StatusOK, h.Close, n)
			if req.Method == http.MethodGet {
				h.Offset, h.End = 0, n
			}
			return rest, out, nil
		}
	}
	return rest, answer(out, http.StatusNotFound, h.Close, "there are /pattern/N, /upload and /count\n"), nil
}

// begin begins an upload.
func (h *httpServer) begin(req *http.Request, rest, out []byte) ([]byte, []byte, error) {
	state, err := sha256.New().(encoding.BinaryMarshaler).MarshalBinary()
	if err != nil {
		return rest, out, err
	}
	h.Upload = &upload{Left: req.ContentLength, Hash: state}
	if strings.EqualFold(req.Header.Get("Expect"), "100-continue") {
		out = append(out, "HTTP/1.1 100 Continue\r\n\r\n"...)
	}
	if h.Upload.Left == 0 {
		return h.body(rest, out)
	}
	return rest, out, nil
}

// body takes a piece of an upload, and answers after the last one.
func (h *httpServer) body(in, out []byte) ([]byte, []byte, error) {
	u := h.Upload
	n := min(u.Left, int64(len(in)))
	digest := sha256.New()
	if err := digest.(encoding.BinaryUnmarshaler).UnmarshalBinary(u.Hash); err != nil {
		return in, out, err
	}
	check := pattern.Checker{Offset: u.Offset, Wrong: u.Wrong}
	digest.Write(in[:n])
	check.Write(in[:n])
	u.Left, u.Offset, u.Wrong = u.Left-n, check.Offset, check.Wrong
	var err error
	if u.Hash, err = digest.(encoding.BinaryMarshaler).MarshalBinary(); err != nil {
		return in, out, err
	}
	if u.Left > 0 {
		return in[n:], out, nil
	}
	h.Upload = nil
	return in[n:], answer(out, http.StatusOK, h.Close,
		fmt.Sprintf("%d octets, %d wrong, sha256 %x\n", u.Offset, u.Wrong, digest.Sum(nil))), nil
}

func header(out []byte, status int, last bool, length int64) []byte {
	out = fmt.Appendf(out, "HTTP/1.1 %d %s\r\nContent-Length: %d\r\n", status, http.StatusText(status), length)
	if last {
		out = append(out, "Connection: close\r\n"...)
	}
	return append(out, "\r\n"...)
}

func answer(out []byte, status int, last bool, body string) []byte {
	return append(header(out, status, last, int64(len(body))), body...)
}
