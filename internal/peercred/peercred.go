// Package peercred tells who is at the other end of a UNIX socket.
package peercred

import "slices"

// Cred are the credentials of a process when it connected (unix(7),
// SO_PEERCRED and SO_PEERGROUPS).
type Cred struct {
	PID    int
	UID    uint32
	GID    uint32
	Groups []uint32 // supplementary
}

// In tells whether the process was in a group.
func (c Cred) In(gid uint32) bool { return c.GID == gid || slices.Contains(c.Groups, gid) }
