// Package netns runs this program again in fresh namespaces, so that tests and
// the demo own a network of their own, with or without privilege and without
// external tools.
//
// The caller with CAP_SYS_ADMIN gets a new network namespace; any other one a
// new user namespace as well, in which it is root.
package netns

import (
	"context"
	"errors"
	"os"
	"os/exec"
)

// Env marks a process that [Reexec] started. Its value identifies the network
// namespace that was left, so that a stray setting does not pass for one.
const Env = "DS_NETNS"

// ErrUnsupported is returned where the operating system has no namespaces. It
// is an [errors.ErrUnsupported].
var ErrUnsupported = errors.ErrUnsupported

// Inside reports whether this process, or one that started it, came from
// [Reexec]: the network is its own and may be changed at will.
func Inside() bool {
	left := os.Getenv(Env)
	return left != "" && left != current()
}

// Command is [exec.CommandContext] in a fresh network namespace, where the
// caller's user is root. The loopback interface in it is down. Its environment
// marks it as [Inside].
func Command(ctx context.Context, name string, arg ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, arg...)
	cmd.Env = append(os.Environ(), Env+"="+current())
	isolate(cmd)
	return cmd
}

// Reexec is [Command] on the running program: args follow its name, and
// extraEnv ("key=value") overrides the environment.
func Reexec(ctx context.Context, extraEnv []string, args ...string) *exec.Cmd {
	exe, err := os.Executable()
	cmd := Command(ctx, exe, args...)
	if err != nil {
		cmd.Err = err
	}
	cmd.Env = append(cmd.Env, extraEnv...)
	return cmd
}
