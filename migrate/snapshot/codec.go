package snapshot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"
)

// Errors of [Parse] and [Append].
var (
	// ErrFormat means that the octets are no snapshot, or a damaged one.
	ErrFormat = errors.New("not a valid snapshot")
	// ErrVersion means that a newer release wrote the snapshot, with things
	// in it that this one cannot ignore.
	ErrVersion = errors.New("snapshot of an unsupported version")
)

const (
	magic      = "DSTC"
	headerSize = len(magic) + 3

	scopeConns  = 0
	scopeClient = 1

	// Bounds of what is plausible; see also check.go.
	maxAge     = uint64(100 * 365 * 24 * time.Hour)
	maxTime    = uint64(100 * 365 * 24 * time.Hour)
	maxRTT     = uint64(time.Hour)
	maxCount   = 1 << 24
	maxSeqStep = 1 << 30 // RFC 7323 §2.3: windows are smaller
	maxPacket  = 1<<16 + 64
	maxBuffer  = 1 << 30
)

// Append appends the snapshot to b.
func Append(b []byte, s *Snapshot) ([]byte, error) {
	k := codec{b: b, writing: true}
	scope := uint8(scopeConns)
	if s.Client.IsValid() {
		scope = scopeClient
	}
	k.b = append(k.b, magic...)
	k.b = append(k.b, Version, Compat, scope)
	if scope == scopeClient {
		k.addr("client", &s.Client)
	}
	n := len(s.Conns)
	num(&k, "connections", &n, 0, maxCount)
	for i := range s.Conns {
		start := len(k.b)
		k.b = append(k.b, 0, 0, 0, 0)
		k.conn(&s.Conns[i])
		if k.err == nil {
			k.err = s.Conns[i].check()
		}
		size := len(k.b) - start - 4
		if k.err == nil && size > math.MaxUint32 {
			k.err = errors.New("more than 4 GiB")
		}
		if k.err != nil {
			return b, fmt.Errorf("snapshot: append: connection %d: %w", i, k.err)
		}
		binary.LittleEndian.PutUint32(k.b[start:], uint32(size))
	}
	if k.err == nil {
		k.err = s.checkAll(s.Conns)
	}
	if k.err != nil {
		return b, fmt.Errorf("snapshot: append: %w", k.err)
	}
	return k.b, nil
}

// Parse reads a snapshot. The result refers to b: its octets must not change
// while the result is in use. The memory it takes is proportional to len(b).
func Parse(b []byte) (*Snapshot, error) {
	s := new(Snapshot)
	if err := s.Parse(b); err != nil {
		return nil, err
	}
	return s, nil
}

// Parse is the function Parse into memory that the caller has: it overwrites s
// and uses the capacity of s.Conns. After an error s is empty.
func (s *Snapshot) Parse(b []byte) error {
	conns := s.Conns[:0]
	*s = Snapshot{}
	n, err := parse(b, conns)
	if err != nil {
		return fmt.Errorf("snapshot: parse: %w", err)
	}
	*s = n
	return nil
}

func parse(b []byte, conns []Conn) (s Snapshot, err error) {
	if len(b) < headerSize || string(b[:len(magic)]) != magic {
		return s, fmt.Errorf("%w: does not begin with %q", ErrFormat, magic)
	}
	version, compat, scope := b[4], b[5], b[6]
	if compat == 0 || compat > version {
		return s, fmt.Errorf("%w: version %d for readers from version %d on", ErrFormat, version, compat)
	}
	if compat > Version {
		return s, fmt.Errorf("%w: it is version %d for readers from version %d on, this is version %d; upgrade this node first",
			ErrVersion, version, compat, Version)
	}
	k := codec{b: b, at: headerSize, newer: version > Version}
	switch scope {
	case scopeConns:
	case scopeClient:
		k.addr("client", &s.Client)
	default:
		k.fail("scope", "%d: want 0 or 1", scope)
	}
	var n int
	num(&k, "connections", &n, 0, maxCount)
	for i := 0; i < n && k.err == nil; i++ {
		body := k.record()
		if k.err != nil {
			break
		}
		if len(conns) == cap(conns) {
			// What remains bounds how many more there can be.
			more := min(n-i, 1+k.left()/minRecord)
			conns = append(make([]Conn, 0, len(conns)+more), conns...)
		}
		conns = conns[:i+1]
		c := &conns[i]
		c.Reset()
		in := codec{b: body, newer: k.newer}
		in.conn(c)
		if in.err == nil && in.left() > 0 && !k.newer {
			in.fail("record", "%d octets too many", in.left())
		}
		if in.err == nil {
			in.err = c.check()
		}
		if in.err != nil {
			return s, fmt.Errorf("%w: connection %d: %w", ErrFormat, i, in.err)
		}
	}
	if k.err == nil {
		k.err = s.checkAll(conns)
	}
	if k.err == nil && k.left() > 0 {
		k.fail("snapshot", "%d octets too many", k.left())
	}
	if k.err != nil {
		return s, fmt.Errorf("%w: %w", ErrFormat, k.err)
	}
	s.Conns = conns
	return s, nil
}

