package correspondent

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

var update = flag.Bool("update", false, "rewrite testdata/story.txt")

var names = strings.NewReplacer(
	cn.String(), "cn", home.String(), "home", coa1.String(), "coa1", coa2.String(), "coa2", router.String(), "router")

// story writes down what goes in and what comes of it.
type story struct {
	*mobile
	strings.Builder
}

func (s *story) say(format string, args ...any) {
	fmt.Fprintf(s, "\n# "+format+"\n", args...)
}

func (s *story) line(arrow, text string) {
	fmt.Fprintf(s, "%7.1fs  %s %s\n", (s.now - time.Hour).Seconds(), arrow, names.Replace(text))
}

// in has a packet received.
func (s *story) in(b []byte) []packet {
	s.line("◄", describe(parse(s.t, b)))
	changes := len(s.changes)
	got := s.receive(b)
	if len(s.delivered) > 0 {
		s.outcome(nil, changes)
		changes = len(s.changes)
	}
	for _, b := range s.delivered {
		s.line("   deliver", describe(parse(s.t, b)))
	}
	s.outcome(got, changes)
	return got
}

// pass lets time pass.
func (s *story) pass(d time.Duration) {
	end := s.now + d
	for {
		at, ok := s.c.NextDeadline()
		if !ok || at > end {
			break
		}
		s.now = at
		changes := len(s.changes)
		var got []packet
		for _, b := range s.step(Tick{}) {
			got = append(got, parse(s.t, b))
		}
		if len(got) > 0 || len(s.changes) > changes {
			s.line("·", "tick")
			s.outcome(got, changes)
		}
	}
	s.now = end
}

func (s *story) outcome(got []packet, changes int) {
	for _, c := range s.changes[changes:] {
		if c.CareOf.IsValid() {
			s.line("   change ", fmt.Sprintf("%v: %v is at %v until %.1fs", c.Local, c.Home, c.CareOf, (c.Until-time.Hour).Seconds()))
		} else {
			s.line("   change ", fmt.Sprintf("%v: %v is gone", c.Local, c.Home))
		}
	}
	for _, p := range got {
		s.line("   ►", describe(p))
	}
}

func describe(p packet) string {
	s := fmt.Sprintf("%v > %v ", p.Src, p.Dst)
	if p.Home.IsValid() {
		s += fmt.Sprintf("[HAO %v] ", p.Home)
	}
	if p.Routing.IsValid() {
		s += fmt.Sprintf("[RH2 %v] ", p.Routing)
	}
	signed := func(yes bool) string {
		if yes {
			return ", signed"
		}
		return ""
	}
	switch m := p.mh.(type) {
	case *wire.HomeTestInit:
		return s + "Home Test Init"
	case *wire.CareOfTestInit:
		return s + "Care-of Test Init"
	case *wire.HomeTest:
		return s + "Home Test"
	case *wire.CareOfTest:
		return s + "Care-of Test"
	case *wire.BindingRefreshRequest:
		return s + "Binding Refresh Request"
	case *wire.BindingUpdate:
		return s + fmt.Sprintf("Binding Update %d for %v%s", m.Sequence, m.Lifetime, signed(m.Authenticated))
	case *wire.BindingAck:
		return s + fmt.Sprintf("Binding Acknowledgement %d, status %d, for %v%s", m.Sequence, m.Status, m.Lifetime, signed(m.Authenticated))
	case *wire.BindingError:
		return s + fmt.Sprintf("Binding Error, status %d, %v", m.Status, m.Home)
	}
	switch {
	case p.err != nil:
		return s + fmt.Sprintf("ICMPv6 error %d, code %d, %d", p.err.Kind, p.err.Code, p.err.Param)
	case p.Protocol == wire.ICMPv6 && p.Payload[0] == echoRequest:
		return s + "echo request"
	case p.Protocol == wire.ICMPv6 && p.Payload[0] == echoReply:
		return s + "echo reply"
	}
	return s + fmt.Sprintf("protocol %d, %d octets", p.Protocol, len(p.Payload))
}

func (s *story) ping(src, option netip.Addr) []packet {
	p := wire.Packet{Src: src, Dst: cn, Home: option, Protocol: wire.ICMPv6}
	p.Payload = echoMessage(echoRequest, p.Source(), cn)
	return s.in(build(s.t, p))
}

// tests makes both tests in the story.
func (s *story) tests(home bool) {
	if home {
		hot := s.in(s.hotiPacket())[0].mh.(*wire.HomeTest)
		s.homeIndex, s.homeToken = hot.NonceIndex, hot.Token
	}
	cot := s.in(s.cotiPacket())[0].mh.(*wire.CareOfTest)
	s.careIndex, s.careToken = cot.NonceIndex, cot.Token
}

// TestStory is the life of a binding, to be read in testdata/story.txt: ◄ came
// from the network, ► went to it.
func TestStory(t *testing.T) {
	s := &story{mobile: newHost(t).mobile()}
	fmt.Fprintln(s, "# The life of a binding. ◄ came from the network, ► went to it. The host answers echo requests.")

	s.say("At first the mobile node is talked to by way of its home agent.")
	s.ping(home, netip.Addr{})
	s.say("A Home Address option means nothing yet.")
	s.ping(coa1, home)
	s.say("Return routability: both addresses are the mobile node's.")
	s.tests(true)
	s.say("Binding.")
	first := s.updatePacket(bu{lifetime: 100 * time.Second})
	s.in(first)
	s.say("From now on directly, whichever way the request comes.")
	s.ping(coa1, home)
	s.ping(home, netip.Addr{})
	s.say("Handover to another care-of address, with the home token of before.")
	s.pass(20 * time.Second)
	s.coa = coa2
	s.tests(false)
	s.in(s.updatePacket(bu{lifetime: 100 * time.Second}))
	s.ping(home, netip.Addr{})
	s.say("The old place does not count any more, and its Binding Update neither.")
	s.ping(coa1, home)
	s.in(first)
	s.say("The binding is in use when it ends: the mobile node is asked, twice.")
	s.pass(110 * time.Second)
	s.say("The home token has not expired yet: a Binding Update of before is still refused. A later one would do.")
	s.in(first)
	s.say("A new binding, which is deleted from home.")
	s.tests(true)
	s.in(s.updatePacket(good))
	b := atHome
	s.in(s.updatePacket(b))
	s.say("There too a replay is refused, until its nonces have expired.")
	s.in(first)
	s.pass(240 * time.Second)
	s.in(first)
	s.say("The care-of address is unreachable, again and again: the binding is given up, and packets go home.")
	s.tests(true)
	s.in(s.updatePacket(good))
	for range maxFailures {
		got := s.ping(home, netip.Addr{})
		s.in(s.errorAbout(wire.ICMPError{Kind: wire.Unreachable, Code: 3}, got[0].raw))
		s.pass(time.Second)
	}
	s.ping(home, netip.Addr{})

	const file = "testdata/story.txt"
	if *update {
		if err := os.WriteFile(file, []byte(s.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.String(); got != string(want) {
		t.Errorf("the story has changed; review it with -update and git diff:\n%s", got)
	}
}
