package host

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Host is what has been changed on this host, in the network namespace of the
// process. Its methods may be called from any goroutine.
//
// To make the same change twice is no error; it is undone once.
type Host struct {
	cfg  Config
	lock *os.File

	mu      sync.Mutex
	closed  bool
	journal journal
	made    map[made]int // what carries the number, and when it came
	seq     int
}

// made is a route, a rule or a proxy entry.
type made struct {
	kind  kind
	iface string
	to    netip.Prefix
	table int
	rule  Rule
	exit  bool // a route at which a tunnel ends

	// A route into a tunnel: its ends.
	from, into netip.Addr
}

type kind uint8

const (
	route kind = iota + 1
	rule
	proxy
)

// Open takes the state directory, and first undoes what a daemon that was killed
// has left.
func Open(cfg Config) (*Host, error) {
	cfg = cfg.withDefaults()
	if cfg.State == "" {
		return nil, errors.New("host: open: no state directory in the configuration")
	}
	if err := os.MkdirAll(cfg.State, 0o750); err != nil {
		return nil, fmt.Errorf("host: state directory: %w; make it, and give it to the user that the daemon runs as", err)
	}
	lock, err := lockState(cfg.State)
	if err != nil {
		return nil, err
	}
	h := &Host{cfg: cfg, lock: lock, made: make(map[made]int)}
	if err := h.begin(); err != nil {
		lock.Close()
		return nil, err
	}
	return h, nil
}

// begin undoes what is left and writes an empty journal.
func (h *Host) begin() error {
	here, err := whereabouts()
	if err != nil {
		return err
	}
	old, err := readJournal(h.cfg.State)
	if err != nil {
		return err
	}
	if old != nil && old.Boot == here.Boot {
		if old.Namespace == here.Namespace {
			h.cfg.Logger.Warn("host: a daemon was killed here: undoing what it left", "state", h.cfg.State)
			if err := old.undo(h.cfg.Logger.Warn); err != nil {
				return err
			}
		} else {
			h.cfg.Logger.Warn("host: a daemon was killed in another network namespace: what it left there stays",
				"state", h.cfg.State, "namespace", old.Namespace)
		}
	}
	here.Protocol = h.cfg.Protocol
	h.journal = here
	return h.journal.write(h.cfg.State)
}

// Cleanup undoes what a daemon that was killed left, as its journal in the state
// directory tells. It is an error if the daemon still runs; nothing to be done
// is none.
func Cleanup(state string) error {
	if _, err := os.Stat(state); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	lock, err := lockState(state)
	if err != nil {
		return err
	}
	defer lock.Close()
	j, err := readJournal(state)
	if err != nil {
		return err
	}
	if j == nil {
		return removeJournal(state) // one that was begun
	}
	here, err := whereabouts()
	if err != nil {
		return err
	}
	if j.Boot == here.Boot {
		if j.Namespace != here.Namespace {
			return fmt.Errorf("host: cleanup: the daemon ran in network namespace %s, this is %s; do it there, or, if that is gone, delete %s",
				j.Namespace, here.Namespace, filepath.Join(state, journalName))
		}
		if err := j.undo(func(string, ...any) {}); err != nil {
			return err
		}
	}
	return removeJournal(state)
}

// whereabouts is an empty journal of this boot and network namespace.
func whereabouts() (journal, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return journal{}, fmt.Errorf("host: %w; mount /proc", err)
	}
	ns, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		return journal{}, fmt.Errorf("host: %w; mount /proc", err)
	}
	return journal{Version: journalVersion, Boot: strings.TrimSpace(string(boot)), Namespace: ns}, nil
}

// lockState locks the state directory for as long as the file is open.
func lockState(dir string) (*os.File, error) {
	name := filepath.Join(dir, lockName)
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("host: lock state directory: %w; give it to the user that the daemon runs as", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if err != unix.EWOULDBLOCK {
			return nil, fmt.Errorf("host: lock %s: %w", name, err)
		}
		who := "another process"
		b := make([]byte, 32)
		if n, _ := f.ReadAt(b, 0); n > 0 {
			who = "process " + strings.TrimSpace(string(b[:n]))
		}
		return nil, fmt.Errorf("host: state directory %s: %w: %s uses it; stop that daemon, or give this one a state directory of its own", dir, unix.EBUSY, who)
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt(fmt.Appendln(nil, os.Getpid()), 0)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("host: lock %s: %w", name, err)
	}
	return f, nil
}

