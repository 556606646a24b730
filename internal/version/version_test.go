package version

import (
	"runtime/debug"
	"testing"
)

func TestDescribe(t *testing.T) {
	info := func(v string, settings ...string) *debug.BuildInfo {
		b := &debug.BuildInfo{Main: debug.Module{Version: v}}
		for i := 0; i < len(settings); i += 2 {
			b.Settings = append(b.Settings, debug.BuildSetting{Key: settings[i], Value: settings[i+1]})
		}
		return b
	}
	for _, tt := range []struct {
		tag  string
		info *debug.BuildInfo
		want string
	}{
		{"v1.2.3", info("v1.2.4"), "v1.2.3"},
		{"", info("v1.2.4"), "v1.2.4"},
		{"", info("(devel)", "vcs.revision", "0123456789abcdef"), "devel 0123456789ab"},
		{"", info("", "vcs.revision", "0123456789abcdef", "vcs.modified", "true"), "devel 0123456789ab+changes"},
		{"", info(""), "devel"},
		{"", nil, "devel"},
	} {
		if got := describe(tt.tag, tt.info); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
	if String() == "" {
		t.Error("no version")
	}
}
