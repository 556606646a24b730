package wire

import (
	"bytes"
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/distributed-servers/ds/internal/probe"
)

var update = flag.Bool("update", false, "rewrite what testdata says about our messages")

// tshark is an independent dissector. It skips the test where it is not
// installed.
func tshark(t *testing.T, packets [][]byte, args ...string) string {
	t.Helper()
	probe.Skip(t, probe.Program("tshark"))
	const raw = 101 // LINKTYPE_RAW
	b := binary.LittleEndian.AppendUint32(nil, 0xa1b2c3d4)
	b = binary.LittleEndian.AppendUint32(b, 2|4<<16)
	b = append(b, make([]byte, 8)...)
	b = binary.LittleEndian.AppendUint32(b, 1<<18)
	b = binary.LittleEndian.AppendUint32(b, raw)
	for i, p := range packets {
		b = binary.LittleEndian.AppendUint32(b, uint32(i))
		b = binary.LittleEndian.AppendUint32(b, 0)
		b = binary.LittleEndian.AppendUint32(b, uint32(len(p)))
		b = binary.LittleEndian.AppendUint32(b, uint32(len(p)))
		b = append(b, p...)
	}
	file := filepath.Join(t.TempDir(), "packets.pcap")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "tshark", append([]string{"-n", "-r", file}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tshark: %v: %s", err, &stderr)
	}
	return string(out)
}

// fields are what tshark names the fields that our messages have.
var fields = []string{
	"mip6.mhtype", "mip6.hoti.cookie", "mip6.coti.cookie",
	"mip6.hot.nindex", "mip6.hot.cookie", "mip6.hot.token",
	"mip6.cot.nindex", "mip6.cot.cookie",
	"mip6.bu.seqnr", "mip6.bu.a_flag", "mip6.bu.h_flag", "mip6.bu.l_flag", "mip6.bu.k_flag", "mip6.bu.lifetime",
	"mip6.ba.status", "mip6.ba.k_flag", "mip6.ba.seqnr", "mip6.ba.lifetime",
	"mip6.be.status", "mip6.be.haddr",
	"mip6.bra.interval", "mip6.acoa.acoa", "mip6.ni.hni", "mip6.ni.cni", "mip6.bad.auth",
	// tshark 4.0 shows ten octets of RFC 4285's twelve of authentication data,
	// and takes the timestamp for one of UNIX.
	"mip6.auth.subtype", "mip6.auth.mobility_spi",
	"icmpv6.type", "icmpv6.code", "icmpv6.mtu", "icmpv6.pointer",
	"icmpv6.mip6.identifier", "icmpv6.mip6.home_agent_address", "icmpv6.mip6.flag.m", "icmpv6.mip6.flag.o",
	"icmpv6.opt.prefix", "icmpv6.opt.prefix.length", "icmpv6.opt.prefix.flag.l", "icmpv6.opt.prefix.flag.a",
	"icmpv6.opt.prefix.flag.r", "icmpv6.opt.prefix.valid_lifetime", "icmpv6.opt.prefix.preferred_lifetime",
	"icmpv6.nd.ns.target_address", "icmpv6.nd.na.target_address", "icmpv6.nd.na.flag.r", "icmpv6.nd.na.flag.s",
	"icmpv6.nd.na.flag.o", "icmpv6.opt.linkaddr",
}

// dissect is what tshark reads in each packet: those of the fields named that
// it has, as name=value, one a line.
func dissect(t *testing.T, packets [][]byte, fields ...string) []string {
	t.Helper()
	args := []string{"-T", "fields", "-E", "separator=|", "-E", "occurrence=a"}
	for _, f := range fields {
		args = append(args, "-e", f)
	}
	lines := strings.Split(strings.TrimSuffix(tshark(t, packets, args...), "\n"), "\n")
	if len(lines) != len(packets) {
		t.Fatalf("tshark saw %d packets of %d", len(lines), len(packets))
	}
	numbers := strings.NewReplacer("True", "1", "False", "0") // as some versions have it
	for i, line := range lines {
		var has []string
		for j, value := range strings.Split(numbers.Replace(line), "|") {
			if value != "" {
				has = append(has, fields[j]+"="+value)
			}
		}
		lines[i] = strings.Join(has, "\n")
	}
	return lines
}

