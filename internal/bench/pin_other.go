//go:build !linux

package bench

import "runtime"

// pin keeps the calling goroutine on one thread until release.
func pin() (release func()) {
	runtime.LockOSThread()
	return runtime.UnlockOSThread
}
