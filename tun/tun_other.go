//go:build !linux

package tun

import "os"

// TUN is a Linux TUN interface. There is none on this system.
type TUN struct{ OffloadDevice }

// Open returns [ErrUnsupported].
func Open(Config) (*TUN, error) { return nil, ErrUnsupported }

// FromFiles returns [ErrUnsupported].
func FromFiles([]*os.File, int) (*TUN, error) { return nil, ErrUnsupported }

// Files returns nil.
func (*TUN) Files() []*os.File { return nil }
