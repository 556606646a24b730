package stack

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	gstack "gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/distributed-servers/ds/tun"
)

// link is the netstack's link endpoint: it moves packets between the device
// and the netstack, through the filter.
type link struct {
	dev    tun.Device
	clock  tcpip.Clock
	filter filter
	shim   *shim // nil: none
	// superPacket is the size up to which the netstack builds packets that
	// gso.go cuts up, 0: none.
	superPacket int

	mu         sync.Mutex
	dispatcher gstack.NetworkDispatcher // set once, by CreateNIC
	reading    chan struct{}            // closed when the reader has ended; nil: paused
	stopped    bool

	// scratch holds buffers to flatten outgoing packets into, behind
	// shimHeadroom.
	scratch sync.Pool
}

func newLink(dev tun.Device, clock tcpip.Clock, holdLimit int) *link {
	l := &link{dev: dev, clock: clock, filter: filter{
		limit:   holdLimit,
		tuples:  make(map[Tuple]*Hold),
		clients: make(map[netip.Addr]*Hold),
	}}
	l.scratch.New = func() any { b := make([]byte, 0, shimHeadroom+dev.MTU()); return &b }
	return l
}

func (l *link) start() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reading = make(chan struct{})
	go l.read(l.reading)
}

// read moves packets inward until the device ends or its deadline passes.
func (l *link) read(done chan<- struct{}) {
	defer close(done)
	b := make([]byte, l.dev.MTU())
	for {
		n, err := l.dev.Read(b)
		if err != nil {
			return // closed, or paused by the deadline
		}
		l.arrive(b[:n])
	}
}

// arrive takes a packet from the device.
func (l *link) arrive(p []byte) {
	if l.shim != nil {
		q, signal := l.shim.inbound(p)
		if signal && l.shim.signalling != nil {
			l.shim.signalling(p)
		}
		if q == nil {
			return
		}
		p = q
	}
	l.receive(p)
}

// receive takes a packet from the shim.
func (l *link) receive(p []byte) {
	l.filter.deliver.Lock()
	taken, forward := l.filter.inbound(p)
	if !taken {
		l.deliver(p)
	}
	l.filter.deliver.Unlock()
	if forward != nil {
		if p = hop(p); p != nil {
			forward(p)
		}
	}
}

// deliver hands a packet to the netstack, past the filter.
func (l *link) deliver(p []byte) {
	if len(p) == 0 || l.deliverSmallMTU(p) {
		return
	}
	var proto tcpip.NetworkProtocolNumber
	switch p[0] >> 4 {
	case 6:
		proto = ipv6.ProtocolNumber
	case 4:
		proto = ipv4.ProtocolNumber
	default:
		return
	}
	pkt := gstack.NewPacketBuffer(gstack.PacketBufferOptions{Payload: buffer.MakeWithData(p)})
	l.dispatcher.DeliverNetworkPacket(proto, pkt)
	pkt.DecRef()
}

// send writes a packet to the device, past the filter. A device that fails is
// a link that loses packets: TCP copes or times out.
func (l *link) send(p []byte) {
	if l.shim == nil {
		l.dev.Write(p)
		return
	}
	b := l.scratch.Get().(*[]byte)
	*b = append((*b)[:shimHeadroom], p...)
	l.sendScratch(*b)
	l.scratch.Put(b)
}

// sendScratch is send for the packet at b[shimHeadroom:]. It uses b up.
func (l *link) sendScratch(b []byte) {
	p := b[shimHeadroom:]
	if l.shim != nil {
		if p = l.shim.outbound(b); p == nil {
			return
		}
	}
	l.dev.Write(p)
}

// WritePackets implements gstack.LinkWriter.
func (l *link) WritePackets(pkts gstack.PacketBufferList) (int, tcpip.Error) {
	b := l.scratch.Get().(*[]byte)
	defer l.scratch.Put(b)
	for _, pkt := range pkts.AsSlice() {
		*b = (*b)[:shimHeadroom]
		for _, s := range pkt.AsSlices() {
			*b = append(*b, s...)
		}
		switch {
		case pkt.GSOOptions.Type != gstack.GSONone:
			l.sendSuper(*b, int(pkt.GSOOptions.MSS))
		case !l.filter.outbound((*b)[shimHeadroom:]):
			l.sendScratch(*b)
		}
	}
	return pkts.Len(), nil
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
	<-l.reading
	l.reading = nil
	return nil
}

func (l *link) resume() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped {
		return ErrClosed
	}
	if l.reading != nil {
		return errors.New("stack: resume: not paused")
	}
	if err := l.dev.SetReadDeadline(time.Time{}); err != nil {
		return fmt.Errorf("stack: resume: %w", err)
	}
	l.reading = make(chan struct{})
	go l.read(l.reading)
	return nil
}

// stop closes the device and waits for the reader.
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
	err := l.dev.Close()
	if l.reading != nil {
		<-l.reading
	}
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// The rest of gstack.LinkEndpoint. The link has no address and no header, and
// checksums are computed and checked in the netstack.

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
