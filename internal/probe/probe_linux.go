package probe

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/distributed-servers/ds/internal/kernelro"
	"github.com/distributed-servers/ds/internal/netns"
)

// childEnv tells a child what to do: [childTry] or [childExit].
const (
	childEnv  = "DS_PROBE"
	childTry  = "try"  // make the attempts and print their results
	childExit = "exit" // nothing: that it started is the result
)

// childTimeout bounds a child, which needs some milliseconds.
const childTimeout = 20 * time.Second

// minKernel is the oldest kernel the project supports.
var minKernel = [2]int{5, 4}

// Main must be the first call of main or TestMain. In the child process of a
// probe it does not return.
func Main() {
	switch os.Getenv(childEnv) {
	case childExit:
		os.Exit(0)
	case childTry:
		if err := json.NewEncoder(os.Stdout).Encode(tryAll()); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// attempt is a probe that changes the network it runs in.
type attempt struct {
	name Name
	cure string
	try  func() (detail string, err error)
}

// attempts begins with NetNS, which the others need.
var attempts = []attempt{
	{NetNS, cureNS, tryNetNS},
	{TUN, "load the module (modprobe tun), let this user open /dev/net/tun (a container needs the device), or run as root", tryTUN},
	{TCPRepair, "use a kernel with CONFIG_CHECKPOINT_RESTORE", tryTCPRepair},
	{NFQueue, "use a kernel with CONFIG_NETFILTER_NETLINK_QUEUE (modprobe nfnetlink_queue)", tryNFQueue},
	{IP6Tunnel, "use a kernel with CONFIG_IPV6_TUNNEL (modprobe ip6_tunnel); dsco tunnels by itself otherwise", tryIP6Tunnel},
	{MobileIPv6, "use a kernel with CONFIG_IPV6_MIP6 (modprobe mip6); dsco is its own correspondent otherwise", tryMobileIPv6},
	{BPF, "run as root outside of user namespaces, or with CAP_BPF and CAP_NET_ADMIN; on Linux 6.6 or newer with CONFIG_BPF_SYSCALL", tryBPF},
	{NFTables, "use a kernel with CONFIG_NF_TABLES_IPV6 (modprobe nf_tables); dsco forwards tunnels by itself otherwise", tryNFTables},
	{Seg6, "use a kernel with CONFIG_IPV6_SEG6_LWTUNNEL; dsco forwards tunnels by itself otherwise", trySeg6},
}

const cureNS = "allow unprivileged user namespaces (sysctl user.max_user_namespaces, user.max_net_namespaces, " +
	"kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0) or run as root"

func run() []Result {
	results := []Result{arch(), kernel(), users(), userNS()}
	var tried []Result
	if netns.Inside() {
		tried = tryAll()
	} else {
		tried = tryInChild()
	}
	results = append(results, tried[0], netAdmin())
	return append(results, tried[1:]...)
}

// users reads how many user ids the namespace of this process has.
func users() Result {
	r := Result{Name: Users}
	b, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		r.Detail, r.Cure = err.Error(), "mount /proc"
		return r
	}
	var ids uint64
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 3 {
			n, _ := strconv.ParseUint(f[2], 10, 32)
			ids += n
		}
	}
	if r.OK = ids > 1; !r.OK {
		r.Detail = "this user namespace has one user"
		r.Cure = "run as root, or in a namespace with more (newuidmap)"
		return r
	}
	r.Detail = fmt.Sprintf("%d user ids", ids)
	return r
}

// tryAll makes the attempts in this process.
func tryAll() []Result {
	return each(func(a attempt) (string, error) { return a.try() })
}

// tryInChild makes the attempts in a child in fresh namespaces. When there is
// no child, all have failed.
func tryInChild() []Result {
	var results []Result
	cmd, cancel := child(childTry)
	defer cancel()
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("no process in a new network namespace: %w", err)
	} else if json.Unmarshal(out, &results) != nil || len(results) != len(attempts) {
		err = fmt.Errorf("child answered %.40q: main or TestMain must begin with probe.Main", out)
	}
	if err != nil {
		return each(func(attempt) (string, error) { return "", err })
	}
	return results
}

