package sharedmem

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Create makes memory of so many words, all zero. Its size cannot be changed by any
// process that has the descriptor, nor can it be taken away: to read and to write
// what is mapped always works. The name is for /proc.
func Create(name string, words int) (*os.File, error) {
	fd, err := memfd(name)
	if err != nil {
		return nil, fmt.Errorf("sharedmem: %w", err)
	}
	if err := unix.Ftruncate(fd, int64(words)*wordSize); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("sharedmem: %w", os.NewSyscallError("ftruncate", err))
	}
	const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("sharedmem: %w", os.NewSyscallError("F_ADD_SEALS", err))
	}
	return os.NewFile(uintptr(fd), name), nil
}

// memfd may have to say that nobody will execute what is in it (sysctl
// vm.memfd_noexec), which kernels before Linux 6.3 do not understand.
func memfd(name string) (int, error) {
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate(name, flags|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate(name, flags)
	}
	return fd, os.NewSyscallError("memfd_create", err)
}

// Map maps memory of exactly so many words, to read and to write. It refuses what Create
// has not made. The descriptor stays the caller's, and is not needed any more.
func Map(f *os.File, words int) (*Memory, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("sharedmem: %w", err)
	}
	var m *Memory
	// Fd would make the descriptor block.
	if cerr := raw.Control(func(fd uintptr) { m, err = mapped(int(fd), words*wordSize) }); cerr != nil {
		err = cerr
	}
	if err != nil {
		return nil, fmt.Errorf("sharedmem: %w", err)
	}
	return m, nil
}

func mapped(fd, size int) (*Memory, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size != int64(size) {
		return nil, fmt.Errorf("mode %#o, %d octets: not memory of %d octets", st.Mode, st.Size, size)
	}
	// What can shrink ends the process that touches it (SIGBUS).
	switch seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0); {
	case err != nil:
		return nil, fmt.Errorf("a file, not memory: %w", os.NewSyscallError("F_GET_SEALS", err))
	case seals&unix.F_SEAL_SHRINK == 0:
		return nil, errors.New("memory that may shrink")
	}
	// Its pages are there at once: whoever uses it is in a hurry.
	b, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	// A mapping begins at a page, so words in it are aligned.
	return &Memory{Words: unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(b))), size/wordSize), octets: b}, nil
}

// Unmap takes the memory out of this process. Nobody may be using it.
func (m *Memory) Unmap() error {
	m.Words = nil
	if err := unix.Munmap(m.octets); err != nil {
		return fmt.Errorf("sharedmem: %w", os.NewSyscallError("munmap", err))
	}
	m.octets = nil
	return nil
}
