package gvtcp

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/constant"
	"go/parser"
	"go/printer"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"maps"
	"slices"
)

// signatures are the functions of link.go: as they are in gVisor's source, and
// as this package declares them. The first is compared with the source of the
// gVisor in use, since a linker does not; the second with link.go, so that
// neither changes without a look at the other. Mirrors stand for what they
// mirror, the receiver is the first parameter.
var signatures = map[string][2]string{
	"initSender": {
		"func initSender(ep *Endpoint, iss, irs seqnum.Value, sndWnd seqnum.Size, mss uint16, sndWndScale int)",
		"func initSender(ep *endpoint, iss, irs seqnum.Value, sndWnd seqnum.Size, mss uint16, sndWndScale int)",
	},
	"(*sender).initCongestionControl": {
		"func (s *sender) initCongestionControl(congestionControlName tcpip.CongestionControlOption) congestionControl",
		"func initCongestionControl(s *sender, name tcpip.CongestionControlOption) iface",
	},
	"newOutgoingSegment": {
		"func newOutgoingSegment(id stack.TransportEndpointID, clock tcpip.Clock, buf buffer.Buffer, mark uint32) *segment",
		"func newOutgoingSegment(id stack.TransportEndpointID, clock tcpip.Clock, buf buffer.Buffer, mark uint32) *segment",
	},
	"(*segment).DecRef": {
		"func (s *segment) DecRef()",
		"func segmentDecRef(s *segment)",
	},
	"(*protectedWriteList).PushBack": {
		"func (wl *protectedWriteList) PushBack(seg *segment)",
		"func writeListPushBack(l *writeList, s *segment)",
	},
	"(*timer).enable": {
		"func (t *timer) enable(d time.Duration)",
		"func timerEnable(t *timer, d time.Duration)",
	},
	"(*Endpoint).initGSO": {
		"func (e *Endpoint) initGSO()",
		"func endpointInitGSO(e *endpoint)",
	},
	"(*Endpoint).setEndpointState": {
		"func (e *Endpoint) setEndpointState(state EndpointState)",
		"func endpointSetState(e *endpoint, state tcp.EndpointState)",
	},
	"(*Endpoint).cleanupLocked": {
		"func (e *Endpoint) cleanupLocked()",
		"func endpointCleanup(e *endpoint)",
	},
	"(*Endpoint).purgePendingRcvQueue": {
		"func (e *Endpoint) purgePendingRcvQueue()",
		"func endpointPurgePending(e *endpoint)",
	},
	"(*Endpoint).finWait2TimerExpired": {
		"func (e *Endpoint) finWait2TimerExpired()",
		"func endpointFinWait2Expired(e *endpoint)",
	},
	"(*Endpoint).timeWaitTimerExpired": {
		"func (e *Endpoint) timeWaitTimerExpired()",
		"func endpointTimeWaitExpired(e *endpoint)",
	},
}

const tcpPackage = "gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

// goTool runs the go command, or skips the test where there is none.
func goTool(t *testing.T, args ...string) string {
	t.Helper()
	path, err := exec.LookPath("go")
	if err != nil {
		t.Skipf("the go command is not there to find gVisor's source: %v", err)
	}
	cmd := exec.Command(path, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, &stderr)
	}
	return strings.TrimSpace(string(out))
}

// source is a parsed package.
type source struct {
	fset  *token.FileSet
	files map[string]*ast.File
}

