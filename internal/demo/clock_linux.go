package demo

import "golang.org/x/sys/unix"

// monotonic is a time in nanoseconds that all processes of this machine share.
func monotonic() int64 {
	var t unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &t) // cannot fail
	return t.Nano()
}
