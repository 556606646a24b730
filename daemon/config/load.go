package config

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/pelletier/go-toml/v2"
)

// maxFile limits a configuration, in octets: thousands of nodes.
const maxFile = 1 << 20

// Load reads a file, and the files and names of users that it mentions. What is
// wrong it reports as [Problems], all that there are.
func Load(path string) (*Config, error) {
	return load(path, (*decoder).addMembers, (*decoder).checkHost)
}

// Read is Load without a look at anything but the file itself.
func Read(path string) (*Config, error) { return load(path, nil, func(*decoder, *Config) {}) }

func load(path string, members, check func(*decoder, *Config)) (*Config, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	cfg, d := parse(path, data, members)
	if cfg != nil {
		cfg.resolve(filepath.Dir(path))
		check(d, cfg)
	}
	if ps := d.sorted(); len(ps) > 0 {
		return nil, ps
	}
	return cfg, nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("config: %w; docs/dsco.toml is an example", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("config: %s: more than %d octets; is it a configuration?", path, maxFile)
	}
	return data, nil
}

// parse is Load without anything but the file's text; members adds to it, if it is
// not nil. The configuration is nil if it is not TOML; it may be incomplete if there
// are problems.
func parse(name string, data []byte, members func(*decoder, *Config)) (*Config, *decoder) {
	d := &decoder{file: name, lines: make(map[string]int)}
	var doc map[string]any
	if err := toml.Unmarshal(data, &doc); err != nil {
		p := &Problem{File: name, What: err.Error(), Cure: "see https://toml.io"}
		if de, ok := errors.AsType[*toml.DecodeError](err); ok {
			p.Line, _ = de.Position()
			p.Key = joinKey(de.Key())
		}
		d.problems = append(d.problems, p)
		return nil, d
	}
	d.index(data)
	cfg := new(Config)
	d.decode(doc, cfg)
	cfg.file = cfg.written()
	if cfg.Node != nil && cfg.Node.Cluster != "" {
		if d.partial = members == nil; !d.partial {
			members(d, cfg)
		}
	}
	d.check(cfg)
	return cfg, d
}

// resolve makes names of files absolute, if they are not.
func (c *Config) resolve(dir string) {
	names := []*string{}
	if n := c.Node; n != nil {
		names = append(names, &n.Cluster, &n.CA, &n.Cert, &n.Key)
	}
	for i := range c.Servers {
		names = append(names, &c.Servers[i].KeyFile)
	}
	if h := c.HomeAgent; h != nil {
		for i := range h.Homes {
			names = append(names, &h.Homes[i].KeyFile)
		}
	}
	for _, name := range names {
		if *name != "" && !filepath.IsAbs(*name) {
			*name = filepath.Join(dir, *name)
		}
	}
}

// sorted are the problems in the order of the file.
func (d *decoder) sorted() Problems {
	slices.SortStableFunc(d.problems, func(a, b *Problem) int { return cmp.Compare(a.Line, b.Line) })
	return d.problems
}
