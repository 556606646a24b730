package snapshot

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
)

const (
	// minMSS is the smallest payload size worth sending. Linux refuses less
	// than 48 octets with options (TCP_MIN_SND_MSS); 12 are timestamps, and 28
	// more are the most that SACK blocks add.
	minMSS = 8
	// maxBlocks is how many SACK blocks a receiver keeps (netstack's limit).
	maxBlocks = 6
	// maxScoreboard is how many blocks a scoreboard keeps (netstack's limit).
	maxScoreboard = 100
	// synRstUrg are flags that no out-of-order data segment has.
	synRstUrg = 0x02 | 0x04 | 0x20
	finFlag   = 0x01
)

// check tests what the ranges of single fields cannot: that the parts of a
// connection agree. What it lets pass, netstack can run without tripping over
// its own assertions.
func (c *Conn) check() error {
	switch {
	case c.Local.Addr().BitLen() != c.Remote.Addr().BitLen():
		return fmt.Errorf("%s and %s are of different families", c.Local, c.Remote)
	case c.Local == c.Remote:
		return fmt.Errorf("%s is connected to itself", c.Local)
	case unusable(c.Local.Addr()) || unusable(c.Remote.Addr()):
		return fmt.Errorf("%s or %s is no unicast address", c.Local, c.Remote)
	case c.Orphan && c.Unaccepted:
		return errors.New("both closed and not yet accepted")
	case c.Orphan && !c.State.finQueued():
		return fmt.Errorf("closed, but in state %s", c.State)
	case c.Orphan && c.State == FinWait2 && c.FinWait2Timer == 0:
		return errors.New("an orphan in FIN_WAIT_2 without its timer would stay for ever")
	case c.FinWait2Timer != 0 && (c.State != FinWait2 || !c.Orphan):
		return errors.New("FIN_WAIT_2 timer without an orphan in that state")
	case (c.TimeWaitTimer != 0) != (c.State == TimeWait):
		return errors.New("TIME_WAIT and its timer do not agree")
	case c.Options.KeepIdle == 0 || c.Options.KeepInterval == 0:
		return errors.New("keepalive times are 0")
	}
	if err := c.Send.check(c.State, c.SACKPermitted); err != nil {
		return err
	}
	return c.Receive.check(c.State)
}

func unusable(a netip.Addr) bool { return a.IsUnspecified() || a.IsMulticast() }

func (s *Send) check(state State, sack bool) error {
	if s.RTO < time.Millisecond {
		return fmt.Errorf("RTO %v: want at least 1ms", s.RTO)
	}
	if s.RTTSampled && s.SRTT == 0 {
		return errors.New("SRTT is 0 though it was measured")
	}
	if !sack && len(s.SACKed) > 0 {
		return errors.New("SACKed blocks without SACK")
	}
	inFlight := s.Nxt - s.Una
	if inFlight > maxSeqStep {
		return fmt.Errorf("SND.NXT is %d beyond SND.UNA", inFlight)
	}
	if err := disjoint("scoreboard", s.SACKed, s.Una, inFlight); err != nil {
		return err
	}
	// Sent segments come first and cover SND.UNA to SND.NXT; the FIN is last.
	var sent uint64
	unsent := len(s.Queue)
	fin := false
	for i := range s.Queue {
		g := &s.Queue[i]
		n := Len(g.Data)
		if n == 0 {
			if fin = i == len(s.Queue)-1 && state.finPending(); !fin {
				return fmt.Errorf("segment %d of %d in the send queue is empty in state %s", i, len(s.Queue), state)
			}
			n = 1
		}
		switch {
		case g.Sent && unsent < i:
			return fmt.Errorf("segment %d of the send queue was sent before its predecessor", i)
		case !g.Sent && (g.Push || g.SACKed || g.Lost || g.XmitAt != 0 || g.Xmits != 0):
			return fmt.Errorf("segment %d of the send queue was not sent but has a history", i)
		case g.Sent:
			sent += uint64(n)
		default:
			unsent = min(unsent, i)
		}
	}
	if state.finPending() && !fin && len(s.Queue) > 0 {
		return fmt.Errorf("state %s with data but without FIN in the send queue", state)
	}
	if (state == Closing || state == LastAck) && len(s.Queue) == 0 {
		return fmt.Errorf("state %s without the FIN that it waits for", state)
	}
	if !state.finPending() && state.finQueued() && len(s.Queue) > 0 {
		return fmt.Errorf("state %s with a send queue", state)
	}
	if sent != uint64(inFlight) {
		return fmt.Errorf("%d octets sent, but SND.NXT is %d beyond SND.UNA", sent, inFlight)
	}
	if s.Next > unsent {
		return fmt.Errorf("segment %d is next to send, but segment %d was never sent", s.Next, unsent)
	}
	return nil
}

func (r *Receive) check(state State) error {
	if len(r.OutOfOrder) > 0 && state.finReceived() {
		return fmt.Errorf("out-of-order segments in state %s", state)
	}
	for i := range r.OutOfOrder {
		g := &r.OutOfOrder[i]
		n := Len(g.Data)
		switch {
		case g.Flags&synRstUrg != 0:
			return fmt.Errorf("out-of-order segment %d has flags %#x", i, g.Flags)
		case n == 0 && g.Flags&finFlag == 0:
			return fmt.Errorf("out-of-order segment %d is empty", i)
		case g.Seq-r.Nxt > maxSeqStep:
			return fmt.Errorf("out-of-order segment %d is not beyond RCV.NXT", i)
		case i > 0 && int32(g.Seq-r.OutOfOrder[(i-1)/2].Seq) < 0:
			return fmt.Errorf("out-of-order segments are no heap at %d", i)
		}
	}
	for i, b := range r.Blocks {
		if b.Start-r.Nxt > maxSeqStep {
			return fmt.Errorf("SACK block %d is not beyond RCV.NXT", i)
		}
	}
	return nil
}

// checkAll tests what concerns all connections together: they belong to the
// client, if there is one, and none is there twice.
func (s *Snapshot) checkAll(conns []Conn) error {
	for i := range conns {
		if a := conns[i].Remote.Addr(); s.Client.IsValid() && a != s.Client {
			return fmt.Errorf("connection %d: remote %s is not the client %s", i, a, s.Client)
		}
	}
	if len(conns) < 2 {
		return nil
	}
	seen := make(map[[2]netip.AddrPort]bool, len(conns))
	for i := range conns {
		tuple := [2]netip.AddrPort{conns[i].Local, conns[i].Remote}
		if seen[tuple] {
			return fmt.Errorf("connection %d, %s to %s, is there twice", i, tuple[0], tuple[1])
		}
		seen[tuple] = true
	}
	return nil
}

// disjoint checks that blocks rise, do not touch, and lie within size of from.
func disjoint(name string, blocks []Block, from, size uint32) error {
	end := uint64(0)
	for i, b := range blocks {
		start := uint64(b.Start - from)
		if start < end || start+uint64(b.Len) > uint64(size) || i > 0 && start == end {
			return fmt.Errorf("%s: block %d overlaps or is out of range", name, i)
		}
		end = start + uint64(b.Len)
	}
	return nil
}
