package ladder

import (
	"fmt"
	"io"
	"runtime"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

// Pcapng writes IP packets to a capture file of one interface.
type Pcapng struct{ w *pcapgo.NgWriter }

// NewPcapng begins a file for an interface of this name.
func NewPcapng(w io.Writer, name string) (*Pcapng, error) {
	ng, err := pcapgo.NewNgWriterInterface(w, pcapgo.NgInterface{
		Name:     name,
		LinkType: layers.LinkTypeRaw, // a packet begins with its IPv4 or IPv6 header
	}, pcapgo.NgWriterOptions{SectionInfo: pcapgo.NgSectionInfo{Application: "ds", OS: runtime.GOOS}})
	if err != nil {
		return nil, fmt.Errorf("ladder: begin capture file: %w", err)
	}
	return &Pcapng{ng}, nil
}

// WritePacket writes a whole packet.
func (p *Pcapng) WritePacket(at time.Time, packet []byte) error {
	return p.WriteTruncated(at, packet, len(packet))
}

// WriteTruncated writes the beginning of a packet of length octets.
func (p *Pcapng) WriteTruncated(at time.Time, packet []byte, length int) error {
	info := gopacket.CaptureInfo{Timestamp: at, CaptureLength: len(packet), Length: length}
	if err := p.w.WritePacket(info, packet); err != nil {
		return fmt.Errorf("ladder: write packet: %w", err)
	}
	return nil
}

// Flush writes what is buffered. It is called at the end.
func (p *Pcapng) Flush() error { return p.w.Flush() }
