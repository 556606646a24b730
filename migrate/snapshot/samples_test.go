package snapshot

import (
	"net/netip"
	"time"
)

// The connections that the tests write and read. Everything in them is what a
// real one could hold; those that differ in one thing are made from idle.

var (
	local6  = netip.MustParseAddrPort("[fd00:2::1]:443")
	remote6 = netip.MustParseAddrPort("[fd00:1::1]:49152")
	local4  = netip.MustParseAddrPort("198.51.100.1:443")
	remote4 = netip.MustParseAddrPort("192.0.2.10:49152")
)

// idle is an established connection that has exchanged a few segments.
func idle() Conn {
	return Conn{
		Local: local6, Remote: remote6, State: Established,
		Timestamps: true, TSVal: 0x1234_5678, TSPhase: 123_456 * time.Nanosecond,
		TSRecent: 0x9abc_def0, TSRecentAge: AgeOf(20 * time.Millisecond),
		SACKPermitted: true,
		Options: Options{
			KeepIdle: 2 * time.Hour, KeepInterval: 75 * time.Second, KeepCount: 9,
			FinWait2Time: time.Minute, SendBuffer: 212992, RecvBuffer: 1 << 20,
			LowWater: 1, WindowClamp: 1 << 20, HopLimit: -1,
		},
		Send: Send{
			Una: 0x1000_0000, Nxt: 0x1000_0000, Wnd: 65535, WndScale: 7, MSS: 1428,
			MaxSentAck: 0x2000_0000, LastSend: AgeOf(20 * time.Millisecond),
			RTO: 200 * time.Millisecond, SRTT: 20 * time.Millisecond, RTTVar: 5 * time.Millisecond, RTTSampled: true,
			RTTSeq: 0x1000_0000, RTTTime: AgeOf(20 * time.Millisecond),
			Algorithm: Cubic9438, Cwnd: 10,
			Cubic:        Cubic{EndSeq: 0x1000_0000, CurrRTT: 20 * time.Millisecond, Samples: 1, RoundStarted: AgeOf(time.Second)},
			FastRecovery: FastRecovery{First: 0x0fff_ff00, Last: 0x0fff_ff00, HighRxt: 0x0fff_ff00, RescueRxt: 0x0fff_ff00},
			LossDetector: 1,
			RACK:         RACK{XmitTime: AgeOf(20 * time.Millisecond), EndSeq: 0x1000_0000, FACK: 0x1000_0000, RTT: 20 * time.Millisecond, MinRTT: 19 * time.Millisecond, RTTSeq: 0x0fff_ff00, ProbeHighRxt: 0x1000_0000},
			MaxSACKed:    0x1000_0000, SMSS: 1428,
		},
		Receive: Receive{
			Nxt: 0x2000_0000, Acceptable: 1 << 20, Wnd: 1 << 20, WndScale: 7, WndUpdateAt: 0x2000_0000, AMSS: 1440,
			LastAck: AgeOf(20 * time.Millisecond),
			Tuning:  Tuning{Measured: AgeOf(40 * time.Millisecond), Copied: 100, PrevCopied: 100, RTT: 20 * time.Millisecond, RTTSeq: 0x2000_1000, RTTMeasured: AgeOf(20 * time.Millisecond)},
		},
	}
}

// rich has something in every field and every queue.
func rich() Conn {
	c := idle()
	c.State = FinWait1
	c.Orphan, c.ReadShutdown = true, true
	c.KeepAliveTimer = TimerOf(time.Hour)
	c.Options = Options{
		Nagle: true, Cork: true, KeepAlive: true, Linger: true, LingerTime: 3 * time.Second,
		FinWait2Time: 30 * time.Second, KeepIdle: time.Minute, KeepInterval: 10 * time.Second, KeepCount: 5, KeepUnacked: 2,
		UserTimeout: 30 * time.Second, SendBuffer: 1 << 16, RecvBuffer: 1 << 17, SendBufferFixed: true,
		LowWater: 100, WindowClamp: 50000, UserMSS: 1300, TTL: 63, HopLimit: 62, TOS: 0x2e, PMTUDiscovery: 2, Mark: 77,
		ReusePort: true, ReuseAddr: true,
	}
	s := &c.Send
	s.Una = 0xffff_ff00 // its sequence numbers wrap
	s.Queue = []Segment{
		{Data: pieces(400), Sent: true, Lost: true, XmitAt: AgeOf(70 * time.Millisecond), Xmits: 2},
		{Data: pieces(300), Sent: true, SACKed: true, XmitAt: AgeOf(69 * time.Millisecond), Xmits: 1},
		{Data: pieces(200), Sent: true, Push: true, XmitAt: AgeOf(68 * time.Millisecond), Xmits: 1},
		{Data: pieces(20)},
		{}, // the FIN
	}
	s.Nxt = s.Una + 900
	s.Next = 3
	s.PathMTU = 1280
	s.DupAcks, s.Outstanding, s.SackedOut = 3, 3, 1
	s.RTTSeq = s.Una + 10
	s.FirstRetransmit = AgeOf(65 * time.Millisecond)
	s.ZeroWindowProbing, s.UnackedProbes = true, 2
	s.SpuriousRecovery, s.RetransmitTS = true, 0x1234_5600
	s.Corked, s.CorkTimer = true, TimerOf(150*time.Millisecond)
	s.Phase, s.Ssthresh, s.CAAcks = 3, 7, 4
	s.Cubic = Cubic{
		WLastMax: 20.5, WMax: 18.25, K: 1.75, Epoch: AgeOf(65 * time.Millisecond), Events: 3, EndSeq: s.Una + 900,
		CurrRTT: 21 * time.Millisecond, LastRTT: 22 * time.Millisecond, Samples: 8, LastAck: AgeOf(65 * time.Millisecond), RoundStarted: AgeOf(80 * time.Millisecond),
	}
	s.FastRecovery = FastRecovery{Active: true, First: s.Una, Last: s.Una + 899, HighRxt: s.Una + 399, RescueRxt: s.Una - 1, MaxCwnd: 12}
	s.LossDetector = 7
	s.RACK = RACK{
		XmitTime: AgeOf(69 * time.Millisecond), EndSeq: s.Una + 700, FACK: s.Una + 700, RTT: 21 * time.Millisecond, MinRTT: 19 * time.Millisecond,
		Reordered: true, DSACKSeen: true, ReoWnd: 5 * time.Millisecond, ReoWndIncr: 2, ReoWndPersist: -3, RTTSeq: s.Una + 900,
		ExitedRecovery: true, ProbeOut: true, ProbeHighRxt: s.Una + 900,
	}
	s.SACKed = []Block{{s.Una + 400, 100}, {s.Una + 550, 150}}
	s.MaxSACKed = s.Una + 700
	s.RetransmitTimer, s.ReorderTimer, s.ProbeTimer = TimerOf(130*time.Millisecond), TimerOf(time.Millisecond), TimerOf(0)
	r := &c.Receive
	r.LastOutOfWindow = AgeOf(time.Second)
	r.PrevUsed = 50
	r.Tuning.Off = true
	r.Blocks = []Block{{r.Nxt + 300, 100}, {r.Nxt + 100, 50}}
	r.Unread = [][]byte{[]byte("not read yet")}
	r.OutOfOrder = []Stray{
		{Seq: r.Nxt + 100, Ack: s.Una, Flags: 0x18, Data: pieces(50)},
		{Seq: r.Nxt + 350, Ack: s.Una, Flags: 0x11, Data: pieces(50)},
		{Seq: r.Nxt + 300, Ack: s.Una - 5, Flags: 0x10, Data: pieces(50)},
	}
	c.Unprocessed = [][]byte{packet(60, 1), packet(80, 2)}
	return c
}

