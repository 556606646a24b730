package kernelro

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// Sizes of headers.
const (
	ethSize = 14
	ip6Size = 40
	extSize = 24 // a type 2 routing header; destination options with a home address
)

// Offsets in an IPv6 header.
const (
	ip6Len  = 4
	ip6Next = 6
	ip6Src  = 8
	ip6Dst  = 24
)

// Of linux/bpf.h and linux/pkt_cls.h. Room is made or taken behind the IP header, and
// segments keep their size.
const (
	adjustRoomNet      = 0
	adjustRoomFixedGSO = 1
	recomputeSum       = 1
	toIngress          = 1

	skbLen      = 0
	skbProtocol = 16  // in struct __sk_buff; in network order
	skbSegment  = 176 // the size of segments; 0: it is no super-packet

	actOK   = 0
	actShot = 2
)

// The stack frame of both programs: an IPv6 header with an extension header behind
// it, a key of the table, the time, a word.
const (
	hdr    = -64
	ext    = hdr + ip6Size
	key    = hdr - 32
	nowAt  = key - 8
	wordAt = nowAt - 8
)

// Counters, by number.
const (
	countOut = iota
	countIn
	counters
)

// egress puts a type 2 routing header (RFC 6275 section 6.4.1) into packets of a
// binding, of which the IPv6 header is l2 octets into the frame, and sends them on by
// the interface of the binding, if it has one.
//
// R6 is the packet, R8 what the table has, R9 the next header, R7 is free.
func egress(t *tables, l2 int32) *ebpf.ProgramSpec {
	var b builder
	b.prologue()
	b.load(l2, hdr, ip6Size)
	b.add(
		asm.LoadMem(asm.R9, asm.RFP, hdr+ip6Next, asm.Byte),
		asm.JEq.Imm(asm.R9, unix.IPPROTO_TCP, "known"),
		asm.JEq.Imm(asm.R9, unix.IPPROTO_UDP, "known"),
		asm.JNE.Imm(asm.R9, unix.IPPROTO_ICMPV6, "pass"),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("known"),
	)
	b.length(l2)
	b.add(asm.JGT.Imm(asm.R7, 1<<16-1-extSize, "pass"))
	// Source and destination are a key as they lie there.
	b.lookup(t.bindings, hdr+ip6Src)
	b.notOver()
	// What is too big for the way is for somebody who can tell the sender. The kernel
	// cuts super-packets.
	b.add(
		asm.LoadMem(asm.R0, asm.R6, skbSegment, asm.Word),
		asm.JNE.Imm(asm.R0, 0, "fits"),
		asm.Add.Imm(asm.R7, ip6Size+extSize),
		asm.LoadMem(asm.R0, asm.R8, valueMTU, asm.Word),
		asm.JGT.Reg(asm.R7, asm.R0, "pass"),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("fits"),
	)
	b.room(extSize)
	// Next header, length 2, type 2, one segment left, reserved, the home address.
	b.add(
		asm.StoreMem(asm.RFP, ext, asm.R9, asm.Byte),
		asm.StoreImm(asm.RFP, ext+1, 2, asm.Byte),
		asm.StoreImm(asm.RFP, ext+2, 2, asm.Byte),
		asm.StoreImm(asm.RFP, ext+3, 1, asm.Byte),
		asm.StoreImm(asm.RFP, ext+4, 0, asm.Word),
		asm.StoreImm(asm.RFP, hdr+ip6Next, unix.IPPROTO_ROUTING, asm.Byte),
	)
	b.copyAddress(asm.RFP, ext+8, asm.RFP, hdr+ip6Dst)
	b.copyAddress(asm.RFP, hdr+ip6Dst, asm.R8, valueCareOf)
	b.addLength(extSize)
	b.store(l2, ip6Size+extSize)
	b.used(t.counts, countOut)
	b.add(
		asm.LoadMem(asm.R7, asm.R8, valueOut, asm.Word),
		asm.JEq.Imm(asm.R7, 0, "pass"),
	)
	if l2 == 0 { // FnRedirectNeigh expects a place for Ethernet's header
		b.add(
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.Mov.Imm(asm.R2, ethSize),
			asm.Mov.Imm(asm.R3, 0),
			asm.FnSkbChangeHead.Call(),
			asm.JNE.Imm(asm.R0, 0, "drop"),
		)
	}
	b.add(
		asm.Mov.Reg(asm.R1, asm.R7),
		asm.Mov.Imm(asm.R2, 0),
		asm.Mov.Imm(asm.R3, 0),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnRedirectNeigh.Call(),
		asm.Return(),
	)
	return b.program("ds_ro_egress")
}

