package kernelro

import (
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// Offsets in a frame on an Ethernet-like interface.
const (
	ethSize = 14
	ip6     = ethSize
	ip6Len  = ip6 + 4
	ip6Next = ip6 + 6
	ip6Src  = ip6 + 8
	ip6Dst  = ip6 + 24
	ext     = ip6 + 40 // the first extension header, or the transport's

	extSize = 24 // of either extension header here
)

// Of linux/bpf.h: room is made or taken behind the IP header, and segments keep
// their size.
const (
	adjustRoomNet      = 0
	adjustRoomFixedGSO = 1
	actOK              = 0
	actShot            = 2
)

// The stack frame of both programs.
const (
	addrAt = -16 // an address of the packet
	wordAt = -24 // what is read and written
	extAt  = -48 // the extension header
)

// egress inserts a type 2 routing header (RFC 6275 section 6.4.1) into what goes
// to home.
func egress(home, careOf netip.Addr) *ebpf.ProgramSpec {
	var b builder
	b.prologue()
	b.matchAddress(ip6Dst, home)
	b.load(ip6Next, wordAt, 1)
	b.add(asm.LoadMem(asm.R7, asm.RFP, wordAt, asm.Byte))
	b.room(extSize)
	// The extension header: next header, length 2, type 2, one segment left,
	// reserved, the home address.
	b.add(
		asm.StoreMem(asm.RFP, extAt, asm.R7, asm.Byte),
		asm.StoreImm(asm.RFP, extAt+1, 2, asm.Byte),
		asm.StoreImm(asm.RFP, extAt+2, 2, asm.Byte),
		asm.StoreImm(asm.RFP, extAt+3, 1, asm.Byte),
		asm.StoreImm(asm.RFP, extAt+4, 0, asm.Word),
	)
	b.address(extAt+8, home)
	b.store(ext, extAt, extSize)
	b.setNext(unix.IPPROTO_ROUTING)
	b.address(addrAt, careOf)
	b.store(ip6Dst, addrAt, 16)
	b.addLength(extSize)
	return b.program("ds_ro_egress")
}

// ingress takes the destination options header off what comes from careOf, if it
// has one of the size of a Home Address option, and makes it come from home.
func ingress(home, careOf netip.Addr) *ebpf.ProgramSpec {
	var b builder
	b.prologue()
	b.matchAddress(ip6Src, careOf)
	b.load(ip6Next, wordAt, 1)
	b.add(
		asm.LoadMem(asm.R7, asm.RFP, wordAt, asm.Byte),
		asm.JNE.Imm(asm.R7, unix.IPPROTO_DSTOPTS, "pass"),
	)
	b.load(ext, extAt, 8)
	b.add(
		asm.LoadMem(asm.R7, asm.RFP, extAt+1, asm.Byte),
		asm.JNE.Imm(asm.R7, extSize/8-1, "pass"),
		asm.LoadMem(asm.R7, asm.RFP, extAt+6, asm.Byte),
		asm.JNE.Imm(asm.R7, 201, "pass"), // the option's type
		asm.LoadMem(asm.R7, asm.RFP, extAt, asm.Byte),
	)
	b.room(-extSize)
	b.add(asm.StoreMem(asm.RFP, wordAt, asm.R7, asm.Byte))
	b.store(ip6Next, wordAt, 1)
	b.address(addrAt, home)
	b.store(ip6Src, addrAt, 16)
	b.addLength(-extSize)
	return b.program("ds_ro_ingress")
}

// builder puts a program together. R6 is the packet, R7 is free.
type builder struct{ ins asm.Instructions }

func (b *builder) add(ins ...asm.Instruction) { b.ins = append(b.ins, ins...) }

// prologue lets pass what is not IPv6.
func (b *builder) prologue() {
	const protocol = 16 // of struct __sk_buff, in network order
	b.add(
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R7, asm.R6, protocol, asm.Word),
		asm.JNE.Imm(asm.R7, int32(swap16(unix.ETH_P_IPV6)), "pass"),
	)
}

