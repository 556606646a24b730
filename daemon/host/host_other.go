//go:build !linux

package host

import (
	"errors"
	"fmt"
	"net/netip"
)

// Host exists on Linux only.
type Host struct{}

var errSystem = fmt.Errorf("host: %w: only Linux can be changed", errors.ErrUnsupported)

// Open returns an [errors.ErrUnsupported], and so do all others.
func Open(Config) (*Host, error)                                       { return nil, errSystem }
func Cleanup(string) error                                             { return errSystem }
func Sweep(Protocol) error                                             { return errSystem }
func (*Host) Close() error                                             { return nil }
func (*Host) AddRoute(netip.Prefix, string, int) error                 { return errSystem }
func (*Host) RemoveRoute(netip.Prefix, string, int) error              { return errSystem }
func (*Host) AddExit(netip.Addr, string, int) error                    { return errSystem }
func (*Host) RemoveExit(netip.Addr, string, int) error                 { return errSystem }
func (*Host) AddEntrance(string, int, netip.Addr, netip.Addr) error    { return errSystem }
func (*Host) RemoveEntrance(string, int, netip.Addr, netip.Addr) error { return errSystem }
func (*Host) AddRule(Rule) error                                       { return errSystem }
func (*Host) RemoveRule(Rule) error                                    { return errSystem }
func (*Host) AddProxy(string, netip.Addr) error                        { return errSystem }
func (*Host) RemoveProxy(string, netip.Addr) error                     { return errSystem }
func (*Host) AddAddr(string, netip.Prefix) error                       { return errSystem }
func (*Host) RemoveAddr(string, netip.Prefix) error                    { return errSystem }
func (*Host) SetSysctl(string, string) error                           { return errSystem }
func (*Host) Forward() error                                           { return errSystem }
func Require(...func() error) error                                    { return errSystem }
func NetAdmin() error                                                  { return errSystem }
func NetRaw() error                                                    { return errSystem }
func TUN() error                                                       { return errSystem }
func IPv6() error                                                      { return errSystem }
