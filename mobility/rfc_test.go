package mobility_test

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
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

func cutLast(section string) (parent string, last int, ok bool) {
	i := strings.LastIndexByte(section, '.')
	if i < 0 {
		return "", 0, false
	}
	last, err := strconv.Atoi(section[i+1:])
	return section[:i], last, err == nil
}
