//go:build !linux

package bedbench

import (
	"context"
	"fmt"
	"runtime"
)

// Run needs network namespaces.
func Run(context.Context, Options) (*Result, error) {
	return nil, fmt.Errorf("bedbench: %s has no network namespaces; run this on Linux", runtime.GOOS)
}
