package snapshot

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite the golden files and the dump in docs/snapshot-format.md")

func appendTo(t testing.TB, s *Snapshot) []byte {
	t.Helper()
	b, err := Append(nil, s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func golden(name string) string { return filepath.Join("testdata", "v1-"+name+".snapshot") }

func readGolden(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(golden(name))
	if err != nil {
		t.Fatalf("%v; write it with -update", err)
	}
	return b
}

// TestGolden: what version 1 is, for ever. Beside each snapshot lies what it
// must be parsed to.
func TestGolden(t *testing.T) {
	all := samples()
	if *update {
		if err := os.MkdirAll("testdata", 0o777); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		t.Run(name, func(t *testing.T) {
			if *update {
				b := appendTo(t, all[name])
				if err := os.WriteFile(golden(name), b, 0o666); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(golden(name)+".json", asJSON(t, all[name]), 0o666); err != nil {
					t.Fatal(err)
				}
			}
			b := readGolden(t, name)
			s, err := Parse(b)
			if err != nil {
				t.Fatal(err)
			}
			want, err := os.ReadFile(golden(name) + ".json")
			if err != nil {
				t.Fatal(err)
			}
			if got := asJSON(t, s); !bytes.Equal(got, want) {
				t.Errorf("parsed to\n%s\nwant\n%s", got, want)
			}
			if got := appendTo(t, s); !bytes.Equal(got, b) {
				t.Errorf("appended again:\n%x\nwant\n%x", got, b)
			}
			dissect(b)
		})
	}
	// Nothing lies there untested.
	files, err := filepath.Glob(golden("*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		name := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(f), "v1-"), ".snapshot")
		if all[name] == nil {
			t.Errorf("%s: no sample of that name", f)
		}
	}
}

// plain is s without what is no part of the format: memory for later, and the
// difference between no elements and none yet.
func plain(s *Snapshot) *Snapshot {
	p := &Snapshot{Client: s.Client}
	for _, c := range s.Conns {
		c.Pieces = nil
		if len(c.Send.Queue) == 0 {
			c.Send.Queue = nil
		}
		p.Conns = append(p.Conns, c)
	}
	return p
}

func asJSON(t testing.TB, s *Snapshot) []byte {
	t.Helper()
	type record struct {
		Conn
		Pieces *int `json:",omitempty"` // hides Conn.Pieces, which is no part of it
	}
	view := struct {
		Client netip.Addr
		Conns  []record
	}{Client: s.Client}
	for _, c := range plain(s).Conns {
		view.Conns = append(view.Conns, record{Conn: c})
	}
	b, err := json.MarshalIndent(view, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	return append(b, '\n')
}

// TestIdentity: what is appended is parsed to the same.
func TestIdentity(t *testing.T) {
	cases := samples()
	for name, change := range map[string]func(*Conn){
		"no timestamps":        func(c *Conn) { c.Timestamps, c.TSRecent, c.TSRecentAge = false, 0, 0 },
		"no sample of the RTT": func(c *Conn) { c.Send.RTTSampled, c.Send.SRTT, c.Send.RTTVar = false, 0, 0 },
		"reno":                 func(c *Conn) { c.Send.Algorithm, c.Send.Cubic = Reno, Cubic{} },
		"sequence numbers wrap": func(c *Conn) {
			c.Send.Una, c.Send.Nxt = math.MaxUint32, math.MaxUint32
			c.Receive.Nxt, c.Receive.WndUpdateAt = 0, math.MaxUint32
		},
		"far sequence numbers": func(c *Conn) { c.Send.RTTSeq, c.Send.RACK.FACK = c.Send.Una+1<<31, c.Send.Una+1<<31-1 },
		"window closed":        func(c *Conn) { c.Send.Wnd, c.Receive.Wnd, c.Receive.Acceptable = 0, 0, 0 },
		"largest numbers": func(c *Conn) {
			c.TSVal, c.TSRecent, c.TSPhase = math.MaxUint32, math.MaxUint32, time.Millisecond-1
			c.Options.TTL, c.Options.HopLimit, c.Options.TOS, c.Options.Mark = 255, 255, 255, math.MaxUint32
			c.Options.WindowClamp, c.Options.UserMSS = math.MaxUint32, math.MaxUint16
			c.Send.MSS, c.Send.SMSS = math.MaxUint16, math.MaxUint16
			c.Send.RACK.ReoWndPersist, c.Send.RACK.ReoWndIncr = 127, 255
			c.Send.RTO = time.Hour
			c.Send.LastSend = Age(century)
			c.KeepAliveTimer = Timer(century)
		},
		"least numbers": func(c *Conn) {
			c.Send.RACK.ReoWndPersist = -128
			c.Options.HopLimit = 0
			c.Send.MSS, c.Send.SMSS = 8, 8
			c.Send.RTO = time.Millisecond
			c.Send.LastSend = 0
			c.KeepAliveTimer = TimerOf(-time.Second)
		},
		"only unsent data": func(c *Conn) { c.Send.Queue = []Segment{{Data: pieces(1)}, {Data: pieces(2000)}} },
		"a lone octet unread": func(c *Conn) {
			c.Receive.Unread = pieces(1)
		},
		"read shutdown": func(c *Conn) { c.ReadShutdown = true },
		"unsent FIN behind data": func(c *Conn) {
			c.State = FinWait1
			c.Send.Queue = []Segment{{Data: pieces(10)}, {}}
		},
		"going back after a timeout": func(c *Conn) {
			c.Send.Queue = []Segment{
				{Data: pieces(10), Sent: true, XmitAt: AgeOf(0), Xmits: 2},
				{Data: pieces(10), Sent: true, XmitAt: AgeOf(0), Xmits: 1},
			}
			c.Send.Nxt = c.Send.Una + 20
			c.Send.Next = 1
		},
		"FIN out of order": func(c *Conn) { c.Receive.OutOfOrder = []Stray{{Seq: c.Receive.Nxt + 9, Flags: 0x11}} },
	} {
		c := idle()
		change(&c)
		cases[name] = of(c)
	}
	for name, s := range cases {
		t.Run(name, func(t *testing.T) {
			before := []byte("what was there before")
			b, err := Append(slices.Clone(before), s)
			if err != nil {
				t.Fatal(err)
			}
			b, ok := bytes.CutPrefix(b, before)
			if !ok {
				t.Fatalf("Append overwrote its argument: %q", b)
			}
			got, err := Parse(b)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(plain(got), plain(s)) {
				t.Errorf("got  %+v\nwant %+v", got, s)
			}
			if again := appendTo(t, got); !bytes.Equal(again, b) {
				t.Errorf("appended again:\n%x\nwant\n%x", again, b)
			}
			dissect(b) // panics if it does not agree
		})
	}
}

// TestPieces: how data are divided does not show.
func TestPieces(t *testing.T) {
	s := of(rich())
	want := appendTo(t, s)
	c := &s.Conns[0]
	split := func(p *[][]byte) {
		var out [][]byte
		for _, b := range *p {
			for len(b) > 7 {
				out = append(out, b[:7], nil)
				b = b[7:]
			}
			out = append(out, b)
		}
		*p = out
	}
	split(&c.Receive.Unread)
	for i := range c.Send.Queue {
		split(&c.Send.Queue[i].Data)
	}
	for i := range c.Receive.OutOfOrder {
		split(&c.Receive.OutOfOrder[i].Data)
	}
	if got := appendTo(t, s); !bytes.Equal(got, want) {
		t.Errorf("got\n%x\nwant\n%x", got, want)
	}
}

// TestParseReuses: a Snapshot that was used before keeps nothing of its past.
func TestParseReuses(t *testing.T) {
	var s Snapshot
	all := samples()
	names := slices.Sorted(maps.Keys(all))
	r := rand.New(rand.NewPCG(1, 1))
	for range 30 {
		for _, name := range names {
			if err := s.Parse(appendTo(t, all[name])); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(plain(&s), plain(all[name])) {
				t.Fatalf("%s: got  %+v\nwant %+v", name, s, all[name])
			}
			if r.IntN(2) == 0 {
				continue
			}
			if err := s.Parse([]byte("nonsense")); !errors.Is(err, ErrFormat) {
				t.Fatalf("nonsense: %v", err)
			}
			if !reflect.DeepEqual(s, Snapshot{}) {
				t.Fatalf("after an error: %+v", s)
			}
		}
		r.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	}
	if err := s.Parse(appendTo(t, all["client"])); err != nil {
		t.Fatal(err)
	}
	one := appendTo(t, all["idle"])
	if n := testing.AllocsPerRun(100, func() {
		if err := s.Parse(one); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("%v allocations to parse an idle connection again, want 0", n)
	}
}

// TestTruncated: no part of a snapshot is one.
func TestTruncated(t *testing.T) {
	for name, s := range samples() {
		b := appendTo(t, s)
		for i := range b {
			if _, err := Parse(b[:i:i]); !errors.Is(err, ErrFormat) {
				t.Errorf("%s: %d of %d octets: %v", name, i, len(b), err)
			}
		}
		if _, err := Parse(append(slices.Clone(b), 0)); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: one octet more: %v", name, err)
		}
	}
	// Nor if the record's length agrees.
	b := appendTo(t, of(rich()))
	at, size := record(t, b)
	for i := range size {
		if _, err := Parse(resize(b[:at+4+i:at+4+i], at)); !errors.Is(err, ErrFormat) {
			t.Errorf("record of %d of %d octets: %v", i, size, err)
		}
	}
	if _, err := Parse(resize(append(slices.Clone(b), 0), at)); !errors.Is(err, ErrFormat) {
		t.Errorf("record with one octet more: %v", err)
	}
}

// record finds the only record.
func record(t testing.TB, b []byte) (at, size int) {
	t.Helper()
	for _, f := range dissect(b) {
		if f.name == "record size" {
			return f.off, int(binary.LittleEndian.Uint32(b[f.off:]))
		}
	}
	t.Fatal("no record")
	return
}

// resize makes the length of the record at be what it is.
func resize(b []byte, at int) []byte {
	b = slices.Clone(b)
	binary.LittleEndian.PutUint32(b[at:], uint32(len(b)-at-4))
	return b
}

// TestMutated changes each octet to each other value: what is still a snapshot
// has only this form.
func TestMutated(t *testing.T) {
	samples := samples()
	for _, name := range []string{"rich", "client", "ipv4"} {
		b := appendTo(t, samples[name])
		data := make([]bool, len(b)) // anything goes there, once is enough
		for _, f := range dissect(b) {
			for i := range f.n {
				data[f.off+i] = f.kind == kindData
			}
		}
		accepted, tried := 0, 0
		var again []byte
		for i := range b {
			step := 1
			switch {
			case data[i]:
				step = 255
			case testing.Short() || raceDetector: // which has nothing to find: one goroutine
				step = 13
			}
			for x := 1; x < 256; x += step {
				m := slices.Clone(b)
				m[i] ^= byte(x)
				tried++
				s, err := Parse(m)
				if err != nil {
					if !errors.Is(err, ErrFormat) && !errors.Is(err, ErrVersion) {
						t.Fatalf("%s: octet %d is %#x: %v is neither ErrFormat nor ErrVersion", name, i, m[i], err)
					}
					continue
				}
				accepted++
				m[4], m[5] = Version, Compat // a newer one for us is as good
				if again, err = Append(again[:0], s); err != nil || !bytes.Equal(again, m) {
					t.Fatalf("%s: octet %d is %#x: appended again, %v:\n%x\nwant\n%x", name, i, b[i]^byte(x), err, again, m)
				}
			}
		}
		t.Logf("%s: %d of %d mutants accepted", name, accepted, tried)
	}
}

func TestVersions(t *testing.T) {
	s := of(rich(), idle())
	s.Conns[1].Remote = remote4
	s.Conns[1].Local = local4
	b := appendTo(t, s)

	// What a later version appends to each record.
	grow := func(version, compat byte) []byte {
		var out []byte
		n := 0
		for _, f := range dissect(b) {
			if f.name != "record size" {
				continue
			}
			size := int(binary.LittleEndian.Uint32(b[f.off:]))
			if out == nil {
				out = append(out, b[:f.off]...)
			}
			extra := bytes.Repeat([]byte{0xff}, 5+n)
			out = binary.LittleEndian.AppendUint32(out, uint32(size+len(extra)))
			out = append(out, b[f.off+4:][:size]...)
			out = append(out, extra...)
			n++
		}
		if n != 2 {
			t.Fatalf("%d records", n)
		}
		out[4], out[5] = version, compat
		return out
	}
	for version := 2; version < 256; version++ {
		got, err := Parse(grow(byte(version), 1))
		if err != nil {
			t.Fatalf("version %d, compatible with 1: %v", version, err)
		}
		if !reflect.DeepEqual(plain(got), plain(s)) {
			t.Fatalf("version %d: got  %+v\nwant %+v", version, got, s)
		}
	}
	if _, err := Parse(grow(1, 1)); !errors.Is(err, ErrFormat) {
		t.Errorf("version 1 with octets too many: %v", err)
	}
	for _, v := range [][2]byte{{2, 2}, {255, 2}, {255, 255}} {
		got, err := Parse(grow(v[0], v[1]))
		if got != nil || !errors.Is(err, ErrVersion) || errors.Is(err, ErrFormat) {
			t.Errorf("version %d, compatible with %d: %v, %v", v[0], v[1], got, err)
			continue
		}
		for _, part := range []string{fmt.Sprintf("version %d", v[0]), fmt.Sprintf("from version %d on", v[1]), "this is version 1", "upgrade this node first"} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%q does not say %q", err, part)
			}
		}
	}
	// Nonsense that no version writes.
	for _, v := range [][2]byte{{0, 0}, {0, 1}, {1, 0}, {1, 2}} {
		m := slices.Clone(b)
		m[4], m[5] = v[0], v[1]
		if _, err := Parse(m); !errors.Is(err, ErrVersion) && !errors.Is(err, ErrFormat) {
			t.Errorf("version %d, compatible with %d: %v", v[0], v[1], err)
		}
	}
}

// allocated is how many octets f allocates.
func allocated(f func()) uint64 {
	least := uint64(math.MaxUint64)
	for range 3 { // others may allocate too
		least = min(least, allocatedOnce(f))
	}
	return least
}

func allocatedOnce(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// bound is what Parse may allocate for so many octets.
func bound(octets int) uint64 { return 64*uint64(octets) + 64<<10 }

// TestMemory: counts that promise more than there is cost nothing, and nothing
// that is there costs much.
func TestMemory(t *testing.T) {
	check := func(what string, b []byte) {
		t.Helper()
		if n := allocated(func() { Parse(b) }); n > bound(len(b)) {
			t.Errorf("%s: %d octets took %d, want at most %d", what, len(b), n, bound(len(b)))
		}
	}
	b := appendTo(t, of(rich()))
	at, _ := record(t, b)
	for _, f := range dissect(b) {
		if !f.length && f.name != "connections" {
			continue
		}
		for _, v := range []uint64{f.hi, f.hi / 2, 1 << 20, 1 << 16} {
			// Followed by much that the count could mean.
			for _, tail := range []int{0, 1 << 20} {
				m := append([]byte(nil), b[:f.off]...)
				m = binary.AppendUvarint(m, v)
				m = append(m, b[f.off+f.n:]...)
				m = append(m, make([]byte, tail)...)
				if f.off > at {
					m = resize(m, at)
				}
				check(fmt.Sprintf("%s = %d, %d octets behind", f.name, v, tail), m)
			}
		}
	}
	huge := slices.Clone(b)
	binary.LittleEndian.PutUint32(huge[at:], math.MaxUint32)
	check("record of 4 GiB", huge)

	// As many as fit of the smallest of everything.
	least := ipv4()
	for i := range 20000 {
		least.Send.Queue = append(least.Send.Queue, Segment{Data: pieces(1)})
		least.Receive.OutOfOrder = append(least.Receive.OutOfOrder, Stray{Seq: least.Receive.Nxt + 10 + uint32(i), Data: pieces(1)})
		least.Unprocessed = append(least.Unprocessed, packet(20, 0))
	}
	check("many small segments", appendTo(t, of(least)))
	many := &Snapshot{}
	for i := range 1000 {
		c := ipv4()
		c.Remote = netip.AddrPortFrom(c.Remote.Addr(), uint16(1+i))
		many.Conns = append(many.Conns, c)
	}
	check("many connections", appendTo(t, many))
	check("many short records", manyShort())
}

// manyShort has many records that are empty.
func manyShort() []byte {
	b := []byte(magic + "\x01\x01\x00")
	b = binary.AppendUvarint(b, 1<<20)
	return append(b, make([]byte, 4<<20)...)
}

// TestLeastRecord: minRecord is less than any record.
func TestLeastRecord(t *testing.T) {
	c := Conn{
		Local: local4, Remote: remote4, State: Established,
		Options: Options{SendBuffer: 1, RecvBuffer: 1},
		Send:    Send{MSS: 8, SMSS: 8, Algorithm: Reno, Cwnd: 1, RTO: time.Millisecond},
		Receive: Receive{Tuning: Tuning{PrevCopied: 1}},
	}
	c.Options.setUsual()
	_, size := record(t, appendTo(t, of(c)))
	t.Logf("the smallest record has %d octets", size)
	if size < minRecord {
		t.Errorf("the smallest record has %d octets, minRecord is %d", size, minRecord)
	}
}

func TestTimes(t *testing.T) {
	for _, d := range []time.Duration{0, 1, time.Hour, -1} {
		want := max(d, 0)
		if got, ok := AgeOf(d).Before(); !ok || got != want {
			t.Errorf("AgeOf(%v).Before() = %v, %v", d, got, ok)
		}
		if got, ok := TimerOf(d).Left(); !ok || got != want {
			t.Errorf("TimerOf(%v).Left() = %v, %v", d, got, ok)
		}
	}
	if _, ok := Age(0).Before(); ok {
		t.Error("Age 0 is set")
	}
	if _, ok := Timer(0).Left(); ok {
		t.Error("Timer 0 is set")
	}
}

// TestAppendRefusal: what stands before a snapshot that cannot be written stays.
func TestAppendRefusal(t *testing.T) {
	bad := idle()
	bad.Send.WndScale = 15
	b := append(make([]byte, 0, 4096), "before"...)
	got, err := Append(b, of(bad))
	if err == nil || string(got) != "before" || string(b) != "before" {
		t.Errorf("%q, %q, %v: want what was there, and an error", got, b, err)
	}
}

func TestStates(t *testing.T) {
	for s := range State(20) {
		name := s.String()
		if known := s >= Established && s <= TimeWait; known != (name != "?") {
			t.Errorf("State(%d) = %q", s, name)
		}
		c := Conn{State: s}
		if got, want := c.FinReceived(), slices.Contains([]State{CloseWait, Closing, LastAck, TimeWait}, s); got != want {
			t.Errorf("%s: FinReceived() = %v", name, got)
		}
		if s >= Established && s <= TimeWait {
			if got, want := c.FinQueued(), s != Established && s != CloseWait; got != want {
				t.Errorf("%s: FinQueued() = %v", name, got)
			}
		}
	}
}

func BenchmarkAppend(b *testing.B) {
	for name, s := range benchmarks() {
		b.Run(name, func(b *testing.B) {
			var buf []byte
			b.ReportAllocs()
			for b.Loop() {
				var err error
				if buf, err = Append(buf[:0], s); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(len(buf)), "octets")
		})
	}
}

func BenchmarkParse(b *testing.B) {
	for name, s := range benchmarks() {
		b.Run(name, func(b *testing.B) {
			buf := appendTo(b, s)
			var s Snapshot
			b.ReportAllocs()
			for b.Loop() {
				if err := s.Parse(buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func benchmarks() map[string]*Snapshot {
	unread := idle()
	unread.Receive.Unread = pieces(64 << 10)
	return map[string]*Snapshot{"idle": of(idle()), "unsent64k": of(bulk(64 << 10)), "unread64k": of(unread)}
}