func each(try func(attempt) (string, error)) []Result {
	results := make([]Result, len(attempts))
	for i, a := range attempts {
		detail, err := try(a)
		results[i] = result(a.name, detail, err, a.cure)
	}
	return results
}

func result(name Name, detail string, err error, cure string) Result {
	if err != nil {
		return Result{Name: name, Detail: err.Error(), Cure: cure}
	}
	return Result{Name: name, OK: true, Detail: detail}
}

// child is this program again in fresh namespaces. Should its Main be missing
// and it be a test binary, it runs no test.
func child(do string) (*exec.Cmd, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(context.Background(), childTimeout)
	// A race detector would wait a second before it lets the child go.
	cmd := netns.Reexec(ctx, []string{childEnv + "=" + do, "GORACE=atexit_sleep_ms=0"}, "-test.run=^$")
	if os.Getenv(childEnv) != "" {
		cmd.Err = fmt.Errorf("probe: child of a probe started another: main or TestMain must begin with probe.Main")
	}
	return cmd, cancel
}

func arch() Result {
	little := binary.NativeEndian.Uint16([]byte{1, 0}) == 1
	var err error
	if strconv.IntSize != 64 || !little {
		err = fmt.Errorf("%s, %d bits, little-endian %t", runtime.GOARCH, strconv.IntSize, little)
	}
	return result(Arch, runtime.GOARCH, err, "use a 64-bit little-endian machine, such as amd64, arm64 or riscv64")
}

func kernel() Result {
	var u unix.Utsname
	err := unix.Uname(&u)
	release := unix.ByteSliceToString(u.Release[:])
	var major, minor int
	if err == nil {
		_, err = fmt.Sscanf(release, "%d.%d", &major, &minor)
	}
	if err == nil && (major < minKernel[0] || major == minKernel[0] && minor < minKernel[1]) {
		err = fmt.Errorf("this is Linux %s", release)
	}
	return result(Kernel, "Linux "+release, err, fmt.Sprintf("use Linux %d.%d or newer", minKernel[0], minKernel[1]))
}

func userNS() Result {
	cmd, cancel := child(childExit)
	defer cancel()
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	return result(UserNS, "created", cmd.Run(), cureNS)
}

func netAdmin() Result {
	var err error
	if !netns.Capable(unix.CAP_NET_ADMIN) {
		err = fmt.Errorf("uid %d without the capability", os.Geteuid())
	}
	return result(NetAdmin, "effective", err, "run as root, or give the program the capability (setcap cap_net_admin+ep)")
}

func tryNetNS() (string, error) { return "created, loopback up", netns.UpLoopback() }

func tryTUN() (string, error) {
	const path = "/dev/net/tun"
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd) // and the interface is gone
	ifr, err := unix.NewIfreq("dsprobe%d")
	if err != nil {
		return "", err
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return "", os.NewSyscallError("TUNSETIFF", err)
	}
	return "created " + ifr.Name(), nil
}

func tryTCPRepair() (string, error) {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	return "switched on", os.NewSyscallError("TCP_REPAIR", unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, 1))
}

// tryNFQueue binds queue 65535; closing the socket unbinds it. Whether the
// NFQUEUE target is there can only be told by a rule.
func tryNFQueue() (string, error) {
	const (
		subsysQueue = 3 // NFNL_SUBSYS_QUEUE
		msgConfig   = 2 // NFQNL_MSG_CONFIG
		cfgCmd      = 1 // NFQA_CFG_CMD
		cmdBind     = 1 // NFQNL_CFG_CMD_BIND
	)
	req := nl.NewNetlinkRequest(subsysQueue<<8|msgConfig, unix.NLM_F_ACK)
	req.AddData(&nl.Nfgenmsg{Version: unix.NFNETLINK_V0, ResId: 0xffff})
	req.AddData(nl.NewRtAttr(cfgCmd, []byte{cmdBind, 0, 0, unix.AF_INET6}))
	if _, err := req.Execute(unix.NETLINK_NETFILTER, 0); err != nil {
		return "", fmt.Errorf("bind queue: %w", err)
	}
	return "queue bound", nil
}