// ingress takes the Home Address option (RFC 6275 section 6.3) off packets of a
// binding, makes them come from the home address, and, if to is not 0, in by the
// interface of that number.
func ingress(t *tables, l2, to int32) *ebpf.ProgramSpec {
	const (
		homeAddress = 201 | 16<<8   // option type, length
		padN        = 1 | 2<<8      // of four octets
		dstOpts     = extSize/8 - 1 // the header's length
		option      = ext + 6       // behind next header, length, padding
		homeAt      = ext + 8       //
	)
	var b builder
	b.prologue()
	b.load(l2, hdr, ip6Size+extSize)
	b.add(
		asm.LoadMem(asm.R7, asm.RFP, hdr+ip6Next, asm.Byte),
		asm.JNE.Imm(asm.R7, unix.IPPROTO_DSTOPTS, "pass"),
		asm.LoadMem(asm.R7, asm.RFP, ext+1, asm.Byte),
		asm.JNE.Imm(asm.R7, dstOpts, "pass"),
	)
	for at, want := range map[int16]uint16{ext + 2: padN, ext + 4: 0, option: homeAddress} {
		b.add(
			asm.LoadMem(asm.R7, asm.RFP, at, asm.Half),
			asm.HostTo(asm.LE, asm.R7, asm.Half),
			asm.JNE.Imm(asm.R7, int32(want), "pass"),
		)
	}
	b.add(
		asm.LoadMem(asm.R9, asm.RFP, ext, asm.Byte),
		asm.JEq.Imm(asm.R9, unix.IPPROTO_TCP, "known"),
		asm.JNE.Imm(asm.R9, unix.IPPROTO_UDP, "pass"),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("known"),
	)
	b.length(l2)
	b.add(asm.JLT.Imm(asm.R7, extSize, "pass"))
	b.copyAddress(asm.RFP, key, asm.RFP, hdr+ip6Dst)
	b.copyAddress(asm.RFP, key+16, asm.RFP, homeAt)
	b.lookup(t.bindings, key)
	for i := range int16(2) {
		b.add(
			asm.LoadMem(asm.R7, asm.RFP, hdr+ip6Src+8*i, asm.DWord),
			asm.LoadMem(asm.R0, asm.R8, valueCareOf+8*i, asm.DWord),
			asm.JNE.Reg(asm.R7, asm.R0, "pass"),
		)
	}
	b.notOver()
	b.room(-extSize)
	b.add(asm.StoreMem(asm.RFP, hdr+ip6Next, asm.R9, asm.Byte))
	b.copyAddress(asm.RFP, hdr+ip6Src, asm.RFP, homeAt)
	b.addLength(-extSize)
	b.store(l2, ip6Size)
	b.used(t.counts, countIn)
	if to != 0 {
		b.add(
			asm.Mov.Imm(asm.R1, to),
			asm.Mov.Imm(asm.R2, toIngress),
			asm.FnRedirect.Call(),
			asm.Return(),
		)
	}
	return b.program("ds_ro_ingress")
}

// builder puts a program together.
type builder struct{ ins asm.Instructions }

func (b *builder) add(ins ...asm.Instruction) { b.ins = append(b.ins, ins...) }

// prologue lets pass what is not IPv6.
func (b *builder) prologue() {
	b.add(
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R7, asm.R6, skbProtocol, asm.Word),
		asm.HostTo(asm.BE, asm.R7, asm.Half),
		asm.JNE.Imm(asm.R7, unix.ETH_P_IPV6, "pass"),
	)
}

