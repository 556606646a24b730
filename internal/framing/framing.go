// Package framing reads what sessions and connections between daemons have
// around their messages: four octets with the length of what follows, big-endian.
package framing

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// ErrTooLong is returned for a frame that announces more than its reader takes.
var ErrTooLong = errors.New("framing: too long")

// Read reads a frame of at most max octets. Memory grows with what has arrived, not
// with what the length says. The error is [ErrTooLong] or that of r, [io.EOF] between
// frames only.
func Read(r io.Reader, max int) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	length := binary.BigEndian.Uint32(head[:])
	if uint64(length) > uint64(max) {
		return nil, fmt.Errorf("%w: %d octets, more than %d", ErrTooLong, length, max)
	}
	const step = 1 << 20
	n := int(length)
	b := make([]byte, 0, min(n, step))
	for len(b) < n {
		k := min(n-len(b), step)
		b = append(b, make([]byte, k)...)
		if _, err := io.ReadFull(r, b[len(b)-k:]); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	return b, nil
}

// Ready tells whether the next frame has come whole, so that Read does not wait.
func Ready(r *bufio.Reader) bool {
	if r.Buffered() < 4 {
		return false
	}
	head, _ := r.Peek(4)
	return uint64(r.Buffered()-4) >= uint64(binary.BigEndian.Uint32(head))
}
