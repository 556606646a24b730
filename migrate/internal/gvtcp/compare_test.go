//lint:file-ignore U1000 The comparison reads these fields by reflection.

package gvtcp

import (
	"errors"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// Fabricated originals and mirrors.
type (
	fabricLeaf   struct{ n, m int32 }
	fabricMiddle struct {
		leaf *fabricLeaf
		list []fabricLeaf
	}
	fabric struct {
		a      uint8
		b      time.Duration
		middle *fabricMiddle
		when   fabricLeaf
		any    opaque
		face   iface
	}
)

// same is the fabric, as another package would have it.
type (
	sameLeaf   struct{ n, m int32 }
	sameMiddle struct {
		leaf *sameLeaf
		list []sameLeaf
	}
	sameNumber uint8
	same       struct {
		a      sameNumber
		b      int64
		middle *sameMiddle
		when   sameLeaf
		any    map[string]int
		face   io.Reader
	}
)

func compareTypes[got, want any]() []string {
	var c comparison
	c.compare("x", reflect.TypeFor[got](), reflect.TypeFor[want]())
	var all []string
	for _, err := range c.errs {
		all = append(all, err.Error())
	}
	return all
}

func TestCompareAccepts(t *testing.T) {
	if errs := compareTypes[same, fabric](); errs != nil {
		t.Errorf("the same: %q", errs)
	}
	if errs := compareTypes[fabric, fabric](); errs != nil {
		t.Errorf("itself: %q", errs)
	}
	// Types that lead back to themselves end.
	type ring struct{ next, prev *ring }
	type mirror struct{ next, prev *mirror }
	if errs := compareTypes[ring, mirror](); errs != nil {
		t.Errorf("ring: %q", errs)
	}
}

// TestCompareDetects: every way in which gVisor can change a struct is an error
// that names the field.
func TestCompareDetects(t *testing.T) {
	type added struct {
		a      sameNumber
		b      int64
		middle *sameMiddle
		when   sameLeaf
		any    map[string]int
		face   io.Reader
		extra  string
	}
	type addedInPadding struct { // of the same size
		a      sameNumber
		extra  bool
		b      int64
		middle *sameMiddle
		when   sameLeaf
		any    map[string]int
		face   io.Reader
	}
	type missing struct {
		a      sameNumber
		b      int64
		middle *sameMiddle
		any    map[string]int
		face   io.Reader
	}
	type moved struct {
		a      sameNumber
		b      int64
		when   sameLeaf
		middle *sameMiddle
		any    map[string]int
		face   io.Reader
	}
	type retyped struct {
		a      bool
		b      uint64
		middle sameMiddle
		when   [2]int32
		any    string
		face   any
	}
	type leafAdded struct{ n, m, o int32 }
	type leafRenamed struct{ n, o int32 }
	type leafRetyped struct {
		n int32
		m float32
	}
	type leafMoved struct{ m, n int32 }
	type middleOf[leaf any] struct {
		leaf *leaf
		list []leaf
	}
	type of[leaf any] struct {
		a      sameNumber
		b      int64
		middle *middleOf[leaf]
		when   sameLeaf
		any    map[string]int
		face   io.Reader
	}
	type inner struct{ when sameLeaf }
	type promoted struct { // the name is there, but in an embedded struct
		a      sameNumber
		b      int64
		middle *sameMiddle
		inner
		any  map[string]int
		face io.Reader
	}
	for _, c := range []struct {
		name string
		got  []string
		want []string
	}{
		{"added", compareTypes[added, fabric](), []string{"x.extra: is new, a string", "x: has 72 octets: want 56"}},
		{"added in padding", compareTypes[addedInPadding, fabric](), []string{"x.extra: is new, a bool"}},
		{"missing", compareTypes[missing, fabric](), []string{"x.when: is gone, a gvtcp.fabricLeaf", "x.any: is at offset 24: want 32", "x: has 48 octets: want 56"}},
		{"moved", compareTypes[moved, fabric](), []string{"x.middle: is at offset 24: want 16", "x.when: is at offset 16: want 24"}},
		{"retyped", compareTypes[retyped, fabric](), []string{"x.a: is a bool: want a uint8", "x.b: is a uint64: want a time.Duration", "x.any: is a", "x.face: is a"}},
		{"added at depth", compareTypes[of[leafAdded], fabric](), []string{"x.middle.leaf.o: is new, a int32", "x.middle.leaf: has 12 octets: want 8"}},
		{"renamed at depth", compareTypes[of[leafRenamed], fabric](), []string{"x.middle.leaf.o: is new", "x.middle.leaf.m: is gone"}},
		{"retyped at depth", compareTypes[of[leafRetyped], fabric](), []string{"x.middle.leaf.m: is a float32: want a int32"}},
		{"moved at depth", compareTypes[of[leafMoved], fabric](), []string{"x.middle.leaf.m: is at offset 0: want 4"}},
		{"promoted", compareTypes[promoted, fabric](), []string{"x.inner: is new", "x.when: is gone"}},
		{"behind a slice", compareTypes[[]leafRetyped, []fabricLeaf](), []string{"x.m: is a float32"}},
		{"pointer for value", compareTypes[*sameLeaf, fabricLeaf](), []string{"x: is a *gvtcp.sameLeaf: want a gvtcp.fabricLeaf"}},
		{"value for opaque", compareTypes[int, opaque](), []string{"x: is a int"}},
		{"empty interface", compareTypes[any, iface](), []string{"x: is a interface {}"}},
		{"narrower number", compareTypes[struct{ n int32 }, struct{ n int64 }](), []string{"x.n: is a int32: want a int64"}},
		{"signed for unsigned", compareTypes[struct{ n int32 }, struct{ n uint32 }](), []string{"x.n: is a int32: want a uint32"}},
		{"array", compareTypes[[3]int32, [4]int32](), []string{"x: is a [3]int32: want a [4]int32"}},
		{"string", compareTypes[struct{ s string }, struct{ s []byte }](), []string{"x.s: is a string"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, want := range c.want {
				if !slices.ContainsFunc(c.got, func(s string) bool { return strings.Contains(s, want) }) {
					t.Errorf("%q: want one that says %q", c.got, want)
				}
			}
		})
	}
}

// TestCompareOriginals: a mirror with one field spoilt is noticed, whatever
// the field. The spoilt mirrors are made by reflection from the real ones, so
// that none is forgotten.
func TestCompareOriginals(t *testing.T) {
	mirrors := map[string]reflect.Type{
		"endpoint": reflect.TypeFor[endpoint](), "sender": reflect.TypeFor[sender](), "receiver": reflect.TypeFor[receiver](),
		"segment": reflect.TypeFor[segment](), "timer": reflect.TypeFor[timer](), "rackControl": reflect.TypeFor[rackControl](),
		"scoreboard": reflect.TypeFor[scoreboard](), "keepalive": reflect.TypeFor[keepalive](), "cubicState": reflect.TypeFor[cubicState](),
	}
	for name, m := range mirrors {
		var fields []reflect.StructField
		for i := range m.NumField() {
			f := m.Field(i)
			// StructOf wants exported names; the comparison goes by name.
			fields = append(fields, reflect.StructField{Name: "F_" + f.Name, Type: f.Type})
		}
		whole := reflect.StructOf(fields)
		for i := range fields {
			for what, spoil := range map[string]func([]reflect.StructField) []reflect.StructField{
				"gone":    func(fs []reflect.StructField) []reflect.StructField { return slices.Delete(fs, i, i+1) },
				"renamed": func(fs []reflect.StructField) []reflect.StructField { fs[i].Name += "_"; return fs },
				"retyped": func(fs []reflect.StructField) []reflect.StructField {
					fs[i].Type = reflect.TypeFor[[3]complex128]()
					return fs
				},
				"added": func(fs []reflect.StructField) []reflect.StructField {
					return slices.Insert(fs, i, reflect.StructField{Name: "New", Type: reflect.TypeFor[bool]()})
				},
			} {
				got := reflect.StructOf(spoil(slices.Clone(fields)))
				var c comparison
				c.compare(name, got, whole)
				if errors.Join(c.errs...) == nil {
					t.Errorf("%s.%s: %s is not noticed", name, m.Field(i).Name, what)
				}
			}
		}
	}
}
