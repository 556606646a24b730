// Package tun gives the netstack its link: a point-to-point device that
// carries whole IP packets without a link-layer header.
//
// What implements [Device]: a Linux TUN interface of [Open] or [FromFiles], and
// the in-memory twin in tun/tuntest, which needs no privilege. Both give more than
// one packet at a time where they are asked for it, see [OffloadDevice].
// The package imports nothing of this module.
package tun

import "time"

// Device is one end of a point-to-point IP link.
//
// Read and Write move exactly one packet each. They may be called at the same
// time from several goroutines.
type Device interface {
	// Read waits for the next packet and copies it into p. A packet longer
	// than p is truncated, so p should hold at least MTU octets. After Close
	// it returns an error that is [os.ErrClosed]; when the read deadline has
	// passed, one that is [os.ErrDeadlineExceeded].
	Read(p []byte) (n int, err error)

	// Write sends one packet. A full queue drops the packet, as a real link
	// does; that is no error.
	Write(p []byte) (n int, err error)

	// SetReadDeadline makes a blocked and every later Read fail once t has
	// passed; the zero time waits for ever. A packet is never lost by it:
	// either Read returns it or it stays queued.
	SetReadDeadline(t time.Time) error

	// Name is the interface name, for messages.
	Name() string

	// MTU is the largest packet in octets, IP header included.
	MTU() int

	// Close ends the link. Blocked reads return. A second call does nothing.
	Close() error
}