// swap16 gives a number in network order on the machines that this runs on.
func swap16(n uint16) uint16 { return n<<8 | n>>8 }

// load copies octets of the packet to the stack; shorter packets pass.
func (b *builder) load(offset int32, at int32, size int32) {
	b.add(
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Imm(asm.R2, offset),
		asm.Mov.Reg(asm.R3, asm.RFP),
		asm.Add.Imm(asm.R3, at),
		asm.Mov.Imm(asm.R4, size),
		asm.FnSkbLoadBytes.Call(),
		asm.JNE.Imm(asm.R0, 0, "pass"),
	)
}

// store copies octets of the stack to the packet.
func (b *builder) store(offset int32, at int32, size int32) {
	b.add(
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Imm(asm.R2, offset),
		asm.Mov.Reg(asm.R3, asm.RFP),
		asm.Add.Imm(asm.R3, at),
		asm.Mov.Imm(asm.R4, size),
		asm.Mov.Imm(asm.R5, 0),
		asm.FnSkbStoreBytes.Call(),
		asm.JNE.Imm(asm.R0, 0, "drop"),
	)
}

// address writes an address to the stack.
func (b *builder) address(at int16, a netip.Addr) {
	for i, w := range words(a) {
		b.add(asm.LoadImm(asm.R7, w, asm.DWord), asm.StoreMem(asm.RFP, at+int16(8*i), asm.R7, asm.DWord))
	}
}

// matchAddress lets pass what has another address there.
func (b *builder) matchAddress(offset int32, a netip.Addr) {
	b.load(offset, addrAt, 16)
	for i, w := range words(a) {
		b.add(
			asm.LoadMem(asm.R7, asm.RFP, addrAt+int16(8*i), asm.DWord),
			asm.LoadImm(asm.R8, w, asm.DWord),
			asm.JNE.Reg(asm.R7, asm.R8, "pass"),
		)
	}
}

// words are the two halves of an address as they lie in memory.
func words(a netip.Addr) (w [2]int64) {
	for i, c := range a.As16() {
		w[i/8] |= int64(c) << (8 * (i % 8))
	}
	return w
}

// room makes room behind the IP header, or takes some.
func (b *builder) room(size int32) {
	b.add(
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Imm(asm.R2, size),
		asm.Mov.Imm(asm.R3, adjustRoomNet),
		asm.Mov.Imm(asm.R4, adjustRoomFixedGSO),
		asm.FnSkbAdjustRoom.Call(),
		asm.JNE.Imm(asm.R0, 0, "drop"),
	)
}

// setNext sets the IP header's next header.
func (b *builder) setNext(next int64) {
	b.add(asm.StoreImm(asm.RFP, wordAt, next, asm.Byte))
	b.store(ip6Next, wordAt, 1)
}

// addLength adds to the IP header's payload length.
func (b *builder) addLength(n int32) {
	b.load(ip6Len, wordAt, 2)
	b.add(
		asm.LoadMem(asm.R7, asm.RFP, wordAt, asm.Half),
		asm.HostTo(asm.BE, asm.R7, asm.Half),
		asm.Add.Imm(asm.R7, n),
		asm.HostTo(asm.BE, asm.R7, asm.Half),
		asm.StoreMem(asm.RFP, wordAt, asm.R7, asm.Half),
	)
	b.store(ip6Len, wordAt, 2)
}

// program ends it.
func (b *builder) program(name string) *ebpf.ProgramSpec {
	b.add(
		asm.Mov.Imm(asm.R0, actOK).WithSymbol("pass"),
		asm.Return(),
		asm.Mov.Imm(asm.R0, actShot).WithSymbol("drop"),
		asm.Return(),
	)
	return &ebpf.ProgramSpec{Name: name, Type: ebpf.SchedCLS, Instructions: b.ins, License: "Apache-2.0"}
}
