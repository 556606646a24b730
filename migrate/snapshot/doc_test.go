package snapshot

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"strconv"
	"strings"
	"testing"
)

const (
	docFile   = "../../docs/snapshot-format.md"
	dumpBegin = "<!-- The dump is written by `go test ./migrate/snapshot -update`. -->\n"
	dumpEnd   = "<!-- End of the dump. -->\n"
)

// fieldNames are the names of the fields in the order of the format: the
// strings that codec.go's methods conn, settings, send and receive pass first.
func fieldNames(t testing.TB) []string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "codec.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	methods := map[string]*ast.FuncDecl{}
	for _, d := range file.Decls {
		if f, ok := d.(*ast.FuncDecl); ok && f.Recv != nil {
			methods[f.Name.Name] = f
		}
	}
	var names []string
	var walk func(ast.Node)
	walk = func(n ast.Node) {
		ast.Inspect(n, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			if f, ok := call.Fun.(*ast.SelectorExpr); ok && (f.Sel.Name == "settings" || f.Sel.Name == "send" || f.Sel.Name == "receive") {
				walk(methods[f.Sel.Name].Body)
				return false
			}
			for _, a := range call.Args {
				if lit, ok := a.(*ast.BasicLit); ok && lit.Kind == token.STRING {
					name, err := strconv.Unquote(lit.Value)
					if err != nil {
						t.Fatal(err)
					}
					if len(names) == 0 || names[len(names)-1] != name {
						names = append(names, name)
					}
					break
				}
			}
			return true
		})
	}
	walk(methods["conn"].Body)
	if len(names) < 100 {
		t.Fatalf("only %d names found: %q", len(names), names)
	}
	return names
}

// TestDissectorAgrees: the fields in the dissector have the codec's names and
// order.
func TestDissectorAgrees(t *testing.T) {
	var got []string
	seen := map[string]bool{}
	for _, f := range dissect(appendTo(t, of(rich())))[6:] {
		if !seen[f.name] {
			got = append(got, f.name)
		}
		seen[f.name] = true
	}
	var want []string
	seen = map[string]bool{}
	for _, name := range fieldNames(t) {
		if !seen[name] {
			want = append(want, name)
		}
		seen[name] = true
	}
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) || got[i] != want[i] {
			t.Fatalf("field %d:\ndissect_test.go %q\ncodec.go        %q", i, got[min(i, len(got)):min(i+3, len(got))], want[min(i, len(want)):min(i+3, len(want))])
		}
	}
}

// TestDoc: the document has a row for each field, in order, and its dump is
// the golden file.
func TestDoc(t *testing.T) {
	doc, err := os.ReadFile(docFile)
	if err != nil {
		t.Fatal(err)
	}
	rest := string(doc)
	seen := map[string]bool{}
	for _, name := range fieldNames(t) {
		if seen[name] {
			continue
		}
		seen[name] = true
		row := "\n| `" + name + "` |"
		_, after, ok := strings.Cut(rest, row)
		if !ok {
			t.Fatalf("%s has no row%s in its place", docFile, row)
		}
		rest = after
	}

	head, tail, ok := bytes.Cut(doc, []byte(dumpBegin))
	_, tail, ok2 := bytes.Cut(tail, []byte(dumpEnd))
	if !ok || !ok2 {
		t.Fatalf("%s has no dump between %q and %q", docFile, dumpBegin, dumpEnd)
	}
	b := readGolden(t, "idle")
	want := string(head) + dumpBegin + "```\n" + dump(b) + "```\n" + dumpEnd + string(tail)
	if *update && want != string(doc) {
		if err := os.WriteFile(docFile, []byte(want), 0o666); err != nil {
			t.Fatal(err)
		}
		doc = []byte(want)
	}
	if want != string(doc) {
		t.Errorf("the dump in %s is not that of %s: rewrite it with -update", docFile, golden("idle"))
	}
	// What it says is what the file has, whatever wrote it.
	var all []byte
	_, text, _ := strings.Cut(string(doc), dumpBegin)
	text, _, _ = strings.Cut(text, dumpEnd)
	for line := range strings.Lines(text) {
		if len(line) < 6 || line[0] == '`' {
			continue
		}
		h, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(line[5:min(len(line), 5+24)]), " ", ""))
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		all = append(all, h...)
	}
	if !bytes.Equal(all, b) {
		t.Errorf("the dump says\n%x\n%s is\n%x", all, golden("idle"), b)
	}
}

// dump writes one field a line, eight octets at most: offset, octets, meaning.
func dump(b []byte) string {
	var out strings.Builder
	for _, f := range dissect(b) {
		for i := 0; i < f.n; i += 8 {
			line := fmt.Sprintf("%04x % -24x", f.off+i, b[f.off+i:f.off+min(i+8, f.n)])
			if i == 0 {
				line += " " + f.name + ": " + f.value
			}
			out.WriteString(strings.TrimRight(line, " ") + "\n")
		}
	}
	return out.String()
}
