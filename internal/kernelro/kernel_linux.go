package kernelro

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Binding is what the kernel knows of a binding.
type Binding struct {
	CareOf netip.Addr

	// Out is the number of the interface by which packets for it leave, through a
	// neighbor that the routes from there lead to. 0: they are changed and stay on
	// their way.
	Out int

	// MTU is of the path there. What is longer passes unchanged.
	MTU int

	// Until is when it ends, on the clock of [Now].
	Until time.Duration
}

// Now is the time of the kernel's clock that the programs have (CLOCK_MONOTONIC).
func Now() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err) // there is no Linux without
	}
	return time.Duration(ts.Nano())
}

// The table's values.
const (
	valueCareOf = 0
	valueUntil  = 16 // ns
	valueUsed   = 24 // ns; 0: not yet
	valueOut    = 32
	valueMTU    = 36
	valueSize   = 40
)

const keySize = 32 // local and home address

type tables struct{ bindings, counts *ebpf.Map }

func newTables(max int) (*tables, error) {
	bindings, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "ds_ro_bindings", Type: ebpf.Hash, KeySize: keySize, ValueSize: valueSize,
		MaxEntries: uint32(max), Flags: unix.BPF_F_NO_PREALLOC,
	})
	if err != nil {
		return nil, fmt.Errorf("make a table of bindings: %w", err)
	}
	counts, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "ds_ro_counts", Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 8, MaxEntries: counters,
	})
	if err != nil {
		bindings.Close()
		return nil, fmt.Errorf("make counters: %w", err)
	}
	return &tables{bindings, counts}, nil
}

func (t *tables) close() error { return errors.Join(t.bindings.Close(), t.counts.Close()) }

// Kernel is a table of bindings, and the programs that use it. Nothing of it is
// left when the process ends. It is safe for concurrent use but for Attach and Close.
type Kernel struct {
	tables *tables
	links  []link.Link
}

// Probe reports whether the kernel lets this process have what is needed; the error
// names what is missing.
func Probe() error {
	k, err := New(1)
	if err != nil {
		return err
	}
	defer k.Close()
	for _, spec := range []*ebpf.ProgramSpec{egress(k.tables, 0), ingress(k.tables, 0, 1)} {
		prog, err := load(spec)
		if err != nil {
			return err
		}
		// There is no interface 0: a kernel that can, says so.
		l, err := link.AttachTCX(link.TCXOptions{Program: prog, Attach: ebpf.AttachTCXIngress})
		prog.Close()
		if err == nil {
			return l.Close()
		}
		if errors.Is(err, ebpf.ErrNotSupported) {
			return fmt.Errorf("kernelro: attach %s: %w: it needs Linux 6.6", spec.Name, err)
		}
	}
	return nil
}

// New makes a table with room for max bindings.
func New(max int) (*Kernel, error) {
	t, err := newTables(max)
	if errors.Is(err, unix.EPERM) {
		err = fmt.Errorf("%w: it needs CAP_BPF, outside of any user namespace", err)
	}
	if err != nil {
		return nil, fmt.Errorf("kernelro: %w", err)
	}
	return &Kernel{tables: t}, nil
}

// Interface is one at which programs can be.
type Interface struct {
	Index int
	L2    int // octets of the frame before the IPv6 header: 14 with Ethernet's, 0 without
}

// InterfaceOf is a link as the programs see it; an error if it is of a kind that they
// do not know.
func InterfaceOf(l netlink.Link) (Interface, error) {
	attrs := l.Attrs()
	i := Interface{Index: attrs.Index}
	switch attrs.EncapType {
	case "ether":
		i.L2 = ethSize
	case "none": // a TUN, WireGuard
	default:
		return i, fmt.Errorf("kernelro: interface %s: frames of kind %q are not known", attrs.Name, attrs.EncapType)
	}
	return i, nil
}

// AttachOut has what leaves by an interface looked at.
func (k *Kernel) AttachOut(i Interface) error {
	return k.attach(i, egress(k.tables, int32(i.L2)), ebpf.AttachTCXEgress)
}