// minRecord is less than the smallest record of a connection.
const minRecord = 80

// codec writes a snapshot to the end of b, or reads it from at on: every method
// does one or the other with the value it is given a pointer to. After the first
// error what they do means nothing.
type codec struct {
	b       []byte
	at      int
	writing bool
	newer   bool // reading a newer version's record
	pieces  *Pieces
	err     error
}

func (k *codec) fail(name, format string, args ...any) {
	if k.err == nil {
		k.err = fmt.Errorf("%s "+format, append([]any{name}, args...)...)
		if !k.writing {
			k.at = len(k.b) // lists are empty, and loops end
		}
	}
}

// left is how many octets there still are to read.
func (k *codec) left() int { return len(k.b) - k.at }

// next reads n octets.
func (k *codec) next(name string, n int) []byte {
	if k.err != nil || n > k.left() {
		k.fail(name, "cut short: %d of %d octets", k.left(), n)
		return nil
	}
	k.at += n
	return k.b[k.at-n : k.at : k.at]
}

func (k *codec) put(v uint64) {
	if v < 0x80 {
		k.b = append(k.b, byte(v))
		return
	}
	k.b = binary.AppendUvarint(k.b, v)
}

func (k *codec) uvarint(name string) uint64 {
	if k.at < len(k.b) && k.b[k.at] < 0x80 { // most are
		k.at++
		return uint64(k.b[k.at-1])
	}
	return k.longUvarint(name)
}

func (k *codec) longUvarint(name string) uint64 {
	v, n := binary.Uvarint(k.b[k.at:])
	if n <= 0 || n > 1 && k.b[k.at+n-1] == 0 { // one value, one form
		k.fail(name, "is no minimal varint")
		return 0
	}
	k.at += n
	return v
}

type integer interface {
	~int | ~int8 | ~int16 | ~uint | ~uint8 | ~uint16 | ~uint32 | ~uint64 | ~int64
}

// num is a number from lo to hi, at least 0, as a varint.
func num[T integer](k *codec, name string, p *T, lo, hi uint64) {
	if k.writing {
		v := uint64(*p) // a negative one is out of range too
		if v-lo > hi-lo {
			k.fail(name, "is %d: want %d to %d", *p, lo, hi)
			return
		}
		k.put(v)
		return
	}
	v := k.uvarint(name)
	if v-lo > hi-lo || uint64(T(v)) != v {
		k.fail(name, "is %d: want %d to %d", v, lo, hi)
		return
	}
	*p = T(v)
}

func (k *codec) duration(name string, p *time.Duration, hi uint64) { num(k, name, p, 0, hi) }
func (k *codec) age(name string, p *Age)                           { num(k, name, p, 0, maxAge) }
func (k *codec) timer(name string, p *Timer)                       { num(k, name, p, 0, maxTime) }

// fixed is a 32-bit number that can be anything.
func (k *codec) fixed(name string, p *uint32) {
	if k.writing {
		k.b = binary.LittleEndian.AppendUint32(k.b, *p)
	} else if b := k.next(name, 4); b != nil {
		*p = binary.LittleEndian.Uint32(b)
	}
}

// near is a sequence number as its distance from another: zigzag, so that one
// close by is short.
func (k *codec) near(name string, p *uint32, to uint32) {
	if k.writing {
		d := int32(*p - to)
		k.put(uint64(uint32(d<<1) ^ uint32(d>>31)))
		return
	}
	v := k.uvarint(name)
	if v > math.MaxUint32 {
		k.fail(name, "is out of sequence space")
		return
	}
	*p = to + (uint32(v)>>1 ^ -(uint32(v) & 1))
}

// flags are booleans, one bit each from the lowest up, in one octet.
func (k *codec) flags(name string, p ...*bool) {
	if k.writing {
		var v byte
		for i, f := range p {
			if *f {
				v |= 1 << i
			}
		}
		k.b = append(k.b, v)
		return
	}
	b := k.next(name, 1)
	if b == nil {
		return
	}
	if b[0]>>len(p) != 0 {
		k.fail(name, "are %#x: want %d bits", b[0], len(p))
		return
	}
	for i, f := range p {
		*f = b[0]>>i&1 != 0
	}
}

