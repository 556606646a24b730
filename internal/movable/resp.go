package movable

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// respServer speaks version 2 of the Redis serialization protocol, and as many
// commands as redis-cli and redis-benchmark need.
//
// Each connection has a store of its own, which is empty at first and travels
// with it: what one node has set, the next one knows, without any other storage.
type respServer struct {
	Store []entry `cbor:"1,keyasint"` // sorted by key
	Quit  bool    `cbor:"2,keyasint"`

	node string
}

type entry struct {
	Key   []byte `cbor:"1,keyasint"`
	Value []byte `cbor:"2,keyasint"`
}

const (
	maxArgs  = 1024
	maxBulk  = 128 << 10
	maxStore = 256 << 10 // keys and values, in octets: a state is at most 1 MiB
)

var errRESP = errors.New("movable: bad RESP request")

// valid checks a state from elsewhere.
func (r *respServer) valid() error {
	sorted := slices.IsSortedFunc(r.Store, func(a, b entry) int { return bytes.Compare(a.Key, b.Key) })
	if !sorted || r.size() > maxStore {
		return fmt.Errorf("a store of %d octets, in order: %t", r.size(), sorted)
	}
	return nil
}

func (r *respServer) output(out []byte) []byte { return out }
func (r *respServer) over() bool               { return r.Quit }

func (r *respServer) input(in, out []byte) (rest, more []byte, err error) {
	if r.Quit {
		return nil, out, nil
	}
	args, rest, err := parseRESP(in)
	switch {
	case err != nil:
		return in, fmt.Appendf(out, "-ERR Protocol error: %v\r\n", err), errRESP
	case len(rest) == len(in): // it needs more
		return in, out, nil
	case len(args) == 0:
		return rest, out, nil
	}
	return rest, r.command(args, out), nil
}

// parseRESP takes a command from the front of in: an array of bulk strings, or a
// line of words. It takes nothing if in has no whole one.
func parseRESP(in []byte) (args [][]byte, rest []byte, err error) {
	line, rest, ok := cutLine(in)
	if !ok {
		if len(in) > maxBulk {
			return nil, in, errors.New("too big inline request")
		}
		return nil, in, nil
	}
	if len(line) == 0 || line[0] != '*' {
		return bytes.Fields(line), rest, nil
	}
	n, err := strconv.Atoi(string(line[1:]))
	if err != nil || n > maxArgs {
		return nil, in, errors.New("invalid multibulk length")
	}
	for range n {
		if line, rest, ok = cutLine(rest); !ok {
			return nil, in, nil
		}
		if len(line) == 0 || line[0] != '$' {
			return nil, in, errors.New("expected '$'")
		}
		size, err := strconv.Atoi(string(line[1:]))
		if err != nil || size < 0 || size > maxBulk {
			return nil, in, errors.New("invalid bulk length")
		}
		if len(rest) < size+2 {
			return nil, in, nil
		}
		if rest[size] != '\r' || rest[size+1] != '\n' {
			return nil, in, errors.New("bulk string without end")
		}
		args = append(args, rest[:size])
		rest = rest[size+2:]
	}
	return args, rest, nil
}

func cutLine(in []byte) (line, rest []byte, ok bool) {
	line, rest, ok = bytes.Cut(in, []byte("\n"))
	if !ok {
		return nil, in, false
	}
	return bytes.TrimSuffix(line, []byte("\r")), rest, true
}

// commands are those with a fixed number of arguments, -1 for any.
var commands = map[string]struct {
	args int
	do   func(r *respServer, args [][]byte, out []byte) []byte
}{
	"ECHO":   {1, func(_ *respServer, a [][]byte, out []byte) []byte { return bulk(out, a[0]) }},
	"SET":    {2, func(r *respServer, a [][]byte, out []byte) []byte { return r.setReply(out, a[0], a[1], "+OK\r\n") }},
	"GET":    {1, func(r *respServer, a [][]byte, out []byte) []byte { return bulk(out, r.get(a[0])) }},
	"INCR":   {1, func(r *respServer, a [][]byte, out []byte) []byte { return r.add(out, a[0], 1) }},
	"DECR":   {1, func(r *respServer, a [][]byte, out []byte) []byte { return r.add(out, a[0], -1) }},
	"STRLEN": {1, func(r *respServer, a [][]byte, out []byte) []byte { return integer(out, int64(len(r.get(a[0])))) }},
	"DBSIZE": {0, func(r *respServer, _ [][]byte, out []byte) []byte { return integer(out, int64(len(r.Store))) }},
	"FLUSHALL": {-1, func(r *respServer, _ [][]byte, out []byte) []byte {
		r.Store = nil
		return append(out, "+OK\r\n"...)
	}},
	"SELECT":  {1, func(_ *respServer, _ [][]byte, out []byte) []byte { return append(out, "+OK\r\n"...) }},
	"CLIENT":  {-1, func(_ *respServer, _ [][]byte, out []byte) []byte { return append(out, "+OK\r\n"...) }},
	"COMMAND": {-1, func(_ *respServer, _ [][]byte, out []byte) []byte { return append(out, "*0\r\n"...) }},
	"INFO": {-1, func(r *respServer, _ [][]byte, out []byte) []byte {
		return bulk(out, []byte("# Server\r\nnode:"+r.node+"\r\n"))
	}},
}

