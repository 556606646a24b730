package config

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
)

// examples are the documented files.
var examples = []string{"dsco.toml", "home-agent.toml", "correspondent.toml"}

var (
	element = regexp.MustCompile(`\[\d+\]`)
	comment = regexp.MustCompile(`(?m)^# ([a-z_]+ = )`)
)

// noDefault are keys that may be left out and have no default.
var noDefault = []string{
	"node.cluster", "node.ca", "node.cert", "node.key", "node.group", "node.peers", "server.nodes", "server.spi", "server.key_file", "server.tunnel_interface", "home_agent.interface",
	"home_agent.group", "correspondent.addresses", "correspondent.group",
}

func readExample(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("../../docs", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// The examples are right, have every key, and the defaults that the code has.
func TestExamples(t *testing.T) {
	named := make(map[string]bool)
	for _, name := range examples {
		data := readExample(t, name)
		full, d := parse(name, data, nil)
		_, d2 := parse(name, comment.ReplaceAll(data, []byte("$1")), nil) // with keys that are there in a comment
		if ps := d.sorted(); len(ps) > 0 {
			t.Fatalf("%s: %v", name, ps)
		}
		var doc map[string]any
		if err := toml.Unmarshal(data, &doc); err != nil {
			t.Fatal(err)
		}
		prune(doc, reflect.TypeFor[Config]())
		bare := new(Config)
		d = &decoder{}
		d.decode(doc, bare)
		if len(d.problems) > 0 {
			t.Errorf("%s, with what is required only: %v", name, d.problems)
		}
		compare(t, name, "", reflect.ValueOf(full).Elem(), reflect.ValueOf(bare).Elem())
		for path := range d2.lines {
			named[element.ReplaceAllString(path, "")] = true
		}
	}
	for _, key := range keys("", reflect.TypeFor[Config]()) {
		if !named[key] {
			t.Errorf("no example has %s", key)
		}
	}
	for _, key := range noDefault {
		if !slices.Contains(keys("", reflect.TypeFor[Config]()), key) {
			t.Errorf("there is no key %s", key)
		}
	}
}

// prune removes keys that are not required from a table of type t.
func prune(table map[string]any, t reflect.Type) {
	for f := range t.Fields() {
		name := f.Tag.Get("toml")
		v, ok := table[name]
		if !ok {
			continue
		}
		ft := f.Type
		for ft.Kind() == reflect.Pointer || ft.Kind() == reflect.Slice {
			ft = ft.Elem()
		}
		switch v := v.(type) {
		case map[string]any:
			if ft.Kind() == reflect.Struct {
				prune(v, ft)
				continue
			}
		case []any:
			if m, ok := v[:min(len(v), 1)], ft.Kind() == reflect.Struct; ok && len(m) > 0 {
				if _, ok := m[0].(map[string]any); ok {
					for _, e := range v {
						prune(e.(map[string]any), ft)
					}
					continue
				}
			}
		}
		if f.Tag.Get("need") == "" {
			delete(table, name)
		}
	}
}

// compare wants each default in the example.
func compare(t *testing.T, file, path string, full, bare reflect.Value) {
	t.Helper()
	switch full.Kind() {
	case reflect.Pointer:
		if !full.IsNil() && !bare.IsNil() {
			compare(t, file, path, full.Elem(), bare.Elem())
		}
		return
	case reflect.Struct:
		if full.NumField() > 0 && full.Type().Field(0).Tag.Get("toml") != "" {
			for i := range full.NumField() {
				f := full.Type().Field(i)
				if !f.IsExported() {
					continue
				}
				compare(t, file, strings.TrimPrefix(path+"."+f.Tag.Get("toml"), "."), full.Field(i), bare.Field(i))
			}
			return
		}
	case reflect.Slice:
		if full.Type().Elem().Kind() == reflect.Struct && full.Len() == bare.Len() {
			for i := range full.Len() {
				compare(t, file, path, full.Index(i), bare.Index(i))
			}
			return
		}
		if full.Len() == 0 && bare.Len() == 0 {
			return
		}
	}
	if slices.Contains(noDefault, path) {
		return
	}
	if !reflect.DeepEqual(full.Interface(), bare.Interface()) {
		t.Errorf("%s: %s is %v, and the default %v", file, path, full, bare)
	}
}

// keys are all keys of a table of type t.
func keys(path string, t reflect.Type) (all []string) {
	for f := range t.Fields() {
		if !f.IsExported() {
			continue
		}
		key := strings.TrimPrefix(path+"."+f.Tag.Get("toml"), ".")
		ft := f.Type
		for ft.Kind() == reflect.Pointer || ft.Kind() == reflect.Slice {
			ft = ft.Elem()
		}
		all = append(all, key)
		if ft.Kind() == reflect.Struct && ft.NumField() > 0 && ft.Field(0).Tag.Get("toml") != "" {
			all = append(all, keys(key, ft)...)
		}
	}
	return all
}

func TestSetDefaults(t *testing.T) {
	c := &Config{Node: new(Node), Servers: make([]Server, 1), HomeAgent: new(HomeAgent), Correspondent: new(Correspondent)}
	c.SetDefaults()
	if c.Node.ControlPort != 7846 || !*c.Servers[0].Offload || c.HomeAgent.Queue != 7847 || c.Correspondent.MaxBindings != 65536 {
		t.Errorf("got %+v", c)
	}
	off := false
	c.Servers[0].Offload, c.Servers[0].MTU = &off, 1400
	c.SetDefaults()
	if *c.Servers[0].Offload || c.Servers[0].MTU != 1400 {
		t.Errorf("got %+v", c.Servers[0])
	}
	new(Config).SetDefaults()
}
