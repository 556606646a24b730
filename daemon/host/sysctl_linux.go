package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const procSys = "/proc/sys/"

// sysctlPath is the path below /proc/sys of a key in the form of sysctl(8):
// separated by dots, or by slashes if the first separator is one, so that an
// interface's name may have dots.
func sysctlPath(key string) (string, error) {
	p := key
	if i := strings.IndexAny(key, "./"); i >= 0 && key[i] == '.' {
		p = strings.NewReplacer(".", "/", "/", ".").Replace(key)
	}
	if !validSysctl(p) {
		return "", fmt.Errorf("host: sysctl %q: not one of the network's; use one like net.ipv6.conf.eth0.forwarding", key)
	}
	return p, nil
}

// SetSysctl sets a sysctl of the network, in the form of sysctl(8): the parts of
// key are separated by dots, or by slashes. Nothing is recorded if it has the
// value.
//
// What the kernel changes with it, net.ipv6.conf.all.forwarding above all, is
// restored with it.
func (h *Host) SetSysctl(key, value string) error {
	p, err := sysctlPath(key)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.setSysctl(p, value)
}

func (h *Host) setSysctl(p, value string) error {
	if h.closed {
		return errClosed
	}
	old, err := readSysctl(p)
	if err != nil {
		return err
	}
	if old == value {
		return nil
	}
	c := recorded{Sysctl: p, Old: old, New: value, With: dependents(p)}
	return h.record(c, func() error { return writeSysctl(p, value) })
}

// Forward has this host forward IPv6 packets. A host that forwards ignores
// Router Advertisements and forgets the routes that it has from them, unless it
// is told otherwise: interfaces that listened to them go on to.
func (h *Host) Forward() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	const confs = "net/ipv6/conf"
	interfaces, err := os.ReadDir(procSys + confs)
	if err != nil {
		return fmt.Errorf("host: forward: %w; is IPv6 disabled?", err)
	}
	for _, i := range interfaces {
		listens := path.Join(confs, i.Name(), "accept_ra")
		// Two: although it forwards.
		if v, err := readSysctl(listens); err == nil && v == "1" {
			if err := h.setSysctl(listens, "2"); err != nil {
				return err
			}
		}
	}
	return h.setSysctl(confs+"/all/forwarding", "1")
}

// dependents are the sysctls that the kernel sets when p is set, and their
// values: forwarding of all interfaces sets that of each (addrconf_forward_change,
// inet_forward_change).
func dependents(p string) map[string]string {
	var pattern string
	switch p {
	case "net/ipv6/conf/all/forwarding":
		pattern = "net/ipv6/conf/*/forwarding"
	case "net/ipv4/conf/all/forwarding", "net/ipv4/ip_forward":
		pattern = "net/ipv4/conf/*/forwarding"
	default:
		return nil
	}
	names, _ := filepath.Glob(procSys + pattern)
	with := make(map[string]string)
	for _, name := range names {
		name = strings.TrimPrefix(name, procSys)
		if v, err := readSysctl(name); err == nil && name != p {
			with[name] = v
		}
	}
	return with
}

// restore gives a sysctl its old value back, unless somebody has changed it
// since; and likewise those that the kernel changes with it.
func (c *recorded) restore(warn func(string, ...any)) error {
	now, err := readSysctl(c.Sysctl)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil // an interface that is gone
	case err != nil:
		return err
	case now == c.Old:
		return nil // it was never changed
	case now != c.New:
		warn("host: sysctl changed by others: left alone", "sysctl", c.Sysctl, "value", now, "before", c.Old)
		return nil
	}
	with := make(map[string]string)
	for name, old := range c.With {
		if now, err := readSysctl(name); err == nil {
			if now == c.New {
				now = old
			}
			with[name] = now // what others have set meanwhile
		}
	}
	if err := writeSysctl(c.Sysctl, c.Old); err != nil {
		return err
	}
	for name, v := range with {
		if now, err := readSysctl(name); err != nil || now == v {
			continue
		}
		if err := writeSysctl(name, v); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func readSysctl(p string) (string, error) {
	b, err := os.ReadFile(procSys + p)
	if err != nil {
		return "", sysctlError("read", p, err)
	}
	return strings.TrimSpace(string(b)), nil
}

func writeSysctl(p, value string) error {
	if err := os.WriteFile(procSys+p, []byte(value), 0); err != nil {
		return sysctlError("write", p, err)
	}
	return nil
}

func sysctlError(operation, p string, err error) error {
	var cure string
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if rest, ok := strings.CutPrefix(p, "net/ipv6/conf/"); ok {
			cure = fmt.Sprintf("; there is no interface %s, or IPv6 is disabled; interfaces here: %s", path.Dir(rest), interfaces())
		}
	case errors.Is(err, fs.ErrPermission):
		cure = "; " + curePermission
	case errors.Is(err, unix.EROFS):
		cure = "; /proc/sys is read-only here: set ProtectKernelTunables=no in the unit, or let the container write to it"
	case errors.Is(err, unix.EINVAL):
		cure = "; not a value that it can have"
	}
	return fmt.Errorf("host: sysctl %s: %s: %w%s", strings.NewReplacer("/", ".", ".", "/").Replace(p), operation, err, cure)
}