func (r *respServer) command(args [][]byte, out []byte) []byte {
	name := strings.ToUpper(string(args[0]))
	args = args[1:]
	switch name { // those that commands does not describe
	case "PING":
		if len(args) == 0 {
			return append(out, "+PONG\r\n"...)
		}
		return bulk(out, args[0])
	case "QUIT":
		r.Quit = true
		return append(out, "+OK\r\n"...)
	case "CONFIG": // redis-benchmark asks for two settings
		if len(args) == 2 && strings.EqualFold(string(args[0]), "GET") {
			return bulk(bulk(append(out, "*2\r\n"...), args[1]), []byte{})
		}
	case "DEL", "EXISTS":
		n := int64(0)
		for _, key := range args {
			i, ok := r.find(key)
			if ok {
				n++
			}
			if ok && name == "DEL" {
				r.Store = slices.Delete(r.Store, i, i+1)
			}
		}
		return integer(out, n)
	}
	c, ok := commands[name]
	switch {
	case !ok:
		return fmt.Appendf(out, "-ERR unknown command '%.40q'\r\n", name)
	case c.args >= 0 && len(args) != c.args:
		return fmt.Appendf(out, "-ERR wrong number of arguments for '%s' command\r\n", strings.ToLower(name))
	}
	return c.do(r, args, out)
}

func (r *respServer) find(key []byte) (int, bool) {
	return slices.BinarySearchFunc(r.Store, key, func(e entry, key []byte) int { return bytes.Compare(e.Key, key) })
}

// get returns a value, nil if there is none.
func (r *respServer) get(key []byte) []byte {
	if i, ok := r.find(key); ok {
		return r.Store[i].Value
	}
	return nil
}

func (r *respServer) size() (n int) {
	for _, e := range r.Store {
		n += len(e.Key) + len(e.Value)
	}
	return n
}

// setReply sets a value and appends the reply, or why it cannot be set.
func (r *respServer) setReply(out, key, value []byte, reply string) []byte {
	i, ok := r.find(key)
	room := maxStore - r.size()
	if ok {
		room += len(r.Store[i].Value)
	} else {
		room -= len(key)
	}
	if len(value) > room {
		return append(out, "-OOM a connection's store has at most 256 KiB\r\n"...)
	}
	value = append([]byte{}, value...) // not nil, and not the buffer
	if ok {
		r.Store[i].Value = value
	} else {
		r.Store = slices.Insert(r.Store, i, entry{bytes.Clone(key), value})
	}
	return append(out, reply...)
}

func (r *respServer) add(out, key []byte, delta int64) []byte {
	var n int64
	if v := r.get(key); v != nil {
		var err error
		if n, err = strconv.ParseInt(string(v), 10, 64); err != nil {
			return append(out, "-ERR value is not an integer or out of range\r\n"...)
		}
	}
	if n > 0 && delta > math.MaxInt64-n || n < 0 && delta < math.MinInt64-n {
		return append(out, "-ERR increment or decrement would overflow\r\n"...)
	}
	n += delta
	return r.setReply(out, key, strconv.AppendInt(nil, n, 10), string(integer(nil, n)))
}

func bulk(out, b []byte) []byte {
	if b == nil {
		return append(out, "$-1\r\n"...)
	}
	return append(append(fmt.Appendf(out, "$%d\r\n", len(b)), b...), "\r\n"...)
}

func integer(out []byte, n int64) []byte { return fmt.Appendf(out, ":%d\r\n", n) }
