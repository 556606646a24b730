package evaluation

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"io"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// whole is a result with all rows.
func whole() *Result {
	r := &Result{
		Command: "ds bench handoff", Version: "v1", Notes: []string{"a note"},
		Machine: Machine{Processors: 2, Model: "a processor", Kernel: "6.18", Go: "go1.26", Before: [3]float64{0.1}, After: [3]float64{2}},
	}
	then := 620.0
	for i, name := range Names {
		r.Add(Row{Name: name, Unit: "ms", Then: &then}, []float64{float64(i), float64(i) + 0.5, 1000}, false)
	}
	for _, c := range Curves {
		for client := range Clients {
			for i, x := range c.Points {
				r.Add(c.Point(client, x), []float64{float64(i + 1), float64(i + 2)}, false)
			}
		}
	}
	return r
}

func TestQuantiles(t *testing.T) {
	samples := make([]float64, 1000)
	for i := range samples {
		samples[i] = float64(999 - i)
	}
	r := new(Result)
	r.Add(Row{Name: "time"}, samples, false)
	r.Add(Row{Name: "rate"}, samples, true)
	r.Add(Row{Name: "one"}, []float64{7}, false)
	for i, want := range []Row{{P50: 500, P99: 990, Samples: 1000}, {P50: 500, P99: 10, Samples: 1000}, {P50: 7, P99: 7, Samples: 1}} {
		if got := r.Rows[i]; got.P50 != want.P50 || got.P99 != want.P99 || got.Samples != want.Samples {
			t.Errorf("%+v", got)
		}
	}
	if samples[0] != 999 {
		t.Error("samples are changed")
	}
}

func TestCheck(t *testing.T) {
	if err := whole().Check(); err != nil {
		t.Error(err)
	}
	for want, change := range map[string]func(*Result){
		"no row gap_local_ms":          func(r *Result) { r.Rows = r.Rows[1:] },
		"no curve loss":                func(r *Result) { r.Rows = r.Rows[:len(r.Rows)-2*len(Curves[3].Points)] },
		"two rows gap_local_ms":        func(r *Result) { r.Rows = append(r.Rows, r.Rows[0]) },
		"gap_local_ms is NaN":          func(r *Result) { r.Rows[0].P50 = math.NaN() },
		"gap_local_ms is -1":           func(r *Result) { r.Rows[0].P99 = -1 },
		"no row drain_10000_clients_s": func(r *Result) { *r = Result{Missing: []Missing{{Name: "gap_local_ms", Why: "why"}}} },
		"":                             func(r *Result) { *r = Result{Missing: []Missing{{Name: "*", Why: "no namespaces"}}} },
	} {
		r := whole()
		change(r)
		if err := r.Check(); want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

// What programs read is there by name, and what there is none of is null.
func TestJSON(t *testing.T) {
	r := whole()
	r.Rows[1].Then = nil
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var got struct{ Rows []map[string]any }
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	for _, row := range got.Rows {
		for _, key := range []string{"name", "p50", "p99", "unit", "then"} {
			if _, ok := row[key]; !ok {
				t.Errorf("no %s in %v", key, row)
			}
		}
	}
	if got.Rows[0]["then"] != 620.0 || got.Rows[1]["then"] != nil {
		t.Errorf("%v, %v", got.Rows[0], got.Rows[1])
	}
}

// wellFormed reads XML to its end.
func wellFormed(b []byte) error {
	d := xml.NewDecoder(bytes.NewReader(b))
	for {
		if _, err := d.Token(); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// check looks at a document and its plots.
func checkDocument(t *testing.T, text string, plot func(name string) ([]byte, error)) {
	t.Helper()
	for _, name := range Names {
		if about[name] == "" || !strings.Contains(text, "| `"+name+"` | "+about[name]) {
			t.Errorf("nothing about %s", name)
		}
	}
	for _, c := range Curves {
		if !strings.Contains(text, "\n## "+c.Title+"\n") {
			t.Errorf("no part %q", c.Title)
		}
	}
	for _, want := range []string{"ds bench handoff", "processors", "Linux ", "go1.", "load "} {
		if !strings.Contains(text, want) {
			t.Errorf("it does not say %q", want)
		}
	}
	columns := 0
	for line := range strings.Lines(text) {
		n := strings.Count(line, "|")
		if columns != 0 && n != 0 && n != columns {
			t.Errorf("a table of %d columns has a row %s", columns-1, line)
		}
		columns = n
	}
	pictures := regexp.MustCompile(`!\[[^]]*\]\(([^)]+)\)`).FindAllStringSubmatch(text, -1)
	if len(pictures) != len(Curves) {
		t.Errorf("%d pictures of %d", len(pictures), len(Curves))
	}
	for _, p := range pictures {
		b, err := plot(p[1])
		if err == nil {
			err = wellFormed(b)
		}
		if err != nil || !bytes.Contains(b, []byte("<circle")) {
			t.Errorf("%s: %v", p[1], err)
		}
	}
}

func TestDocument(t *testing.T) {
	r := whole()
	plots := r.Plots()
	checkDocument(t, string(r.Markdown("evaluation")), func(name string) ([]byte, error) { return plots[filepath.Base(name)], nil })
	if err := wellFormed(r.Sheet()); err != nil {
		t.Error(err)
	}
	empty := &Result{Missing: []Missing{{Name: "*", Why: "no namespaces here"}}}
	if text := string(empty.Markdown("x")); strings.Count(text, "no namespaces here") != len(Names)+len(Curves) || len(empty.Plots()) != 0 {
		t.Errorf("without anything:\n%s", text)
	}
	if err := wellFormed(empty.Sheet()); err != nil {
		t.Error(err)
	}
}

// docs/evaluation.md is what this package writes, with all rows, of some run.
func TestPublished(t *testing.T) {
	const docs = "../../docs"
	b, err := os.ReadFile(filepath.Join(docs, "evaluation.md"))
	if err != nil {
		t.Fatal(err)
	}
	checkDocument(t, string(b), func(name string) ([]byte, error) { return os.ReadFile(filepath.Join(docs, filepath.FromSlash(name))) })
}

func TestDecades(t *testing.T) {
	for in, want := range map[[2]float64][2]int{{0.3, 7}: {-1, 1}, {1, 1}: {0, 1}, {2, 100}: {0, 2}, {2, 101}: {0, 3}, {0, 0}: {-3, -2}} {
		if first, last := decades(in[0], in[1]); first != want[0] || last != want[1] {
			t.Errorf("%v: %d to %d, want %v", in, first, last, want)
		}
	}
}
