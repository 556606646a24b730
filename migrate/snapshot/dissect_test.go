package snapshot

import (
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"time"
)

// dissect is a second implementation of the format, written from
// docs/snapshot-format.md and not from the codec: what the two do not agree on
// is a mistake in one of them. It expects a snapshot of this version without
// faults, and tells where each field is.
func dissect(b []byte) []field {
	d := &dissector{b: b}
	d.raw("magic", 4, fmt.Sprintf("%q", b[:4]))
	d.raw("version", 1, fmt.Sprint(b[4]))
	d.raw("compat", 1, fmt.Sprint(b[5]))
	d.raw("scope", 1, fmt.Sprint(b[6]))
	if b[6] == 1 {
		d.addr("client")
	}
	for range d.num("connections", 0, 1<<24) {
		d.fixed("record size")
		d.conn()
	}
	if d.off != len(b) {
		panic(fmt.Sprintf("%d octets after the last record", len(b)-d.off))
	}
	return d.fields
}

type kind int

const (
	kindRaw kind = iota
	kindFixed
	kindNum
	kindNear
	kindFlags
	kindFloat
	kindAddr
	kindData // octets, the length is a field before it
)

// field is one field's place, and what values it can have: lo to hi of a
// number, bits of flags, at most max of a float.
type field struct {
	name   string
	off, n int
	kind   kind
	lo, hi uint64
	bits   int
	max    float64
	value  string
	length bool // counts octets or elements that follow
}

type dissector struct {
	b      []byte
	off    int
	fields []field
}

func (d *dissector) add(f field, n int) []byte {
	f.off, f.n = d.off, n
	d.off += n
	d.fields = append(d.fields, f)
	return d.b[f.off:d.off]
}

func (d *dissector) raw(name string, n int, value string) {
	d.add(field{name: name, kind: kindRaw, value: value}, n)
}

func (d *dissector) fixed(name string) uint32 {
	v := binary.LittleEndian.Uint32(d.b[d.off:])
	d.add(field{name: name, kind: kindFixed, value: fmt.Sprint(v)}, 4)
	return v
}

func (d *dissector) varint() (v uint64, n int) {
	for {
		o := d.b[d.off+n]
		v |= uint64(o&0x7f) << (7 * n)
		n++
		if o < 0x80 {
			return v, n
		}
	}
}

func (d *dissector) num(name string, lo, hi uint64) uint64 {
	v, n := d.varint()
	d.add(field{name: name, kind: kindNum, lo: lo, hi: hi, value: fmt.Sprint(v)}, n)
	return v
}

func (d *dissector) count(name string, lo, hi uint64) uint64 {
	v := d.num(name, lo, hi)
	d.fields[len(d.fields)-1].length = true
	return v
}

func (d *dissector) duration(name string, hi time.Duration) {
	v := d.num(name, 0, uint64(hi))
	d.fields[len(d.fields)-1].value = time.Duration(v).String()
}

const century = 100 * 365 * 24 * time.Hour

// age also reads timers, whose form is the same.
func (d *dissector) age(name string) {
	v := d.num(name, 0, uint64(century))
	s := "none"
	if v > 0 {
		s = time.Duration(v - 1).String()
	}
	d.fields[len(d.fields)-1].value = s
}

func (d *dissector) near(name string, to uint32) uint32 {
	z, n := d.varint()
	diff := int64(z >> 1)
	if z&1 != 0 {
		diff = -diff - 1
	}
	v := to + uint32(diff)
	d.add(field{name: name, kind: kindNear, value: fmt.Sprintf("%d (%+d)", v, diff)}, n)
	return v
}

func (d *dissector) flags(name string, bits ...string) map[string]bool {
	set := map[string]bool{}
	s := ""
	for i, b := range bits {
		if d.b[d.off]>>i&1 != 0 {
			set[b] = true
			s += " " + b
		}
	}
	if s == "" {
		s = " none"
	}
	d.add(field{name: name, kind: kindFlags, bits: len(bits), value: s[1:]}, 1)
	return set
}

func (d *dissector) float(name string, max float64) {
	v := math.Float64frombits(binary.LittleEndian.Uint64(d.b[d.off:]))
	d.add(field{name: name, kind: kindFloat, max: max, value: fmt.Sprint(v)}, 8)
}

func (d *dissector) addr(name string) {
	n := int(d.b[d.off])
	a, _ := netip.AddrFromSlice(d.b[d.off+1:][:n])
	d.add(field{name: name, kind: kindAddr, value: a.String()}, 1+n)
}

func (d *dissector) octets(name string, lo, hi uint64) {
	if n := d.count(name, lo, hi); n > 0 {
		d.add(field{name: name, kind: kindData, value: fmt.Sprintf("%d octets", n)}, int(n))
	}
}

func (d *dissector) block(name string, to uint32) {
	d.near(name, to)
	d.num(name, 1, 1<<30)
}

