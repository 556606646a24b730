package config

import (
	"encoding"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"
)

// decoder puts what a document says into a configuration. Unlike the decoder of
// the TOML package it goes on after a mistake, so that all are found at once.
type decoder struct {
	file     string
	lines    map[string]int // of keys, by their paths
	problems Problems

	// partial: the list of members has not been looked at, so nodes are missing.
	partial bool
}

// maxProblems is how many somebody is told at once.
const maxProblems = 100

// report adds a problem with what is at a path, unless there is one already: the
// first is the cause.
func (d *decoder) report(path, cure, format string, args ...any) {
	known := func(p *Problem) bool { return p.Key == path }
	if len(d.problems) == maxProblems || slices.ContainsFunc(d.problems, known) {
		return
	}
	d.problems = append(d.problems, &Problem{File: d.file, Line: d.line(path), Key: path, What: fmt.Sprintf(format, args...), Cure: cure})
}

// line is that of a path, or of what it is in.
func (d *decoder) line(path string) int {
	for path != "" {
		if n, ok := d.lines[path]; ok {
			return n
		}
		path = path[:max(strings.LastIndexAny(path, ".["), 0)]
	}
	return 0
}

// has tells whether the file has a key.
func (d *decoder) has(path string) bool { return d.lines[path] > 0 }

func (d *decoder) decode(doc map[string]any, cfg *Config) {
	d.table("", doc, reflect.ValueOf(cfg).Elem())
}

// table decodes a table into a struct, which has its defaults before.
func (d *decoder) table(path string, table map[string]any, into reflect.Value) {
	if v, ok := into.Addr().Interface().(interface{ setDefaults() }); ok {
		v.setDefaults()
	}
	fields, needed := make(map[string]reflect.Value), make(map[string]bool)
	for i := range into.NumField() {
		f := into.Type().Field(i)
		if !f.IsExported() {
			continue
		}
		name := f.Tag.Get("toml")
		fields[name], needed[name] = into.Field(i), f.Tag.Get("need") != ""
		if _, ok := table[name]; !ok && needed[name] {
			d.report(join(path, name), fmt.Sprintf("add %s = %s", name, example(f.Type)), "missing")
		}
	}
	for _, key := range slices.Sorted(maps.Keys(table)) {
		keyPath := join(path, key)
		field, ok := fields[key]
		if ok && needed[key] && table[key] == "" {
			d.report(keyPath, "write "+example(field.Type()), "empty")
			continue
		}
		if !ok {
			cure := "remove it"
			if name := nearest(key, slices.Sorted(maps.Keys(fields))); name != "" {
				cure = fmt.Sprintf("is it %s?", name)
			}
			d.report(keyPath, cure, "no such key")
			continue
		}
		d.value(keyPath, table[key], field)
	}
}

// value decodes a value of any kind.
func (d *decoder) value(path string, v any, into reflect.Value) {
	if u, ok := into.Addr().Interface().(encoding.TextUnmarshaler); ok {
		s, ok := v.(string)
		if !ok || s == "" || u.UnmarshalText([]byte(s)) != nil {
			d.wrong(path, v, into)
		}
		return
	}
	switch into.Kind() {
	case reflect.Pointer:
		into.Set(reflect.New(into.Type().Elem()))
		d.value(path, v, into.Elem())
	case reflect.Struct:
		if table, ok := v.(map[string]any); ok {
			d.table(path, table, into)
		} else {
			d.wrong(path, v, into)
		}
	case reflect.Slice:
		list, ok := v.([]any)
		if !ok {
			d.wrong(path, v, into)
			return
		}
		into.Set(reflect.MakeSlice(into.Type(), len(list), len(list)))
		for i, e := range list {
			d.value(fmt.Sprintf("%s[%d]", path, i), e, into.Index(i))
		}
	case reflect.Map:
		table, ok := v.(map[string]any)
		if !ok {
			d.wrong(path, v, into)
			return
		}
		into.Set(reflect.MakeMap(into.Type()))
		for _, key := range slices.Sorted(maps.Keys(table)) {
			e := reflect.New(into.Type().Elem()).Elem()
			d.value(join(path, key), table[key], e)
			into.SetMapIndex(reflect.ValueOf(key), e)
		}
	default:
		if !scalar(v, into) {
			d.wrong(path, v, into)
		}
	}
}

// scalar sets a string, boolean or number, and tells whether v is one.
func scalar(v any, into reflect.Value) bool {
	switch v := v.(type) {
	case string:
		if into.Kind() == reflect.String {
			into.SetString(v)
			return true
		}
	case bool:
		if into.Kind() == reflect.Bool {
			into.SetBool(v)
			return true
		}
	case int64:
		switch {
		case into.CanInt() && !into.OverflowInt(v):
			into.SetInt(v)
			return true
		case into.CanUint() && v >= 0 && !into.OverflowUint(uint64(v)):
			into.SetUint(uint64(v))
			return true
		}
	}
	return false
}

func (d *decoder) wrong(path string, v any, into reflect.Value) {
	t := into.Type()
	d.report(path, "write "+example(t), "%s is not %s", shown(v), describe(t))
}

// shown is a value for a message.
func shown(v any) string {
	switch v := v.(type) {
	case map[string]any:
		return "a table"
	case []any, []map[string]any:
		return "an array"
	case string:
		return fmt.Sprintf("%.80q", v)
	default:
		return fmt.Sprintf("%.80s", fmt.Sprint(v))
	}
}

var (
	addrType     = reflect.TypeFor[netip.Addr]()
	prefixType   = reflect.TypeFor[netip.Prefix]()
	durationType = reflect.TypeFor[Duration]()
)

// describe and example tell people about a type.
func describe(t reflect.Type) string {
	switch {
	case t == addrType:
		return "an address"
	case t == prefixType:
		return "an address with the length of its prefix"
	case t == durationType:
		return "a duration"
	}
	switch t.Kind() {
	case reflect.Pointer:
		return describe(t.Elem())
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "a boolean"
	case reflect.Slice:
		return "an array"
	case reflect.Map, reflect.Struct:
		return "a table"
	}
	return fmt.Sprintf("a whole number from %s", span(t))
}

func span(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Uint16:
		return fmt.Sprintf("0 to %d", math.MaxUint16)
	case reflect.Uint32:
		return fmt.Sprintf("0 to %d", uint32(math.MaxUint32))
	}
	return "0"
}

func example(t reflect.Type) string {
	switch {
	case t == addrType:
		return `"2001:db8::1"`
	case t == prefixType:
		return `"2001:db8::1/64"`
	case t == durationType:
		return fmt.Sprintf("%q", time.Minute)
	}
	switch t.Kind() {
	case reflect.Pointer:
		return example(t.Elem())
	case reflect.String:
		return `"text"`
	case reflect.Bool:
		return "true or false"
	case reflect.Slice:
		return "[" + example(t.Elem()) + "]"
	case reflect.Map:
		return "{ name = " + example(t.Elem()) + " }"
	case reflect.Struct:
		return "{ … }"
	}
	return "a number"
}

// nearest is the name that key is a slip of, or "".
func nearest(key string, names []string) string {
	best, least := "", len(key)/2+1
	for _, name := range names {
		if n := distance(key, name); n < least {
			best, least = name, n
		}
	}
	return best
}

// distance is how many letters are added, left out or exchanged (Levenshtein).
func distance(a, b string) int {
	if len(a) > 64 {
		return len(a)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := before
			if a[i] != b[j] {
				cost++
			}
			before = row[j+1]
			row[j+1] = min(cost, before+1, row[j]+1)
		}
	}
	return row[len(b)]
}
