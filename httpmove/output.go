package httpmove

import (
	"bufio"
	"bytes"
	"fmt"
	"hash/crc32"
	"net/http"
	"slices"
	"strings"
)

// output is what net/http sends of a response: heads (those of interim responses
// and the final one), and octets of the body as they are on the wire. It does no
// I/O.
//
// After a move net/http produces the same response once more. Of that, what was
// sent on the node before is dropped, and compared instead: heads by what they say
// about the body, octets by their checksum.
type output struct {
	head  []byte // heads as the client has them or will, all of them whole
	final []byte // the last of them, if it is the final one
	block []byte // the beginning of another
	line  lineScan
	large bool // a head is too large to travel

	pos  int64  // how much was produced, in octets of heads and body
	sent int64  // how much TCP has taken
	sum  uint32 // of the body's octets among those

	prior   []byte // heads of the node before
	dropped uint32 // checksum of the body's octets that were dropped
	blind   bool   // some of those were made up
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// produce takes what net/http writes, and returns what is to be sent for it.
func (o *output) produce(b []byte) (send []byte, err error) {
	if o.large {
		return b, nil
	}
	for o.final == nil && len(b) > 0 {
		n, over := o.line.find(b)
		o.block = append(o.block, b[:n]...)
		if b = b[n:]; len(o.head)+len(o.block) > maxHead {
			if len(o.prior) > 0 {
				return nil, errChanged
			}
			o.large = true
			return append(append(send, o.block...), b...), nil
		}
		if !over {
			return send, nil
		}
		head, err := o.endHead()
		if err != nil {
			return nil, err
		}
		n, _ = o.drop(len(head))
		send = append(send, head[n:]...)
	}
	n, last := o.drop(len(b))
	o.dropped = crc32.Update(o.dropped, castagnoli, b[:n])
	if last && o.dropped != o.sum && !o.blind {
		return nil, errChanged
	}
	if len(send) > 0 {
		return append(send, b[n:]...), nil // in one piece, as it came
	}
	return b[n:], nil
}

// drop accounts for octets that are produced. It says how many of them were sent
// on the node before, and whether those are the last such ones.
func (o *output) drop(octets int) (n int, last bool) {
	owed := o.sent - o.pos
	o.pos += int64(octets)
	n = int(max(min(int64(octets), owed), 0))
	return n, n > 0 && int64(n) == owed
}

// endHead ends the head in block, and returns the one that the client is to have.
func (o *output) endHead() ([]byte, error) {
	head := o.block
	o.block = nil
	code, err := statusOf(head)
	if err != nil {
		return nil, err
	}
	if at := len(o.head); at < len(o.prior) {
		n, over := new(lineScan).find(o.prior[at:])
		before := o.prior[at : at+n]
		if !over || !sameHead(before, head) {
			return nil, errChanged
		}
		head = before
	}
	o.head = append(o.head, head...)
	if code >= 200 || code == http.StatusSwitchingProtocols {
		o.final = head
	}
	return head, nil
}

// took accounts for octets that TCP has taken.
func (o *output) took(p []byte) {
	if inHead := int64(len(o.head)) - o.sent; o.final != nil && inHead < int64(len(p)) {
		o.sum = crc32.Update(o.sum, castagnoli, p[max(inHead, 0):])
	}
	o.sent += int64(len(p))
}

// between tells whether no final response has begun.
func (o *output) between() bool { return o.final == nil && len(o.block) == 0 && !o.large }

// owes tells whether the client has got more than was produced again by now.
func (o *output) owes() bool { return o.pos < o.sent && !o.large }

// next begins the next response.
func (o *output) next() error {
	if o.owes() {
		return errChanged
	}
	*o = output{}
	return nil
}

// ahead returns the final head that the client has from the node before, and how
// many octets of the body. None of the body is produced again yet.
func (o *output) ahead() (head []byte, octets int64) {
	_, head = lastHead(o.prior)
	if code, err := statusOf(head); err != nil || code < 200 {
		return nil, 0
	}
	return head, max(o.sent-int64(len(o.prior)), 0)
}

func (o *output) describe(r *record) {
	if o.sent == 0 {
		return
	}
	r.Response, r.Sent, r.Sum = o.head, o.sent, o.sum
	if len(o.prior) > len(o.head) {
		r.Response = o.prior
	}
	r.Response = slices.Clone(r.Response)
}

// lastHead tells how many heads there are, and returns the last; none if one is
// not whole.
func lastHead(heads []byte) (count int, last []byte) {
	for len(heads) > 0 {
		n, over := new(lineScan).find(heads)
		if !over {
			return 0, nil
		}
		count, last, heads = count+1, heads[:n], heads[n:]
	}
	return count, last
}

// statusOf is the status code of a head.
func statusOf(head []byte) (code int, err error) {
	line, _, _ := bytes.Cut(head, []byte("\r\n"))
	if _, err := fmt.Sscanf(string(line), "HTTP/1.%1d %3d", new(int), &code); err != nil || code < 100 {
		return 0, fmt.Errorf("no status line: %.100q", line)
	}
	return code, nil
}

// about are the fields of a head that say what the body is, and how long.
var about = []string{"Content-Length", "Transfer-Encoding", "Content-Type", "Content-Encoding", "Content-Range", "Etag", "Last-Modified"}

// sameHead tells whether two heads stand before the same body.
func sameHead(a, b []byte) bool {
	x, errX := parseHead(a)
	y, errY := parseHead(b)
	if errX != nil || errY != nil || x.StatusCode != y.StatusCode {
		return false
	}
	for _, name := range about {
		if !slices.Equal(x.Header[name], y.Header[name]) {
			return false
		}
	}
	return slices.Equal(x.TransferEncoding, y.TransferEncoding)
}

func parseHead(b []byte) (*http.Response, error) {
	// As if for HEAD, so that nobody looks for a body.
	return http.ReadResponse(bufio.NewReader(bytes.NewReader(b)), &http.Request{Method: http.MethodHead})
}

// represents tells whether a header is about the very representation that the
// head of the node before is about, as a validator says (RFC 9110 section 8.8).
func represents(head []byte, h http.Header) bool {
	before, err := parseHead(head)
	if err != nil {
		return false
	}
	for _, name := range about {
		if !slices.Equal(before.Header[name], h[name]) {
			return false
		}
	}
	strong := h.Get("Etag") != "" && !strings.HasPrefix(h.Get("Etag"), "W/")
	return h.Get("Content-Length") != "" && h.Get("Content-Type") != "" && (strong || h.Get("Last-Modified") != "")
}
