package importtest

import (
	"bytes"
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// A rule forbids imports. Patterns are those of the go command: "./tun" is one
// package of this module, "./tun/..." it and all below, "./..." every one;
// without "./" they name packages of others.
type rule struct {
	from   []string // packages that the rule binds
	exempt []string // packages of from that it does not bind
	to     []string // what they may not import
	except []string // what of to they may import all the same
	// linked also forbids the import when it comes about through other
	// packages of this module: for what must not end up in a program.
	linked bool
	why    string
}

var rules = []rule{
	{
		from:   []string{"./tun/..."},
		to:     []string{"./..."},
		except: []string{"./tun/..."},
		why:    "tun is a leaf: a device anyone can use without the rest",
	},
	{
		from: []string{"./mobility/wire/..."},
		to:   []string{"./..."},
		why:  "mobility/wire is a leaf: messages in, messages out; fuzzed and reused alone",
	},
	{
		from:   []string{"./daemon/api/..."},
		to:     []string{"./..."},
		except: []string{"./internal/framing", "./internal/nowait", "./internal/sharedmem", "./internal/killpoint"},
		why:    "daemon/api is a leaf: a client of the daemon must not link the daemon",
	},
	{
		from:   []string{"./stack/..."},
		to:     []string{"./..."},
		except: []string{"./stack/...", "./tun/..."},
		why:    "stack is a netstack on a link: it knows the link and nothing of migration or mobility",
	},
	{
		from:   []string{"./migrate/..."},
		to:     []string{"./..."},
		except: []string{"./migrate/...", "./stack/...", "./tun/tuntest"}, // the twin: a self-test in memory
		why:    "migrate moves one connection between two stacks: who decides that, and how packets are redirected, is not its concern",
	},
	{
		from:   []string{"./handover"},
		to:     []string{"./..."},
		except: []string{"./migrate", "./stack", "./internal/sharedmem"},
		why:    "handover is the way between two processes of a machine: what the connections are for is the application's concern",
	},
	{
		from:   []string{"./mobility/..."},
		to:     []string{"./stack/...", "./migrate/...", "./daemon/..."},
		linked: true,
		why:    "mobility is the protocol: it serves any stack, the kernel's too, and the daemon drives it, not the other way round",
	},
	{
		from:   []string{"./daemon/plan"},
		to:     []string{"./..."},
		except: []string{"./internal/deadline"},
		why:    "daemon/plan is a leaf: who goes where and when, for daemons and commands alike; it hands nobody off",
	},
	{
		from: []string{"./internal/evaluation"},
		to:   []string{"./..."},
		why:  "internal/evaluation is a leaf: it writes down what it is told, whoever has measured it",
	},
	{
		from: []string{"./daemon/rawip"},
		to:   []string{"./..."},
		why:  "daemon/rawip is a leaf: packets in and out of sockets, whatever is in them",
	},
	{
		from:   []string{"./daemon/filter", "./daemon/forward", "./daemon/host"},
		to:     []string{"./..."},
		except: []string{"./mobility/wire", "./internal/netns"},
		why:    "daemon/filter, daemon/forward and daemon/host change the kernel for any role, and know what packets look like at most: what for is the roles' concern",
	},
	{
		from:   []string{"."},
		to:     []string{"./..."},
		except: []string{"./stack", "./migrate", "./tun", "./daemon/api"},
		why:    "package ds is what an application links: its stack, and the words that it has with the daemon",
	},
	{
		from:   []string{"./httpmove"},
		to:     []string{"./..."},
		except: []string{".", "./stack"},
		why:    "httpmove is an application's part, as any program could have written it: it needs what package ds gives",
	},
	{
		from:   []string{"./daemon/homeagent", "./daemon/correspondent"},
		to:     []string{"./daemon", "./daemon/member/...", "./daemon/peer/...", "./mobility/node", "./mobility/relay"},
		linked: true,
		why:    "a home agent and a client are no nodes: they know the protocol, and nothing of the cluster",
	},
	{
		from:   []string{"./daemon/...", "./cmd/dsco/..."},
		to:     []string{"./stack/...", "./migrate/..."},
		linked: true,
		why:    "the privileged daemon holds no connection: the data path lives in the application",
	},
	{
		from: []string{"./daemon/identity"},
		to:   []string{"./..."},
		why:  "daemon/identity is a leaf: who belongs to a cluster, whatever the cluster is for; commands use it without a daemon",
	},
	{
		from:   []string{"./daemon/peer/..."},
		to:     []string{"./..."},
		except: []string{"./daemon/identity", "./internal/framing", "./internal/nowait"},
		why:    "daemon/peer connects nodes that prove who they are: what they say is not its concern",
	},
	{
		from:   []string{"./daemon/config/..."},
		to:     []string{"./..."},
		except: []string{"./daemon/identity"}, // the list of members, beside the file
		why:    "config reads a file: what comes of it is for the roles to know",
	},
	{
		from:   []string{"./daemon/server/..."},
		to:     []string{"./daemon/...", "./mobility/...", "./tun/..."},
		except: []string{"./daemon/api", "./daemon/server/..."},
		why:    "daemon/server stands in front of every role, and knows none",
	},
	{
		from:   []string{"./..."},
		exempt: []string{"./cmd/..."},
		to:     []string{"./cmd/..."},
		why:    "commands are at the edge: what two of them share is a package",
	},
	{
		from:   []string{"./..."},
		exempt: []string{"./e2e/..."},
		to:     []string{"./e2e/..."},
		why:    "e2e tests the binaries from outside: nothing may lean on it",
	},
	{
		from:   []string{"./..."},
		exempt: []string{"./examples/..."},
		to:     []string{"./examples/..."},
		why:    "examples are read and copied: nothing may lean on them",
	},
	{
		from: []string{"./..."},
		exempt: []string{
			"./stack/...", "./migrate", "./migrate/internal/gvtcp",
			"./internal/lab/...", "./cmd/ds/...", "./examples/...",
		},
		to:  []string{"gvisor.dev/gvisor/..."},
		why: "gVisor has no stable API: few packages may need a change when it moves",
	},
	{
		from:   []string{".", "./stack/...", "./migrate/...", "./tun/...", "./mobility/...", "./daemon/..."},
		exempt: []string{"./daemon/correspondent/..."},
		to:     []string{"github.com/cilium/ebpf/...", "./internal/kernelro"},
		linked: true,
		why:    "BPF is for a client's kernel: nobody needs it to serve",
	},
	{
		// A //go:linkname needs the import of unsafe, so this rule covers both.
		from: []string{"./..."},
		exempt: []string{
			"./migrate/internal/gvtcp", // reads and writes unexported TCP state of gVisor
			"./internal/tcprepair",     // raw system calls for TCP_REPAIR
			"./internal/peercred",      // one getsockopt whose answer has any length
			"./internal/sharedmem",     // words of a mapping
		},
		to:  []string{"unsafe"},
		why: "memory tricks stay where they are guarded by tests of their own",
	},
}

// A graph has the imports of each package; packages of this module are written
// as in patterns, "./tun", the root as ".".
type graph map[string][]string

func TestImports(t *testing.T) {
	root, module := findModule(t)
	g, err := read(root, module)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := g["./internal/importtest"]; !ok {
		t.Fatalf("read %d packages of %s, not even this one", len(g), module)
	}
	for _, v := range check(g, rules) {
		t.Error(v)
	}
}

// Every rule must be able to fail, and to say why.
func TestBroken(t *testing.T) {
	const gvisor = "gvisor.dev/gvisor/pkg/tcpip"
	tests := []struct {
		name string
		g    graph
		want string // the violation up to its reason; "" for none
		why  string // part of the reason
	}{
		{"tun is a leaf", graph{"./tun": {"./internal/probe"}},
			"./tun imports ./internal/probe", "tun is a leaf"},
		{"tun's twin is bound too", graph{"./tun/tuntest": {"./stack"}},
			"./tun/tuntest imports ./stack", "tun is a leaf"},
		{"tun's twin may import tun", graph{"./tun/tuntest": {"./tun"}}, "", ""},
		{"wire is a leaf", graph{"./mobility/wire": {"./mobility"}},
			"./mobility/wire imports ./mobility", "mobility/wire is a leaf"},
		{"api is a leaf", graph{"./daemon/api": {"."}},
			"./daemon/api imports .", "must not link the daemon"},
		{"rawip is a leaf", graph{"./daemon/rawip": {"./mobility/wire"}},
			"./daemon/rawip imports ./mobility/wire", "daemon/rawip is a leaf"},
		{"identity is a leaf", graph{"./daemon/identity": {"./daemon/peer"}},
			"./daemon/identity imports ./daemon/peer", "daemon/identity is a leaf"},
		{"peer knows no member", graph{"./daemon/peer": {"./daemon/member", "./daemon/identity"}},
			"./daemon/peer imports ./daemon/member", "what they say is not its concern"},
		{"plan is a leaf", graph{"./daemon/plan": {"./daemon/api"}},
			"./daemon/plan imports ./daemon/api", "daemon/plan is a leaf"},
		{"evaluation is a leaf", graph{"./internal/evaluation": {"./internal/bedbench"}},
			"./internal/evaluation imports ./internal/bedbench", "internal/evaluation is a leaf"},
		{"filter on wire", graph{"./daemon/filter": {"./mobility/wire"}}, "", ""},
		{"host knows no role", graph{"./daemon/host": {"./daemon/config"}},
			"./daemon/host imports ./daemon/config", "change the kernel for any role"},
		{"forward knows no relay", graph{"./daemon/forward": {"./mobility/relay"}},
			"./daemon/forward imports ./mobility/relay", "change the kernel for any role"},
		{"a client is no node", graph{"./daemon/correspondent": {"./daemon/peer"}},
			"./daemon/correspondent imports ./daemon/peer", "are no nodes"},
		{"stack on tun", graph{"./stack": {"./tun", gvisor, "net"}}, "", ""},
		{"stack knows no internal package", graph{"./stack": {"./internal/lab"}},
			"./stack imports ./internal/lab", "nothing of migration"},
		{"migrate on stack", graph{"./migrate": {"./stack", "./migrate/internal/gvtcp"}}, "", ""},
		{"migrate knows no daemon", graph{"./migrate": {"./daemon"}},
			"./migrate imports ./daemon", "not its concern"},
		{"mobility knows no stack", graph{"./mobility": {"./stack"}},
			"./mobility imports ./stack", "serves any stack"},
		{"daemon on mobility", graph{"./daemon": {"./mobility", "./tun", "./daemon/api"}}, "", ""},
		{"handover on migrate", graph{"./handover": {"./migrate", "./stack", "./internal/sharedmem"}}, "", ""},
		{"handover knows no link", graph{"./handover": {"./tun"}},
			"./handover imports ./tun", "the application's concern"},
		{"daemon knows no migrate", graph{"./daemon/contact": {"./migrate"}},
			"./daemon/contact imports ./migrate", "holds no connection"},
		{"nor through another package", graph{
			"./daemon": {"./internal/probe"}, "./internal/probe": {"."}, ".": {"./stack"}},
			"./daemon imports ./internal/probe, which imports ., which imports ./stack", "holds no connection"},
		{"ds on stack, migrate, tun, api", graph{".": {"./stack", "./migrate", "./tun", "./daemon/api"}}, "", ""},
		{"ds knows no daemon", graph{".": {"./daemon"}},
			". imports ./daemon", "words that it has with the daemon"},
		{"httpmove on ds", graph{"./httpmove": {".", "./stack"}}, "", ""},
		{"httpmove moves nothing itself", graph{"./httpmove": {"./migrate"}},
			"./httpmove imports ./migrate", "what package ds gives"},
		{"nor dsco", graph{"./cmd/dsco": {"./migrate"}},
			"./cmd/dsco imports ./migrate", "holds no connection"},
		{"config knows no role", graph{"./daemon/config": {"./daemon/host"}},
			"./daemon/config imports ./daemon/host", "for the roles to know"},
		{"the API's server knows no role", graph{"./daemon/server": {"./daemon"}},
			"./daemon/server imports ./daemon", "knows none"},
		{"the API's server has what it needs", graph{"./daemon/server": {"./daemon/api", "./internal/peercred"}}, "", ""},
		{"nothing imports a command", graph{"./internal/lab": {"./cmd/ds"}},
			"./internal/lab imports ./cmd/ds", "at the edge"},
		{"a command has its own packages", graph{"./cmd/ds": {"./cmd/ds/internal/table", gvisor}}, "", ""},
		{"nothing imports e2e", graph{"./cmd/ds": {"./e2e"}},
			"./cmd/ds imports ./e2e", "from outside"},
		{"nothing imports an example", graph{"./internal/lab": {"./examples/echo"}},
			"./internal/lab imports ./examples/echo", "read and copied"},
		{"gVisor is fenced in", graph{"./dstest": {gvisor}},
			"./dstest imports " + gvisor, "no stable API"},
		{"BPF is for clients", graph{"./daemon/x": {"./internal/y"}, "./internal/y": {"github.com/cilium/ebpf"}},
			"./daemon/x imports ./internal/y, which imports github.com/cilium/ebpf", "BPF is for a client"},
		{"unsafe is fenced in", graph{"./stack": {"unsafe"}},
			"./stack imports unsafe", "memory tricks"},
		{"unsafe where it is guarded", graph{"./migrate/internal/gvtcp": {"unsafe", gvisor}}, "", ""},
		{"a name that only begins alike", graph{"./daemonology": {"./migrate"}, "./tuning": {"./stack"}}, "", ""},
	}
	proven := make(map[string]bool)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := check(tt.g, rules)
			if tt.want == "" {
				if len(got) != 0 {
					t.Errorf("got %q, want none", got)
				}
				return
			}
			if len(got) != 1 || got[0].what != tt.want || !strings.Contains(got[0].why, tt.why) {
				t.Errorf("got %q, want %q with a reason that has %q", got, tt.want, tt.why)
				return
			}
			proven[got[0].why] = true
		})
	}
	for _, r := range rules {
		if !proven[r.why] {
			t.Errorf("no case above breaks the rule %q", r.why)
		}
	}
}

