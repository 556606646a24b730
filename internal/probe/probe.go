// Package probe finds out, by trying, what this machine lets this process do.
//
// Probes that would change the network run in a child process in fresh
// namespaces, so a program or test that uses them begins with [Main].
package probe

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
)

// Name identifies a probe, in messages and in [RequireEnv].
type Name string

const (
	UserNS     Name = "userns"     // create a user namespace
	NetNS      Name = "netns"      // create a network namespace and set its loopback up
	TUN        Name = "tun"        // create a TUN interface, in a network namespace
	NetAdmin   Name = "net_admin"  // change this process's own network
	TCPRepair  Name = "tcp_repair" // put a TCP socket into repair mode, in a network namespace
	NFQueue    Name = "nfqueue"    // bind a Netfilter queue, in a network namespace
	IP6Tunnel  Name = "ip6tnl"     // create an IPv6-in-IPv6 tunnel interface, in a network namespace
	MobileIPv6 Name = "mip6"       // add a route optimisation state to the kernel, in a network namespace
	BPF        Name = "bpf"        // load a BPF program for an interface, to go with its process
	NFTables   Name = "nftables"   // speak to nftables, in a network namespace
	Seg6       Name = "seg6"       // add routes that begin and end tunnels, in a network namespace
	Arch       Name = "arch"       // 64 bits, little-endian
	Kernel     Name = "kernel"     // a kernel that is new enough
	Users      Name = "users"      // more than one user, as programs that give up privilege need
)

// Program names the probe that finds a program: by its path, or in PATH.
func Program(program string) Name { return Name(programPrefix + program) }

const programPrefix = "program:"

// Names lists every probe, what others depend on first.
var Names = []Name{Arch, Kernel, Users, UserNS, NetNS, NetAdmin, TUN, TCPRepair, NFQueue, IP6Tunnel, MobileIPv6, BPF, NFTables, Seg6}

// Result is what a probe found.
type Result struct {
	Name   Name
	OK     bool
	Detail string // what was seen, on success too
	Cure   string // what makes it work, empty when OK
}

func (r Result) String() string {
	if r.OK {
		return string(r.Name) + ": ok: " + r.Detail
	}
	return string(r.Name) + ": " + r.Detail + "; " + r.Cure
}

// Check returns the result of a probe, which runs once per process, but for
// those of [Program].
func Check(name Name) Result {
	if program, ok := strings.CutPrefix(string(name), programPrefix); ok {
		return findProgram(name, program)
	}
	for _, r := range All() {
		if r.Name == name {
			return r
		}
	}
	return Result{Name: name, Detail: "no such probe", Cure: "use one of probe.Names"}
}

func findProgram(name Name, program string) Result {
	path, err := exec.LookPath(program)
	if err != nil {
		return Result{Name: name, Detail: err.Error(), Cure: "install it, or add its directory to PATH"}
	}
	return Result{Name: name, OK: true, Detail: path}
}

// All returns the results of all probes in the order of [Names]. They run
// once per process.
func All() []Result { return slices.Clone(all()) }

var all = sync.OnceValue(run)

// RequireEnv names the environment variable that holds the probes which must
// succeed: names separated by commas, or "all".
const RequireEnv = "DS_REQUIRE"

// TB is the part of [testing.TB] that [Skip] uses; it keeps package testing out
// of programs.
type TB interface {
	Helper()
	Skipf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// Skip skips the test when one of the probes fails, and says which, why and
// what to do. A probe that [RequireEnv] lists fails the test instead.
func Skip(t TB, names ...Name) {
	t.Helper()
	for _, name := range names {
		r := Check(name)
		switch {
		case r.OK:
		case required(os.Getenv(RequireEnv), name):
			t.Fatalf("probe %v (required by %s)", r, RequireEnv)
		default:
			t.Skipf("probe %v", r)
		}
	}
}

func required(list string, name Name) bool {
	for s := range strings.SplitSeq(list, ",") {
		if s = strings.TrimSpace(s); s == "all" || s == string(name) {
			return true
		}
	}
	return false
}
