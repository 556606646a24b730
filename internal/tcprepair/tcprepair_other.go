//go:build !linux

package tcprepair

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"
)

var errUnsupported = fmt.Errorf("tcprepair: TCP_REPAIR exists on Linux only, not on %s: %w",
	runtime.GOOS, errors.ErrUnsupported)

// Probe reports that this system has no TCP_REPAIR.
func Probe() error { return errUnsupported }

// Bench reports that this system has no TCP_REPAIR.
func Bench(_ context.Context, _ int, c Contents) ([]time.Duration, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	return nil, errUnsupported
}
