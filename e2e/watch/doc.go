// Package watch reads in a capture what has become of TCP connections: whether
// they were reset, who sent to the client when, and whether ever two did.
//
// That two nodes have sent is seen by what they would do: fill the same part of
// the sequence space twice, alternate, and have clocks that disagree.
package watch
