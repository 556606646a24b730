package migrate

import "github.com/distributed-servers/ds/migrate/internal/gvtcp"

// Check tells whether connections can be moved with the gVisor in this binary.
func Check() error { return gvtcp.Check() }
