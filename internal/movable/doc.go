// Package movable is an application of a distributed server whose connections
// can move in the middle of anything: of a download, an upload, a line, a
// command. It is what the demo and the end-to-end tests hand off.
//
// # Theory of operation
//
// net/http does not serve here because where it stands in a connection is on the
// stack of a goroutine. Each protocol is a machine instead: octets in, octets
// out, and where it stands is in the fields of a struct, which can be written
// down after any call. A session drives such a machine from a net.Conn; when the
// connection moves, the Read or Write that waits fails with ds.ErrMoved, and the
// state that was written down is continued on the target:
//
//	         ┌────────────── session ──────────────┐
//	Read ──► in ──► protocol.input ──► out ──► Write
//	                protocol.output ──►
//
// All state is in, out, and the protocol's fields; it travels as CBOR.
package movable
