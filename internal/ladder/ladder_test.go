package ladder

import (
	"bytes"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// golden compares with a file under testdata.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	name = filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, got, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatalf("%v; write it with -update", err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs; if that is intended run with -update and review the change. Now it is:\n%s", name, got)
	}
}

func at(ms float64) time.Duration { return time.Duration(ms * float64(time.Millisecond)) }

// handoff is one as it will be drawn: the donor freezes, the target binds, one
// Binding Update is lost, and a client without Mobile IPv6 is relayed.
func handoff() *Diagram {
	const client, ha, contact, node1, node2 = "client", "home agent", "contact", "node 1", "node 2"
	d := &Diagram{
		Title:  "Handoff of a client from node 1 to node 2",
		Hosts:  []string{client, ha, contact, node1, node2},
		Origin: at(1000),
		Mark:   Interval{From: at(1021.004), To: at(1045.75), Host: client, Label: "client-visible gap"},
	}
	add := func(ms float64, from, to, label string, kind Kind, class string) *Event {
		d.Events = append(d.Events, Event{At: at(ms), From: from, To: to, Label: label, Kind: kind, Class: class})
		return &d.Events[len(d.Events)-1]
	}
	for i := range 12 {
		add(1000+float64(i), node1, client, "TCP 443 -> 50123 PSH 1400 +HAO", Data, "TCP data +HAO")
		add(1000.2+float64(i), client, node1, "TCP 50123 -> 443 ACK +RH2", Data, "TCP ACK +RH2")
	}
	add(1012, node2, contact, "tunnel[HoTI]", Signal, "").Tunnel = true
	add(1012.1, contact, ha, "tunnel[HoTI]", Signal, "").Tunnel = true
	add(1012.2, ha, client, "HoTI", Signal, "")
	add(1012.01, node2, client, "CoTI", Signal, "")
	add(1017, client, node2, "CoT", Signal, "")
	add(1017.2, client, ha, "HoT", Signal, "")
	add(1020, node1, client, "TCP 443 -> 50123 PSH 1400 +HAO", Data, "TCP data +HAO")
	add(1021, node1, node1, "freeze", Note, "")
	add(1021.03, node1, node2, "TCP 7000 -> 40012 PSH 412", Data, "TCP data")
	add(1021.1, client, node1, "TCP 50123 -> 443 ACK +RH2", Data, "TCP ACK +RH2")
	add(1021.35, node2, node2, "activate", Note, "")
	add(1021.4, node2, client, "BU seq 8 420 s", Signal, "").Lost = true
	add(1022.4, node2, client, "BU seq 9 420 s", Signal, "")
	add(1022.401, node2, client, "TCP 443 -> 50123 PSH 1400 +HAO", Data, "TCP data +HAO")
	add(1045.75, client, node2, "BA seq 9 420 s", Signal, "")
	add(1046, client, ha, "TCP 50124 -> 443 SYN", Data, "")
	add(1046.2, ha, contact, "tunnel[TCP 50124 -> 443 SYN]", Data, "").Tunnel = true
	add(1046.4, contact, node1, "tunnel[TCP 50124 -> 443 SYN]", Data, "").Tunnel = true
	add(1047, node1, client, "ICMPv6 Parameter Problem code 2 at 40", Error, "")
	add(1047, "someone", client, "not in the picture", Data, "")
	add(1099, node1, client, "after the window", Data, "")
	d.From, d.To = at(1000), at(1050)
	return d
}

func TestText(t *testing.T) {
	text := handoff().Text()
	golden(t, "handoff.txt", []byte(text))
	checkWidth(t, text)
}

func checkWidth(t *testing.T, text string) {
	t.Helper()
	for line := range strings.Lines(text) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > Width {
			t.Errorf("%d columns: %s", n, line)
		}
	}
}

func TestSVG(t *testing.T) {
	svg := handoff().SVG()
	golden(t, "handoff.svg", svg)
	texts := checkSVG(t, svg)
	for _, want := range []string{"client-visible gap: 24.746 ms", "BU seq 9 420 s", "home agent", "TCP ACK +RH2 × 12"} {
		if !strings.Contains(texts, want) {
			t.Errorf("the picture does not say %q", want)
		}
	}
}

