package kernelro

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Probe loads the programs, and forgets them.
func Probe() error {
	if err := rlimit.RemoveMemlock(); err != nil {
		return fmt.Errorf("kernelro: %w", err)
	}
	a := netip.IPv6LinkLocalAllNodes()
	for _, spec := range []*ebpf.ProgramSpec{egress(a, a), ingress(a, a)} {
		prog, err := ebpf.NewProgram(spec)
		if err != nil {
			return fmt.Errorf("kernelro: load %s: %w", spec.Name, err)
		}
		prog.Close()
	}
	return nil
}

// Attach makes the kernel translate, on an interface of the current network
// namespace, between home and its care-of address. It needs CAP_BPF and
// CAP_NET_ADMIN outside of any user namespace. The programs go with the
// interface.
func Attach(ifname string, home, careOf netip.Addr) error {
	link, err := netlink.LinkByName(ifname)
	if err != nil {
		return fmt.Errorf("kernelro: %s: %w", ifname, err)
	}
	// Kernels before 5.11 count BPF memory as locked.
	if err := rlimit.RemoveMemlock(); err != nil {
		return fmt.Errorf("kernelro: %w", err)
	}
	qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}
	if err := netlink.QdiscAdd(qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("kernelro: %s: clsact: %w", ifname, err)
	}
	for _, p := range []struct {
		spec   *ebpf.ProgramSpec
		parent uint32
	}{
		{egress(home, careOf), netlink.HANDLE_MIN_EGRESS},
		{ingress(home, careOf), netlink.HANDLE_MIN_INGRESS},
	} {
		prog, err := ebpf.NewProgram(p.spec)
		if err != nil {
			return fmt.Errorf("kernelro: load %s: %w", p.spec.Name, err)
		}
		err = netlink.FilterAdd(&netlink.BpfFilter{
			FilterAttrs:  netlink.FilterAttrs{LinkIndex: link.Attrs().Index, Parent: p.parent, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 1},
			Fd:           prog.FD(),
			Name:         p.spec.Name,
			DirectAction: true,
		})
		prog.Close() // the filter has it
		if err != nil {
			return fmt.Errorf("kernelro: %s: attach %s: %w", ifname, p.spec.Name, err)
		}
	}
	return nil
}
