//go:build !linux

package filter

import (
	"errors"
	"fmt"
)

// Filter exists on Linux only.
type Filter struct{}

var errSystem = fmt.Errorf("filter: %w: Netfilter queues are Linux's", errors.ErrUnsupported)

// Open returns an [errors.ErrUnsupported].
func Open(Config) (*Filter, error) { return nil, errSystem }

// Usable returns a check that fails.
func Usable(uint16) func() error { return func() error { return errSystem } }

// Cleanup returns an [errors.ErrUnsupported].
func Cleanup(uint16) error { return errSystem }

// SetRules returns an [errors.ErrUnsupported].
func (*Filter) SetRules(Rules) error { return errSystem }

// Stats returns nothing.
func (*Filter) Stats() Stats { return Stats{} }

// Close does nothing.
func (*Filter) Close() error { return nil }
