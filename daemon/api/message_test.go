package api

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/netip"
	"reflect"
	"runtime"
	"strings"
	"testing"
)

var (
	addr1 = netip.MustParseAddr("2001:db8::1")
	addr2 = netip.MustParseAddr("2001:db8::2")
	v4    = netip.MustParseAddr("192.0.2.1")
)

func config() *SessionConfig {
	return &SessionConfig{Addr: addr1, CareOf: addr2, Via: addr1, Peers: []netip.Addr{addr2}, Node: "a", Nodes: []string{"b"}, MTU: 1500, Queues: 1, TUN: "dsco0", Contact: "b"}
}

// complete are messages that have just what their kind needs.
var complete = [kinds]*Message{
	Hello:         {Program: "test", AcceptsHandoffs: true, HasTUN: true, Resume: []netip.Addr{addr1, addr2}, Doubts: []Doubt{{ID: 1, Handoff: 2, Client: addr1, To: "b"}}, TellsMissed: true, TakesAway: true, Missed: []Missed{{Client: addr2, From: "c"}}},
	Welcome:       {Config: config()},
	ConfigChanged: {Config: config()},
	Owned:         {Client: addr1, Connections: 1},
	Gone:          {Client: addr1},
	Bound:         {Client: addr1},
	Unbound:       {Client: addr1},
	Asked:         {ID: 1, Client: addr1, To: "b"},
	Answered:      {ID: 1},
	Prepare:       {ID: 1, Client: addr1, To: "b"},
	Prepared:      {ID: 1, Optimised: true, Handoff: 2},
	Transfer:      {ID: 1, Snapshot: []byte("snapshot"), State: [][]byte{[]byte("a"), {}}},
	Late:          {ID: 1, Client: netip.MustParseAddr("2001:db8::1"), Packets: [][]byte{{6}, {}}},
	Done:          {ID: 1, CareOf: addr2},
	Abort:         {ID: 1},
	Expect:        {ID: 1, Client: addr1, From: "a", CareOf: addr2},
	Expected:      {ID: 1},
	Offer:         {ID: 1, Client: addr1, From: "a", Snapshot: []byte("snapshot"), Word: MaxDecisions - 1},
	Activate:      {ID: 1, Optimised: true},
	Activated:     {ID: 1},
	Forget:        {ID: 1},
	Nobodys:       {Client: addr1},
	Settled:       {ID: 1},
}

func init() {
	for k := range complete {
		if k > 0 {
			complete[k].Kind = Kind(k)
		}
	}
}

// Each kind goes through with what it needs, and not without any of it.
func TestMessages(t *testing.T) {
	for _, m := range complete[1:] {
		b, err := AppendMessage([]byte("before"), m)
		if err != nil {
			t.Errorf("%s: %v", m.Kind, err)
			continue
		}
		got, err := ReadMessage(bytes.NewReader(b[len("before"):]))
		if err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%s: got %+v, %v, want %+v", m.Kind, got, err, m)
		}
		if rules[m.Kind].from == 0 || strings.HasPrefix(m.Kind.String(), "kind") {
			t.Errorf("%s has no rule or no name", m.Kind)
		}
		for f, clear := range map[field]func(*Message){
			needID:       func(m *Message) { m.ID = 0 },
			needClient:   func(m *Message) { m.Client = netip.Addr{} },
			needTo:       func(m *Message) { m.To = "" },
			needFrom:     func(m *Message) { m.From = "" },
			needSnapshot: func(m *Message) { m.Snapshot = nil },
			needCareOf:   func(m *Message) { m.CareOf = netip.Addr{} },
			needProgram:  func(m *Message) { m.Program = "" },
			needConfig:   func(m *Message) { m.Config = nil },
		} {
			less := *m
			clear(&less)
			_, err := AppendMessage(nil, &less)
			if needed := rules[m.Kind].needs&f != 0; needed != errors.Is(err, ErrMessage) {
				t.Errorf("%s without one: needed %t, got %v", m.Kind, needed, err)
			}
		}
		refusal := Message{Kind: m.Kind, ID: 1, Error: "no"}
		if _, err := AppendMessage(nil, &refusal); rules[m.Kind].fails != (err == nil) {
			t.Errorf("%s with an error: %v", m.Kind, err)
		}
	}
}