// The reader sees what the rules are about: files for other platforms, not
// test files, testdata or other modules.
func TestRead(t *testing.T) {
	files := map[string]string{
		"a/a.go":            "package a\nimport _ \"example.com/m/b\"",
		"a/a_windows.go":    "package a\nimport _ \"unsafe\"",
		"a/a_test.go":       "package a\nimport _ \"example.com/m/t\"",
		"a/testdata/t.go":   "package t\nimport _ \"example.com/m/t\"",
		"other/go.mod":      "module example.com/other",
		"other/o.go":        "package o",
		"root.go":           "package m\nimport _ \"example.com/m\"",
		"m2/neighbour.go":   "package m2\nimport _ \"example.com/m2\"",
		".hidden/hidden.go": "package hidden",
	}
	root := t.TempDir()
	for name, text := range files {
		name = filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	got, err := read(root, "example.com/m")
	if err != nil {
		t.Fatal(err)
	}
	want := graph{".": {"."}, "./a": {"./b", "unsafe"}, "./m2": {"example.com/m2"}}
	if !maps.EqualFunc(got, want, slices.Equal) {
		t.Errorf("got %v, want %v", got, want)
	}
}

type violation struct{ what, why string }

func (v violation) String() string { return v.what + "\n\tbut: " + v.why }

// check returns the imports of g that break a rule, in a fixed order.
func check(g graph, rules []rule) []violation {
	var found []violation
	for _, r := range rules {
		for _, pkg := range slices.Sorted(maps.Keys(g)) {
			if !matchAny(r.from, pkg) || matchAny(r.exempt, pkg) {
				continue
			}
			for _, chain := range chains(g, pkg, r.linked) {
				to := chain[len(chain)-1]
				if matchAny(r.to, to) && !matchAny(r.except, to) {
					what := chain[0] + " imports " + strings.Join(chain[1:], ", which imports ")
					found = append(found, violation{what, r.why})
				}
			}
		}
	}
	return found
}

// chains returns a shortest chain of imports from pkg to each package that it
// imports; if linked, also to each that it imports through others.
func chains(g graph, pkg string, linked bool) [][]string {
	var all [][]string
	seen := map[string]bool{pkg: true}
	queue := [][]string{{pkg}}
	for len(queue) > 0 {
		chain := queue[0]
		queue = queue[1:]
		for _, to := range g[chain[len(chain)-1]] {
			if seen[to] {
				continue
			}
			seen[to] = true
			next := append(slices.Clone(chain), to)
			all = append(all, next)
			if linked {
				queue = append(queue, next)
			}
		}
	}
	return all
}

func matchAny(patterns []string, pkg string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		base, below := strings.CutSuffix(pattern, "/...")
		return pkg == base || below && strings.HasPrefix(pkg, base+"/")
	})
}

