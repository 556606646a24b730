package tun

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOpenErrorNamesTheCure(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want string
	}{
		{unix.ENOENT, "modprobe tun"},
		{unix.ENODEV, "modprobe tun"},
		{unix.EACCES, "take a descriptor from dsco"},
		{os.NewSyscallError("ioctl", unix.EPERM), "CAP_NET_ADMIN"},
		{os.NewSyscallError("ioctl", unix.EBUSY), "choose another"},
		{os.NewSyscallError("ioctl", unix.EINVAL), "choose another"},
		{unix.EMFILE, "too many open files"},
	} {
		err := openError("ds0", tc.err)
		if !errors.Is(err, tc.err) || !strings.HasPrefix(err.Error(), "tun: open ds0: ") || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%v becomes %v", tc.err, err)
		}
	}
}
