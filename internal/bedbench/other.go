//go:build !linux

package bedbench

import (
	"context"
	"fmt"
	"io"
	"runtime"

	"github.com/distributed-servers/ds/internal/evaluation"
)

// Run needs network namespaces.
func Run(context.Context, Options) (*Result, error) {
	return nil, fmt.Errorf("bedbench: %s has no network namespaces; run this on Linux", runtime.GOOS)
}

// Evaluate needs them too.
func Evaluate(context.Context, Options) (*evaluation.Result, error) {
	return nil, fmt.Errorf("bedbench: %s has no network namespaces; run this on Linux", runtime.GOOS)
}

// LocalServe needs a TUN.
func LocalServe(context.Context, int, io.Reader, io.Writer) error {
	return fmt.Errorf("bedbench: %s has no TUN; run this on Linux", runtime.GOOS)
}

// Machine is where this runs.
func Machine() evaluation.Machine {
	return evaluation.Machine{Processors: runtime.NumCPU(), Go: runtime.Version(), Kernel: runtime.GOOS}
}
