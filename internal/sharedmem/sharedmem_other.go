//go:build !linux

package sharedmem

import (
	"errors"
	"os"
)

var errNone = errors.New("sharedmem: on Linux only")

// Create makes nothing.
func Create(string, int) (*os.File, error) { return nil, errNone }

// Map maps nothing.
func Map(*os.File, int) (*Memory, error) { return nil, errNone }

// Unmap has nothing to do.
func (m *Memory) Unmap() error { return nil }