func tryBPF() (string, error) { return "classifiers loaded", kernelro.Probe() }

func tryIP6Tunnel() (string, error) {
	link := &netlink.Ip6tnl{
		LinkAttrs: netlink.LinkAttrs{Name: "dsprobe-ip6tnl"},
		Local:     net.ParseIP("2001:db8::1"),
		Remote:    net.ParseIP("2001:db8::2"),
		Proto:     unix.IPPROTO_IPV6,
	}
	if err := netlink.LinkAdd(link); err != nil {
		return "", fmt.Errorf("create: %w", err)
	}
	return "created", netlink.LinkDel(link)
}

// tryMobileIPv6 adds the state with which a correspondent would send to a
// mobile node (RFC 6275 section 9.3.2): a type 2 routing header.
func tryMobileIPv6() (string, error) {
	const (
		modeRouteOptimization = 2  // XFRM_MODE_ROUTEOPTIMIZATION
		attrCareOf            = 14 // XFRMA_COADDR
	)
	state := &nl.XfrmUsersaInfo{Family: unix.AF_INET6, Mode: modeRouteOptimization}
	state.Id.Proto = unix.IPPROTO_ROUTING
	state.Id.Daddr.FromIP(net.ParseIP("2001:db8::1"))
	state.Saddr.FromIP(net.ParseIP("2001:db8::2"))
	state.Lft.SoftByteLimit, state.Lft.HardByteLimit = nl.XFRM_INF, nl.XFRM_INF
	state.Lft.SoftPacketLimit, state.Lft.HardPacketLimit = nl.XFRM_INF, nl.XFRM_INF
	state.Lft.HardAddExpiresSeconds = 1 // removes itself

	req := nl.NewNetlinkRequest(nl.XFRM_MSG_NEWSA, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	req.AddData(state)
	req.AddData(nl.NewRtAttr(attrCareOf, net.ParseIP("2001:db8::3")))
	if _, err := req.Execute(unix.NETLINK_XFRM, 0); err != nil {
		return "", fmt.Errorf("add route optimisation state: %w", err)
	}
	return "route optimisation state added", nil
}

// tryNFTables asks for the number of the rule set.
func tryNFTables() (string, error) {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN, 0)
	req.AddData(&nl.Nfgenmsg{Version: unix.NFNETLINK_V0})
	if _, err := req.Execute(unix.NETLINK_NETFILTER, 0); err != nil {
		return "", fmt.Errorf("ask for the generation: %w", err)
	}
	return "answers", nil
}

// trySeg6 adds a route with a tunnel and one that ends tunnels.
func trySeg6() (string, error) {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return "", err
	}
	exit := &netlink.SEG6LocalEncap{Action: nl.SEG6_LOCAL_ACTION_END_DX6, In6Addr: net.IPv6unspecified}
	exit.Flags[nl.SEG6_LOCAL_ACTION], exit.Flags[nl.SEG6_LOCAL_NH6] = true, true
	const reduced = 3 // SEG6_IPTUN_MODE_ENCAP_RED
	for _, encap := range []netlink.Encap{&netlink.SEG6Encap{Mode: reduced, Segments: []net.IP{net.ParseIP("2001:db8::2")}}, exit} {
		r := &netlink.Route{
			LinkIndex: lo.Attrs().Index, Encap: encap,
			Dst: &net.IPNet{IP: net.ParseIP("2001:db8::1"), Mask: net.CIDRMask(128, 128)},
		}
		if err := netlink.RouteAdd(r); err != nil {
			return "", fmt.Errorf("add route: %w", err)
		}
		if err := netlink.RouteDel(r); err != nil {
			return "", fmt.Errorf("remove route: %w", err)
		}
	}
	return "routes added", nil
}