// AttachIn has what comes in by an interface looked at. What is changed comes in by
// interface to instead; 0: by the one by which it has come.
func (k *Kernel) AttachIn(i Interface, to int) error {
	return k.attach(i, ingress(k.tables, int32(i.L2), int32(to)), ebpf.AttachTCXIngress)
}

func (k *Kernel) attach(i Interface, spec *ebpf.ProgramSpec, at ebpf.AttachType) error {
	prog, err := load(spec)
	if err != nil {
		return err
	}
	defer prog.Close() // the link has it
	l, err := link.AttachTCX(link.TCXOptions{Interface: i.Index, Program: prog, Attach: at})
	if err != nil {
		return fmt.Errorf("kernelro: attach %s to interface %d: %w", spec.Name, i.Index, err)
	}
	k.links = append(k.links, l)
	return nil
}

func load(spec *ebpf.ProgramSpec) (*ebpf.Program, error) {
	prog, err := ebpf.NewProgram(spec)
	if err != nil {
		return nil, fmt.Errorf("kernelro: load %s: %w", spec.Name, err)
	}
	return prog, nil
}

func keyOf(local, home netip.Addr) []byte {
	l, h := local.As16(), home.As16()
	return append(append(make([]byte, 0, keySize), l[:]...), h[:]...)
}

// Bind makes a binding between an address of this host and a home address, or changes
// it; then it has not been used.
func (k *Kernel) Bind(local, home netip.Addr, b Binding) error {
	v := make([]byte, valueSize)
	careOf := b.CareOf.As16()
	copy(v[valueCareOf:], careOf[:])
	binary.NativeEndian.PutUint64(v[valueUntil:], uint64(b.Until))
	binary.NativeEndian.PutUint32(v[valueOut:], uint32(b.Out))
	binary.NativeEndian.PutUint32(v[valueMTU:], uint32(b.MTU))
	if err := k.tables.bindings.Put(keyOf(local, home), v); err != nil {
		return fmt.Errorf("kernelro: bind %v to %v: %w", home, b.CareOf, err)
	}
	return nil
}

// Reroute changes by which interface packets of a binding leave, and the MTU of the
// path. When it was used is known as before.
func (k *Kernel) Reroute(local, home netip.Addr, out, mtu int) error {
	key := keyOf(local, home)
	v := make([]byte, valueSize)
	err := k.tables.bindings.Lookup(key, v)
	if err == nil {
		binary.NativeEndian.PutUint32(v[valueOut:], uint32(out))
		binary.NativeEndian.PutUint32(v[valueMTU:], uint32(mtu))
		err = k.tables.bindings.Update(key, v, ebpf.UpdateExist)
	}
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("kernelro: reroute %v: %w", home, err)
	}
	return nil
}

// Unbind ends a binding, if there is one.
func (k *Kernel) Unbind(local, home netip.Addr) error {
	err := k.tables.bindings.Delete(keyOf(local, home))
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("kernelro: unbind %v: %w", home, err)
	}
	return nil
}

// Used is when a packet last went by way of a binding, on the clock of [Now]; ok is
// false if none has since Bind.
func (k *Kernel) Used(local, home netip.Addr) (at time.Duration, ok bool) {
	v := make([]byte, valueSize)
	if k.tables.bindings.Lookup(keyOf(local, home), v) != nil {
		return 0, false
	}
	at = time.Duration(binary.NativeEndian.Uint64(v[valueUsed:]))
	return at, at != 0
}

// Packets counts those that the programs have changed; a super-packet is one.
func (k *Kernel) Packets() (out, in uint64) {
	for which, sum := range map[uint32]*uint64{countOut: &out, countIn: &in} {
		var each []uint64
		if k.tables.counts.Lookup(which, &each) != nil {
			continue
		}
		for _, n := range each {
			*sum += n
		}
	}
	return out, in
}

// Close takes the programs off.
func (k *Kernel) Close() error {
	var errs []error
	for _, l := range k.links {
		errs = append(errs, l.Close())
	}
	k.links = nil
	errs = append(errs, k.tables.close())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("kernelro: close: %w", err)
	}
	return nil
}