// checkSVG checks that a picture is well-formed, brings all that it needs, has
// nothing outside of its edges, and returns its texts.
func checkSVG(t *testing.T, svg []byte) (texts string) {
	t.Helper()
	var width, height float64
	dec := xml.NewDecoder(bytes.NewReader(svg))
	root := 0
	for {
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("not well-formed: %v", err)
		}
		switch tok := tok.(type) {
		case xml.CharData:
			texts += string(tok) + "\n"
		case xml.StartElement:
			attr := func(name string) float64 {
				for _, a := range tok.Attr {
					if a.Name.Local == name {
						f, err := strconv.ParseFloat(a.Value, 64)
						if err != nil {
							t.Errorf("%s of %s: %v", name, tok.Name.Local, err)
						}
						return f
					}
				}
				return 0
			}
			switch tok.Name.Local {
			case "svg":
				root++
				width, height = attr("width"), attr("height")
			case "script", "image", "use", "foreignObject":
				t.Errorf("there is a %s", tok.Name.Local)
			case "text", "circle":
				if x, y := attr("x")+attr("cx"), attr("y")+attr("cy"); x < 0 || x > width || y < 0 || y > height {
					t.Errorf("%s at %.0f, %.0f of %.0f, %.0f", tok.Name.Local, x, y, width, height)
				}
			}
			for _, a := range tok.Attr {
				if strings.HasPrefix(a.Name.Local, "on") || a.Name.Local == "href" {
					t.Errorf("%s has %s", tok.Name.Local, a.Name.Local)
				}
			}
		}
	}
	if root != 1 || strings.Contains(string(svg), "url(") || strings.Contains(string(svg), "@import") {
		t.Error("not one picture by itself")
	}
	return texts
}

// TestFold: what is folded and what is not.
func TestFold(t *testing.T) {
	data := func(ms float64, from, to string) Event {
		return Event{At: at(ms), From: from, To: to, Label: "TCP 1 -> 2 100", Class: "TCP data"}
	}
	hosts := []string{"a", "b"}
	for _, tt := range []struct {
		name   string
		events []Event
		mark   Interval
		want   string
	}{
		{"one stays as it is", []Event{data(1, "a", "b")}, Interval{}, "1.000 a>b TCP 1 -> 2 100"},
		{"a run, in any order", []Event{data(2, "a", "b"), data(1, "a", "b"), data(3, "a", "b")}, Interval{}, "1.000 a>b TCP data × 3"},
		{"both ways taking turns", []Event{data(1, "a", "b"), data(2, "b", "a"), data(3, "a", "b"), data(4, "b", "a")}, Interval{},
			"1.000 a>b TCP data × 2, 2.000 b>a TCP data × 2"},
		{"not past a signal", []Event{data(1, "a", "b"), {At: at(2), From: "a", To: "b", Label: "HoTI", Kind: Signal, Class: "x"}, data(3, "a", "b")}, Interval{},
			"1.000 a>b TCP 1 -> 2 100, 2.000 a>b HoTI, 3.000 a>b TCP 1 -> 2 100"},
		{"not past a note", []Event{data(1, "a", "b"), {At: at(2), From: "a", To: "a", Label: "freeze", Kind: Note}, data(3, "a", "b")}, Interval{},
			"1.000 a>b TCP 1 -> 2 100, 2.000 a>a freeze, 3.000 a>b TCP 1 -> 2 100"},
		{"not into the mark, which comes after what happens at the same time",
			[]Event{data(1, "a", "b"), data(2, "a", "b"), data(3, "a", "b"), data(4, "a", "b")}, Interval{From: at(2), To: at(3), Label: "gap"},
			"1.000 a>b TCP data × 2, 2.000 gap begins, 3.000 a>b TCP 1 -> 2 100, 3.000 gap: 1.000 ms, 4.000 a>b TCP 1 -> 2 100"},
		{"not with a lost one", []Event{data(1, "a", "b"), func() Event { e := data(2, "a", "b"); e.Lost = true; return e }()}, Interval{},
			"1.000 a>b TCP 1 -> 2 100, 2.000 a>b TCP 1 -> 2 100"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := Diagram{Hosts: hosts, Events: tt.events, Mark: tt.mark}
			var got []string
			for _, r := range d.rows() {
				s := d.time(&r) + " "
				if r.kind == isEvent {
					s += r.From + ">" + r.To + " "
				}
				got = append(got, s+r.Label)
			}
			if got := strings.Join(got, ", "); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

// TestOdd: diagrams that nobody would draw are still diagrams.
func TestOdd(t *testing.T) {
	long := strings.Repeat("a very long <label> & \"so\" on \x00 ", 10)
	for _, tt := range []struct {
		name string
		d    Diagram
	}{
		{"nothing", Diagram{}},
		{"no events", Diagram{Hosts: []string{"a", "b"}}},
		{"no hosts", Diagram{Events: []Event{{From: "a", To: "b"}}}},
		{"one host", Diagram{Hosts: []string{"a"}, Events: []Event{{From: "a", To: "a", Label: "x", Kind: Note}}}},
		{"long names", Diagram{Title: long, Hosts: []string{long, "b", long + "c"}, Events: []Event{
			{From: long, To: "b", Label: long}, {From: "b", To: "b", Label: long, Kind: Note}, {From: "b", To: long, Label: long, Tunnel: true, Lost: true},
		}, Mark: Interval{To: 1, Label: long, Host: "nobody"}}},
		{"names of one letter", Diagram{Hosts: []string{"", "ä", "世"}, Events: []Event{{From: "", To: "世", Label: "世"}}}},
		{"mark that ends before it begins", Diagram{Hosts: []string{"a"}, Mark: Interval{From: 2, To: 1}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			checkWidth(t, tt.d.Text())
			checkSVG(t, tt.d.SVG())
		})
	}
}
