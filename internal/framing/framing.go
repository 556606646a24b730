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
		return nil, tooLong(length, max)
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

// Next is Read, but does not copy a frame that a [bufio.Reader] has whole: it is the
// reader's, until that is read from again.
func Next(r io.Reader, max int) ([]byte, error) {
	b, ok := r.(*bufio.Reader)
	if !ok || !Ready(b) {
		return Read(r, max)
	}
	head, _ := b.Peek(4)
	length := binary.BigEndian.Uint32(head)
	if uint64(length) > uint64(max) {
		return nil, tooLong(length, max)
	}
	frame, _ := b.Peek(4 + int(length))
	_, err := b.Discard(len(frame))
	return frame[4:], err
}

func tooLong(length uint32, max int) error {
	return fmt.Errorf("%w: %d octets, more than %d", ErrTooLong, length, max)
}

// Ready tells whether the next frame has come whole, so that Read does not wait.
func Ready(r *bufio.Reader) bool {
	if r.Buffered() < 4 {
		return false
	}
	head, _ := r.Peek(4)
	return uint64(r.Buffered()-4) >= uint64(binary.BigEndian.Uint32(head))
}
