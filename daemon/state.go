package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/distributed-servers/ds/daemon/member"
)

// state is the directory with what must survive a restart: for each distributed
// server, which node is the contact, in a file of its own.
type state struct{ dir string }

// saved is a file's content.
type saved struct {
	Contact string `json:"contact"`
	Epoch   uint64 `json:"epoch"`
}

func (s state) path(dsa netip.Addr) string {
	return filepath.Join(s.dir, "contact-"+dsa.StringExpanded()+".json")
}

// load returns what was saved of a server; ok is false if nothing was.
func (s state) load(dsa netip.Addr) (c member.Contact, ok bool, err error) {
	b, err := os.ReadFile(s.path(dsa))
	if errors.Is(err, fs.ErrNotExist) {
		return c, false, nil
	}
	if err != nil {
		return c, false, fmt.Errorf("daemon: state: %w", err)
	}
	var v saved
	if err := json.Unmarshal(b, &v); err != nil || v.Contact == "" {
		return c, false, fmt.Errorf("daemon: state: %s is damaged (%v): remove it; the other nodes know the contact", s.path(dsa), err)
	}
	return member.Contact{Name: v.Contact, Epoch: v.Epoch}, true, nil
}

// save replaces it, all or nothing.
func (s state) save(dsa netip.Addr, c member.Contact) error {
	b, err := json.Marshal(saved{c.Name, c.Epoch})
	if err != nil {
		return fmt.Errorf("daemon: state: %w", err)
	}
	f, err := os.CreateTemp(s.dir, "contact-*.tmp")
	if err != nil {
		return fmt.Errorf("daemon: state: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(append(b, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), s.path(dsa))
	}
	if err != nil {
		return fmt.Errorf("daemon: state: %w", err)
	}
	return nil
}
