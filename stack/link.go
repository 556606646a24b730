package stack

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	gstack "gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/distributed-servers/ds/tun"
)

// link is the netstack's link endpoint: it moves packets between the device
// and the netstack, through the filter. receive.go and transmit.go have the two
// ways.
type link struct {
	ns     *gstack.Stack
	dev    tun.OffloadDevice
	filter filter
	shim   *shim // nil: none
	// superPacket is the size up to which the netstack builds packets of
	// several segments, 0: none.
	superPacket int
	acks        *ackKeeper // nil: none

	mu         sync.Mutex
	dispatcher gstack.NetworkDispatcher  // set once, by CreateNIC
	network    [2]gstack.NetworkEndpoint // behind it, of IPv6 and IPv4; set before start
	readers    []*reader                 // of each queue, set by start
	reading    *sync.WaitGroup           // done when the readers have ended; nil: paused
	stopped    bool

	transmits sync.Pool // of *transmit
}

func newLink(ns *gstack.Stack, dev tun.Device, holdLimit int) *link {
	l := &link{ns: ns, dev: offloadDevice(dev), filter: filter{
		limit:   holdLimit,
		tuples:  make(map[Tuple]*Hold),
		clients: make(map[netip.Addr]*Hold),
	}}
	l.transmits.New = newTransmit
	if _, simple := l.dev.(*simpleDevice); !simple {
		l.acks = newAckKeeper(l)
	}
	return l
}

// setSuperPacket decides on the size of super-packets, when the MTU is known.
func (l *link) setSuperPacket() {
	switch _, simple := l.dev.(*simpleDevice); {
	case simple:
		// A device in memory: what costs is not the packet.
	case l.dev.Offloads():
		l.superPacket = superPacketSize(int(l.MTU()), offloadSegments)
	default:
		l.superPacket = superPacketSize(int(l.MTU()), superSegments)
	}
}

// start starts a reader for each queue.
func (l *link) start() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reading = new(sync.WaitGroup)
	for q := range l.dev.Queues() {
		r := newReader(l, q)
		l.readers = append(l.readers, r)
		l.reading.Go(r.run)
	}
}

func (l *link) pause() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped {
		return ErrClosed
	}
	if l.reading == nil {
		return errors.New("stack: pause: paused already")
	}
	if err := l.dev.SetReadDeadline(time.Unix(1, 0)); err != nil {
		return fmt.Errorf("stack: pause: %w", err)
	}
	l.reading.Wait()
	l.reading = nil
	return nil
}

// resume starts the readers again. What has come meanwhile its caller reads, who runs
// already: somebody may have waited for long enough.
func (l *link) resume() error {
	reading, err := l.resuming()
	if err != nil {
		return err
	}
	for _, r := range l.readers {
		r.more()
		go func() {
			defer reading.Done()
			r.run()
		}()
	}
	return nil
}

// resuming ends the pause. A pause that begins then waits for all readers.
func (l *link) resuming() (reading *sync.WaitGroup, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped {
		return nil, ErrClosed
	}
	if l.reading != nil {
		return nil, errors.New("stack: resume: not paused")
	}
	if err := l.dev.SetReadDeadline(time.Time{}); err != nil {
		return nil, fmt.Errorf("stack: resume: %w", err)
	}
	l.reading = new(sync.WaitGroup)
	l.reading.Add(len(l.readers))
	return l.reading, nil
}

// stop closes the device and waits for the readers.
func (l *link) stop() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped {
		return nil
	}
	l.stopped = true
	if l.shim != nil {
		l.shim.stop()
	}
	if l.acks != nil {
		l.acks.stop()
	}
	err := l.dev.Close()
	if l.reading != nil {
		l.reading.Wait()
	}
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// The rest of gstack.LinkEndpoint. The link has no address and no header. What is
// left out of checksums it says for each packet, since the netstack takes
// capabilities to be about all: those of the SYNs and of what is not TCP it
// computes and checks.

func (l *link) SetMTU(uint32)                                 {}
func (l *link) MaxHeaderLength() uint16                       { return 0 }
func (l *link) LinkAddress() tcpip.LinkAddress                { return "" }
func (l *link) SetLinkAddress(tcpip.LinkAddress)              {}
func (l *link) Capabilities() gstack.LinkEndpointCapabilities { return 0 }
func (l *link) Wait()                                         {}
func (l *link) ARPHardwareType() header.ARPHardwareType       { return header.ARPHardwareNone }
func (l *link) AddHeader(*gstack.PacketBuffer)                {}
func (l *link) ParseHeader(*gstack.PacketBuffer) bool         { return true }
func (l *link) Close()                                        {}
func (l *link) SetOnCloseAction(func())                       {}

// MTU leaves room for what the shim adds.
func (l *link) MTU() uint32 {
	if l.shim != nil {
		return uint32(l.dev.MTU() - shimHeadroom)
	}
	return uint32(l.dev.MTU())
}

// Attach is called by CreateNIC, before the reader starts, and with nil when
// the interface goes, after it has ended.
func (l *link) Attach(d gstack.NetworkDispatcher) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if d != nil {
		l.dispatcher = d
	}
}

func (l *link) IsAttached() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dispatcher != nil
}