// tcpSource is the source of package tcp in the gVisor in use.
func tcpSource(t *testing.T) source {
	t.Helper()
	dir := goTool(t, "list", "-m", "-f", "{{.Dir}}", "gvisor.dev/gvisor")
	if dir == "" {
		t.Skip("gVisor's source is not on this machine (go mod download fetches it)")
	}
	s := source{token.NewFileSet(), map[string]*ast.File{}}
	dir = filepath.Join(dir, "pkg", "tcpip", "transport", "tcp")
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != dir:
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		f, err := parser.ParseFile(s.fset, path, nil, parser.SkipObjectResolution)
		if err == nil && f.Name.Name == "tcp" {
			s.files[filepath.Base(path)] = f
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(s.files) == 0 {
		t.Fatalf("no source in %s", dir)
	}
	return s
}

// text is a node's source on one line.
func (s source) text(t *testing.T, n ast.Node) string {
	t.Helper()
	var b bytes.Buffer
	if err := printer.Fprint(&b, s.fset, n); err != nil {
		t.Fatal(err)
	}
	return strings.Join(strings.Fields(b.String()), " ")
}

// signature is a function's source without body and comments.
func (s source) signature(t *testing.T, f *ast.FuncDecl) string {
	return s.text(t, &ast.FuncDecl{Recv: f.Recv, Name: f.Name, Type: f.Type})
}

// functions are the functions of the package by the name the linker knows.
func (s source) functions(t *testing.T) map[string][]*ast.FuncDecl {
	m := map[string][]*ast.FuncDecl{}
	for _, f := range s.files {
		for _, d := range f.Decls {
			if f, ok := d.(*ast.FuncDecl); ok {
				name := f.Name.Name
				if f.Recv != nil {
					recv := s.text(t, f.Recv.List[0].Type)
					if strings.HasPrefix(recv, "*") {
						recv = "(" + recv + ")"
					}
					name = recv + "." + name
				}
				m[name] = append(m[name], f)
			}
		}
	}
	return m
}

// linked are the directives of link.go: the linker's name to the declaration.
func linked(t *testing.T) map[string]string {
	t.Helper()
	s := source{fset: token.NewFileSet()}
	f, err := parser.ParseFile(s.fset, "link.go", nil, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	declared := map[string]string{}
	for _, d := range f.Decls {
		if f, ok := d.(*ast.FuncDecl); ok {
			if f.Body != nil {
				t.Errorf("%s has a body", f.Name)
			}
			declared[f.Name.Name] = s.signature(t, f)
		}
	}
	m := map[string]string{}
	for _, g := range f.Comments {
		for _, c := range g.List {
			directive, ok := strings.CutPrefix(c.Text, "//go:linkname ")
			if !ok {
				continue
			}
			local, remote, ok := strings.Cut(directive, " ")
			name, ok2 := strings.CutPrefix(remote, tcpPackage+".")
			if !ok || !ok2 {
				t.Errorf("%s: links something else than a function of %s", c.Text, tcpPackage)
				continue
			}
			if declared[local] == "" {
				t.Errorf("%s: %s is not declared", c.Text, local)
			}
			m[name] = declared[local]
			delete(declared, local)
		}
	}
	for name := range declared {
		t.Errorf("%s is declared without directive", name)
	}
	if len(m) == 0 {
		t.Fatal("no directives found")
	}
	return m
}

// TestSignatures is guard 2 of doc.go.
func TestSignatures(t *testing.T) {
	links := linked(t)
	for name, decl := range links {
		if want, ok := signatures[name]; !ok {
			t.Errorf("%s is linked but has no entry in signatures", name)
		} else if decl != want[1] {
			t.Errorf("%s: link.go has\n\t%s\nsignatures has\n\t%s", name, decl, want[1])
		}
	}
	for name := range signatures {
		if _, ok := links[name]; !ok {
			t.Errorf("%s has an entry in signatures but is not linked", name)
		}
	}

	s := tcpSource(t)
	functions := s.functions(t)
	for _, name := range slices.Sorted(maps.Keys(signatures)) {
		switch fs := functions[name]; len(fs) {
		case 1:
			if got := s.signature(t, fs[0]); got != signatures[name][0] {
				t.Errorf("%s: gVisor has\n\t%s\nsignatures has\n\t%s", name, got, signatures[name][0])
			}
		case 0:
			t.Errorf("%s is not in gVisor's source", name)
		default:
			t.Errorf("%s is %d times in gVisor's source, by build tags: compare by hand", name, len(fs))
		}
	}
}

// TestMirroredTypes: signatures compares names only, so the types in them must
// still be what the mirrors are of.
func TestMirroredTypes(t *testing.T) {
	s := tcpSource(t)
	types := map[string]string{}
	for _, f := range s.files {
		for _, d := range f.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.TYPE {
				continue
			}
			for _, spec := range g.Specs {
				ts := spec.(*ast.TypeSpec)
				kind := s.text(t, ts.Type)
				if i := strings.IndexByte(kind, ' '); i > 0 {
					kind = kind[:i]
				}
				types[ts.Name.Name] = kind
			}
		}
	}
	for name, want := range map[string]string{
		"Endpoint": "struct", "sender": "struct", "segment": "struct", "protectedWriteList": "struct", "timer": "struct",
		"congestionControl": "interface", "EndpointState": "tcpip.EndpointState", "timerState": "int", "queueFlags": "uint8",
	} {
		if got := types[name]; got != want && !(name == "EndpointState" && got == "uint32") {
			t.Errorf("type %s is a %q: want %q", name, got, want)
		}
	}
}

// TestConstants compares our names of gVisor's unexported constants with the
// source.
func TestConstants(t *testing.T) {
	s := tcpSource(t)
	got := map[string]int64{}
	for _, f := range s.files {
		for _, d := range f.Decls {
			if g, ok := d.(*ast.GenDecl); ok && g.Tok == token.CONST {
				s.constants(t, g, got)
			}
		}
	}
	for name, want := range map[string]int64{
		"timerUninitialized": int64(timerUninitialized),
		"timerStateDisabled": int64(timerDisabled),
		"timerStateEnabled":  int64(timerEnabled),
		"timerStateOrphaned": int64(timerOrphaned),
		"recvQ":              recvQ,
	} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s is %d (found: %v): want %d", name, v, ok, want)
		}
	}
	// Nobody has squeezed in another timer state.
	for name, v := range got {
		if strings.HasPrefix(name, "timerState") && v > int64(timerOrphaned) {
			t.Errorf("%s = %d is new", name, v)
		}
	}
}

