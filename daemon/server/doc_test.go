package server

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/distributed-servers/ds/daemon/api"
)

// What the calls take and answer, for the examples in the document.
var documented = map[string][]any{
	"GET /status":                                    {new(api.Status)},
	"GET /watch":                                     {new(api.Event), new(api.Event)},
	"GET /servers":                                   {new([]api.Server)},
	"GET /servers/{dsa}/nodes":                       {new([]api.NodeInfo)},
	"GET /servers/{dsa}/nodes/local":                 {new(api.NodeInfo)},
	"POST /servers/{dsa}/nodes/{node}/drain":         {new(api.MoveRequest), new(api.MoveProgress), new(api.MoveProgress)},
	"DELETE /servers/{dsa}/nodes/{node}/drain":       {},
	"POST /servers/{dsa}/nodes/{node}/move":          {new(api.MoveRequest), new(api.MoveProgress)},
	"GET /servers/{dsa}/clients":                     {new([]api.ClientInfo)},
	"GET /servers/{dsa}/clients/{client}":            {new(api.ClientInfo)},
	"GET /servers/{dsa}/clients/{client}/sequence":   {new(api.Sequence)},
	"POST /servers/{dsa}/clients/{client}/optimise":  {},
	"DELETE /servers/{dsa}/clients/{client}/binding": {},
	"POST /servers/{dsa}/clients/{client}/handoff":   {new(api.HandoffRequest), new(api.Handoff)},
	"PUT /servers/{dsa}/contact":                     {new(api.ContactRequest), new(api.Contact)},
	"POST /servers/{dsa}/contact/takeover":           {new(api.TakeoverRequest), new(api.Contact)},
	"POST /servers/{dsa}/attach":                     {},
}

// docs/api.md has every route, with who may, the old name, and examples that are
// of the right type and show every field.
func TestDocument(t *testing.T) {
	b, err := os.ReadFile("../../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	sections := strings.Split(text, "\n### ")
	prefix := fmt.Sprintf("/v%d", api.Version)
	example := regexp.MustCompile("(?s)```json\n(.*?)```")
	rows := 0
	for i, r := range routes {
		head := fmt.Sprintf("%s %s%s (%s)\n", r.Method, prefix, r.Pattern, r.Access)
		if i+1 >= len(sections) || !strings.HasPrefix(sections[i+1], head) {
			t.Errorf("section %d is not %q", i+1, head)
			continue
		}
		types := documented[r.Method+" "+r.Pattern]
		examples := example.FindAllStringSubmatch(sections[i+1], -1)
		if len(examples) != len(types) {
			t.Errorf("%s: %d examples, want %d", head, len(examples), len(types))
			continue
		}
		for j, e := range examples {
			d := json.NewDecoder(strings.NewReader(e[1]))
			d.DisallowUnknownFields()
			if err := d.Decode(types[j]); err != nil {
				t.Errorf("%s: example: %v", head, err)
			}
			for name := range fields(reflect.TypeOf(types[j])) {
				if !strings.Contains(text, `"`+name+`"`) {
					t.Errorf("%s: no example has %s", head, name)
				}
			}
		}
		if r.Old != "" {
			rows++
			if row := fmt.Sprintf("| `%s` | `%s %s%s` |\n", r.Old, r.Method, prefix, r.Pattern); !strings.Contains(text, row) {
				t.Errorf("no row %q", row)
			}
		}
	}
	if len(sections) != len(routes)+1 || rows != 7 {
		t.Errorf("%d sections and %d old names for %d routes and the seven of 2009", len(sections)-1, rows, len(routes))
	}
	for _, kind := range eventKinds(t) {
		if !strings.Contains(text, "`"+kind+"`") {
			t.Errorf("no event %s", kind)
		}
	}
}

// fields are the names in JSON of all fields of a type.
func fields(t reflect.Type) map[string]bool {
	names := make(map[string]bool)
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || !strings.HasSuffix(t.PkgPath(), "daemon/api") {
		return names
	}
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name != "" {
			names[name] = true
			for n := range fields(f.Type) {
				names[n] = true
			}
		}
	}
	return names
}

// eventKinds reads them from the source, so that none is forgotten.
func eventKinds(t *testing.T) (kinds []string) {
	t.Helper()
	b, err := os.ReadFile("../api/event.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`EventKind = "([a-z-]+)"`).FindAllSubmatch(b, -1) {
		kinds = append(kinds, string(bytes.ToLower(m[1])))
	}
	if len(kinds) < 15 {
		t.Fatalf("found %q", kinds)
	}
	return kinds
}
