package correspondent

import (
	"math"

	"github.com/distributed-servers/ds/mobility/wire"
)

// transmit sends a packet of the host's stack by way of the binding for its
// destination, if there is one (RFC 6275 section 9.3.2). Its checksums are
// right already: they cover the final destination, which is the home address.
//
// As it is, and so by way of the home agent, goes:
//   - a mobility message: this machine makes those of a correspondent;
//   - a packet that has a routing header, since the binding is for where it ends
//     and not for its next stop;
//   - one with an Authentication Header, which has been computed over what
//     would be changed;
//   - one that would be longer than 64 KiB.
func (c *Correspondent) transmit(b []byte) {
	if len(b) >= wire.HeaderLen && b[0]>>4 == 6 {
		_, e := c.cache.find(key{[16]byte(b[8:24]), [16]byte(b[24:40])})
		if e != nil && e.live(c.now) {
			s, ok := shapeOf(b)
			if ok && s.routing == 0 && s.proto != wire.Mobility && s.proto != wire.AH &&
				s.total-wire.HeaderLen+Overhead <= math.MaxUint16 {
				e.use(c.now)
				from := len(c.buf)
				c.buf = appendRouted(c.buf, b, &s, e.careOf)
				b = c.buf[from:len(c.buf):len(c.buf)]
			}
		}
	}
	c.out.Send = append(c.out.Send, b)
}
