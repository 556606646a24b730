// Package version tells which build this is.
package version

import (
	"runtime/debug"
	"strings"
	"sync"
)

// tag is set when a release is built (-ldflags "-X …/internal/version.tag=v1.2.3").
var tag string

// String is the release, or the module's version, or the commit that was built;
// "devel" if none is known.
var String = sync.OnceValue(func() string {
	info, _ := debug.ReadBuildInfo()
	return describe(tag, info)
})

func describe(tag string, info *debug.BuildInfo) string {
	if tag != "" {
		return tag
	}
	if info == nil {
		return "devel"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	var commit string
	var changed bool
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			commit = s.Value[:min(len(s.Value), 12)]
		case "vcs.modified":
			changed = s.Value == "true"
		}
	}
	if changed {
		commit += "+changes"
	}
	return strings.TrimRight("devel "+commit, " ")
}
