// Package gvtcp takes gVisor's TCP endpoints apart and puts them together. It
// is the one room in which this module touches gVisor's internals, and the only
// one that is unsafe.
//
// # Theory of operation
//
// layout.go declares, for each unexported struct that matters, a Go struct of
// our own with the same fields: a mirror. A pointer to the original is turned
// into a pointer to its mirror, and from there on the code is ordinary, typed
// Go. link.go names the few unexported functions that are called.
//
// Nothing of this is promised by gVisor, hence four guards:
//
//  1. Every field of every mirrored struct is compared with the original by
//     reflection, both ways: name, type, offset. A field that gVisor adds,
//     drops or changes is an error that names it.
//  2. A test parses the source of the gVisor version in use and compares the
//     signatures of the functions of link.go. (One that is gone does not link.)
//  3. The module version in the binary's build information must be the one
//     that the first two were run with.
//  4. Package migrate moves a connection in memory before it moves a real one.
//
// [Check] runs 1 and 3 once; until it has succeeded nothing here may be used.
//
// # One endpoint
//
// All functions expect that no packet can reach the endpoint and that no
// application call is inside it: package migrate sees to both.
//
//	 live ──Freeze──► Frozen ──Discard──► gone          (donor)
//	   ▲                │
//	   └─────Thaw───────┘
//
//	Restore ──► Restored ──Activate──► live             (target)
//	                │
//	                └──Discard──► gone
//
// A frozen endpoint is locked, as if by a system call that does not return,
// and has left the demultiplexer; its timers are stopped. A restored one is
// the same from birth.
package gvtcp
