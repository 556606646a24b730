package node

import (
	"encoding/hex"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// A node in the place of a real mobile node, whose exchange was recorded,
// understands what it got, and sends what it sent, octet for octet.
func TestRecorded(t *testing.T) {
	text, err := os.ReadFile("testdata/recorded.txt")
	if err != nil {
		t.Fatal(err)
	}
	recorded := make(map[string][]byte)
	parsed := make(map[string]wire.Message)
	for line := range strings.Lines(string(text)) {
		name, digits, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if !ok || strings.HasPrefix(name, "#") {
			continue
		}
		b, err := hex.DecodeString(digits)
		if err != nil {
			t.Fatal(err)
		}
		recorded[name] = b
		p, err := wire.ParsePacket(b)
		if err != nil {
			t.Fatal(err)
		}
		if p.Protocol == wire.IPv6 {
			if b, err = p.Inner(); err != nil {
				t.Fatal(err)
			}
			if p, err = wire.ParsePacket(b); err != nil {
				t.Fatal(err)
			}
		}
		if parsed[name], err = wire.ParseMobility(&p); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}

	peer := netip.MustParseAddr("2001:db8:c::2")
	rand := &fixed{}
	n := newNode(t, Config{
		Home:         netip.MustParsePrefix("2001:db8:a::1234/64"),
		CareOf:       netip.MustParseAddr("2001:db8:f:0:5054:ff:fe00:f05"),
		HomeAgent:    netip.MustParseAddr("2001:db8:a::1"),
		HomeLifetime: parsed["home BU"].(*wire.BindingUpdate).Lifetime,
		Rand:         rand,
	})
	now := time.Duration(0)
	step := func(in Input, sends ...string) Output {
		t.Helper()
		out := n.Step(now, in)
		if len(out.Send) != len(sends) {
			t.Fatalf("%d packets, want %q", len(out.Send), sends)
		}
		for i, name := range sends {
			if got, want := plain(out.Send[i]), plain(recorded[name]); !slices.Equal(got, want) {
				t.Errorf("%s is\n%x, was\n%x", name, got, want)
			}
		}
		return out
	}
	// What it drew at random.
	rand.number(parsed["home BU"].(*wire.BindingUpdate).Sequence - 1)
	step(Register{}, "home BU")
	now += 1030 * time.Millisecond
	step(Received{recorded["home BA"]})
	if _, ok := n.Registered(); !ok {
		t.Fatal("not registered")
	}

	now += 25 * time.Second
	rand.number(parsed["BU"].(*wire.BindingUpdate).Sequence - 1)
	rand.cookie(parsed["HoTI"].(*wire.HomeTestInit).Cookie)
	rand.cookie(parsed["CoTI"].(*wire.CareOfTestInit).Cookie)
	step(Optimise{peer}, "HoTI", "CoTI")
	step(Received{recorded["HoT"]})
	step(Received{recorded["CoT"]}, "BU")
	out := step(Received{recorded["BA"]})
	if n.State(peer) != Established || out.Events[0].Until != now+420*time.Second {
		t.Errorf("state %v, %+v", n.State(peer), out.Events)
	}
}

// plain is a packet without what each sender chooses as it likes: flow labels,
// hop limits, and the hop limit of the packet in a tunnel.
func plain(b []byte) []byte {
	b = slices.Clone(b)
	for at := 0; at+wire.HeaderLen <= len(b); at += wire.HeaderLen {
		b[at], b[at+1], b[at+2], b[at+3], b[at+7] = 0x60, 0, 0, 0, 0
		if b[at+6] == byte(wire.DestOptions) && b[at+wire.HeaderLen] == byte(wire.IPv6) {
			// The tunnel encapsulation limit, an option of one's own choice
			// (RFC 2473 section 5.1).
			b = slices.Delete(b, at+wire.HeaderLen, at+wire.HeaderLen+8)
			b[at+5] -= 8
			b[at+6] = byte(wire.IPv6)
		}
		if b[at+6] != byte(wire.IPv6) {
			break
		}
	}
	return b
}

// fixed is a source of random numbers that the test knows beforehand.
type fixed struct{ next [][]byte }

func (f *fixed) number(n uint16)      { f.next = append(f.next, []byte{byte(n >> 8), byte(n)}) }
func (f *fixed) cookie(c wire.Cookie) { f.next = append(f.next, c[:]) }

func (f *fixed) Read(b []byte) (int, error) {
	copy(b, f.next[0])
	f.next = f.next[1:]
	return len(b), nil
}
