package mobility_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"unicode"
)

// subsections is how many each section of RFC 6275 with rules has.
var subsections = map[string]int{
	"5": 5, "5.2": 8,
	"6": 8, "6.1": 9, "6.2": 7, "6.4": 1,
	"7": 5, "8": 5,
	"9": 6, "9.3": 4, "9.4": 4, "9.5": 5,
	"10": 6, "10.3": 2, "10.4": 6, "10.5": 1, "10.6": 4,
	"11": 8, "11.3": 6, "11.4": 3, "11.5": 5, "11.6": 3, "11.7": 4,
	"15": 9,
}

var sectionRange = regexp.MustCompile(`(\d+(?:\.\d+)*)(?:(?:–| to )(\d+(?:\.\d+)*))?`)

// docs/rfc6275.md has a row for every section of RFC 6275 that has rules.
func TestEverySectionHasARow(t *testing.T) {
	b, err := os.ReadFile("../docs/rfc6275.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := make(map[string]bool)
	for line := range strings.Lines(string(b)) {
		cells := strings.Split(line, "|")
		if len(cells) < 5 {
			continue
		}
		first := strings.TrimSpace(cells[1])
		if strings.Contains(first, "2473") || strings.Contains(first, "4285") {
			continue
		}
		for _, m := range sectionRange.FindAllStringSubmatch(strings.ReplaceAll(first, "6275", ""), -1) {
			rows[m[1]] = true
			if m[2] == "" {
				continue
			}
			rows[m[2]] = true
			parent, from, ok := cutLast(m[1])
			_, to, _ := cutLast(m[2])
			for i := from; ok && i <= to; i++ {
				rows[fmt.Sprintf("%s.%d", parent, i)] = true
			}
		}
	}
	for section, n := range subsections {
		for i := 1; i <= n; i++ {
			s := fmt.Sprintf("%s.%d", section, i)
			if subsections[s] == 0 && !rows[s] {
				t.Errorf("no row for section %s", s)
			}
		}
	}
	for _, s := range []string{"12", "13"} {
		if !rows[s] {
			t.Errorf("no row for section %s", s)
		}
	}
}

// In docs/rfc6275.md a package's name and a colon are before names of its own, and what
// is in backticks is the name of something, too: all of it is there.
func TestEveryNameIsThere(t *testing.T) {
	b, err := os.ReadFile("../docs/rfc6275.md")
	if err != nil {
		t.Fatal(err)
	}
	words := func(patterns ...string) map[string]bool {
		all := make(map[string]bool)
		for _, pattern := range patterns {
			files, err := filepath.Glob(pattern)
			if err != nil || len(files) == 0 {
				t.Fatalf("%s: no files (%v)", pattern, err)
			}
			for _, file := range files {
				text, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				for w := range strings.FieldsFuncSeq(string(text), func(r rune) bool {
					return r != '_' && !unicode.IsLetter(r) && !unicode.IsDigit(r)
				}) {
					all[w] = true
				}
			}
		}
		return all
	}
	in := map[string]map[string]bool{"stack": words("../stack/*.go")}
	for _, p := range []string{"wire", "node", "correspondent", "homeagent", "relay"} {
		in[p] = words(p + "/*.go")
	}
	anywhere := words("*/*.go", "../stack/*.go", "../daemon/config/*.go")
	checked := 0
	for line := range strings.Lines(string(b)) {
		for _, m := range named.FindAllStringSubmatch(line, -1) {
			for name := range strings.SplitSeq(m[2], ", ") {
				for _, part := range strings.Split(strings.Trim(name, "`."), ".") {
					if checked++; !in[m[1]][part] && !notNames[part] {
						t.Errorf("there is no %q in package %s: %s", part, m[1], line)
					}
				}
			}
		}
		for _, m := range quoted.FindAllStringSubmatch(line, -1) {
			for _, part := range strings.Split(m[1], ".") {
				if checked++; !anywhere[part] && !notNames[part] {
					t.Errorf("there is no %q: %s", part, line)
				}
			}
		}
	}
	if checked < 200 {
		t.Errorf("only %d names: the table has another form now", checked)
	}
}

var (
	named  = regexp.MustCompile("\\b(wire|node|correspondent|homeagent|relay|stack): (`?[A-Za-z_][A-Za-z_0-9.]*`?(?:, `?[A-Za-z_][A-Za-z_0-9.]*`?)*)")
	quoted = regexp.MustCompile("`([A-Za-z_][A-Za-z_0-9]*(?:\\.[A-Za-z_][A-Za-z_0-9]*)*)`")

	// notNames are a file, and words of sentences that go on like a list of names.
	notNames = map[string]bool{"attack_test": true, "go": true, "rate": true, "keyed": true}
)

func cutLast(section string) (parent string, last int, ok bool) {
	i := strings.LastIndexByte(section, '.')
	if i < 0 {
		return "", 0, false
	}
	last, err := strconv.Atoi(section[i+1:])
	return section[:i], last, err == nil
}
