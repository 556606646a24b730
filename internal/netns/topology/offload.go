//go:build linux

package topology

import (
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// offloads are what an interface leaves to the other end of a virtual link: what
// goes out has its checksum and is no larger than the MTU when they are off.
// They are named as the kernel does (net/ethtool/common.c).
var offloads = []string{
	"tx-checksum-ip-generic",
	"tx-checksum-sctp",
	"tx-scatter-gather",
	"tx-scatter-gather-fraglist",
	"tx-tcp-segmentation",
	"tx-tcp-ecn-segmentation",
	"tx-tcp-mangleid-segmentation",
	"tx-tcp6-segmentation",
	"tx-udp-segmentation",
	"tx-generic-segmentation",
	"rx-gro",
	"rx-udp-gro-forwarding",
}

// OffloadOff switches the offloads of an interface of the host off: what leaves has whole
// checksums and is no larger than the MTU.
func (h *Host) OffloadOff(name string) error {
	if err := h.Do(func() error { return offloadOff(name) }); err != nil {
		return fmt.Errorf("topology: %s: %s: no offload: %w", h.name, name, err)
	}
	return nil
}

// offloadOff switches the offloads of an interface of the thread's namespace off.
func offloadOff(name string) error {
	family, err := netlink.GenlFamilyGet(unix.ETHTOOL_GENL_NAME)
	if err != nil {
		return fmt.Errorf("ethtool over netlink: %w", err)
	}
	req := nl.NewNetlinkRequest(int(family.ID), unix.NLM_F_ACK)
	req.AddData(&nl.Genlmsg{Command: unix.ETHTOOL_MSG_FEATURES_SET, Version: unix.ETHTOOL_GENL_VERSION})
	header := nl.NewRtAttr(unix.ETHTOOL_A_FEATURES_HEADER|unix.NLA_F_NESTED, nil)
	header.AddRtAttr(unix.ETHTOOL_A_HEADER_DEV_NAME, nl.ZeroTerminated(name))
	req.AddData(header)
	wanted := nl.NewRtAttr(unix.ETHTOOL_A_FEATURES_WANTED|unix.NLA_F_NESTED, nil)
	bits := wanted.AddRtAttr(unix.ETHTOOL_A_BITSET_BITS|unix.NLA_F_NESTED, nil)
	for _, offload := range offloads {
		// A bit without a value is one to clear.
		bit := bits.AddRtAttr(unix.ETHTOOL_A_BITSET_BITS_BIT|unix.NLA_F_NESTED, nil)
		bit.AddRtAttr(unix.ETHTOOL_A_BITSET_BIT_NAME, nl.ZeroTerminated(offload))
	}
	req.AddData(wanted)
	if _, err := req.Execute(unix.NETLINK_GENERIC, 0); err != nil {
		return fmt.Errorf("ethtool: set features: %w", err)
	}
	return nil
}
