package host

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/distributed-servers/ds/internal/netns"
)

// Require makes all checks, and returns all that fail. None changes anything: a
// daemon calls it before it begins. filter.Usable is one for Netfilter queues.
func Require(checks ...func() error) error {
	var errs []error
	for _, check := range checks {
		errs = append(errs, check())
	}
	return errors.Join(errs...)
}

// NetAdmin checks for the capability that changes to the network need.
func NetAdmin() error {
	if !netns.Capable(unix.CAP_NET_ADMIN) {
		return fmt.Errorf("host: %w: no CAP_NET_ADMIN; %s", os.ErrPermission, curePermission)
	}
	return nil
}

// NetRaw checks for the capability that raw sockets need.
func NetRaw() error {
	if !netns.Capable(unix.CAP_NET_RAW) {
		return fmt.Errorf("host: %w: no CAP_NET_RAW; run as root, or give the program the capability (setcap cap_net_raw+ep, AmbientCapabilities= of systemd)", os.ErrPermission)
	}
	return nil
}

// TUN checks that TUN interfaces are to be had.
func TUN() error {
	const device = "/dev/net/tun"
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("host: %w; load the module (modprobe tun), give the container the device, or let the daemon open it (DeviceAllow= of systemd)", err)
	}
	return f.Close()
}

// IPv6 checks that IPv6 is there and switched on.
func IPv6() error {
	if ipv6Disabled("all") {
		return errors.New("host: IPv6 is disabled; switch it on (sysctl -w net.ipv6.conf.all.disable_ipv6=0, and no ipv6.disable=1 on the kernel's command line)")
	}
	return nil
}