func TestBadMessages(t *testing.T) {
	change := func(k Kind, f func(*Message)) *Message {
		m := *complete[k]
		f(&m)
		return &m
	}
	changeConfig := func(f func(*SessionConfig)) *Message {
		m := &Message{Kind: Welcome, Config: config()}
		f(m.Config)
		return m
	}
	for name, m := range map[string]*Message{
		"no kind":             {},
		"unknown kind":        {Kind: kinds},
		"IPv4":                {Kind: Owned, Client: v4},
		"IPv4 in IPv6":        {Kind: Owned, Client: netip.AddrFrom16(v4.As16())},
		"zone":                {Kind: Owned, Client: addr1.WithZone("eth0")},
		"resume nothing":      change(Hello, func(m *Message) { m.Resume = []netip.Addr{{}} }),
		"doubt of nothing":    change(Hello, func(m *Message) { m.Doubts = []Doubt{{}} }),
		"missed nobody":       change(Hello, func(m *Message) { m.Missed = []Missed{{From: "c"}} }),
		"resume IPv4":         change(Hello, func(m *Message) { m.Resume = []netip.Addr{v4} }),
		"care-of IPv4":        change(Done, func(m *Message) { m.CareOf = v4 }),
		"long node":           change(Asked, func(m *Message) { m.To = strings.Repeat("x", 254) }),
		"not UTF-8":           change(Hello, func(m *Message) { m.Program = "\xff" }),
		"node not UTF-8":      changeConfig(func(c *SessionConfig) { c.Nodes = []string{"\xff"} }),
		"long program":        change(Hello, func(m *Message) { m.Program = strings.Repeat("x", 254) }),
		"fewer than no conns": change(Owned, func(m *Message) { m.Connections = -1 }),
		"ago in the future":   change(Activated, func(m *Message) { m.Ago = -1 }),
		"word before all":     change(Offer, func(m *Message) { m.Word = -1 }),
		"word after all":      change(Offer, func(m *Message) { m.Word = MaxDecisions }),
		"no address":          changeConfig(func(c *SessionConfig) { c.Addr = netip.Addr{} }),
		"no care-of":          changeConfig(func(c *SessionConfig) { c.CareOf = netip.Addr{} }),
		"via IPv4":            changeConfig(func(c *SessionConfig) { c.Via = v4 }),
		"peer IPv4":           changeConfig(func(c *SessionConfig) { c.Peers = []netip.Addr{v4} }),
		"left IPv4":           changeConfig(func(c *SessionConfig) { c.Left = []netip.Addr{v4} }),
		"no node":             changeConfig(func(c *SessionConfig) { c.Node = "" }),
		"node without name":   changeConfig(func(c *SessionConfig) { c.Nodes = []string{""} }),
		"small MTU":           changeConfig(func(c *SessionConfig) { c.MTU = 1279 }),
		"large MTU":           changeConfig(func(c *SessionConfig) { c.MTU = 65536 }),
		"no queue":            changeConfig(func(c *SessionConfig) { c.Queues = 0 }),
		"many queues":         changeConfig(func(c *SessionConfig) { c.Queues = maxQueues + 1 }),
	} {
		if b, err := AppendMessage(nil, m); !errors.Is(err, ErrMessage) || len(b) > 0 {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// A long error does not end a session: it is for people, and cut.
func TestLongError(t *testing.T) {
	m := &Message{Kind: Prepared, ID: 1, Error: strings.Repeat("é", maxError)}
	b, err := AppendMessage(nil, m)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ReadMessage(bytes.NewReader(b))
	if err != nil || got.Error != strings.Repeat("é", maxError/2) || len(m.Error) != 2*maxError {
		t.Errorf("%v, %d octets", err, len(got.Error))
	}
	m.Error = "\xffx" + m.Error // not a letter, and so that a letter is cut in two
	if b, err = AppendMessage(nil, m); err != nil {
		t.Fatal(err)
	}
	if got, err = ReadMessage(bytes.NewReader(b)); err != nil || !strings.HasPrefix(m.Error[1:], got.Error) {
		t.Errorf("%v: %.10s", err, got.Error)
	}
}

func TestBadFrames(t *testing.T) {
	whole, err := AppendMessage(nil, complete[Welcome])
	if err != nil {
		t.Fatal(err)
	}
	for n := range whole {
		want := io.ErrUnexpectedEOF
		if n == 0 {
			want = io.EOF
		}
		if _, err := ReadMessage(bytes.NewReader(whole[:n])); err != want {
			t.Errorf("%d octets: %v, want %v", n, err, want)
		}
	}
	for name, b := range map[string]string{
		"empty":             "\x00\x00\x00\x00",
		"longer than any":   "\x10\x00\x00\x01",
		"not CBOR":          "\x00\x00\x00\x01\xff",
		"not a map":         "\x00\x00\x00\x01\x01",
		"two values":        "\x00\x00\x00\x02\xa0\xa0",
		"no kind":           "\x00\x00\x00\x01\xa0",
		"kind twice":        "\x00\x00\x00\x09\xa3\x01\x0e\x01\x0e\x02\x01\x02\x01",
		"indefinite length": "\x00\x00\x00\x06\xbf\x01\x0e\x02\x01\xff",
		"long array":        "\x00\x00\x00\x08\xa2\x01\x01\x0e\x9a\xff\xff\xff",
		"kind too large":    "\x00\x00\x00\x05\xa1\x01\x19\x01\x00",
	} {
		if _, err := ReadMessage(strings.NewReader(b)); !errors.Is(err, ErrMessage) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// A length costs nothing: what has not arrived has no memory.
func TestNoMemoryForLengths(t *testing.T) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := ReadMessage(strings.NewReader("\x0f\xff\xff\xff\xa0")); err != io.ErrUnexpectedEOF {
		t.Error(err)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 4<<20 {
		t.Errorf("%d octets of memory for 5 octets", n)
	}
}

// A message that is read into one that was another has nothing of that, and leaves to it
// what it referred to.
func TestReadAgain(t *testing.T) {
	var m, before Message
	var wanted *Message
	for _, s := range complete[1:] {
		b, err := AppendMessage(nil, s)
		if err != nil {
			t.Fatal(err)
		}
		want, err := ReadMessage(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		if err := m.read(bytes.NewReader(b)); err != nil || !reflect.DeepEqual(&m, want) {
			t.Errorf("%s: %+v, %v, want %+v", s.Kind, m, err, want)
		}
		if wanted != nil && !reflect.DeepEqual(&before, wanted) {
			t.Errorf("%s: the one before is %+v, want %+v", s.Kind, before, wanted)
		}
		before, wanted = m, want
	}
}

func FuzzReadMessage(f *testing.F) {
	for _, m := range complete[1:] {
		b, err := AppendMessage(nil, m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte("\x00\x00\x00\x02\xa0\xa0"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ReadMessage(bytes.NewReader(b))
		if err != nil {
			if m != nil {
				t.Errorf("%v and a message", err)
			}
			return
		}
		again, err := AppendMessage(nil, m)
		if err != nil {
			t.Fatalf("%+v cannot be written: %v", m, err)
		}
		m2, err := ReadMessage(bytes.NewReader(again))
		if err != nil || !reflect.DeepEqual(m, m2) {
			t.Errorf("%+v became %+v, %v", m, m2, err)
		}
		// What it was read from is used again.
		r := bufio.NewReaderSize(io.MultiReader(bytes.NewReader(again), bytes.NewReader(bytes.Repeat([]byte{0xa5}, len(again)))), len(again))
		r.Peek(len(again))
		m2, err = ReadMessage(r)
		r.Peek(len(again))
		if err != nil || !reflect.DeepEqual(m, m2) {
			t.Errorf("%+v became %+v, %v, in place", m, m2, err)
		}
	})
}
