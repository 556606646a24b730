package config

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

// maxPath is how long a path may be, in octets, for more to be looked for in it:
// no key is so deep, and a path for each of many would take much memory.
const maxPath = 1000

// index finds the line of each key. The document is known to be TOML.
func (d *decoder) index(data []byte) {
	x := indexer{lines: d.lines, arrays: make(map[string]int), data: data, line: 1}
	x.p.Reset(data)
	table := ""
	for x.p.NextExpression() {
		switch e := x.p.Expression(); e.Kind {
		case unstable.Table:
			table, _ = x.keys("", e.Key())
		case unstable.ArrayTable:
			name, line := x.keys("", e.Key())
			table = fmt.Sprintf("%s[%d]", name, x.arrays[name])
			x.arrays[name]++
			x.lines[table] = line
		case unstable.KeyValue:
			x.keyValue(table, e)
		}
	}
}

type indexer struct {
	p      unstable.Parser
	lines  map[string]int
	arrays map[string]int // how many tables an array has
	data   []byte

	// line is that of the octet at offset.
	line, offset int
}

// at is the line of a node. Nodes come in order, nearly.
func (x *indexer) at(n *unstable.Node) int {
	to := int(n.Raw.Offset)
	if to < x.offset {
		x.line, x.offset = 1, 0
	}
	for _, c := range x.data[x.offset:to] {
		if c == '\n' {
			x.line++
		}
	}
	x.offset = to
	return x.line
}

// keys goes down a dotted key from a path, and returns where that leads, and the
// line of its end. On the way it enters the last table of an array.
func (x *indexer) keys(path string, it unstable.Iterator) (string, int) {
	line := x.line
	for it.Next() {
		if n := x.arrays[path]; n > 0 {
			path = fmt.Sprintf("%s[%d]", path, n-1)
		}
		line = x.at(it.Node())
		if len(path) > maxPath {
			continue
		}
		path = join(path, string(it.Node().Data))
		if _, ok := x.lines[path]; !ok {
			x.lines[path] = line
		}
	}
	return path, line
}

func (x *indexer) keyValue(path string, e *unstable.Node) {
	path, _ = x.keys(path, e.Key())
	x.value(path, e.Value())
}

// value indexes what is in an array or inline table.
func (x *indexer) value(path string, v *unstable.Node) {
	if len(path) > maxPath {
		return
	}
	it := v.Children()
	switch v.Kind {
	case unstable.Array:
		for i := 0; it.Next(); i++ {
			e := it.Node()
			element := fmt.Sprintf("%s[%d]", path, i)
			if e.Raw.Length > 0 {
				x.lines[element] = x.at(e)
			}
			x.value(element, e)
		}
	case unstable.InlineTable:
		for it.Next() {
			x.keyValue(path, it.Node())
		}
	}
}

// join adds a key to a path.
func join(path, key string) string {
	if !bare(key) {
		key = strconv.Quote(key)
	}
	if path == "" {
		return key
	}
	return path + "." + key
}

func joinKey(keys []string) string {
	path := ""
	for _, k := range keys {
		path = join(path, k)
	}
	return path
}

// bare tells whether a key is written without quotation marks.
func bare(key string) bool {
	return key != "" && strings.Trim(key, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-") == ""
}
