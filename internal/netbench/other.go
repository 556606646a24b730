//go:build !linux

package netbench

import (
	"context"
	"errors"
	"fmt"
	"io"
)

var errSystem = fmt.Errorf("netbench: %w: it needs Linux", errors.ErrUnsupported)

func run(context.Context, *Options) (*Result, error) { return nil, errSystem }

// Worker returns [errors.ErrUnsupported].
func Worker(context.Context, string, io.Reader, io.Writer) error { return errSystem }