// Close undoes everything, in reverse. What cannot be undone is in the error,
// and stays in the journal, for the next Open or Cleanup; everything else is
// undone all the same.
func (h *Host) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil
	}
	h.closed = true
	defer h.lock.Close()

	var errs []error
	order := make([]made, 0, len(h.made))
	for m := range h.made {
		order = append(order, m)
	}
	slices.SortFunc(order, func(a, b made) int { return -cmp.Compare(h.made[a], h.made[b]) })
	for _, m := range order {
		errs = append(errs, m.remove(h.cfg.Protocol))
	}
	var left []recorded
	for _, c := range slices.Backward(h.journal.Changes) {
		if err := c.undo(h.cfg.Logger.Warn); err != nil {
			errs = append(errs, err)
			left = slices.Insert(left, 0, c)
		}
	}
	if err := errors.Join(errs...); err != nil {
		h.journal.Changes = left
		return errors.Join(err, h.journal.write(h.cfg.State))
	}
	return removeJournal(h.cfg.State)
}

// undo undoes all that a killed daemon left. The journal may tell of changes
// that were never made, the last one in particular.
func (j *journal) undo(warn func(string, ...any)) error {
	errs := []error{Sweep(j.Protocol)}
	for _, c := range slices.Backward(j.Changes) {
		errs = append(errs, c.undo(warn))
	}
	return errors.Join(errs...)
}

func (c *recorded) undo(warn func(string, ...any)) error {
	if c.Sysctl != "" {
		return c.restore(warn)
	}
	return removeAddr(c.Interface, c.Address)
}

var errClosed = errors.New("host: closed")

// make makes m unless it is there.
func (h *Host) make(m made) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return errClosed
	}
	if _, ok := h.made[m]; ok {
		return nil
	}
	if err := m.add(h.cfg.Protocol); err != nil {
		return err
	}
	h.seq++
	h.made[m] = h.seq
	return nil
}

// unmake removes m if it was made here.
func (h *Host) unmake(m made) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return errClosed
	}
	if _, ok := h.made[m]; !ok {
		return nil
	}
	delete(h.made, m)
	return m.remove(h.cfg.Protocol)
}

// record notes a change that is made by do: before, so that it is not forgotten.
func (h *Host) record(c recorded, do func() error) error {
	h.journal.Changes = append(h.journal.Changes, c)
	err := h.journal.write(h.cfg.State)
	if err == nil {
		if err = do(); err == nil {
			return nil
		}
	}
	h.journal.Changes = h.journal.Changes[:len(h.journal.Changes)-1]
	return errors.Join(err, h.journal.write(h.cfg.State))
}

// AddRoute adds a route to an interface. table 0 is the main one.
func (h *Host) AddRoute(prefix netip.Prefix, iface string, table int) error {
	return h.make(made{kind: route, to: prefix.Masked(), iface: iface, table: cmp.Or(table, unix.RT_TABLE_MAIN)})
}

// RemoveRoute removes a route that AddRoute has added; another is left alone.
func (h *Host) RemoveRoute(prefix netip.Prefix, iface string, table int) error {
	return h.unmake(made{kind: route, to: prefix.Masked(), iface: iface, table: cmp.Or(table, unix.RT_TABLE_MAIN)})
}

// AddExit adds a route at which tunnels end: the packets inside of those that are
// routed to addr go where they are routed themselves. iface is any that is up; it
// says how long the route lasts. It needs a kernel with seg6local.
func (h *Host) AddExit(addr netip.Addr, iface string, table int) error {
	return h.make(made{kind: route, to: netip.PrefixFrom(addr, addr.BitLen()), iface: iface, table: cmp.Or(table, unix.RT_TABLE_MAIN), exit: true})
}

// RemoveExit removes a route that AddExit has added.
func (h *Host) RemoveExit(addr netip.Addr, iface string, table int) error {
	return h.unmake(made{kind: route, to: netip.PrefixFrom(addr, addr.BitLen()), iface: iface, table: cmp.Or(table, unix.RT_TABLE_MAIN), exit: true})
}