// load copies octets of the packet to the stack; shorter packets pass.
func (b *builder) load(offset, at, size int32) {
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

// length gives the payload length; what is no IPv6 packet, or not all there, passes.
func (b *builder) length(l2 int32) {
	b.add(
		asm.LoadMem(asm.R7, asm.RFP, hdr, asm.Byte),
		asm.RSh.Imm(asm.R7, 4),
		asm.JNE.Imm(asm.R7, 6, "pass"),
		asm.LoadMem(asm.R7, asm.RFP, hdr+ip6Len, asm.Half),
		asm.HostTo(asm.BE, asm.R7, asm.Half),
		asm.LoadMem(asm.R1, asm.R6, skbLen, asm.Word),
		asm.Mov.Reg(asm.R2, asm.R7),
		asm.Add.Imm(asm.R2, l2+ip6Size),
		asm.JGT.Reg(asm.R2, asm.R1, "pass"),
	)
}

// lookup finds the key that is at a place of the stack; what has none passes.
func (b *builder) lookup(m *ebpf.Map, at int32) {
	b.add(
		asm.LoadMapPtr(asm.R1, m.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, at),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "pass"),
		asm.Mov.Reg(asm.R8, asm.R0),
	)
}

// notOver lets pass what comes after the end of the binding, and notes the time.
func (b *builder) notOver() {
	b.add(
		asm.FnKtimeGetNs.Call(),
		asm.StoreMem(asm.RFP, nowAt, asm.R0, asm.DWord),
		asm.LoadMem(asm.R1, asm.R8, valueUntil, asm.DWord),
		asm.JGE.Reg(asm.R0, asm.R1, "pass"),
	)
}

// used notes that a packet has gone by way of the binding.
func (b *builder) used(counts *ebpf.Map, which int64) {
	done := fmt.Sprintf("counted%d", len(b.ins))
	b.add(
		asm.LoadMem(asm.R0, asm.RFP, nowAt, asm.DWord),
		asm.StoreMem(asm.R8, valueUsed, asm.R0, asm.DWord),
		asm.StoreImm(asm.RFP, wordAt, which, asm.Word),
		asm.LoadMapPtr(asm.R1, counts.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, wordAt),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, done),
		asm.LoadMem(asm.R1, asm.R0, 0, asm.DWord),
		asm.Add.Imm(asm.R1, 1),
		asm.StoreMem(asm.R0, 0, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R0, 0).WithSymbol(done),
	)
}

// copyAddress copies 16 octets.
func (b *builder) copyAddress(to asm.Register, toAt int16, from asm.Register, fromAt int16) {
	for i := range int16(2) {
		b.add(
			asm.LoadMem(asm.R7, from, fromAt+8*i, asm.DWord),
			asm.StoreMem(to, toAt+8*i, asm.R7, asm.DWord),
		)
	}
}

// room makes room behind the IP header, or takes some. A packet for which that cannot
// be done is as before.
func (b *builder) room(size int32) {
	b.add(
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Imm(asm.R2, size),
		asm.Mov.Imm(asm.R3, adjustRoomNet),
		asm.Mov.Imm(asm.R4, adjustRoomFixedGSO),
		asm.FnSkbAdjustRoom.Call(),
		asm.JNE.Imm(asm.R0, 0, "pass"),
	)
}

// addLength adds to the payload length of the header on the stack.
func (b *builder) addLength(n int32) {
	b.add(
		asm.LoadMem(asm.R7, asm.RFP, hdr+ip6Len, asm.Half),
		asm.HostTo(asm.BE, asm.R7, asm.Half),
		asm.Add.Imm(asm.R7, n),
		asm.HostTo(asm.BE, asm.R7, asm.Half),
		asm.StoreMem(asm.RFP, hdr+ip6Len, asm.R7, asm.Half),
	)
}

// store copies the headers on the stack to the packet.
func (b *builder) store(offset, size int32) {
	b.add(
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Imm(asm.R2, offset),
		asm.Mov.Reg(asm.R3, asm.RFP),
		asm.Add.Imm(asm.R3, hdr),
		asm.Mov.Imm(asm.R4, size),
		asm.Mov.Imm(asm.R5, recomputeSum),
		asm.FnSkbStoreBytes.Call(),
		asm.JNE.Imm(asm.R0, 0, "drop"), // half a header is changed
	)
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
