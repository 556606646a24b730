package gvtcp

import (
	"errors"
	"fmt"
	"math/bits"
	"reflect"
	"runtime/debug"
	"sync"
	"unsafe"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// Version is the version of gvisor.dev/gvisor that this package was verified
// with.
const Version = "v0.0.0-20260905035102-160fafc42237"

// ErrUnsupported means that the binary was built with a gVisor whose internals
// are not the ones this package knows.
var ErrUnsupported = errors.New("unsupported version of gvisor.dev/gvisor")

// Check tells whether the gVisor in this binary is the one that this package
// knows. It does its work once.
func Check() error { return checkOnce() }

var checkOnce = sync.OnceValue(func() error {
	errs := compareLayout()
	if v := buildVersion(); v != "" && v != Version {
		errs = append(errs, fmt.Errorf("version is %s: want %s; require that one in go.mod, or a release of this module for the other", v, Version))
	}
	if bits.UintSize != 64 {
		errs = append(errs, errors.New("the architecture is not 64-bit"))
	}
	if errs != nil {
		return fmt.Errorf("%w: %w", ErrUnsupported, errors.Join(errs...))
	}
	return nil
})

// compareLayout compares every mirror with its original.
func compareLayout() []error {
	var c comparison
	ep := reflect.TypeFor[tcp.Endpoint]()
	c.compare("tcp.Endpoint", ep, reflect.TypeFor[endpoint]())
	c.compare("tcpip.MonotonicTime", reflect.TypeFor[tcpip.MonotonicTime](), reflect.TypeFor[instant]())
	c.compareAlgorithms()
	c.findSegmentSet()
	return c.errs
}

// buildVersion is the gVisor module's version in the build information, or ""
// where there is none (test binaries of other modules, vendored builds).
func buildVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, m := range info.Deps {
		if m.Path != "gvisor.dev/gvisor" {
			continue
		}
		if m.Replace != nil {
			return m.Version + " replaced by " + m.Replace.Path + " " + m.Replace.Version
		}
		return m.Version
	}
	return ""
}

type comparison struct {
	seen map[[2]reflect.Type]bool
	errs []error
}

func (c *comparison) fail(path, format string, args ...any) {
	c.errs = append(c.errs, fmt.Errorf("%s: %s", path, fmt.Sprintf(format, args...)))
}

// compare checks that the memory of a got can be used as a want.
func (c *comparison) compare(path string, got, want reflect.Type) {
	if got == want {
		return
	}
	pair := [2]reflect.Type{got, want}
	if c.seen[pair] {
		return
	}
	if c.seen == nil {
		c.seen = make(map[[2]reflect.Type]bool)
	}
	c.seen[pair] = true
	switch {
	case want == reflect.TypeFor[unsafe.Pointer]():
		switch got.Kind() {
		case reflect.Pointer, reflect.Map, reflect.Chan, reflect.Func:
			return
		}
	case want == reflect.TypeFor[iface]():
		if got.Kind() == reflect.Interface && got.NumMethod() > 0 {
			return
		}
	case got.Kind() != want.Kind():
	case got.Kind() == reflect.Pointer, got.Kind() == reflect.Slice:
		c.compare(path, got.Elem(), want.Elem())
		return
	case got.Kind() == reflect.Struct:
		c.compareFields(path, got, want)
		return
	case isNumber(got.Kind()):
		return // a named number, mirrored by its kind
	}
	c.fail(path, "is a %v: want a %v", got, want)
}

func (c *comparison) compareFields(path string, got, want reflect.Type) {
	for i := range got.NumField() {
		f := got.Field(i)
		if _, ok := want.FieldByName(f.Name); !ok {
			c.fail(path+"."+f.Name, "is new, a %v", f.Type)
		}
	}
	for i := range want.NumField() {
		w := want.Field(i)
		f, ok := got.FieldByName(w.Name)
		switch {
		case !ok || len(f.Index) > 1:
			c.fail(path+"."+w.Name, "is gone, a %v", w.Type)
		case f.Offset != w.Offset:
			c.fail(path+"."+w.Name, "is at offset %d: want %d", f.Offset, w.Offset)
		default:
			c.compare(path+"."+w.Name, f.Type, w.Type)
		}
	}
	if got.Size() != want.Size() {
		c.fail(path, "has %d octets: want %d", got.Size(), want.Size())
	}
}

func isNumber(k reflect.Kind) bool { return k >= reflect.Bool && k <= reflect.Float64 }

// Method tables of the congestion control algorithms, which tell what is
// behind sender.cc.
var cubicTab, renoTab unsafe.Pointer

// compareAlgorithms finds the types behind sender.cc, to which no field leads,
// by having netstack make one of each.
func (c *comparison) compareAlgorithms() {
	if len(c.errs) > 0 {
		return // do not touch what differs
	}
	ns := stack.New(stack.Options{TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol}})
	defer ns.Destroy()
	cc := fieldOfEndpoint("snd", "cc")
	for _, a := range []struct {
		name string
		tab  *unsafe.Pointer
		want reflect.Type
	}{
		{"cubic", &cubicTab, reflect.TypeFor[*cubicState]()},
		{"reno", &renoTab, reflect.TypeFor[*renoState]()},
	} {
		s := &sender{ep: &endpoint{stack: ns}}
		algorithm := initCongestionControl(s, tcpip.CongestionControlOption(a.name))
		got := reflect.NewAt(cc, unsafe.Pointer(&algorithm)).Elem().Elem().Type()
		if want := "*tcp." + a.name + "State"; got.String() != want {
			c.fail("congestion control "+a.name, "is a %v: want a %s", got, want)
			continue
		}
		c.compare("tcp."+a.name+"State", got, a.want)
		*a.tab = algorithm.tab
	}
}

// fieldOfEndpoint is the type of a field of tcp.Endpoint, or of a field of that one.
func fieldOfEndpoint(names ...string) reflect.Type {
	t := reflect.TypeFor[tcp.Endpoint]()
	for _, name := range names {
		f, _ := t.FieldByName(name)
		if t = f.Type; t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
	}
	return t
}

// segmentSet is the type of the map in a write list.
var segmentSet reflect.Type

func (c *comparison) findSegmentSet() {
	if len(c.errs) > 0 {
		return
	}
	segmentSet = fieldOfEndpoint("snd", "writeList", "set")
	if got, want := segmentSet.String(), "map[*tcp.segment]struct {}"; got != want {
		c.fail("write list's set", "is a %s: want a %s", got, want)
	}
}
