//go:build !linux

package rawip

import (
	"errors"
	"fmt"
	"net/netip"
)

// Sender, Tunnel and Batch exist on Linux only.
type (
	Sender struct{}
	Tunnel struct{}
	Batch  struct{}
)

var errSystem = fmt.Errorf("rawip: %w: raw sockets are used as Linux has them", errors.ErrUnsupported)

// NewSender returns an [errors.ErrUnsupported].
func NewSender() (*Sender, error) { return nil, errSystem }

// Listen returns an [errors.ErrUnsupported].
func Listen(netip.Addr) (*Tunnel, error) { return nil, errSystem }

// What follows is never called.

func (*Sender) SetMark(uint32) error         { return errSystem }
func (*Sender) SetInterface(string) error    { return errSystem }
func (*Sender) Send(...[]byte)               {}
func (*Sender) Stats() SenderStats           { return SenderStats{} }
func (*Sender) Close() error                 { return nil }
func (*Sender) NewBatch() *Batch             { return new(Batch) }
func (*Batch) Add(...[]byte)                 {}
func (*Batch) AddCut([]byte, Cut)            {}
func (*Batch) Flush()                        {}
func (*Tunnel) ReadBatch() ([][]byte, error) { return nil, errSystem }
func (*Tunnel) Stats() TunnelStats           { return TunnelStats{} }
func (*Tunnel) Close() error                 { return nil }
