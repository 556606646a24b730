package filter

import (
	"errors"
	"log/slog"
	"time"
)

// Config describes a filter. Handler is required.
type Config struct {
	// Queue is the number of the Netfilter queue, of which the names of the
	// chains are made.
	Queue uint16

	// QueueLen is how many packets may wait for the Handler; more are dropped.
	// Default 1024.
	QueueLen uint32

	// Buffer is the size of the socket's receive buffer, in octets. A packet
	// takes about twice its length. Default 4 MiB.
	Buffer int

	// Rules say which packets are queued.
	Rules Rules

	// Handler decides on a packet. It is called by one goroutine, so a packet
	// waits for the one before.
	Handler func(Packet) Verdict

	// Watch is how often it is looked whether the rules are still there: when a
	// firewall is loaded again, it often throws those of others away. It takes
	// two programs some milliseconds. Default 10 s; negative: never.
	Watch time.Duration

	// Logger takes what is lost and found again. Default: slog.Default.
	Logger *slog.Logger
}

const (
	defaultQueueLen = 1024
	defaultBuffer   = 4 << 20
	defaultWatch    = 10 * time.Second
)

func (c Config) withDefaults() (Config, error) {
	if c.Handler == nil {
		return c, errors.New("filter: open: no Handler in the configuration")
	}
	if c.QueueLen == 0 {
		c.QueueLen = defaultQueueLen
	}
	if c.Buffer <= 0 {
		c.Buffer = defaultBuffer
	}
	if c.Watch == 0 {
		c.Watch = defaultWatch
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c, nil
}

// Packet is one that waits in the queue.
type Packet struct {
	// Payload is the whole packet, from the IPv6 header on. It is the Handler's
	// to keep. It may be a super-packet of up to 64 KiB that the kernel has not
	// cut yet.
	Payload []byte

	// InIndex is the interface that it came by.
	InIndex int

	// Partial means that the checksum of the upper layer covers the
	// pseudo-header only: a device would complete it. [Replace] does; who
	// sends the packet in another way calls [CompleteChecksum].
	Partial bool

	// Super means that it was merged of segments, or has not been cut yet.
	Super bool
}

// Verdict is what is to become of a packet.
type Verdict struct {
	kind    verdictKind
	payload []byte
}

type verdictKind uint8

const (
	drop verdictKind = iota // also the zero Verdict: nothing leaks by mistake
	accept
	replace
)

// Accept lets the packet go on, past the rules of all chains of the same hook
// and table.
func Accept() Verdict { return Verdict{kind: accept} }

// Drop ends it: it is lost, or the daemon has it.
func Drop() Verdict { return Verdict{kind: drop} }

// Replace lets payload go on in the packet's place, to this host. A partial
// checksum is completed in it. (A super-packet that is forwarded is cut afterwards,
// and the kernel computes the checksums with the addresses in the IPv6 headers,
// even where a home address counts.)
func Replace(payload []byte) Verdict { return Verdict{kind: replace, payload: payload} }

// Stats counts packets since Open.
type Stats struct {
	Packets  uint64 // that the Handler got
	Accepted uint64
	Replaced uint64
	Dropped  uint64
	Failed   uint64 // packets that could not be taken, replaced or given a verdict; they are dropped

	Overruns uint64 // times that the socket's buffer was full
	Reopened uint64 // times that the socket was lost and opened again
	Restored uint64 // times that the rules were gone and put back

	// Queued, QueueFull and BufferFull are the kernel's counts, since the queue
	// was bound last: packets that it has put into the queue; and that it has
	// dropped because QueueLen others waited, and because the buffer was full
	// (those are among Queued). They are 0 for a process that is not root's.
	Queued, QueueFull, BufferFull uint64
}
