//go:build !linux

package forward

import (
	"errors"
	"fmt"
	"net/netip"
)

var errSystem = fmt.Errorf("forward: %w: it takes Linux", errors.ErrUnsupported)

// Node is one of Linux.
type Node struct{}

// OpenNode needs Linux.
func OpenNode(NodeConfig) (*Node, error) { return nil, errSystem }

// Change, Counts and Close are those of a Node that there is not.

func (*Node) Change(netip.Addr, Change) error { return errSystem }
func (*Node) Counts(netip.Addr) (relayed, delivered Count, err error) {
	return relayed, delivered, errSystem
}
func (*Node) Close() error { return errSystem }
