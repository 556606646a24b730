package filter

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// kernelEnd is a socket pair in a netlink socket's place: the test is the kernel.
func kernelEnd(t *testing.T) (*bursts, int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[1]) })
	f := os.NewFile(uintptr(fds[0]), "bursts")
	t.Cleanup(func() { f.Close() })
	raw, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	return &bursts{raw: raw, in: make([]byte, 2*maxPacket)}, fds[1]
}

// say writes a message as the kernel does: not padded at its end.
func say(t *testing.T, fd int, kind netlink.HeaderType, data string) {
	t.Helper()
	b := make([]byte, unix.NLMSG_HDRLEN, unix.NLMSG_HDRLEN+len(data))
	binary.NativeEndian.PutUint32(b, uint32(len(b)+len(data)))
	binary.NativeEndian.PutUint16(b[4:], uint16(kind))
	if _, err := unix.Write(fd, append(b, data...)); err != nil {
		t.Fatal(err)
	}
}

// heard returns what the kernel has been written, a write a string.
func heard(t *testing.T, fd int) (writes []string) {
	t.Helper()
	b := make([]byte, 4*maxPacket)
	for {
		n, err := unix.Read(fd, b)
		if errors.Is(err, unix.EAGAIN) {
			return writes
		}
		if err != nil {
			t.Fatal(err)
		}
		all, err := parse(b[:n])
		if err != nil {
			t.Fatal(err)
		}
		writes = append(writes, texts(all))
	}
}

func texts(all []netlink.Message) (s string) {
	for _, m := range all {
		text := string(m.Data)
		if len(text) > 10 {
			text = fmt.Sprint(len(text))
		}
		s += text + " "
	}
	return s
}

const packetKind = unix.NFNL_SUBSYS_QUEUE << 8

// receive returns the texts of a burst.
func receive(t *testing.T, b *bursts) string {
	t.Helper()
	all, err := b.Receive()
	if err != nil {
		t.Fatal(err)
	}
	return texts(all)
}

func verdict(t *testing.T, b *bursts, text string) {
	t.Helper()
	send(t, b, msgVerdict, text)
}

func send(t *testing.T, b *bursts, kind netlink.HeaderType, text string) {
	t.Helper()
	m := netlink.Message{Header: netlink.Header{Type: kind, Length: uint32(unix.NLMSG_HDRLEN + len(text))}, Data: []byte(text)}
	if err := b.Send(m); err != nil {
		t.Fatal(err)
	}
}

func expect(t *testing.T, what string, got, want any) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

// What has come together is handled together, and the kernel hears of it in one
// write, before anybody waits for more.
func TestBurst(t *testing.T) {
	b, kernel := kernelEnd(t)
	for _, text := range []string{"a", "bcd", "efghi"} {
		say(t, kernel, packetKind, text)
	}
	expect(t, "received", receive(t, b), "a bcd efghi ")
	for _, text := range []string{"aaaa", "bbbb", "cccc"} {
		verdict(t, b, text)
	}
	expect(t, "heard before all are handled", heard(t, kernel), []string(nil))
	say(t, kernel, packetKind, "last")
	expect(t, "received", receive(t, b), "last ")
	expect(t, "heard", heard(t, kernel), []string{"aaaa bbbb cccc "})
	verdict(t, b, "dddd")
	if err := b.handled(); err != nil {
		t.Fatal(err)
	}
	expect(t, "heard", heard(t, kernel), []string{"dddd "})
	verdict(t, b, "eeee") // nobody handles anything
	expect(t, "heard at once", heard(t, kernel), []string{"eeee "})

	// What is about all packets does not wait: it would be about later ones, too.
	say(t, kernel, packetKind, "again")
	expect(t, "received", receive(t, b), "again ")
	verdict(t, b, "ffff")
	send(t, b, packetKind|3, "drop")
	expect(t, "heard at once, in order", heard(t, kernel), []string{"ffff drop "})
}

// A burst has an end, also where packets come faster than they are handled, and
// octets count as well.
func TestBurstEnds(t *testing.T) {
	b, kernel := kernelEnd(t)
	for i := range 2*maxBurst + 1 {
		say(t, kernel, packetKind, fmt.Sprint(i))
	}
	for _, want := range []int{maxBurst, maxBurst, 1} {
		all, err := b.Receive()
		if err != nil {
			t.Fatal(err)
		}
		expect(t, "packets", len(all), want)
	}
	big := string(make([]byte, maxTogether))
	say(t, kernel, packetKind, big)
	say(t, kernel, packetKind, "next")
	expect(t, "received", receive(t, b), "8192 ")
	verdict(t, b, "aaaa")
	verdict(t, b, big)
	expect(t, "heard at once, in order", heard(t, kernel), []string{"aaaa ", "8192 "})
	expect(t, "received", receive(t, b), "next ")
}

// An error of the kernel's stands by itself: the library throws away what comes
// with it.
func TestBurstError(t *testing.T) {
	b, kernel := kernelEnd(t)
	for _, text := range []string{"a", "b", "!", "c", "?", "d"} {
		kind := netlink.HeaderType(packetKind)
		if text == "!" || text == "?" {
			kind = netlink.Error
		}
		say(t, kernel, kind, text)
	}
	var got []string
	for range 5 {
		got = append(got, receive(t, b))
	}
	if want := []string{"a b ", "! ", "c ", "? ", "d "}; !slices.Equal(got, want) {
		t.Errorf("received %q, want %q", got, want)
	}
	say(t, kernel, packetKind, "e")
	if _, err := unix.Write(kernel, []byte("not a message of netlink")); err != nil {
		t.Fatal(err)
	}
	say(t, kernel, packetKind, "f")
	expect(t, "received", receive(t, b), "e ")
	if _, err := b.Receive(); err == nil {
		t.Error("no error for what is no message")
	}
	expect(t, "received", receive(t, b), "f ")
}