// float is a finite number from 0 to hi.
func (k *codec) float(name string, p *float64, hi float64) {
	if !k.writing {
		b := k.next(name, 8)
		if b == nil {
			return
		}
		*p = math.Float64frombits(binary.LittleEndian.Uint64(b))
	}
	if !(*p >= 0 && *p <= hi) || math.Signbit(*p) {
		k.fail(name, "is %v: want 0 to %v", *p, hi)
		return
	}
	if k.writing {
		k.b = binary.LittleEndian.AppendUint64(k.b, math.Float64bits(*p))
	}
}

func (k *codec) addr(name string, p *netip.Addr) {
	if k.writing {
		if !p.IsValid() || p.Is4In6() || p.Zone() != "" {
			k.fail(name, "%q is no plain IPv6 or IPv4 address", *p)
			return
		}
		k.b = append(k.b, byte(p.BitLen()/8))
		k.b = append(k.b, p.AsSlice()...)
		return
	}
	b := k.next(name, 1)
	if b == nil {
		return
	}
	if n := b[0]; n != 4 && n != 16 {
		k.fail(name, "has %d octets: want 4 or 16", n)
		return
	}
	a, _ := netip.AddrFromSlice(k.next(name, int(b[0])))
	if a.Is4In6() {
		k.fail(name, "%s is an IPv4 address in IPv6 form", a)
	}
	*p = a
}

func (k *codec) addrPort(name string, p *netip.AddrPort) {
	a, port := p.Addr(), p.Port()
	k.addr(name, &a)
	num(k, name, &port, 1, math.MaxUint16)
	*p = netip.AddrPortFrom(a, port)
}

// octets are data, in pieces when writing, in one when reading.
func (k *codec) octets(name string, p *[][]byte, hi uint64) {
	n := Len(*p)
	num(k, name, &n, 0, hi)
	if k.writing {
		for _, b := range *p {
			k.b = append(k.b, b...)
		}
		return
	}
	if k.err == nil && n > 0 {
		if b := k.next(name, n); b != nil {
			have := len(*k.pieces)
			k.pieces.Write(b)
			*p = k.pieces.From(have)
		}
	}
}

// record reads the body of a connection's record.
func (k *codec) record() []byte {
	var size uint32
	k.fixed("record size", &size)
	return k.next("record", int(size))
}

// list is a list of at most hi elements, of at least min octets each.
func list[T any](k *codec, name string, p *[]T, min int, hi uint64, each func(*T)) {
	n := len(*p)
	num(k, name, &n, 0, hi)
	if k.writing {
		for i := range *p {
			each(&(*p)[i])
		}
		return
	}
	if k.err == nil && n > k.left()/min {
		k.fail(name, "are %d: there is no room for so many", n)
	}
	if k.err != nil || n == 0 {
		return
	}
	*p = slices.Grow((*p)[:0], n)[:n]
	for i := range *p {
		each(&(*p)[i])
	}
}

// conn is the record of one connection: this is the format.
func (k *codec) conn(c *Conn) {
	k.pieces = &c.Pieces
	k.addrPort("local", &c.Local)
	k.addrPort("remote", &c.Remote)
	num(k, "state", &c.State, uint64(Established), uint64(TimeWait))
	s, r, o := &c.Send, &c.Receive, &c.Options
	usual := k.writing && o.isUsual()
	k.flags("connection flags", &c.Orphan, &c.Unaccepted, &c.ReadShutdown, &c.Timestamps, &c.SACKPermitted)
	k.flags("option flags", &o.Nagle, &o.Cork, &o.KeepAlive, &o.Linger, &o.SendBufferFixed, &o.ReusePort, &o.ReuseAddr, &usual)
	k.flags("send flags", &s.RTTSampled, &s.ZeroWindowProbing, &s.SpuriousRecovery, &s.Corked, &s.FastRecovery.Active)
	k.flags("RACK flags", &s.RACK.Reordered, &s.RACK.DSACKSeen, &s.RACK.ExitedRecovery, &s.RACK.ProbeOut, &r.Tuning.Off)

	k.fixed("timestamp", &c.TSVal)
	k.duration("timestamp phase", &c.TSPhase, uint64(time.Millisecond)-1)
	if c.Timestamps {
		k.fixed("recent timestamp", &c.TSRecent)
		k.age("age of recent timestamp", &c.TSRecentAge)
	}

	num(k, "send buffer", &o.SendBuffer, 1, maxBuffer)
	num(k, "receive buffer", &o.RecvBuffer, 1, maxBuffer)
	if !usual {
		k.settings(o)
	} else if !k.writing {
		o.setUsual()
	}

	k.send(s)
	k.receive(r)
	k.near("highest acknowledgement sent", &s.MaxSentAck, r.Nxt)

	k.timer("keepalive timer", &c.KeepAliveTimer)
	k.timer("FIN_WAIT_2 timer", &c.FinWait2Timer)
	k.timer("TIME_WAIT timer", &c.TimeWaitTimer)
	list(k, "unprocessed packets", &c.Unprocessed, 20, maxCount, func(p *[]byte) {
		n := len(*p)
		num(k, "unprocessed packet", &n, 20, maxPacket)
		if k.writing {
			k.b = append(k.b, *p...)
		} else if k.err == nil {
			*p = k.next("unprocessed packet", n)
		}
	})
}

