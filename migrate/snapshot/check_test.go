package snapshot

import (
	"encoding/binary"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"math"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// unchecked is Append without the rules of check.go.
func unchecked(t testing.TB, s *Snapshot) []byte {
	t.Helper()
	b := []byte{'D', 'S', 'T', 'C', Version, Compat, 0}
	k := codec{writing: true}
	if s.Client.IsValid() {
		b[6] = scopeClient
		k.addr("client", &s.Client)
	}
	n := len(s.Conns)
	num(&k, "connections", &n, 0, maxCount)
	b = append(b, k.b...)
	for i := range s.Conns {
		k := codec{writing: true}
		k.conn(&s.Conns[i])
		if k.err != nil {
			t.Fatal(k.err)
		}
		b = binary.LittleEndian.AppendUint32(b, uint32(len(k.b)))
		b = append(b, k.b...)
	}
	return b
}

// rules: each breaks one rule of check.go, in values that are in range.
var rules = []struct {
	name   string
	want   string // part of the error
	broken *Snapshot
}{
	{"families", "are of different families", with(idle, func(c *Conn) { c.Remote = remote4 })},
	{"itself", "is connected to itself", with(idle, func(c *Conn) { c.Remote = c.Local })},
	{"local unspecified", "[::]:443 or", with(idle, func(c *Conn) { c.Local = setAddr(c.Local, "::") })},
	{"local multicast", "is no unicast address", with(idle, func(c *Conn) { c.Local = setAddr(c.Local, "ff02::1") })},
	{"remote unspecified", "is no unicast address", with(ipv4, func(c *Conn) { c.Remote = setAddr(c.Remote, "0.0.0.0") })},
	{"remote multicast", "is no unicast address", with(ipv4, func(c *Conn) { c.Remote = setAddr(c.Remote, "224.0.0.1") })},
	{"orphan unaccepted", "both closed and not yet accepted", with(idle, func(c *Conn) { c.Orphan, c.Unaccepted = true, true })},
	{"orphan in ESTABLISHED", "closed, but in state ESTABLISHED", with(idle, func(c *Conn) { c.Orphan = true })},
	{"orphan in CLOSE_WAIT", "closed, but in state CLOSE_WAIT", with(state(CloseWait), func(c *Conn) { c.Orphan = true })},
	{"orphan without end", "would stay for ever", with(state(FinWait2), func(c *Conn) { c.Orphan, c.FinWait2Timer = true, 0 })},
	{"LAST_ACK without FIN", "without the FIN that it waits for", with(state(LastAck), func(c *Conn) { c.Send.Queue, c.Send.Next, c.Send.Nxt = nil, 0, c.Send.Una })},
	{"CLOSING without FIN", "without the FIN that it waits for", with(state(Closing), func(c *Conn) { c.Send.Queue, c.Send.Next, c.Send.Nxt = nil, 0, c.Send.Una })},
	{"FIN_WAIT_2 timer elsewhere", "FIN_WAIT_2 timer without", with(idle, func(c *Conn) { c.FinWait2Timer = 1 })},
	{"FIN_WAIT_2 timer of no orphan", "FIN_WAIT_2 timer without", with(state(FinWait2), func(c *Conn) { c.Orphan = false })},
	{"TIME_WAIT timer elsewhere", "TIME_WAIT and its timer", with(idle, func(c *Conn) { c.TimeWaitTimer = 1 })},
	{"TIME_WAIT without timer", "TIME_WAIT and its timer", with(state(TimeWait), func(c *Conn) { c.TimeWaitTimer = 0 })},
	{"keepalive idle", "keepalive times are 0", with(idle, func(c *Conn) { c.Options.KeepIdle = 0 })},
	{"keepalive interval", "keepalive times are 0", with(idle, func(c *Conn) { c.Options.KeepInterval = 0 })},

	{"RTO", "RTO 999.999µs: want at least 1ms", with(idle, func(c *Conn) { c.Send.RTO = time.Millisecond - 1 })},
	{"SRTT", "SRTT is 0", with(idle, func(c *Conn) { c.Send.SRTT = 0 })},
	{"SACKed without SACK", "SACKed blocks without SACK", with(rich, func(c *Conn) { c.SACKPermitted = false })},
	{"SND.NXT far", "beyond SND.UNA", with(idle, func(c *Conn) { c.Send.Nxt += 1<<30 + 1 })},
	{"SND.NXT before SND.UNA", "SND.NXT is 4294967295 beyond SND.UNA", with(idle, func(c *Conn) { c.Send.Nxt-- })},
	{"block before SND.UNA", "scoreboard: block 0", with(rich, func(c *Conn) { c.Send.SACKed[0].Start = c.Send.Una - 1 })},
	{"block beyond SND.NXT", "scoreboard: block 1", with(rich, func(c *Conn) { c.Send.SACKed[1].Len = 351 })},
	{"blocks overlap", "scoreboard: block 1", with(rich, func(c *Conn) { c.Send.SACKed[0].Len = 151 })},
	{"blocks touch", "scoreboard: block 1", with(rich, func(c *Conn) { c.Send.SACKed[0].Len = 150 })},
	{"blocks in disorder", "scoreboard: block 1", with(rich, func(c *Conn) { slices.Reverse(c.Send.SACKed) })},
	{"empty segment", "segment 0 of 1 in the send queue is empty", with(idle, func(c *Conn) { c.Send.Queue = []Segment{{}} })},
	{"FIN not last", "segment 0 of 2 in the send queue is empty", with(state(FinWait1), func(c *Conn) { c.Send.Queue = append(c.Send.Queue, Segment{Data: pieces(1)}) })},
	{"sent behind unsent", "segment 1 of the send queue was sent before its predecessor", with(rich, func(c *Conn) { q := c.Send.Queue; q[0], q[3] = q[3], q[0] })},
	{"unsent with PSH", "but has a history", with(rich, func(c *Conn) { c.Send.Queue[3].Push = true })},
	{"unsent but SACKed", "but has a history", with(rich, func(c *Conn) { c.Send.Queue[3].SACKed = true })},
	{"unsent but lost", "but has a history", with(rich, func(c *Conn) { c.Send.Queue[3].Lost = true })},
	{"no FIN queued", "state FIN_WAIT_1 with data but without FIN", with(rich, func(c *Conn) { c.Send.Queue = c.Send.Queue[:4] })},
	{"queue after the FIN", "state FIN_WAIT_2 with a send queue", with(state(FinWait2), func(c *Conn) { c.Send.Queue = []Segment{{Data: pieces(1)}} })},
	{"less sent", "899 octets sent, but SND.NXT is 900", with(rich, func(c *Conn) { c.Send.Queue[0].Data = pieces(399) })},
	{"more sent", "901 octets sent, but SND.NXT is 900", with(rich, func(c *Conn) { c.Send.Queue[0].Data = pieces(401) })},
	{"FIN counts", "1 octets sent, but SND.NXT is 0", with(state(LastAck), func(c *Conn) { c.Send.Nxt-- })},
	{"next", "segment 4 is next to send, but segment 3 was never sent", with(rich, func(c *Conn) { c.Send.Next = 4 })},

	{"out of order after FIN", "out-of-order segments in state CLOSE_WAIT", with(rich, func(c *Conn) {
		c.Orphan = false
		c.State, c.Send.Queue, c.Send.Nxt, c.Send.Next, c.Send.SACKed = CloseWait, nil, c.Send.Una, 0, nil
	})},
	{"out of order SYN", "out-of-order segment 1 has flags 0x13", with(rich, func(c *Conn) { c.Receive.OutOfOrder[1].Flags |= 2 })},
	{"out of order RST", "out-of-order segment 1 has flags 0x15", with(rich, func(c *Conn) { c.Receive.OutOfOrder[1].Flags |= 4 })},
	{"out of order URG", "out-of-order segment 1 has flags 0x31", with(rich, func(c *Conn) { c.Receive.OutOfOrder[1].Flags |= 0x20 })},
	{"out of order empty", "out-of-order segment 0 is empty", with(rich, func(c *Conn) { c.Receive.OutOfOrder[0].Data = nil })},
	{"out of order before RCV.NXT", "out-of-order segment 0 is not beyond RCV.NXT", with(rich, func(c *Conn) { c.Receive.OutOfOrder[0].Seq = c.Receive.Nxt - 1 })},
	{"no heap", "out-of-order segments are no heap at 2", with(rich, func(c *Conn) { c.Receive.OutOfOrder[2].Seq = c.Receive.OutOfOrder[0].Seq - 1 })},
	{"block before RCV.NXT", "SACK block 1 is not beyond RCV.NXT", with(rich, func(c *Conn) { c.Receive.Blocks[1].Start = c.Receive.Nxt - 1 })},

	{"twice", "connection 1, [fd00:2::1]:443 to [fd00:1::1]:49152, is there twice", of(idle(), idle())},
	{"another client", "remote fd00:1::1 is not the client fd00:1::2", &Snapshot{Client: netip.MustParseAddr("fd00:1::2"), Conns: []Conn{idle()}}},
}

func with(c func() Conn, f func(*Conn)) *Snapshot {
	v := c()
	f(&v)
	return of(v)
}

func state(s State) func() Conn { return func() Conn { return inState(s) } }

func setAddr(a netip.AddrPort, to string) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(to), a.Port())
}

