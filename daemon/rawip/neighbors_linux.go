package rawip

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Neighbors hears Neighbor Discovery on a link: all that comes to the interface,
// also what is for addresses that are not this host's.
type Neighbors struct {
	ifi    *net.Interface
	file   *os.File // packet socket
	groups *os.File // socket that is a member of groups
	buffer []byte

	mu      sync.Mutex
	members map[netip.Addr]bool
}

// heard selects what [Neighbors] hears, in packets that begin with the IPv6
// header: ICMPv6 of hop limit 255, Router Advertisement (134), Neighbor
// Solicitation (135) and Advertisement (136). They have no extension headers
// (RFC 6980 is about fragments, and nobody sends others).
var heard = []bpf.Instruction{
	bpf.LoadAbsolute{Off: 6, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_ICMPV6, SkipTrue: 6},
	bpf.LoadAbsolute{Off: 7, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 255, SkipTrue: 4},
	bpf.LoadAbsolute{Off: headerLen, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpLessThan, Val: 134, SkipTrue: 2},
	bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: 136, SkipTrue: 1},
	bpf.RetConstant{Val: 1 << 16},
	bpf.RetConstant{Val: 0},
}

// ListenNeighbors opens Neighbors on an interface. It needs CAP_NET_RAW.
func ListenNeighbors(name string) (*Neighbors, error) {
	operation := "listen on " + name
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return nil, fmt.Errorf("rawip: %s: %w: name the interface on the link", operation, err)
	}
	n := &Neighbors{ifi: ifi, buffer: make([]byte, 1<<16), members: make(map[netip.Addr]bool)}
	if n.file, err = packetSocket(ifi); err != nil {
		return nil, openError(operation, err)
	}
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		n.file.Close()
		return nil, openError(operation, os.NewSyscallError("socket", err))
	}
	n.groups = os.NewFile(uintptr(fd), "groups")
	return n, nil
}

func packetSocket(ifi *net.Interface) (_ *os.File, err error) {
	protocol := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_IPV6))
	// Of no protocol at first, so that nothing passes before the filter is there.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	raw, err := bpf.Assemble(heard)
	if err != nil {
		return nil, err
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		filter[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program); err != nil {
		return nil, os.NewSyscallError("SO_ATTACH_FILTER", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: ifi.Index}); err != nil {
		return nil, os.NewSyscallError("bind", err)
	}
	return os.NewFile(uintptr(fd), "neighbors"), nil
}

// Link is the link-layer address of the interface.
func (n *Neighbors) Link() net.HardwareAddr { return n.ifi.HardwareAddr }

// Read waits for the next packet, which is valid until the next call. After
// Close it returns an error that is [os.ErrClosed]. While the interface is down
// it returns others, that are [unix.ENETDOWN], once each time.
func (n *Neighbors) Read() ([]byte, error) {
	size, err := n.file.Read(n.buffer)
	if err != nil {
		return nil, fmt.Errorf("rawip: listen on %s: %w", n.ifi.Name, err)
	}
	return n.buffer[:size], nil
}

// Join makes the interface listen to a multicast group, and tells routers and
// switches so (RFC 3810). A second call does nothing.
func (n *Neighbors) Join(group netip.Addr) error { return n.member(group, true) }

// Leave ends what Join began.
func (n *Neighbors) Leave(group netip.Addr) error { return n.member(group, false) }

func (n *Neighbors) member(group netip.Addr, join bool) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.members[group] == join {
		return nil
	}
	option, name := unix.IPV6_JOIN_GROUP, "join"
	if !join {
		option, name = unix.IPV6_LEAVE_GROUP, "leave"
	}
	err := control(n.groups, func(fd int) error {
		return unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, option,
			&unix.IPv6Mreq{Multiaddr: group.As16(), Interface: uint32(n.ifi.Index)})
	})
	switch {
	case err == nil:
		n.members[group] = join
		if !join {
			delete(n.members, group)
		}
		return nil
	case errors.Is(err, unix.ENOMEM), errors.Is(err, unix.ENOBUFS):
		err = fmt.Errorf("%w: a socket's groups are limited; raise sysctl net.core.optmem_max", err)
	}
	return fmt.Errorf("rawip: %s %v on %s: %w", name, group, n.ifi.Name, err)
}

// Close ends all memberships; a blocked Read returns. A second call does nothing.
func (n *Neighbors) Close() error {
	err := n.file.Close()
	if gerr := n.groups.Close(); err == nil {
		err = gerr
	}
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}
