package movable

import (
	"bytes"
	"fmt"
)

// lineServer answers each line with its number on this connection, the name of
// the node that answers, and the line itself:
//
//	hello      1 a hello
//	again      2 b again
//
// The number travels with the connection. The line quit ends it.
type lineServer struct {
	Count int  `cbor:"1,keyasint"`
	Quit  bool `cbor:"2,keyasint"`

	node string
}

func (l *lineServer) input(in, out []byte) (rest, more []byte, err error) {
	line, rest, ok := bytes.Cut(in, []byte("\n"))
	if !ok || l.Quit {
		return in, out, nil
	}
	line = bytes.TrimSuffix(line, []byte("\r"))
	if string(line) == "quit" {
		l.Quit = true
		return nil, out, nil
	}
	l.Count++
	return rest, fmt.Appendf(out, "%d %s %s\n", l.Count, l.node, line), nil
}

func (l *lineServer) output(out []byte) []byte { return out }
func (l *lineServer) over() bool               { return l.Quit }