func TestRules(t *testing.T) {
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			s, err := Parse(unchecked(t, r.broken))
			if s != nil || !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), r.want) {
				t.Errorf("Parse: %v, %v: want %q", s, err, r.want)
			}
		})
	}
}

// TestAppendRules: what Parse refuses is not written either.
func TestAppendRules(t *testing.T) {
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			before := []byte("before")
			b, err := Append(before, r.broken)
			if err == nil || !strings.Contains(err.Error(), r.want) || string(b) != "before" {
				t.Errorf("Append: %d octets, %v: want %q", len(b)-len(before), err, r.want)
			}
		})
	}
}

// TestAllRules: each message in check.go is one that TestRules provokes.
func TestAllRules(t *testing.T) {
	var said []string
	for _, r := range rules {
		if _, err := Parse(unchecked(t, r.broken)); err != nil {
			said = append(said, err.Error())
		}
	}
	file, err := parser.ParseFile(token.NewFileSet(), "check.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	verb := regexp.MustCompile(`%[#+]?[a-z]`)
	ast.Inspect(file, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		f, ok := call.Fun.(*ast.SelectorExpr)
		if !ok || f.Sel.Name != "Errorf" && f.Sel.Name != "New" {
			return true
		}
		format, err := strconv.Unquote(call.Args[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		parts := verb.Split(format, -1)
		for i := range parts {
			parts[i] = regexp.QuoteMeta(parts[i])
		}
		re := regexp.MustCompile(strings.Join(parts, ".+"))
		if !slices.ContainsFunc(said, re.MatchString) {
			t.Errorf("nothing in TestRules provokes %q", format)
		}
		return true
	})
}

// TestRanges goes beyond each field's range, in octets, and gives each number
// a second form.
func TestRanges(t *testing.T) {
	tried := map[string]bool{}
	check := func(f field, b []byte, at int, with []byte, says string) {
		t.Helper()
		m := append([]byte(nil), b[:f.off]...)
		m = append(m, with...)
		m = append(m, b[f.off+f.n:]...)
		if f.off > at {
			m = resize(m, at)
		}
		_, err := Parse(m)
		if !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), ": "+f.name+" "+says) {
			t.Errorf("%s = %x for %x: %v: want %q", f.name, with, b[f.off:][:f.n], err, f.name+" "+says)
		}
		tried[f.name] = true
	}
	rich := of(rich())
	rich.Client = rich.Conns[0].Remote.Addr()
	for _, s := range []*Snapshot{rich, of(ipv4()), of(inState(TimeWait))} {
		b := appendTo(t, s)
		at, _ := record(t, b)
		for _, f := range dissect(b) {
			switch f.kind {
			case kindNum:
				if f.lo > 0 {
					check(f, b, at, binary.AppendUvarint(nil, f.lo-1), "is "+strconv.FormatUint(f.lo-1, 10)+": want")
				}
				check(f, b, at, binary.AppendUvarint(nil, f.hi+1), "is "+strconv.FormatUint(f.hi+1, 10)+": want")
				check(f, b, at, binary.AppendUvarint(nil, 1<<63), "is 9223372036854775808: want")
				check(f, b, at, binary.AppendUvarint(nil, math.MaxUint64), "is 18446744073709551615: want")
			case kindNear:
				check(f, b, at, binary.AppendUvarint(nil, 1<<32), "is out of sequence space")
			case kindFlags:
				for i := f.bits; i < 8; i++ {
					check(f, b, at, []byte{b[f.off] | 1<<i}, "are ")
				}
			case kindFloat:
				for _, v := range []float64{-1, math.Copysign(0, -1), math.Inf(1), math.Inf(-1), math.NaN(), math.Nextafter(f.max, math.Inf(1)), -math.SmallestNonzeroFloat64} {
					check(f, b, at, binary.LittleEndian.AppendUint64(nil, math.Float64bits(v)), "is ")
				}
			case kindAddr:
				for _, n := range []byte{0, 3, 5, 15, 17, 255} {
					check(f, b, at, append([]byte{n}, b[f.off+1:][:f.n-1]...), "has ")
				}
				in6 := netip.MustParseAddr("::ffff:192.0.2.1").As16()
				check(f, b, at, append([]byte{16}, in6[:]...), "::ffff:192.0.2.1 is an IPv4 address")
			}
			switch f.kind {
			case kindNum, kindNear:
				long := slices.Clone(b[f.off:][:f.n])
				long[f.n-1] |= 0x80
				check(f, b, at, append(slices.Clone(long), 0), "is no minimal varint")
				check(f, b, at, append(long, 0x80, 0), "is no minimal varint")
				check(f, b, at, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1}, "is no minimal varint")
				check(f, b, at, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2}, "is no minimal varint")
			}
		}
	}
	for _, name := range fieldNames(t) {
		switch name {
		case "record size", "record", "magic", "timestamp", "recent timestamp", "SND.UNA", "RCV.NXT", "retransmission timestamp":
		case "option flags": // all bits have a meaning; see TestUsualSettings
		default:
			if !tried[name] {
				t.Errorf("%s was not tried", name)
			}
		}
	}
}