// settings are the socket options that most connections have as the stack made
// them.
func (k *codec) settings(o *Options) {
	k.duration("linger time", &o.LingerTime, maxTime)
	k.duration("FIN_WAIT_2 time", &o.FinWait2Time, maxTime)
	k.duration("keepalive idle", &o.KeepIdle, maxTime)
	k.duration("keepalive interval", &o.KeepInterval, maxTime)
	num(k, "keepalive count", &o.KeepCount, 0, math.MaxUint16)
	num(k, "keepalive unacknowledged", &o.KeepUnacked, 0, math.MaxUint16)
	k.duration("user timeout", &o.UserTimeout, maxTime)
	num(k, "low water", &o.LowWater, 0, maxBuffer)
	num(k, "window clamp", &o.WindowClamp, 0, math.MaxUint32)
	num(k, "user MSS", &o.UserMSS, 0, math.MaxUint16)
	num(k, "TTL", &o.TTL, 0, math.MaxUint8)
	hop := o.HopLimit + 1
	num(k, "hop limit", &hop, 0, 256)
	o.HopLimit = hop - 1
	num(k, "TOS", &o.TOS, 0, math.MaxUint8)
	num(k, "path MTU discovery", &o.PMTUDiscovery, 0, 3)
	num(k, "mark", &o.Mark, 0, math.MaxUint32)
	if !k.writing && o.isUsual() { // one value, one form
		k.fail("option flags", "do not say that the settings are the usual ones")
	}
}