// constants evaluates those of a declaration that are made of literals and
// iota.
func (s source) constants(t *testing.T, g *ast.GenDecl, into map[string]int64) {
	var last []ast.Expr
	for i, spec := range g.Specs {
		v := spec.(*ast.ValueSpec)
		if v.Values != nil {
			last = v.Values
		}
		for j, name := range v.Names {
			if j >= len(last) {
				continue
			}
			if c := eval(last[j], int64(i)); c.Kind() == constant.Int {
				into[name.Name], _ = constant.Int64Val(c)
			}
		}
	}
}

func eval(e ast.Expr, iota int64) constant.Value {
	switch e := e.(type) {
	case *ast.BasicLit:
		return constant.MakeFromLiteral(e.Value, e.Kind, 0)
	case *ast.Ident:
		if e.Name == "iota" {
			return constant.MakeInt64(iota)
		}
	case *ast.ParenExpr:
		return eval(e.X, iota)
	case *ast.BinaryExpr:
		x, y := eval(e.X, iota), eval(e.Y, iota)
		if x.Kind() != constant.Int || y.Kind() != constant.Int {
			break
		}
		switch e.Op {
		case token.SHL:
			n, _ := constant.Uint64Val(y)
			return constant.Shift(x, token.SHL, uint(n))
		case token.ADD, token.SUB, token.MUL, token.OR:
			return constant.BinaryOp(x, e.Op, y)
		}
	}
	return constant.MakeUnknown()
}

// TestVersion: what check.go expects is what go.mod requires and what the
// other guards have seen.
func TestVersion(t *testing.T) {
	mod, err := os.ReadFile(filepath.FromSlash("../../../go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^\s*(?:require )?gvisor\.dev/gvisor (\S+)`).FindSubmatch(mod)
	if m == nil {
		t.Fatal("go.mod does not require gvisor.dev/gvisor")
	}
	if string(m[1]) != Version {
		t.Errorf("go.mod requires %s: Version is %s", m[1], Version)
	}
	if regexp.MustCompile(`(?m)^\s*(?:replace )?gvisor\.dev/gvisor .*=>`).Match(mod) {
		t.Error("go.mod replaces gvisor.dev/gvisor")
	}
	if v := goTool(t, "list", "-m", "-f", "{{.Version}}", "gvisor.dev/gvisor"); v != Version {
		t.Errorf("the source in use is of version %s: Version is %s", v, Version)
	}
	// A test binary has no module versions in its build information before
	// some Go releases; if it has, they are the same.
	if v := buildVersion(); v != "" && v != Version {
		t.Errorf("built with %s: Version is %s", v, Version)
	}
}

// TestSourceWouldDiffer: the comparison notices each kind of change.
func TestSourceWouldDiffer(t *testing.T) {
	parse := func(code string) string {
		t.Helper()
		s := source{fset: token.NewFileSet()}
		f, err := parser.ParseFile(s.fset, "x.go", "package tcp\n"+code, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		s.files = map[string]*ast.File{"x.go": f}
		for name, fs := range s.functions(t) {
			return fmt.Sprint(name, " ", s.signature(t, fs[0]))
		}
		return ""
	}
	const base = "// Doc.\n//\n// +checklocks:t.mu\nfunc (t *timer) enable(d time.Duration) { t.x() }"
	want := "(*timer).enable func (t *timer) enable(d time.Duration)"
	if got := parse(base); got != want {
		t.Fatalf("%q: want %q", got, want)
	}
	if got := parse("func (t *timer) enable(\n\td time.Duration,\n) {\n}"); got != want && !strings.Contains(got, "d time.Duration") {
		t.Errorf("layout: %q", got)
	}
	for _, changed := range []string{
		"func (t timer) enable(d time.Duration) {}",
		"func (t *timer) enable(d int64) {}",
		"func (t *timer) enable(d time.Duration, again bool) {}",
		"func (t *timer) enable(d time.Duration) error { return nil }",
		"func (t *clockTimer) enable(d time.Duration) {}",
		"func enable(t *timer, d time.Duration) {}",
		"func (t *timer) enable(d ...time.Duration) {}",
	} {
		if got := parse(changed); got == want {
			t.Errorf("%s is not noticed", changed)
		}
	}
}
