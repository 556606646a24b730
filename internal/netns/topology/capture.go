//go:build linux

package topology

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/gopacket/gopacket/afpacket"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/distributed-servers/ds/internal/ladder"
)

// CaptureLength is how much of each packet a capture keeps, in octets: all
// headers, and whole mobility messages.
const CaptureLength = 384

// Capture writes the IPv6 packets of an interface to a capture file (pcapng),
// those that come in and those that go out. A super-packet that the kernel has
// not cut yet is one packet.
type Capture struct {
	host    *Host
	link    string
	stop    atomic.Bool
	stopped atomic.Int64 // UNIX time, in nanoseconds
	done    chan struct{}
	err     error // set before done is closed
	ended   atomic.Bool
}

// A block of the ring is handed over when it is full, or after retire, or later if the
// kernel is late: who has seen nothing for quiet asks whether there is more.
const (
	retire = 20 * time.Millisecond
	quiet  = 60 * time.Millisecond
)

// Capture begins a capture on an interface of the host, or on all of them if the
// name is empty: a packet that is forwarded then comes twice.
func (h *Host) Capture(link string, w io.Writer) (*Capture, error) {
	c := &Capture{host: h, link: link, done: make(chan struct{})}
	fail := func(err error) (*Capture, error) {
		return nil, fmt.Errorf("topology: %s: capture on %q: %w", h.name, link, err)
	}
	file, err := ladder.NewPcapng(w, h.name+"-"+link)
	if err != nil {
		return fail(err)
	}
	var ring *afpacket.TPacket
	err = h.Do(func() (err error) { ring, err = openRing(link); return err })
	if err != nil {
		return fail(err)
	}
	go func() {
		defer close(c.done)
		defer ring.Close()
		err := c.copy(ring, file)
		_, stats, errStats := ring.SocketStats()
		if errStats == nil && stats.Drops() > 0 {
			errStats = fmt.Errorf("%d packets were missed", stats.Drops())
		}
		if err := errors.Join(err, errStats, file.Flush()); err != nil {
			c.err = fmt.Errorf("topology: %s: capture on %q: %w", h.name, link, err)
		}
	}()
	h.net.onEnd(c.Stop)
	return c, nil
}

// Stop ends the capture, when what had come before it is in the file. It fails
// if the file is not complete. A second Stop does nothing.
func (c *Capture) Stop() error {
	c.stopped.Store(time.Now().UnixNano())
	c.stop.Store(true)
	<-c.done
	if c.ended.Swap(true) {
		return nil
	}
	return c.err
}

// openRing opens a ring in the thread's namespace that gets the IPv6 packets of
// an interface, without their link header.
//
// The filter selects the interface. A socket that is bound to it would report
// when the interface goes down, over and over.
func openRing(link string) (*afpacket.TPacket, error) {
	var program []bpf.Instruction
	if link != "" {
		l, err := netlink.LinkByName(link)
		if err != nil {
			return nil, err
		}
		program = []bpf.Instruction{
			bpf.LoadExtension{Num: bpf.ExtInterfaceIndex},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(l.Attrs().Index), SkipFalse: 3},
		}
	}
	program = append(program,
		bpf.LoadExtension{Num: bpf.ExtProto},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.ETH_P_IPV6, SkipFalse: 1},
		bpf.RetConstant{Val: CaptureLength},
		bpf.RetConstant{Val: 0},
	)
	filter, err := bpf.Assemble(program)
	if err != nil {
		return nil, err
	}
	// A reader that does not come to its turn for five seconds misses nothing: each
	// retire takes a block, however little is in it.
	const block = 128 << 10
	ring, err := afpacket.NewTPacket(
		afpacket.SocketDgram,
		afpacket.TPacketVersion3,
		afpacket.OptFrameSize(block/2),
		afpacket.OptBlockSize(block),
		afpacket.OptNumBlocks(256),
		afpacket.OptBlockTimeout(retire),
		afpacket.OptPollTimeout(quiet),
	)
	if err != nil {
		return nil, err
	}
	if err := ring.SetBPF(filter); err != nil {
		ring.Close()
		return nil, err
	}
	return ring, nil
}

func (c *Capture) copy(ring *afpacket.TPacket, file *ladder.Pcapng) error {
	runtime.LockOSThread() // it waits in a system call most of the time
	defer runtime.UnlockOSThread()
	read := uint(0)
	for {
		p, info, err := ring.ZeroCopyReadPacketData()
		switch {
		case errors.Is(err, afpacket.ErrTimeout):
			if c.stop.Load() {
				// The kernel counts those that it has missed as well.
				_, stats, err := ring.SocketStats()
				if err != nil || read >= stats.Packets()-stats.Drops() {
					return err
				}
			}
			continue
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		}
		read++
		if c.stop.Load() && info.Timestamp.UnixNano() > c.stopped.Load() {
			return nil
		}
		if err := file.WriteTruncated(info.Timestamp, p, info.Length); err != nil {
			return err
		}
	}
}