// TestUsualSettings: they have the short form, and only they.
func TestUsualSettings(t *testing.T) {
	c := idle()
	short := appendTo(t, of(c))
	c.Options.TOS = 1
	long := appendTo(t, of(c))
	if len(long) <= len(short) {
		t.Errorf("with TOS: %d octets, without %d", len(long), len(short))
	}
	for _, f := range dissect(long) {
		if f.name == "TOS" {
			long[f.off] = 0
		}
	}
	if _, err := Parse(long); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "option flags do not say") {
		t.Errorf("usual settings at length: %v", err)
	}
}

// TestAppendRanges: what is out of range is not written either. The ranges are
// the same piece of code, so a few of each kind do.
func TestAppendRanges(t *testing.T) {
	for want, change := range map[string]func(*Conn){
		"local \"invalid":                       func(c *Conn) { c.Local = netip.AddrPort{} },
		"remote \"::ffff":                       func(c *Conn) { c.Remote = setAddr(c.Remote, "::ffff:192.0.2.1") },
		"remote \"fe80::1%eth0":                 func(c *Conn) { c.Remote = setAddr(c.Remote, "fe80::1%eth0") },
		"local is 0: want 1":                    func(c *Conn) { c.Local = netip.AddrPortFrom(c.Local.Addr(), 0) },
		"state is 0: want 1 to 7":               func(c *Conn) { c.State = 0 },
		"state is 8: want 1 to 7":               func(c *Conn) { c.State = 8 },
		"timestamp phase is 1000000":            func(c *Conn) { c.TSPhase = time.Millisecond },
		"timestamp phase is -1":                 func(c *Conn) { c.TSPhase = -1 },
		"hop limit is -1":                       func(c *Conn) { c.Options.HopLimit = -2 },
		"hop limit is 257":                      func(c *Conn) { c.Options.HopLimit = 256 },
		"hop limit is -32768":                   func(c *Conn) { c.Options.HopLimit = math.MaxInt16 },
		"send buffer is 0":                      func(c *Conn) { c.Options.SendBuffer = 0 },
		"send buffer is -5":                     func(c *Conn) { c.Options.SendBuffer = -5 },
		"keepalive count is 65536":              func(c *Conn) { c.Options.KeepCount = 65536 },
		"last send is 18446744073709551615":     func(c *Conn) { c.Send.LastSend = math.MaxUint64 },
		"send window scale is 15":               func(c *Conn) { c.Send.WndScale = 15 },
		"send MSS is 7":                         func(c *Conn) { c.Send.MSS = 7 },
		"cubic K is NaN":                        func(c *Conn) { c.Send.Cubic.K = math.NaN() },
		"cubic K is -0":                         func(c *Conn) { c.Send.Cubic.K = math.Copysign(0, -1) },
		"cubic W_max is +Inf":                   func(c *Conn) { c.Send.Cubic.WMax = math.Inf(1) },
		"algorithm is 3":                        func(c *Conn) { c.Send.Algorithm = 3 },
		"next segment is 1: want 0 to 0":        func(c *Conn) { c.Send.Next = 1 },
		"SACK blocks is 7: want 0 to 6":         func(c *Conn) { c.Receive.Blocks = make([]Block, 7) },
		"SACK block is 0: want 1":               func(c *Conn) { c.Receive.Blocks = make([]Block, 1) },
		"out-of-order flags is 64":              func(c *Conn) { c.Receive.OutOfOrder = []Stray{{Flags: 0x40}} },
		"out-of-order segment is 65601: want 0": func(c *Conn) { c.Receive.OutOfOrder = []Stray{{Data: pieces(65601)}} },
		"unprocessed packet is 19: want 20":     func(c *Conn) { c.Unprocessed = [][]byte{packet(19, 0)} },
		"unprocessed packet is 65601":           func(c *Conn) { c.Unprocessed = [][]byte{packet(65601, 0)} },
	} {
		c := idle()
		change(&c)
		b, err := Append([]byte("before"), of(idle(), c))
		if err == nil || !strings.Contains(err.Error(), "connection 1: "+want) || string(b) != "before" {
			t.Errorf("Append: %q, %v: want %q", b, err, want)
		}
	}
	for _, client := range []string{"::ffff:192.0.2.1", "fe80::1%eth0"} {
		if _, err := Append(nil, &Snapshot{Client: netip.MustParseAddr(client)}); err == nil || !strings.Contains(err.Error(), "client ") {
			t.Errorf("client %s: %v", client, err)
		}
	}
}

// TestBadHeaders: what is no snapshot at all.
func TestBadHeaders(t *testing.T) {
	for in, want := range map[string]string{
		"":                                     "does not begin with \"DSTC\"",
		"DSTC":                                 "does not begin with \"DSTC\"",
		"HTTP/1.1 200 OK\r\n":                  "does not begin with \"DSTC\"",
		"DSTC\x01\x01\x02\x00":                 "scope 2: want 0 or 1",
		"DSTC\x01\x01\x00":                     "connections",
		"DSTC\x01\x01\x00\x01":                 "record size cut short: 0 of 4",
		"DSTC\x01\x01\x00\x01\x01\x00\x00\x00": "record cut short: 0 of 1",
		"DSTC\x01\x01\x00\x01\x00\x00\x00\x00": "connection 0: local cut short: 0 of 1",
		"DSTC\x01\x01\x00\x00\x00":             "snapshot 1 octets too many",
	} {
		s, err := Parse([]byte(in))
		if s != nil || !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, %v: want %q", in, s, err, want)
		}
	}
}
