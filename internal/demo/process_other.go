//go:build !linux

package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
)

var errProcess = fmt.Errorf("demo: process mode: %w on %s: use --mode memory", errors.ErrUnsupported, runtime.GOOS)

func runProcess(context.Context, *Options) (*Result, error) { return nil, errProcess }

// Inside is for Linux.
func Inside(context.Context, io.Reader, io.Writer) error { return errProcess }

// Node is for Linux.
func Node() error { return errProcess }
