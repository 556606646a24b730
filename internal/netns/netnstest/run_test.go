package netnstest

import (
	"strings"
	"testing"
)

func TestPattern(t *testing.T) {
	for _, tc := range []struct{ name, user, want string }{
		{"TestA", "", "^TestA$"},
		{"TestA", "A", "^TestA$"},
		{"TestA", "A/b/c", "^TestA$/b/c"},
		{"TestA/x(y)", "A/x", `^TestA$/^x\(y\)$`},
		{"TestA/x", "A/x/z", "^TestA$/^x$/z"},
		{"TestA", "A/b|B/c", "^TestA$"},
		{"TestA", "A/[/]", "^TestA$"},
	} {
		if got := pattern(tc.name, tc.user); got != tc.want {
			t.Errorf("pattern(%q, %q) = %q, want %q", tc.name, tc.user, got, tc.want)
		}
	}
}

func TestOutput(t *testing.T) {
	var b strings.Builder
	o := &output{w: &b, skip: "--- SKIP: TestA "}
	for _, s := range []string{"=== RUN   Te", "stA\n    a_test.go:1: rea", "son\n--- SKIP: TestA (0.00s)\nPA", "SS"} {
		if n, err := o.Write([]byte(s)); n != len(s) || err != nil {
			t.Fatal(n, err)
		}
	}
	o.flush()
	want := "| === RUN   TestA\n|     a_test.go:1: reason\n| --- SKIP: TestA (0.00s)\n| PASS\n"
	if b.String() != want || !o.ran || !o.skipped || o.reason != "a_test.go:1: reason" {
		t.Errorf("got %+v\n%s", o, b.String())
	}
}
