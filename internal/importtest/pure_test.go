package importtest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// machines are packages without clock, socket, goroutine or random numbers of their
// own: what a Step does is in what it is given, so that a test, a simulation and a
// daemon have the same machine.
var machines = []string{
	"mobility/wire", "mobility/node", "mobility/correspondent", "mobility/homeagent", "mobility/relay",
	"daemon/member", "daemon/plan", "internal/deadline",
}

// pureImports is what they may import of others. Nothing of it reads a clock, does
// input or output, or makes random numbers, except for package time.
var pureImports = []string{
	"bytes", "cmp", "container/heap", "crypto/sha1", "crypto/subtle", "encoding/binary", "errors", "fmt",
	"github.com/fxamacker/cbor/v2", "io", "iter", "maps", "math", "math/bits", "net/netip", "slices", "strings", "time",
}

// clocks are the functions of package time that look at one.
var clocks = []string{"After", "AfterFunc", "NewTicker", "NewTimer", "Now", "Since", "Sleep", "Tick", "Until"}

func TestPure(t *testing.T) {
	root, module := findModule(t)
	for _, dir := range machines {
		files, err := filepath.Glob(filepath.Join(root, dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			n++
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, what := range impure(t, module, string(b)) {
				t.Errorf("%s/%s: %s\n\tbut: %s is a machine; what it needs is given to its Step", dir, filepath.Base(file), what, dir)
			}
		}
		if n == 0 {
			t.Errorf("no files in %s", dir)
		}
	}
}

// What is not pure is found.
func TestImpure(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{`import "time"; func f(at time.Time) time.Duration { return at.Sub(time.Time{}) }`, ""},
		{`import "example.com/m/mobility/wire"; var _ wire.Type`, ""},
		{`import "time"; func f() time.Time { return time.Now() }`, "3: time.Now"},
		{`import clock "time"; var f = clock.Since`, "3: time.Since"},
		{`import . "time"`, "3: . imports time"},
		{`import "net"`, "3: imports net"},
		{`import "os"`, "3: imports os"},
		{`import "sync"`, "3: imports sync"},
		{`import "crypto/rand"`, "3: imports crypto/rand"},
		{`import "math/rand/v2"`, "3: imports math/rand/v2"},
		{`func f() { go f() }`, "3: a goroutine"},
		{`var c chan int`, "3: a channel"},
		{`func f() { select {} }`, "3: a select"},
	} {
		if got := strings.Join(impure(t, "example.com/m", "package p\n\n"+tt.text), ", "); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.text, got, tt.want)
		}
	}
}

// impure finds in the text of a file what a machine must not have.
func impure(t *testing.T, module, text string) (found []string) {
	t.Helper()
	set := token.NewFileSet()
	f, err := parser.ParseFile(set, "", text, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	say := func(n ast.Node, format string, args ...any) {
		found = append(found, fmt.Sprintf("%d: ", set.Position(n.Pos()).Line)+fmt.Sprintf(format, args...))
	}
	timeName := "time"
	for _, spec := range f.Imports {
		to, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case strings.HasPrefix(to, module+"/"): // TestImports is about those
		case !slices.Contains(pureImports, to):
			say(spec, "imports %s", to)
		case to == "time" && spec.Name != nil && spec.Name.Name == ".":
			say(spec, ". imports time")
		case to == "time" && spec.Name != nil:
			timeName = spec.Name.Name
		}
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			say(n, "a goroutine")
		case *ast.ChanType:
			say(n, "a channel")
		case *ast.SelectStmt:
			say(n, "a select")
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok && x.Name == timeName && slices.Contains(clocks, n.Sel.Name) {
				say(n, "time.%s", n.Sel.Name)
			}
		}
		return true
	})
	return found
}
