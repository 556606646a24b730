package filter

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/florianl/go-nfqueue/v2"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/distributed-servers/ds/internal/netns"
)

// maxPacket is what the kernel copies of a packet at most, and what a verdict
// can carry: an attribute's length has 16 bits and counts its header.
const maxPacket = 0xffff - 4

// Flags of NFQA_SKB_INFO.
const (
	skbPartial = 1 << iota // NFQA_SKB_CSUMNOTREADY
	skbSuper               // NFQA_SKB_GSO
)

// socket is a bound queue.
type socket struct {
	nfq  *nfqueue.Nfqueue
	stop context.CancelFunc
	once sync.Once
}

// bind binds the queue and calls packet and failed, from one goroutine, until
// close. failed returns false to end that.
func bind(c *Config, packet func(*nfqueue.Nfqueue, nfqueue.Attribute), failed func(error) bool) (*socket, error) {
	nfq, err := nfqueue.Open(&nfqueue.Config{
		NfQueue:      c.Queue,
		MaxQueueLen:  c.QueueLen,
		MaxPacketLen: maxPacket,
		Copymode:     nfqueue.NfQnlCopyPacket,
		AfFamily:     unix.AF_INET6,
		// Whole super-packets; no connection tracking data, which would be copied
		// for nothing; no fail-open, see the package's documentation.
		Flags: nfqueue.NfQaCfgFlagGSO,
	})
	if err != nil {
		return nil, bindError(c.Queue, err)
	}
	con, err := inBursts(nfq.Con)
	if err != nil {
		nfq.Close()
		return nil, fmt.Errorf("filter: queue %d: %w", c.Queue, err)
	}
	nfq.Con = con
	ctx, cancel := context.WithCancel(context.Background())
	s := &socket{nfq: nfq, stop: cancel}
	if err := nfq.Con.SetReadBuffer(c.Buffer); err != nil {
		s.close()
		return nil, fmt.Errorf("filter: queue %d: receive buffer of %d octets: %w", c.Queue, c.Buffer, err)
	}
	// Rules that are there already send packets as soon as the queue is bound, and
	// the library would take one for the answer to its next request.
	if err := nfq.Con.SetBPF(noPackets); err != nil {
		s.close()
		return nil, fmt.Errorf("filter: queue %d: hold packets back: %w", c.Queue, err)
	}
	err = nfq.RegisterWithErrorFunc(ctx,
		func(a nfqueue.Attribute) int {
			packet(nfq, a)
			return 0
		},
		func(err error) int {
			switch {
			case errors.Is(err, unix.ENOENT):
				// A verdict on what the kernel does not have any more, because the
				// interface is gone that it came by.
			case ctx.Err() != nil || !failed(err):
				return 1
			}
			return 0
		})
	if err == nil {
		err = nfq.Con.RemoveBPF()
	}
	if err == nil {
		// What was held back waits for a verdict, and may fill the queue.
		err = nfq.SetVerdictBatch(1<<30, nfqueue.NfDrop)
	}
	if err != nil {
		s.close()
		return nil, bindError(c.Queue, err)
	}
	return s, nil
}

// noPackets is a socket filter that keeps messages with packets out. The type
// of a message is at octet 4, the lower half first.
var noPackets, _ = bpf.Assemble([]bpf.Instruction{
	bpf.LoadAbsolute{Off: 4, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.NFNL_SUBSYS_QUEUE, SkipFalse: 1}, // NFQNL_MSG_PACKET is 0
	bpf.RetConstant{Val: 0},
	bpf.RetConstant{Val: 1 << 30},
})

// close unbinds the queue, whose packets are dropped then. It waits until the
// Handler has returned.
func (s *socket) close() {
	s.once.Do(func() {
		s.stop() // first: the library's Close waits for it
		s.nfq.Close()
	})
}

// bindError says why a queue cannot be bound, and what cures it.
func bindError(queue uint16, err error) error {
	var cure string
	switch {
	case errors.Is(err, unix.EPERM) && netns.Capable(unix.CAP_NET_ADMIN):
		// That is how the kernel says that the queue is another process's.
		return fmt.Errorf("filter: bind queue %d: %w: %s has it; stop that process, or choose another queue number", queue, unix.EBUSY, holder(queue))
	case errors.Is(err, unix.EPERM):
		cure = curePermission
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EOPNOTSUPP):
		cure = "use a kernel with CONFIG_NETFILTER_NETLINK_QUEUE (modprobe nfnetlink_queue)"
	default:
		return fmt.Errorf("filter: bind queue %d: %w", queue, err)
	}
	return fmt.Errorf("filter: bind queue %d: %w; %s", queue, err, cure)
}

// kernelQueue is a line of the kernel's list of queues.
type kernelQueue struct {
	port                          uint32
	queued, queueFull, bufferFull uint64
}

// kernelState looks the queue up in the kernel's list, which root may read.
func kernelState(queue uint16) (q kernelQueue, ok bool) {
	list, err := os.ReadFile("/proc/thread-self/net/netfilter/nfnetlink_queue")
	if err != nil {
		return q, false
	}
	return parseState(string(list), queue)
}

// parseState finds a queue in the list: number, port, waiting, copy mode, copy
// range, dropped because it was full, because the buffer was, last packet's number.
func parseState(list string, queue uint16) (q kernelQueue, ok bool) {
	for line := range strings.Lines(list) {
		f := strings.Fields(line)
		if len(f) < 8 || f[0] != strconv.Itoa(int(queue)) {
			continue
		}
		var v [8]uint64
		for i := range v {
			var err error
			if v[i], err = strconv.ParseUint(f[i], 10, 64); err != nil {
				return q, false
			}
		}
		return kernelQueue{port: uint32(v[1]), queueFull: v[5], bufferFull: v[6], queued: v[7]}, true
	}
	return q, false
}

// holder names who has a queue: the port of a netlink socket is its process's
// number, if it is the first of that process.
func holder(queue uint16) string {
	q, ok := kernelState(queue)
	if !ok {
		return "another process"
	}
	if name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", q.port)); err == nil {
		return fmt.Sprintf("process %d (%s)", q.port, strings.TrimSpace(string(name)))
	}
	return fmt.Sprintf("netlink port %d", q.port)
}

// packetOf makes a Packet of what the library has. ok is false if the kernel
// has not copied all of it.
func packetOf(a *nfqueue.Attribute) (p Packet, ok bool) {
	if a.Payload != nil {
		p.Payload = *a.Payload
	}
	if a.InDev != nil {
		p.InIndex = int(*a.InDev)
	}
	if a.SkbInfo != nil && len(*a.SkbInfo) == 4 {
		info := binary.BigEndian.Uint32(*a.SkbInfo)
		p.Partial, p.Super = info&skbPartial != 0, info&skbSuper != 0
	}
	// CapLen is there if the packet is longer than what has been copied.
	return p, a.CapLen == nil || int(*a.CapLen) <= len(p.Payload)
}
