//go:build !linux

package demo

import "time"

var started = time.Now()

// monotonic is a time in nanoseconds; here a demo is one process.
func monotonic() int64 { return int64(time.Since(started)) }
