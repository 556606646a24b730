// Package kernelro gives the kernel's TCP what a correspondent does with payload
// packets (RFC 6275 sections 9.3.1 and 9.3.2), without a kernel that was built
// with Mobile IPv6: two small BPF programs on an interface put the type 2 routing
// header in and take the Home Address option off. They work on super-packets as
// they are, so that what a server node's data path does can be measured and
// tested at the kernel's speed, with the kernel's own segmentation in between.
//
//	kernel TCP ──► egress:  to HOME       → to CARE-OF with a routing header ──► wire
//	           ◄── ingress: from CARE-OF with a Home Address option → from HOME ◄──
//
// There is one binding, which does not change, and nothing is checked: it is no
// correspondent, and is for benchmarks and tests alone.
package kernelro
