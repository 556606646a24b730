package ladder

import (
	"errors"
	"fmt"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// Packet is the event of a packet sent from one host to another, all but for
// what the packet does not tell: that it was lost.
func Packet(at time.Duration, from, to string, packet []byte) Event {
	d := describe(packet, maxDepth)
	return Event{At: at, From: from, To: to, Label: d.label, Class: d.class, Kind: d.kind, Tunnel: d.tunnel}
}

// Describe says in a few words what an IPv6 packet is: "BU seq 7 420 s",
// "TCP 443 -> 50123 PSH 1400", "tunnel[HoTI]".
func Describe(packet []byte) string { return describe(packet, maxDepth).label }

// maxDepth is how many tunnels in tunnels are worth a look.
const maxDepth = 3

type description struct {
	label, class string
	kind         Kind
	tunnel       bool
}

func describe(b []byte, depth int) description {
	p, err := wire.ParsePacket(b)
	if err != nil {
		if len(b) > 0 && b[0]>>4 == 4 {
			return description{label: fmt.Sprintf("IPv4, %d octets", len(b)), class: "IPv4"}
		}
		return description{label: fmt.Sprintf("malformed, %d octets", len(b)), kind: Error}
	}
	switch p.Protocol {
	case wire.IPv6:
		inner, err := p.Inner()
		if err != nil {
			return description{label: "tunnel[malformed]", kind: Error, tunnel: true}
		}
		if depth == 0 {
			return description{label: "tunnel[...]", class: "tunnel", tunnel: true}
		}
		d := describe(inner, depth-1)
		d.label, d.tunnel = "tunnel["+d.label+"]", true
		if d.class != "" {
			d.class = "tunnel[" + d.class + "]"
		}
		return d
	case wire.Mobility:
		return mobility(&p)
	case wire.ICMPv6:
		return icmp(&p)
	}
	d := transport(&p)
	// Which of the two ways of route optimisation it takes, if any.
	for _, way := range []struct {
		taken bool
		name  string
	}{{p.Home.IsValid(), " +HAO"}, {p.Routing.IsValid(), " +RH2"}} {
		if way.taken {
			d.label += way.name
			if d.class != "" {
				d.class += way.name
			}
		}
	}
	return d
}

func mobility(p *wire.Packet) description {
	m, err := wire.ParseMobility(p)
	if unknown, ok := errors.AsType[*wire.UnknownTypeError](err); ok {
		return description{label: fmt.Sprintf("mobility header type %d", unknown.Type), kind: Signal}
	}
	if err != nil {
		return description{label: "malformed mobility header", kind: Error}
	}
	d := description{kind: Signal}
	switch m := m.(type) {
	case *wire.BindingRefreshRequest:
		d.label = "BRR"
	case *wire.HomeTestInit:
		d.label = "HoTI"
	case *wire.CareOfTestInit:
		d.label = "CoTI"
	case *wire.HomeTest:
		d.label = "HoT"
	case *wire.CareOfTest:
		d.label = "CoT"
	case *wire.BindingUpdate:
		d.label = fmt.Sprintf("BU seq %d %s", m.Sequence, lifetime(m.Lifetime))
		if m.Home {
			d.label = "home " + d.label
		}
	case *wire.BindingAck:
		d.label = fmt.Sprintf("BA seq %d %s", m.Sequence, lifetime(m.Lifetime))
		if !m.Status.OK() {
			d.label, d.kind = fmt.Sprintf("BA seq %d status %d", m.Sequence, uint8(m.Status)), Error
		}
	case *wire.BindingError:
		d.kind = Error
		switch m.Status {
		case wire.UnknownBinding:
			d.label = "BE unknown binding"
		case wire.UnknownMHType:
			d.label = "BE unknown type"
		default:
			d.label = fmt.Sprintf("BE status %d", uint8(m.Status))
		}
	}
	return d
}

func lifetime(d time.Duration) string {
	if d == 0 {
		return "delete"
	}
	return fmt.Sprintf("%d s", d/time.Second)
}

func icmp(p *wire.Packet) description {
	m, err := wire.ParseICMP(p)
	if err != nil {
		return description{label: "ICMPv6 malformed", kind: Error}
	}
	switch m := m.(type) {
	case *wire.ICMPError:
		return description{label: icmpError(m), kind: Error}
	case *wire.AgentRequest:
		return description{label: "ICMPv6 Home Agent Address Discovery Request", kind: Signal}
	case *wire.AgentReply:
		return description{label: "ICMPv6 Home Agent Address Discovery Reply", kind: Signal}
	case *wire.PrefixSolicitation:
		return description{label: "ICMPv6 Mobile Prefix Solicitation", kind: Signal}
	case *wire.PrefixAdvertisement:
		return description{label: "ICMPv6 Mobile Prefix Advertisement", kind: Signal}
	case *wire.NeighborSolicitation:
		return description{label: "NS " + m.Target.String(), kind: Signal}
	case *wire.NeighborAdvertisement:
		return description{label: "NA " + m.Target.String(), kind: Signal}
	}
	// ParseICMP knows no others, but has seen that there is a type.
	switch t := p.Payload[0]; t {
	case 128:
		return description{label: "ICMPv6 Echo Request", class: "ICMPv6 Echo"}
	case 129:
		return description{label: "ICMPv6 Echo Reply", class: "ICMPv6 Echo"}
	default:
		return description{label: fmt.Sprintf("ICMPv6 type %d", t), kind: Signal}
	}
}

func icmpError(e *wire.ICMPError) string {
	switch e.Kind {
	case wire.Unreachable:
		return fmt.Sprintf("ICMPv6 Unreachable code %d", e.Code)
	case wire.PacketTooBig:
		return fmt.Sprintf("ICMPv6 Packet Too Big %d", e.Param)
	case wire.TimeExceeded:
		return "ICMPv6 Time Exceeded"
	case wire.ParameterProblem:
		return fmt.Sprintf("ICMPv6 Parameter Problem code %d at %d", e.Code, e.Param)
	}
	return fmt.Sprintf("ICMPv6 error type %d", e.Kind)
}

// Flags of a TCP segment (RFC 9293 section 3.1), and their place.
const (
	tcpFlags = 13
	tcpFIN   = 1 << 0
	tcpSYN   = 1 << 1
	tcpRST   = 1 << 2
	tcpPSH   = 1 << 3
	tcpACK   = 1 << 4
)

// transport reads just as much of TCP and UDP as a label needs.
func transport(p *wire.Packet) description {
	b := p.Payload
	ports := func(name string) string {
		return fmt.Sprintf("%s %d -> %d", name, int(b[0])<<8|int(b[1]), int(b[2])<<8|int(b[3]))
	}
	switch {
	case p.Protocol == wire.TCP && len(b) >= 20 && len(b) >= int(b[12]>>4)*4:
		d := description{label: ports("TCP")}
		size := len(b) - int(b[12]>>4)*4
		flags := b[tcpFlags]
		for _, f := range []struct {
			bit  byte
			name string
		}{{tcpSYN, " SYN"}, {tcpFIN, " FIN"}, {tcpRST, " RST"}, {tcpPSH, " PSH"}} {
			if flags&f.bit != 0 {
				d.label += f.name
			}
		}
		// Every segment but the first acknowledges: worth a word where that is
		// all it does, and in the answer to the first.
		if flags&tcpACK != 0 && (flags&tcpSYN != 0 || size == 0 && flags&(tcpFIN|tcpRST|tcpPSH) == 0) {
			d.label += " ACK"
		}
		if size > 0 {
			d.label += fmt.Sprintf(" %d", size)
		}
		switch {
		case flags&tcpRST != 0:
			d.kind = Error
		case flags&(tcpSYN|tcpFIN) != 0: // begins and ends are shown one by one
		case size > 0:
			d.class = "TCP data"
		default:
			d.class = "TCP ACK"
		}
		return d
	case p.Protocol == wire.UDP && len(b) >= 8:
		return description{label: fmt.Sprintf("%s %d", ports("UDP"), len(b)-8), class: "UDP"}
	case p.Protocol == wire.TCP || p.Protocol == wire.UDP:
		return description{label: fmt.Sprintf("malformed, %d octets", len(b)), kind: Error}
	case p.Protocol == wire.Fragment:
		return description{label: fmt.Sprintf("fragment, %d octets", len(b)), class: "fragment"}
	case p.Protocol == wire.NoNext:
		return description{label: "empty"}
	}
	return description{label: fmt.Sprintf("protocol %d, %d octets", p.Protocol, len(b)), class: fmt.Sprintf("protocol %d", p.Protocol)}
}
