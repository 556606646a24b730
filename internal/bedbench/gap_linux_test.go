package bedbench

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/distributed-servers/ds/internal/ladder"
)

// What clients see, as it is captured. A line is a packet: milliseconds, source
// (server, or node b or c directly), sequence number, payload: the letter of each
// message, "." for the rest of one.
func TestGaps(t *testing.T) {
	server, client := netip.MustParseAddr("2001:db8:d::d1"), netip.MustParseAddr("2001:db8:c1::2")
	nodes := map[netip.Addr]byte{netip.MustParseAddr("2001:db8:5::1:b"): 'b', netip.MustParseAddr("2001:db8:5::1:c"): 'c'}
	from := map[string]netip.Addr{"server": server}
	for a, n := range nodes {
		from[string(n)] = a
	}
	to := netip.AddrPortFrom(client, 4000)
	for _, tt := range []struct{ name, packets, changed, same string }{
		{"direct", "0 b 0 b, 1 b 64 b, 4 c 128 c, 5 c 192 c, 9 b 256 b", "[3 4]", "[1 1]"},
		{"by way of the contact", "0 server 0 b, 1 server 64 b, 4 server 128 c", "[3]", "[1]"},
		{"from one way to the other", "0 b 0 b, 2 server 64 b, 5 server 128 c, 6 c 192 c", "[3]", "[2 1]"},
		{"a pause of the client is no time between packets", "0 b 0 b, 600 b 64 b, 601 c 128 c", "[1]", "[]"},
		{"nor a gap", "0 b 0 b, 600 c 64 c, 601 c 128 c", "[]", "[1]"},
		{"several messages in a packet count as the first", "0 server 0 b, 1 server 64 bc, 2 server 192 c", "[1]", "[1]"},
		{"half a message says nothing, the next one does", "0 server 0 b, 1 server 64 b, 3 server 96 ..c, 4 server 192 c", "[2]", "[1 1]"},
		{"what is repeated says nothing", "0 server 0 b, 1 server 64 b, 3 server 128 c, 4 server 64 b, 5 server 192 c", "[2]", "[1 2]"},
		{"repeated with something new", "0 server 0 b, 1 server 64 b, 3 server 64 bc", "[2]", "[1]"},
		{"directly repeated is from there", "0 b 0 b, 3 c 0 b, 4 c 64 c", "[3]", "[1]"},
	} {
		var file bytes.Buffer
		w, err := ladder.NewPcapng(&file, "test")
		if err != nil {
			t.Fatal(err)
		}
		put := func(ms int, src netip.Addr, seq, port int, data []byte) {
			p := make([]byte, 60, 60+len(data))
			p[0], p[6], p[7] = 0x60, 6, 64
			binary.BigEndian.PutUint16(p[4:], uint16(20+len(data)))
			s, d := src.As16(), client.As16()
			copy(p[8:], s[:])
			copy(p[24:], d[:])
			binary.BigEndian.PutUint16(p[40:], 9)
			binary.BigEndian.PutUint16(p[42:], uint16(port))
			binary.BigEndian.PutUint32(p[44:], uint32(seq)-1000) // it may wrap round
			p[52] = 5 << 4
			p = append(p, data...)
			if err := w.WriteTruncated(time.Unix(1, int64(ms)*1e6), p, len(p)); err != nil {
				t.Fatal(err)
			}
		}
		for line := range strings.SplitSeq(tt.packets, ", ") {
			var ms, seq int
			var src, what string
			if _, err := fmt.Sscan(line, &ms, &src, &seq, &what); err != nil {
				t.Fatal(err)
			}
			var data []byte
			for _, letter := range what {
				m := make([]byte, messageLen)
				if m[0] = byte(letter); letter == '.' {
					m = m[:messageLen/4] // two are half a message
				}
				data = append(data, m...)
			}
			put(ms, from[src], seq, 4000, data)
			put(ms, from["c"], seq, 4001, data) // another connection
			put(ms, from["b"], seq, 4000, nil)  // an acknowledgement
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		changed, same, err := gaps(&file, nodes, map[netip.AddrPort][]time.Time{to: {time.Unix(1, -1e6), time.Unix(1, 500e6)}})
		if err != nil || fmt.Sprint(changed) != tt.changed || fmt.Sprint(same) != tt.same {
			t.Errorf("%s: changed %v, same %v, %v; want %s, %s", tt.name, changed, same, err, tt.changed, tt.same)
		}
	}
}
