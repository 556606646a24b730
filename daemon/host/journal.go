package host

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// Files in the state directory.
const (
	journalName = "host.journal"
	lockName    = "host.lock"
)

// maxJournal bounds a journal, in octets. A host has some tens of addresses and
// some hundreds of sysctls at most that are changed.
const maxJournal = 1 << 20

// A journal is what must be undone and cannot be found otherwise, in the order
// in which it was done.
type journal struct {
	Version   int        `json:"version"`
	Boot      string     `json:"boot"`      // of the kernel: /proc/sys/kernel/random/boot_id
	Namespace string     `json:"namespace"` // of the network: /proc/self/ns/net
	Protocol  Protocol   `json:"protocol"`
	Changes   []recorded `json:"changes"`
}

const journalVersion = 1

// recorded is a change to an address (Interface and Address) or to a sysctl.
type recorded struct {
	Interface string       `json:"interface,omitempty"`
	Address   netip.Prefix `json:"address,omitzero"`

	Sysctl string `json:"sysctl,omitempty"` // path below /proc/sys
	Old    string `json:"old,omitempty"`
	New    string `json:"new,omitempty"`
	// With are others that the kernel changes along with it, and their old values.
	With map[string]string `json:"with,omitempty"`
}

var errJournal = errors.New("host: not a journal of this version")

// parseJournal reads a journal. It comes from a file that others might have
// written to, so that what it names is checked: it must not lead out of
// /proc/sys/net.
func parseJournal(b []byte) (*journal, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	j := new(journal)
	if err := d.Decode(j); err != nil {
		return nil, fmt.Errorf("%w: %w", errJournal, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("%w: something follows it", errJournal)
	}
	if j.Version != journalVersion || j.Protocol == 0 {
		return nil, fmt.Errorf("%w: version %d, protocol %d", errJournal, j.Version, j.Protocol)
	}
	for _, c := range j.Changes {
		sysctls := []string{c.Sysctl}
		for k := range c.With {
			sysctls = append(sysctls, k)
		}
		switch {
		case c.Sysctl == "" && (c.Interface == "" || !c.Address.IsValid()):
			return nil, fmt.Errorf("%w: a change of nothing", errJournal)
		case c.Sysctl != "":
			for _, s := range sysctls {
				if !validSysctl(s) {
					return nil, fmt.Errorf("%w: sysctl %q", errJournal, s)
				}
			}
		}
	}
	return j, nil
}

// validSysctl reports whether path is one of the network's, below /proc/sys.
func validSysctl(path string) bool {
	return fs.ValidPath(path) && strings.HasPrefix(path, "net/") && !strings.ContainsAny(path, "\x00\n")
}

// readJournal returns the journal in dir; nil: there is none.
func readJournal(dir string) (*journal, error) {
	name := filepath.Join(dir, journalName)
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("host: read journal: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxJournal))
	if err != nil {
		return nil, fmt.Errorf("host: read journal: %w", err)
	}
	j, err := parseJournal(b)
	if err != nil {
		return nil, fmt.Errorf("%w; look at %s, undo by hand what it tells of, and delete it", err, name)
	}
	return j, nil
}

// write replaces the journal in dir. Whoever reads it finds the old or the new
// one. It need not survive a crash of the machine: what it tells of does not.
func (j *journal) write(dir string) error {
	b, err := json.MarshalIndent(j, "", "\t")
	if err == nil && len(b) >= maxJournal {
		err = fmt.Errorf("%d octets are too many", len(b))
	}
	name := filepath.Join(dir, journalName)
	if err == nil {
		err = os.WriteFile(name+".new", append(b, '\n'), 0o600)
	}
	if err == nil {
		err = os.Rename(name+".new", name)
	}
	if err != nil {
		return fmt.Errorf("host: write journal: %w; the state directory must be writable and have room", err)
	}
	return nil
}

// removeJournal removes what write has made.
func removeJournal(dir string) error {
	name := filepath.Join(dir, journalName)
	err := os.Remove(name)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err2 := os.Remove(name + ".new"); !errors.Is(err2, fs.ErrNotExist) {
		err = errors.Join(err, err2)
	}
	if err != nil {
		return fmt.Errorf("host: remove journal: %w", err)
	}
	return nil
}