// inState is idle in another state, with what belongs to it.
func inState(s State) Conn {
	c := idle()
	c.State = s
	switch s {
	case FinWait1, Closing, LastAck: // the FIN is on its way
		c.Send.Queue = []Segment{{Sent: true, XmitAt: AgeOf(5 * time.Millisecond), Xmits: 1}}
		c.Send.Nxt++
		c.Send.Next = 1
		c.Send.Outstanding = 1
		c.Send.RetransmitTimer = TimerOf(195 * time.Millisecond)
	case FinWait2:
		c.Orphan = true
		c.FinWait2Timer = TimerOf(59 * time.Second)
	case TimeWait:
		c.Orphan = true
		c.TimeWaitTimer = TimerOf(59 * time.Second)
	}
	return c
}

func ipv4() Conn {
	c := idle()
	c.Local, c.Remote = local4, remote4
	c.Options.TTL = 64
	c.Timestamps, c.TSRecent, c.TSRecentAge = false, 0, 0
	c.Send.Algorithm, c.Send.Cubic = Reno, Cubic{}
	c.SACKPermitted = false
	c.Send.LossDetector = 0
	return c
}

// bulk has n octets to send, in full segments of which the first ten are out.
func bulk(n int) Conn {
	c := idle()
	s := &c.Send
	for n > 0 {
		g := Segment{Data: pieces(min(n, int(s.MSS)))}
		n -= Len(g.Data)
		if i := len(s.Queue); i < 10 {
			g.Sent, g.XmitAt, g.Xmits = true, AgeOf(time.Duration(10-i)*time.Millisecond), 1
			s.Nxt += uint32(Len(g.Data))
			s.Outstanding++
			s.Next = i + 1
		}
		s.Queue = append(s.Queue, g)
	}
	s.RetransmitTimer = TimerOf(200 * time.Millisecond)
	return c
}

func of(c ...Conn) *Snapshot { return &Snapshot{Conns: c} }

// samples are all snapshots by name; each is a golden file.
func samples() map[string]*Snapshot {
	m := map[string]*Snapshot{
		"idle":  of(idle()),
		"rich":  of(rich()),
		"ipv4":  of(ipv4()),
		"empty": {},
	}
	names := map[State]string{
		CloseWait: "close-wait", FinWait1: "fin-wait-1", FinWait2: "fin-wait-2",
		Closing: "closing", LastAck: "last-ack", TimeWait: "time-wait",
	}
	for s, name := range names {
		m[name] = of(inState(s))
	}
	waiting := idle()
	waiting.Unaccepted = true
	waiting.Receive.Unread = [][]byte{[]byte("GET / HTTP/1.1\r\n\r\n")}
	m["unaccepted"] = of(waiting)

	three := of(rich(), idle(), inState(TimeWait))
	three.Client = remote6.Addr()
	for i := range three.Conns {
		three.Conns[i].Remote = netip.AddrPortFrom(three.Client, remote6.Port()+uint16(i))
	}
	m["client"] = three
	two := of(idle(), ipv4())
	m["two"] = two
	return m
}

// pieces returns n octets in one piece, as Parse does.
func pieces(n int) [][]byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i * 7)
	}
	return [][]byte{b}
}

// packet is what only its length matters of.
func packet(n int, mark byte) []byte {
	b := make([]byte, n)
	b[0] = 0x60
	b[n-1] = mark
	return b
}
