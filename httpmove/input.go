package httpmove

import (
	"bytes"
	"fmt"
	"slices"
)

const (
	// maxHead bounds the head of a request or response that travels, in octets.
	maxHead = 128 << 10

	// maxBody bounds the body of a request that is handed out again, in octets.
	maxBody = 64 << 10
)

// phase is where in its requests a client's stream is.
type phase uint8

const (
	inHead   phase = iota
	inGap          // all of a head or body was handed out; nothing more is until the next begins
	inBody         // of known length
	inChunks       // body in chunks
	inRaw          // hijacked
)

// input hands out what a client sends, one request at a time. It does no I/O.
type input struct {
	phase  phase
	unread []byte // come from TCP, and not handed out
	log    []byte // handed out of the current request: its head, and a small body
	head   int    // how long its head is
	large  bool   // the head is too large for log
	small  bool   // the body is in log, too
	skip   int64  // of the body: octets that were dealt with on the node before
	left   int64  // of the body
	taken  int64  // of the body
	line   lineScan
	chunks chunkScan
}

// hand copies to b what may be handed out of unread: of a head or a body in
// chunks. must says that the connection has to be pinned before.
func (in *input) hand(b []byte, pinned bool) (n int, must bool) {
	if in.phase == inHead && len(in.log) == 0 && !in.large {
		in.unread = bytes.TrimLeft(in.unread, "\r\n") // RFC 9112 section 2.2
	}
	b = b[:copy(b, in.unread)]
	if in.phase == inChunks {
		var over bool
		if n, over = in.chunks.find(b); over {
			in.phase = inGap
		}
		in.consume(n)
		return n, false
	}
	line := in.line
	n, over := line.find(b)
	large := in.large || len(in.log)+n > maxHead
	if (over || large) && !pinned {
		return 0, true
	}
	in.line, in.large = line, large
	if large {
		in.log = nil
	} else {
		in.log = append(in.log, b[:n]...)
	}
	if over {
		in.phase, in.head = inGap, len(in.log)
	}
	in.consume(n)
	return n, false
}

func (in *input) consume(n int) {
	if in.unread = in.unread[n:]; len(in.unread) == 0 {
		in.unread = nil
	}
}

// begin begins the body of a request, as net/http understands its length: -1
// says that it comes in chunks.
func (in *input) begin(length int64) error {
	switch {
	case in.phase != inGap:
		return errFraming
	case in.skip > max(length, 0):
		return fmt.Errorf("a body of %d octets, of which %d are dealt with", length, in.skip)
	case length < 0:
		in.phase, in.chunks = inChunks, chunkScan{}
	case length > 0:
		in.phase, in.left = inBody, length
		in.small = length <= maxBody && in.skip == 0
	}
	return nil
}

// room is the part of b that may be filled.
func (in *input) room(b []byte) []byte {
	if in.phase == inBody {
		return b[:min(int64(len(b)), in.left)]
	}
	return b
}

// refill fills p with what need not come from TCP.
func (in *input) refill(p []byte) (n int) {
	if in.phase == inBody && in.skip > 0 {
		n = int(min(int64(len(p)), in.skip))
		in.skip -= int64(n)
		clear(p[:n])
	} else {
		n = copy(p, in.unread)
		in.consume(n)
	}
	in.took(p[:n])
	return n
}

// took accounts for octets that are handed out: of a body, or hijacked.
func (in *input) took(p []byte) {
	if in.phase != inBody {
		return
	}
	if in.small {
		in.log = append(in.log, p...)
	}
	in.left -= int64(len(p))
	in.taken += int64(len(p))
	if in.left == 0 {
		in.phase = inGap
	}
}

// whole tells whether log has all of the request that there was so far, and will
// have the rest.
func (in *input) whole() bool {
	return !in.large && (in.small || in.phase == inGap && in.taken == 0 && in.chunks == chunkScan{})
}

// next begins the next request.
func (in *input) next() error {
	if in.phase != inGap {
		return errFraming
	}
	*in = input{unread: in.unread}
	return nil
}

// describe writes down where the stream is. A checkpoint stands for what was
// handed out of the body.
func (in *input) describe(r *record, checkpoint bool) {
	r.Request, r.Unread, r.Skip = slices.Clone(in.log), slices.Clone(in.unread), in.skip
	if checkpoint {
		r.Request, r.Skip = r.Request[:in.head], in.taken
		r.Hijacked = in.phase == inRaw
	}
}

// lineScan looks for an empty line, as the end of a head or a trailer.
type lineScan struct {
	octets int // of the current line
	cr     bool
}

// find tells how many octets of p there are up to the end of the empty line, and
// whether it ends.
func (s *lineScan) find(p []byte) (n int, over bool) {
	for i, b := range p {
		if b == '\n' {
			if s.octets == 0 || s.octets == 1 && s.cr {
				*s = lineScan{}
				return i + 1, true
			}
			*s = lineScan{}
			continue
		}
		s.octets++
		s.cr = b == '\r'
	}
	return len(p), false
}

// chunkScan looks for the end of a body in chunks (RFC 9112 section 7.1). What is
// not well-formed has no end: net/http refuses it, and closes the connection.
type chunkScan struct {
	state   chunkState
	left    int64 // of the chunk's data
	trailer lineScan
}

type chunkState uint8

const (
	chunkSize  chunkState = iota
	chunkLine             // the rest of the line with the size
	chunkData             // and the end of its line
	chunkAfter            // the trailer, with the empty line
	chunkBad
)

const maxChunk = 1 << 50

func (s *chunkScan) find(p []byte) (n int, over bool) {
	for n < len(p) {
		switch b := p[n]; s.state {
		case chunkSize, chunkLine:
			d, ok := hexDigit(b)
			switch {
			case b == '\n' && s.left > 0:
				s.state, s.left = chunkData, s.left+2
			case b == '\n':
				s.state = chunkAfter
			case s.state == chunkLine:
			case !ok:
				s.state = chunkLine
			case s.left > maxChunk:
				s.state = chunkBad
			default:
				s.left = s.left<<4 | d
			}
			n++
		case chunkData:
			k := min(int64(len(p)-n), s.left)
			n += int(k)
			if s.left -= k; s.left == 0 {
				s.state = chunkSize
			}
		case chunkAfter:
			k, over := s.trailer.find(p[n:])
			if n += k; over {
				return n, true
			}
		case chunkBad:
			return len(p), false
		}
	}
	return n, false
}

func hexDigit(b byte) (int64, bool) {
	switch {
	case '0' <= b && b <= '9':
		return int64(b - '0'), true
	case 'a' <= b && b <= 'f':
		return int64(b-'a') + 10, true
	case 'A' <= b && b <= 'F':
		return int64(b-'A') + 10, true
	}
	return 0, false
}
