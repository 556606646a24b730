//go:build !linux

package homeagent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/distributed-servers/ds/daemon/config"
)

// Role exists on Linux only.
type Role struct{}

// New returns an [errors.ErrUnsupported].
func New(config.HomeAgent, *slog.Logger) (*Role, error) {
	return nil, fmt.Errorf("homeagent: %w: this role needs Linux", errors.ErrUnsupported)
}

// Run is never called.
func (*Role) Run(context.Context) error { return errors.ErrUnsupported }

// Reload is never called.
func (*Role) Reload(config.HomeAgent) error { return errors.ErrUnsupported }
