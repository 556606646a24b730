package filter

import (
	"bytes"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/distributed-servers/ds/internal/probe"
	"github.com/distributed-servers/ds/mobility/wire"
)

// Super-packets replaced, with the kernel's TCP at one end and a mobile node made
// by hand at the other, on a TUN that takes super-packets:
//
//	kernel TCP: here ◄── firewall ◄── queue: home address for option ◄── tg ◄── the test: home, at peer
//	                └────────────────────────────────────────────────► tg
//
// The super-packet comes with a partial checksum, for the home address, as a
// device that segments would get it. The firewall lets established connections
// pass: connection tracking sees the home address only.
func TestSuperPackets(t *testing.T) {
	if !own(t) {
		return
	}
	probe.Skip(t, probe.TUN)
	newScene(t)
	home := netip.MustParseAddr("2001:db8:aaaa::1")
	tg := openTUN(t, "tg")
	link, err := netlink.LinkByName("tg")
	if err != nil {
		t.Fatal(err)
	}
	dst := &net.IPNet{IP: home.AsSlice(), Mask: net.CIDRMask(128, 128)}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst}); err != nil {
		t.Fatal(err)
	}
	const firewall = "*filter\n:INPUT DROP [0:0]\n-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT\n" +
		"-A INPUT -p tcp --syn --dport 80 -m conntrack --ctstate NEW -j ACCEPT\nCOMMIT\n"
	if _, _, err := runProgram(ipv6.restore, firewall, "--noflush"); err != nil {
		t.Fatal(err)
	}
	var super, partial atomic.Int64
	f, _ := open(t, CorrespondentRules(nil), func(p Packet) Verdict {
		if p.Super {
			super.Add(1)
		}
		if p.Partial {
			partial.Add(1)
		}
		w, err := wire.ParsePacket(p.Payload)
		if err != nil {
			return Drop()
		}
		w.Src, w.Home = w.Home, netip.Addr{}
		b, err := w.Append(nil)
		if err != nil {
			return Drop()
		}
		return Replace(b)
	})

	l, err := net.Listen("tcp", netip.AddrPortFrom(here, 80).String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()

	const (
		syn, psh, ack = 2, 8, 16
		iss           = 1000
	)
	send := func(seq, ackNo uint32, flags byte, data []byte) {
		t.Helper()
		h := make([]byte, 20, 20+len(data))
		binary.BigEndian.PutUint16(h, 5000)
		binary.BigEndian.PutUint16(h[2:], 80)
		binary.BigEndian.PutUint32(h[4:], seq)
		binary.BigEndian.PutUint32(h[8:], ackNo)
		h[12], h[13] = 5<<4, flags
		binary.BigEndian.PutUint16(h[14:], 65535)
		h = append(h, data...)
		binary.BigEndian.PutUint16(h[16:], fold(pseudo(home, here, wire.TCP, len(h)))) // partial
		b := build(t, wire.Packet{Src: peer, Dst: here, Home: home, Protocol: wire.TCP, Payload: h})
		vnet := make([]byte, 10, 10+len(b))
		vnet[0] = 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM
		if len(data) > 1200 {
			vnet[1] = 4 // VIRTIO_NET_HDR_GSO_TCPV6
			binary.NativeEndian.PutUint16(vnet[2:], 64+20)
			binary.NativeEndian.PutUint16(vnet[4:], 1200)
		}
		binary.NativeEndian.PutUint16(vnet[6:], 64)
		binary.NativeEndian.PutUint16(vnet[8:], 16)
		if _, err := tg.Write(append(vnet, b...)); err != nil {
			t.Fatal(err)
		}
	}
	// receive returns the next segment to the home address.
	receive := func() (seq, ackNo uint32, flags byte) {
		t.Helper()
		b := make([]byte, 1<<16)
		for {
			if err := tg.SetReadDeadline(time.Now().Add(patience)); err != nil {
				t.Fatal(err)
			}
			n, err := tg.Read(b)
			if err != nil {
				t.Fatal(err)
			}
			w, err := wire.ParsePacket(b[10:n])
			if p := w.Payload; err == nil && w.Protocol == wire.TCP && w.Dst == home {
				return binary.BigEndian.Uint32(p[4:]), binary.BigEndian.Uint32(p[8:]), p[13]
			}
		}
	}

	send(iss, 0, syn, nil)
	seq, _, flags := receive()
	if flags != syn|ack {
		t.Fatalf("flags %#x for a SYN", flags)
	}
	send(iss+1, seq+1, ack, nil)
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(); got != home {
		t.Errorf("the connection is with %v", got)
	}

	data := make([]byte, 50*1200)
	rand.NewChaCha8([32]byte{}).Read(data)
	send(iss+1, seq+1, ack|psh, data)
	got := make([]byte, len(data))
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("the kernel's TCP has other octets: %v", err)
	}
	if super.Load() != 1 || partial.Load() == 0 {
		t.Errorf("%d super-packets, %d partial checksums", super.Load(), partial.Load())
	}
	for ackNo := uint32(0); ackNo != iss+1+uint32(len(data)); {
		_, ackNo, _ = receive()
	}

	if st := f.Stats(); st.Failed != 0 || st.Replaced != st.Packets {
		t.Errorf("%+v", st)
	}
}

// openTUN opens a TUN with virtual network headers, checksum and segmentation
// offload, and sets it up.
func openTUN(t *testing.T, name string) *os.File {
	t.Helper()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		t.Fatal(err)
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "tun")
	t.Cleanup(func() { f.Close() })
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO6); err != nil {
		t.Fatal(err)
	}
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		t.Fatal(err)
	}
	return f
}