func (d *dissector) conn() {
	const maxBuffer = 1 << 30
	d.addr("local")
	d.num("local", 1, 65535)
	d.addr("remote")
	d.num("remote", 1, 65535)
	d.num("state", 1, 7)
	ts := d.flags("connection flags", "orphan", "unaccepted", "read-shutdown", "timestamps", "SACK-permitted")["timestamps"]
	usual := d.flags("option flags", "Nagle", "cork", "keepalive", "linger", "send-buffer-fixed", "reuse-port", "reuse-address", "usual-settings")["usual-settings"]
	d.flags("send flags", "RTT-sampled", "zero-window-probing", "spurious-recovery", "corked", "fast-recovery")
	d.flags("RACK flags", "reordered", "DSACK-seen", "exited-recovery", "probe-out", "tuning-off")

	d.fixed("timestamp")
	d.duration("timestamp phase", time.Millisecond-1)
	if ts {
		d.fixed("recent timestamp")
		d.age("age of recent timestamp")
	}

	d.num("send buffer", 1, maxBuffer)
	d.num("receive buffer", 1, maxBuffer)
	if !usual {
		d.duration("linger time", century)
		d.duration("FIN_WAIT_2 time", century)
		d.duration("keepalive idle", century)
		d.duration("keepalive interval", century)
		d.num("keepalive count", 0, 65535)
		d.num("keepalive unacknowledged", 0, 65535)
		d.duration("user timeout", century)
		d.num("low water", 0, maxBuffer)
		d.num("window clamp", 0, 1<<32-1)
		d.num("user MSS", 0, 65535)
		d.num("TTL", 0, 255)
		d.num("hop limit", 0, 256)
		d.num("TOS", 0, 255)
		d.num("path MTU discovery", 0, 3)
		d.num("mark", 0, 1<<32-1)
	}

	d.send()
	nxt := d.receive()
	d.near("highest acknowledgement sent", nxt)

	d.age("keepalive timer")
	d.age("FIN_WAIT_2 timer")
	d.age("TIME_WAIT timer")
	for range d.count("unprocessed packets", 0, 1<<24) {
		d.octets("unprocessed packet", 20, 65600)
	}
}

func (d *dissector) send() {
	const (
		maxCount = 1 << 24
		maxInt32 = 1<<31 - 1
	)
	una := d.fixed("SND.UNA")
	d.near("SND.NXT", una)
	d.num("SND.WND", 0, 1<<30)
	d.num("send window scale", 0, 14)
	d.num("send MSS", 8, 65535)
	d.num("path MTU", 0, maxInt32)
	d.age("last send")
	d.num("duplicate acknowledgements", 0, maxCount)
	d.num("outstanding", 0, maxCount)
	d.num("sacked out", 0, maxCount)
	d.duration("RTO", time.Hour)
	d.duration("SRTT", time.Hour)
	d.duration("RTTVAR", time.Hour)
	d.near("RTT sequence", una)
	d.age("RTT time")
	d.age("first retransmission")
	d.num("unacknowledged probes", 0, maxCount)
	d.fixed("retransmission timestamp")

	algorithm := d.num("algorithm", 1, 2)
	d.num("congestion phase", 0, 4)
	d.num("cwnd", 1, maxCount)
	d.num("ssthresh", 0, maxCount)
	d.num("congestion avoidance acknowledgements", 0, maxCount)
	if algorithm == 2 {
		d.float("cubic W_last_max", maxCount)
		d.float("cubic W_max", maxCount)
		d.float("cubic K", maxCount)
		d.age("cubic epoch")
		d.num("cubic events", 0, maxInt32)
		d.near("HyStart end", una)
		d.duration("HyStart RTT", time.Hour)
		d.duration("HyStart last RTT", time.Hour)
		d.num("HyStart samples", 0, maxInt32)
		d.age("HyStart last acknowledgement")
		d.age("HyStart round")
	}
	d.near("recovery first", una)
	d.near("recovery last", una)
	d.near("HighRxt", una)
	d.near("RescueRxt", una)
	d.num("recovery cwnd", 0, maxCount)
	d.num("loss detector", 0, 7)
	d.age("RACK transmission")
	d.near("RACK end", una)
	d.near("FACK", una)
	d.duration("RACK RTT", time.Hour)
	d.duration("RACK least RTT", time.Hour)
	d.duration("RACK window", time.Hour)
	d.num("RACK window increment", 0, 255)
	d.num("RACK window persistence", 0, 255)
	d.near("RACK RTT sequence", una)
	d.near("probe sequence", una)

	d.near("highest SACKed", una)
	d.num("scoreboard SMSS", 8, 65535)
	for range d.count("scoreboard", 0, 100) {
		d.block("SACKed block", una)
	}
	d.age("retransmission timer")
	d.age("reordering timer")
	d.age("probe timer")
	d.age("cork timer")

	n := d.count("send queue", 0, maxCount)
	for range n {
		if d.flags("segment flags", "sent", "push", "SACKed", "lost")["sent"] {
			d.age("segment's transmission")
			d.num("segment's transmissions", 0, 1<<32-1)
		}
		d.octets("segment", 0, 1<<30)
	}
	d.num("next segment", 0, n)
}

func (d *dissector) receive() uint32 {
	const maxBuffer = 1 << 30
	nxt := d.fixed("RCV.NXT")
	d.num("acceptable", 0, 1<<30)
	d.num("RCV.WND", 0, 1<<30)
	d.num("receive window scale", 0, 14)
	d.near("last window update", nxt)
	d.num("buffered at window update", 0, maxBuffer)
	d.num("advertised MSS", 0, 65535)
	d.age("last acknowledgement")
	d.age("last out-of-window answer")
	d.age("tuning measurement")
	d.num("octets copied", 0, maxBuffer)
	d.num("octets copied before", 1, maxBuffer)
	d.duration("tuning RTT", century)
	d.near("tuning sequence", nxt)
	d.age("tuning RTT measurement")
	for range d.count("SACK blocks", 0, 6) {
		d.block("SACK block", nxt)
	}
	d.octets("unread octets", 0, maxBuffer)
	for range d.count("out-of-order segments", 0, 1<<24) {
		d.near("out-of-order sequence", nxt)
		d.near("out-of-order acknowledgement", nxt)
		d.num("out-of-order flags", 0, 0x3f)
		d.octets("out-of-order segment", 0, 65600)
	}
	return nxt
}
