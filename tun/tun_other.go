//go:build !linux

package tun

import "os"

// TUN is a Linux TUN interface. There is none on this system.
type TUN struct{ Device }

// Open returns [ErrUnsupported].
func Open(Config) (*TUN, error) { return nil, ErrUnsupported }

// FromFile returns [ErrUnsupported].
func FromFile(*os.File, int) (*TUN, error) { return nil, ErrUnsupported }

// File returns nil.
func (*TUN) File() *os.File { return nil }