// findModule returns the root of this module and its path.
func findModule(t *testing.T) (root, module string) {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	mod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(mod) {
		if f := strings.Fields(string(line)); len(f) == 2 && f[0] == "module" {
			return root, f[1]
		}
	}
	t.Fatal("go.mod names no module")
	return
}

// read returns the imports of the module's packages. It walks the tree itself:
// `go list` would show the files of one platform only, and the go command
// could not tell that a cached result of this test is out of date.
func read(root, module string) (graph, error) {
	g := make(graph)
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			if file == root {
				return nil
			}
			if name == "testdata" || name == "vendor" || strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") {
				return fs.SkipDir
			}
			if _, err := os.Stat(filepath.Join(file, "go.mod")); err == nil {
				return fs.SkipDir // another module
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		dir, err := filepath.Rel(root, filepath.Dir(file))
		if err != nil {
			return err
		}
		pkg := local(module, path.Join(module, filepath.ToSlash(dir)))
		imports := g[pkg]
		for _, spec := range f.Imports {
			to, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return fmt.Errorf("%s: import %s: %w", file, spec.Path.Value, err)
			}
			imports = append(imports, local(module, to))
		}
		slices.Sort(imports)
		g[pkg] = slices.Compact(imports)
		return nil
	})
	return g, err
}

// local shortens the path of a package of the module to "./…".
func local(module, pkg string) string {
	if rest, ok := strings.CutPrefix(pkg, module); ok && (rest == "" || rest[0] == '/') {
		return "." + rest
	}
	return pkg
}
