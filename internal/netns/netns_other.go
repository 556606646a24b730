//go:build !linux

package netns

import (
	"fmt"
	"os/exec"
	"runtime"
)

func current() string { return "" }

func isolate(cmd *exec.Cmd) {
	cmd.Err = fmt.Errorf("netns: start: %w: %s has no network namespaces; run this on Linux", ErrUnsupported, runtime.GOOS)
}

// UpLoopback returns [ErrUnsupported].
func UpLoopback() error { return ErrUnsupported }