func (p Packet) mustAppend(t *testing.T, payload []byte) []byte {
	t.Helper()
	p.Payload = payload
	b, err := p.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// What tshark reads in our messages is what we wrote into them.
func TestTsharkFields(t *testing.T) {
	var names []string
	var packets [][]byte
	for _, tt := range messages {
		names = append(names, tt.name)
		packets = append(packets, Packet{Src: home, Dst: correspondent, Protocol: Mobility}.mustAppend(t, unhex(t, tt.hex)))
	}
	for _, tt := range icmpMessages {
		names = append(names, tt.name)
		packets = append(packets, Packet{HopLimit: 255, Src: home, Dst: correspondent, Protocol: ICMPv6}.mustAppend(t, unhex(t, tt.hex)))
	}
	lines := dissect(t, packets, fields...)
	var b strings.Builder
	for i, line := range lines {
		fmt.Fprintf(&b, "# %s\n%s\n\n", names[i], line)
	}
	golden := filepath.Join("testdata", "tshark.txt")
	if *update {
		if err := os.WriteFile(golden, []byte(b.String()), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("tshark reads\n%s\nand not what is in %s (rewrite it with -update)", &b, golden)
	}
}

// Nothing that we write is malformed, or has anything that tshark's experts
// find worth a note, however it is packed.
func TestTsharkExperts(t *testing.T) {
	plain := Packet{Src: home, Dst: correspondent, Protocol: Mobility}
	around := []Packet{
		plain,
		{Src: careOf, Dst: correspondent, Home: home, Protocol: Mobility},
		{Src: home, Dst: careOf, Routing: correspondent, Protocol: Mobility},
		{Src: careOf, Dst: agent, Home: home, Routing: correspondent, Protocol: Mobility},
	}
	var packets [][]byte
	tunnelled := func(inner []byte) {
		b, err := AppendTunnel(nil, netip.MustParseAddr("2001:db8:a::2"), careOf, inner)
		if err != nil {
			t.Fatal(err)
		}
		packets = append(packets, b)
	}
	for _, tt := range messages {
		for _, p := range around {
			packets = append(packets, p.mustAppend(t, unhex(t, tt.hex)))
		}
		tunnelled(plain.mustAppend(t, unhex(t, tt.hex)))
	}
	for _, tt := range icmpMessages {
		if _, ok := tt.m.(*ICMPError); ok {
			continue // what those quote is no packet
		}
		for _, p := range around {
			p.Protocol, p.HopLimit = ICMPv6, 255
			packets = append(packets, p.mustAppend(t, unhex(t, tt.hex)))
		}
	}
	for _, invoking := range packets[:10] {
		for _, kind := range []ErrorKind{Unreachable, PacketTooBig, TimeExceeded, ParameterProblem} {
			b, ok := AppendError(nil, agent, kind, 0, 1400, invoking, false)
			if !ok {
				t.Fatal("no error")
			}
			packets = append(packets, b)
			tunnelled(b)
		}
	}
	for i, line := range dissect(t, packets, "_ws.expert.message", "_ws.malformed", "icmpv6.checksum.status") {
		// Checksums of ICMPv6 are checked, with the home address; tshark leaves
		// those of the mobility header to the golden captures.
		switch line {
		case "", "icmpv6.checksum.status=1", "icmpv6.checksum.status=Good":
		default:
			t.Errorf("%x: %s", packets[i], line)
		}
	}
	if out := tshark(t, packets, "-q", "-z", "expert,note"); strings.TrimSpace(out) != "" {
		t.Errorf("experts: %s", out)
	}
}
