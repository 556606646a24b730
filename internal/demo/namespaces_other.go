//go:build !linux

package demo

import (
	"context"
	"errors"
	"io"
	"runtime"
)

var errNoNamespaces = errors.New("demo: " + runtime.GOOS + " has no network namespaces; run this on Linux")

func runNamespaces(context.Context, *Options) (*Result, error) { return nil, errNoNamespaces }

// Inside needs network namespaces.
func Inside(context.Context, io.Reader, io.Writer) error { return errNoNamespaces }
