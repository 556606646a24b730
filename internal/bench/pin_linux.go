package bench

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// pin keeps the calling goroutine on one thread and one processor until
// release. Where the kernel refuses, the thread is all.
func pin() (release func()) {
	runtime.LockOSThread()
	var before, one unix.CPUSet
	if unix.SchedGetaffinity(0, &before) != nil {
		return runtime.UnlockOSThread
	}
	for cpu := range 64 * len(before) {
		if before.IsSet(cpu) {
			one.Set(cpu) // the last that is allowed ends up alone
			if one.Count() > 1 {
				one.Zero()
				one.Set(cpu)
			}
		}
	}
	if unix.SchedSetaffinity(0, &one) != nil {
		return runtime.UnlockOSThread
	}
	return func() {
		unix.SchedSetaffinity(0, &before)
		runtime.UnlockOSThread()
	}
}
