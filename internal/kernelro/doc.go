// Package kernelro lets the kernel do what a correspondent does with payload
// packets (RFC 6275 sections 9.3.1 and 9.3.2), on a kernel that was built without
// Mobile IPv6: BPF programs on interfaces put the type 2 routing header in and take
// the Home Address option off, by a table of bindings that a program keeps.
//
//	kernel TCP ──► egress:  to HOME       → to CARE-OF with a routing header ──► network
//	           ◄── ingress: from CARE-OF with a Home Address option → from HOME ◄──
//
// Super-packets stay as they are; the kernel cuts and merges around it.
//
// # What is for the kernel, and what is not
//
// The programs treat what nearly all packets are: TCP, UDP and, out, ICMPv6 right
// behind the IPv6 header; in, right behind a header of destination options with the
// Home Address option, padding as RFC 6275 section 6.3 has it, and nothing else. The
// binding must be there and not over, and come from its care-of address. Whatever else
// there is they let pass untouched, for a machine that knows all the rules (package
// mobility/correspondent): mobility messages, errors, fragments, other extension
// headers, packets without binding. So what the programs do not know costs time and
// no more, and there is one place in which the rules are. What they do, they do to the
// octet like the machine, which TestLikeTheMachine compares.
//
// # What ends
//
// Programs and table belong to the process that has opened them, and go with it,
// however it ends.
//
// It needs Linux 6.6, for programs that go with a process (TCX), and CAP_BPF and
// CAP_NET_ADMIN outside of any user namespace.
package kernelro
