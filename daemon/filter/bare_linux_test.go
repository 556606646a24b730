package filter

import (
	"context"
	"encoding/binary"
	"sync"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// acceptBare binds the queue and accepts every packet with two system calls and
// no more: what is the kernel's of the cost, and what the library's.
func acceptBare(b *testing.B) (stop func()) {
	const (
		msgVerdict, msgConfig      = 1, 2
		cfgCmd, cfgParams          = 1, 2
		cmdBind                    = 1
		copyPacket                 = 2
		attrPacketHdr, attrVerdict = 1, 2
		verdictAccept              = uint32(1)
	)
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		b.Fatal(err)
	}
	kernel := &unix.SockaddrNetlink{Family: unix.AF_NETLINK}
	if err := unix.Bind(fd, kernel); err != nil {
		b.Fatal(err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, defaultBuffer); err != nil {
		b.Fatal(err)
	}
	// So that the loop sees that it is to stop.
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}); err != nil {
		b.Fatal(err)
	}
	for _, attr := range []*nl.RtAttr{
		nl.NewRtAttr(cfgCmd, []byte{cmdBind, 0, 0, unix.AF_INET6}),
		nl.NewRtAttr(cfgParams, []byte{0, 0, 0xff, 0xff, copyPacket}),
	} {
		req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_QUEUE<<8|msgConfig, 0)
		req.AddData(&nl.Nfgenmsg{Version: unix.NFNETLINK_V0, ResId: 7846>>8 | 7846&0xff<<8})
		req.AddData(attr)
		if err := unix.Sendto(fd, req.Serialize(), 0, kernel); err != nil {
			b.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(b.Context())
	var loop sync.WaitGroup
	loop.Go(func() {
		defer unix.Close(fd)
		verdict := make([]byte, 16+4+12) // netlink header, nfgenmsg, attribute
		binary.NativeEndian.PutUint32(verdict, uint32(len(verdict)))
		binary.NativeEndian.PutUint16(verdict[4:], unix.NFNL_SUBSYS_QUEUE<<8|msgVerdict)
		binary.NativeEndian.PutUint16(verdict[6:], unix.NLM_F_REQUEST)
		binary.BigEndian.PutUint16(verdict[18:], 7846)
		binary.NativeEndian.PutUint16(verdict[20:], 12)
		binary.NativeEndian.PutUint16(verdict[22:], attrVerdict)
		binary.BigEndian.PutUint32(verdict[24:], verdictAccept)
		buf := make([]byte, 1<<17)
		for ctx.Err() == nil {
			n, _, err := unix.Recvfrom(fd, buf, 0)
			if err != nil {
				continue
			}
			// The first attribute is the packet's header, which begins with its number.
			if n < 28 || buf[5] != unix.NFNL_SUBSYS_QUEUE || buf[22] != attrPacketHdr {
				continue
			}
			copy(verdict[28:], buf[24:28])
			if err := unix.Sendto(fd, verdict, 0, kernel); err != nil {
				b.Error(err)
				return
			}
		}
	})
	return func() {
		cancel()
		loop.Wait()
	}
}