func (k *codec) send(s *Send) {
	k.fixed("SND.UNA", &s.Una)
	k.near("SND.NXT", &s.Nxt, s.Una)
	num(k, "SND.WND", &s.Wnd, 0, maxSeqStep)
	num(k, "send window scale", &s.WndScale, 0, 14) // RFC 7323 §2.3
	num(k, "send MSS", &s.MSS, minMSS, math.MaxUint16)
	num(k, "path MTU", &s.PathMTU, 0, math.MaxInt32)
	k.age("last send", &s.LastSend)
	num(k, "duplicate acknowledgements", &s.DupAcks, 0, maxCount)
	num(k, "outstanding", &s.Outstanding, 0, maxCount)
	num(k, "sacked out", &s.SackedOut, 0, maxCount)
	k.duration("RTO", &s.RTO, maxRTT)
	k.duration("SRTT", &s.SRTT, maxRTT)
	k.duration("RTTVAR", &s.RTTVar, maxRTT)
	k.near("RTT sequence", &s.RTTSeq, s.Una)
	k.age("RTT time", &s.RTTTime)
	k.age("first retransmission", &s.FirstRetransmit)
	num(k, "unacknowledged probes", &s.UnackedProbes, 0, maxCount)
	k.fixed("retransmission timestamp", &s.RetransmitTS)

	num(k, "algorithm", &s.Algorithm, uint64(Reno), uint64(Cubic9438))
	num(k, "congestion phase", &s.Phase, 0, 4)
	num(k, "cwnd", &s.Cwnd, 1, maxCount)
	num(k, "ssthresh", &s.Ssthresh, 0, maxCount)
	num(k, "congestion avoidance acknowledgements", &s.CAAcks, 0, maxCount)
	if s.Algorithm == Cubic9438 {
		c := &s.Cubic
		k.float("cubic W_last_max", &c.WLastMax, maxCount)
		k.float("cubic W_max", &c.WMax, maxCount)
		k.float("cubic K", &c.K, maxCount)
		k.age("cubic epoch", &c.Epoch)
		num(k, "cubic events", &c.Events, 0, math.MaxInt32)
		k.near("HyStart end", &c.EndSeq, s.Una)
		k.duration("HyStart RTT", &c.CurrRTT, maxRTT)
		k.duration("HyStart last RTT", &c.LastRTT, maxRTT)
		num(k, "HyStart samples", &c.Samples, 0, math.MaxInt32)
		k.age("HyStart last acknowledgement", &c.LastAck)
		k.age("HyStart round", &c.RoundStarted)
	}
	f := &s.FastRecovery
	k.near("recovery first", &f.First, s.Una)
	k.near("recovery last", &f.Last, s.Una)
	k.near("HighRxt", &f.HighRxt, s.Una)
	k.near("RescueRxt", &f.RescueRxt, s.Una)
	num(k, "recovery cwnd", &f.MaxCwnd, 0, maxCount)
	num(k, "loss detector", &s.LossDetector, 0, 7)
	ra := &s.RACK
	k.age("RACK transmission", &ra.XmitTime)
	k.near("RACK end", &ra.EndSeq, s.Una)
	k.near("FACK", &ra.FACK, s.Una)
	k.duration("RACK RTT", &ra.RTT, maxRTT)
	k.duration("RACK least RTT", &ra.MinRTT, maxRTT)
	k.duration("RACK window", &ra.ReoWnd, maxRTT)
	num(k, "RACK window increment", &ra.ReoWndIncr, 0, math.MaxUint8)
	persist := int16(ra.ReoWndPersist) + 128
	num(k, "RACK window persistence", &persist, 0, math.MaxUint8)
	ra.ReoWndPersist = int8(persist - 128)
	k.near("RACK RTT sequence", &ra.RTTSeq, s.Una)
	k.near("probe sequence", &ra.ProbeHighRxt, s.Una)

	k.near("highest SACKed", &s.MaxSACKed, s.Una)
	num(k, "scoreboard SMSS", &s.SMSS, minMSS, math.MaxUint16)
	list(k, "scoreboard", &s.SACKed, 2, maxScoreboard, func(b *Block) { k.block("SACKed block", b, s.Una) })

	k.timer("retransmission timer", &s.RetransmitTimer)
	k.timer("reordering timer", &s.ReorderTimer)
	k.timer("probe timer", &s.ProbeTimer)
	k.timer("cork timer", &s.CorkTimer)

	list(k, "send queue", &s.Queue, 2, maxCount, func(g *Segment) {
		k.flags("segment flags", &g.Sent, &g.Push, &g.SACKed, &g.Lost)
		if g.Sent {
			k.age("segment's transmission", &g.XmitAt)
			num(k, "segment's transmissions", &g.Xmits, 0, math.MaxUint32)
		}
		k.octets("segment", &g.Data, maxBuffer)
	})
	num(k, "next segment", &s.Next, 0, uint64(len(s.Queue)))
}

func (k *codec) receive(r *Receive) {
	k.fixed("RCV.NXT", &r.Nxt)
	num(k, "acceptable", &r.Acceptable, 0, maxSeqStep)
	num(k, "RCV.WND", &r.Wnd, 0, maxSeqStep)
	num(k, "receive window scale", &r.WndScale, 0, 14)
	k.near("last window update", &r.WndUpdateAt, r.Nxt)
	num(k, "buffered at window update", &r.PrevUsed, 0, maxBuffer)
	num(k, "advertised MSS", &r.AMSS, 0, math.MaxUint16)
	k.age("last acknowledgement", &r.LastAck)
	k.age("last out-of-window answer", &r.LastOutOfWindow)
	t := &r.Tuning
	k.age("tuning measurement", &t.Measured)
	num(k, "octets copied", &t.Copied, 0, maxBuffer)
	num(k, "octets copied before", &t.PrevCopied, 1, maxBuffer)
	k.duration("tuning RTT", &t.RTT, maxTime)
	k.near("tuning sequence", &t.RTTSeq, r.Nxt)
	k.age("tuning RTT measurement", &t.RTTMeasured)
	list(k, "SACK blocks", &r.Blocks, 2, maxBlocks, func(b *Block) { k.block("SACK block", b, r.Nxt) })
	k.octets("unread octets", &r.Unread, maxBuffer)
	list(k, "out-of-order segments", &r.OutOfOrder, 4, maxCount, func(g *Stray) {
		k.near("out-of-order sequence", &g.Seq, r.Nxt)
		k.near("out-of-order acknowledgement", &g.Ack, r.Nxt)
		num(k, "out-of-order flags", &g.Flags, 0, 0x3f)
		k.octets("out-of-order segment", &g.Data, maxPacket)
	})
}

func (k *codec) block(name string, b *Block, to uint32) {
	k.near(name, &b.Start, to)
	num(k, name, &b.Len, 1, maxSeqStep)
}