// AddEntrance adds a route by which all packets, in a table, go into a tunnel of RFC
// 2473, from an address of this host, which the interface gets as well: so the kernel
// chooses it as source. It replaces the one that is there. It needs a kernel with seg6.
func (h *Host) AddEntrance(iface string, table int, from, into netip.Addr) error {
	if h.replaced(iface, table, from, into) {
		return nil
	}
	return h.make(entrance(iface, table, from, into))
}

func entrance(iface string, table int, from, into netip.Addr) made {
	return made{kind: route, to: netip.PrefixFrom(netip.IPv6Unspecified(), 0), iface: iface, table: table, from: from, into: into}
}

// replaced is that another entrance is forgotten, whose place this one takes when it
// is made; or that it is there already.
func (h *Host) replaced(iface string, table int, from, into netip.Addr) (same bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for m := range h.made {
		if m.kind == route && m.into.IsValid() && m.iface == iface && m.table == table {
			if m == entrance(iface, table, from, into) {
				return true
			}
			delete(h.made, m)
		}
	}
	return false
}

// RemoveEntrance removes a route that AddEntrance has added.
func (h *Host) RemoveEntrance(iface string, table int, from, into netip.Addr) error {
	return h.unmake(entrance(iface, table, from, into))
}

// AddRule adds a routing rule.
func (h *Host) AddRule(r Rule) error { return h.make(made{kind: rule, rule: r}) }

// RemoveRule removes a rule that AddRule has added.
func (h *Host) RemoveRule(r Rule) error { return h.unmake(made{kind: rule, rule: r}) }

// AddProxy has the kernel answer for addr on an interface's link, to Neighbor
// Solicitations, and sets the sysctls of the interface that it needs for that:
// usually the kernel waits up to 0.8 s before it answers, in case there are
// several proxies for an address (RFC 4861 section 7.2.8), and here is one. It
// answers only while it forwards: see [Host.Forward].
func (h *Host) AddProxy(iface string, addr netip.Addr) error {
	for _, s := range [][2]string{{"conf/" + iface + "/proxy_ndp", "1"}, {"neigh/" + iface + "/proxy_delay", "0"}} {
		if err := h.SetSysctl("net/ipv6/"+s[0], s[1]); err != nil {
			return err
		}
	}
	return h.make(made{kind: proxy, iface: iface, to: netip.PrefixFrom(addr, addr.BitLen())})
}

// RemoveProxy ends what AddProxy has begun; the sysctl stays until Close.
func (h *Host) RemoveProxy(iface string, addr netip.Addr) error {
	return h.unmake(made{kind: proxy, iface: iface, to: netip.PrefixFrom(addr, addr.BitLen())})
}

// AddAddr gives an interface an address, and waits until Duplicate Address
// Detection has found it unique, about a second on a link with others. It is an
// error if some interface has it already.
func (h *Host) AddAddr(iface string, addr netip.Prefix) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return errClosed
	}
	c := recorded{Interface: iface, Address: addr}
	if h.recorded(c) >= 0 {
		return nil
	}
	link, err := readyFor(iface, addr)
	if err != nil {
		return err
	}
	if err := h.record(c, func() error { return addAddr(link, addr) }); err != nil {
		return err
	}
	if err := awaitUnique(link, addr); err != nil {
		return errors.Join(err, h.removeAddr(c))
	}
	return nil
}

// RemoveAddr removes an address that AddAddr has added.
func (h *Host) RemoveAddr(iface string, addr netip.Prefix) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return errClosed
	}
	return h.removeAddr(recorded{Interface: iface, Address: addr})
}

func (h *Host) removeAddr(c recorded) error {
	i := h.recorded(c)
	if i < 0 {
		return nil
	}
	if err := removeAddr(c.Interface, c.Address); err != nil {
		return err
	}
	h.journal.Changes = slices.Delete(h.journal.Changes, i, i+1)
	return h.journal.write(h.cfg.State)
}

// recorded is where the journal has an address; -1: nowhere.
func (h *Host) recorded(c recorded) int {
	return slices.IndexFunc(h.journal.Changes, func(r recorded) bool {
		return r.Sysctl == "" && r.Interface == c.Interface && r.Address == c.Address
	})
}
