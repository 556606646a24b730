//go:build !linux

package correspondent

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
func New(config.Correspondent, *slog.Logger) (*Role, error) {
	return nil, fmt.Errorf("correspondent: %w: this role needs Linux", errors.ErrUnsupported)
}

// Run is never called.
func (*Role) Run(context.Context) error { return errors.ErrUnsupported }
