package filter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A family is a pair of programs that change the rules of an IP version.
type family struct{ save, restore string }

var (
	ipv6 = family{"ip6tables-save", "ip6tables-restore"}
	ipv4 = family{"iptables-save", "iptables-restore"}
)

// programTimeout bounds a program, which needs some milliseconds, and may wait
// for others of its kind.
const (
	programTimeout = 10 * time.Second
	lockWait       = "5" // seconds
)

// install replaces what there is of the queue's chains by r. Each IP version is
// one transaction; if the second fails, the first is undone.
func install(queue uint16, r Rules) error {
	if r.err != nil {
		return r.err
	}
	if err := ipv4.apply(queue, r.v4); err != nil {
		return err
	}
	if err := ipv6.apply(queue, r.v6); err != nil {
		if len(r.v4) > 0 {
			err = errors.Join(err, ipv4.apply(queue, nil))
		}
		return err
	}
	return nil
}

// apply replaces what there is of the queue's chains by chains. Another program
// may change the rules between our look and our change: then the transaction
// fails as a whole, and there is another.
func (f family) apply(queue uint16, chains []chain) error {
	var err error
	for range 3 {
		var saved, errText string
		if saved, _, err = runProgram(f.save, "", "-t", table); err != nil {
			return err
		}
		s := script(queue, chains, saved)
		if s == "" {
			return nil
		}
		if _, errText, err = runProgram(f.restore, s, "--noflush", "-w", lockWait); err == nil {
			return nil
		}
		if hint := cure(errText); hint != "" {
			return fmt.Errorf("%w; %s", err, hint)
		}
	}
	return err
}

// installed reports whether the rules of r are all there.
func installed(queue uint16, r Rules) (bool, error) {
	for _, v := range []struct {
		family
		chains []chain
	}{{ipv4, r.v4}, {ipv6, r.v6}} {
		if len(v.chains) == 0 {
			continue
		}
		saved, _, err := runProgram(v.save, "", "-t", table)
		if err != nil || !whole(queue, v.chains, saved) {
			return false, err
		}
	}
	return true, nil
}

// systemDirs are where the system's programs are.
var systemDirs = []string{"/usr/sbin", "/sbin"}

// find looks for a program in PATH, and in systemDirs.
func find(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	for _, dir := range systemDirs {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("filter: find %s: %w; install the package iptables, or add its directory to PATH", name, exec.ErrNotFound)
}

// runProgram runs a program with input.
func runProgram(name, input string, args ...string) (out, errText string, err error) {
	path, err := find(name)
	if err != nil {
		return "", "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), programTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdin = strings.NewReader(input)
	cmd.SysProcAttr = &syscall.SysProcAttr{AmbientCaps: ambient()}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		text := strings.Join(strings.Fields(stderr.String()), " ")
		return "", text, fmt.Errorf("filter: %s: %w: %s", name, err, text)
	}
	return stdout.String(), "", nil
}

// ambient are the capabilities that a child must be given. A process that is
// not root has them for itself only, unless they are ambient.
func ambient() []uintptr {
	if os.Geteuid() == 0 {
		return nil
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&hdr, &data[0]) != nil {
		return nil
	}
	var caps []uintptr
	for _, c := range []uintptr{unix.CAP_NET_ADMIN, unix.CAP_NET_RAW} {
		if data[c/32].Permitted&(1<<(c%32)) != 0 {
			caps = append(caps, c)
		}
	}
	return caps
}

// cure is what helps against what iptables complains of; "": unknown.
func cure(text string) string {
	text = strings.ToLower(text)
	switch {
	case strings.Contains(text, "permission denied"), strings.Contains(text, "not permitted"):
		return curePermission
	case strings.Contains(text, "table does not exist"), strings.Contains(text, "can't initialize"),
		strings.Contains(text, "unable to initialize"):
		return "use a kernel with the raw table of ip6tables (modprobe ip6table_raw iptable_raw, or nf_tables and nft_compat)"
	case strings.Contains(text, "couldn't load"), strings.Contains(text, "no chain/target/match"),
		strings.Contains(text, "missing kernel module"):
		return "use a kernel with the matches mh, ipv6header, u32, addrtype, comment and the target NFQUEUE (modprobe xt_NFQUEUE ip6t_mh ip6t_ipv6header xt_u32)"
	}
	return ""
}

const curePermission = "this needs CAP_NET_ADMIN: run as root, or give the program the capability (setcap cap_net_admin+ep, AmbientCapabilities= of systemd)"
