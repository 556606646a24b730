package node

import "github.com/distributed-servers/ds/mobility/wire"

// send puts a packet out, directly.
func (n *Node) send(p *wire.Packet) {
	if b, err := p.Append(n.buf); err == nil {
		n.emit(b)
	}
}

// tunnel puts a packet from the home address out, in a tunnel to Via (RFC 6275
// section 11.3.1).
func (n *Node) tunnel(p *wire.Packet) {
	var err error
	if n.inner, err = p.Append(n.inner[:0]); err == nil {
		n.enclose()
	}
}

// enclose puts n.inner out in a tunnel.
func (n *Node) enclose() {
	if b, err := wire.AppendTunnel(n.buf, n.cfg.CareOf, n.via, n.inner); err == nil {
		n.emit(b)
	}
}

// emit takes what has been appended to n.buf as a packet to send. Where buf
// grows, earlier packets stay in the old one.
func (n *Node) emit(b []byte) {
	start := len(n.buf)
	n.buf = b
	n.out.Send = append(n.out.Send, b[start:len(b):len(b)])
}
