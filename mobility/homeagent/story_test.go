package homeagent

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

var updateStory = flag.Bool("update", false, "rewrite testdata/contact.txt")

// The life of a distributed server as its home agent sees it, written down in
// testdata/contact.txt: what came in is marked >, what went out is indented.
func TestStory(t *testing.T) {
	s := newScene(t)
	begin := s.now
	var story strings.Builder
	told := 0
	say := func(what string) {
		fmt.Fprintf(&story, "%9.3f > %s\n", (s.now - begin).Seconds(), what)
	}
	tell := func() {
		for _, line := range s.log {
			fmt.Fprintf(&story, "%9.3f   %s\n", (s.now - begin).Seconds(), line)
		}
		s.log = nil
		for _, c := range s.changes[told:] {
			if c.CareOf.IsValid() {
				fmt.Fprintf(&story, "%9.3f   = %s at %s until %.0f\n", (s.now - begin).Seconds(), name(c.Home), name(c.CareOf), (c.Until - begin).Seconds())
			} else {
				fmt.Fprintf(&story, "%9.3f   = %s away, status %d\n", (s.now - begin).Seconds(), name(c.Home), c.Status)
			}
		}
		told = len(s.changes)
	}
	pass := func(d time.Duration) {
		for until := s.now + d; ; {
			at, ok := s.m.NextDeadline()
			if !ok || at > until {
				s.now = until
				return
			}
			s.now = at
			s.step(Tick{})
			tell()
		}
	}
	do := func(what string, b []byte) {
		say(what)
		s.receive(b)
		tell()
	}
	hear := func(what string, b []byte) {
		say(what)
		s.hear(b)
		tell()
	}
	chapter := func(title string) { fmt.Fprintf(&story, "\n%s\n", title) }
	from := func(n uint16, life time.Duration, c string) bu {
		u := seq(n, life)
		u.src = addr(c)
		return u
	}
	const a, b = "2001:db8:f1::1", "2001:db8:f2::1"
	ms := time.Millisecond

	chapter("A client asks before there is a server.")
	do("echo cn > home", s.echo(cn, home))
	hear("NS home from neighbor", s.solicitation(neighbor, home, true, true))

	chapter("The first contact node registers; its first message is slow to be answered.")
	pass(100 * ms)
	do("BU #100 400s from coa1", s.packet(from(100, long, a)))
	pass(500 * ms)
	do("BU #101 400s from coa1", s.packet(from(101, long, a)))
	do("echo cn > home", s.echo(cn, home))
	pass(600 * ms)
	do("MPS home from coa1", s.prefixSolicitation())

	chapter("A client and its answers.")
	hear("NS home from neighbor", s.solicitation(neighbor, home, true, true))
	do("echo cn > home", s.echo(cn, home))
	do("tunnel from coa1 [echo home > cn]", s.tunnelled(coa1, s.echo(home, cn)))
	do("tunnel from stranger [echo home > cn]", s.tunnelled(stranger, s.echo(home, cn)))
	hear("DAD NS home", s.probe(home))

	chapter("The contact moves to the second node.")
	pass(30 * time.Second)
	old := s.packet(from(102, long, a))
	do("BU #103 400s from coa2", s.packet(from(103, long, b)))
	do("echo cn > home", s.echo(cn, home))
	do("tunnel from coa1 [echo home > cn]", s.tunnelled(coa1, s.echo(home, cn)))
	do("BU #102 400s from coa1, which was late", old)

	chapter("The home agent starts anew.")
	pass(5 * time.Second)
	last := s.packet(from(104, long, b))
	do("BU #104 400s from coa2", last)
	pass(time.Second)
	s.restart()
	do("BU #104 400s from coa2, recorded", last)
	do("echo cn > home", s.echo(cn, home))
	pass(time.Second)
	do("BU #105 400s from coa2", s.packet(from(105, long, b)))
	pass(time.Second)
	do("echo cn > home", s.echo(cn, home))

	chapter("The node leaves; another host takes the address, then goes.")
	pass(time.Second)
	do("BU #106 0s from coa2", s.packet(from(106, 0, b)))
	do("BU #107 400s from coa1", s.packet(from(107, long, a)))
	pass(300 * ms)
	hear("NA home from neighbor", s.advertisement(home))
	pass(time.Second)
	do("BU #108 40s from coa1", s.packet(from(108, 40*time.Second, a)))
	pass(time.Minute)
	do("echo cn > home", s.echo(cn, home))

	const file = "testdata/contact.txt"
	if *updateStory {
		if err := os.WriteFile(file, []byte(story.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if story.String() != string(want) {
		t.Errorf("the story differs from %s (-update rewrites it):\n%s", file, story.String())
	}
}
