package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/distributed-servers/ds/daemon/config"
	"github.com/distributed-servers/ds/daemon/identity"
)

// place is where ds init and ds join put what they make, and whose it becomes.
type place struct {
	config string
	state  string
	user   string
	force  bool
	json   bool

	uid, gid int // of user; -1: nobody's in particular
}

// node is what both are told about this machine.
type nodeFlags struct {
	name, address, iface string
	careOf               []string
}

func (p *place) flags(c *cobra.Command) {
	c.Flags().StringVar(&p.config, "config", "/etc/dsco/dsco.toml", "`file` for the configuration")
	c.Flags().StringVar(&p.state, "state", "/var/lib/dsco", "`directory` of the daemon; its part cluster is for key and certificate")
	c.Flags().StringVar(&p.user, "user", "", "`user` that the daemon runs as (default: dsco if there is one, else this one)")
	c.Flags().BoolVar(&p.force, "force", false, "replace what is there; configuration, shared keys and an authority stay beside it as FILE.old")
	c.Flags().BoolVar(&p.json, "json", false, "print JSON")
	c.MarkFlagFilename("config", "toml")
	c.MarkFlagDirname("state")
}

func (n *nodeFlags) flags(c *cobra.Command) {
	c.Flags().StringVar(&n.name, "name", "", "`name` of this node (default: the host's, up to the first dot)")
	c.Flags().StringVar(&n.address, "address", "", "IPv6 `address` of this host for the daemon (default: the only global one)")
	c.Flags().StringVar(&n.iface, "interface", "", "`interface` on the server network (default: that of the address)")
	c.Flags().StringArrayVar(&n.careOf, "care-of", nil, "care-of address of this node, an `[SERVER=]ADDRESS` that nothing else uses (default: one of the address's /64)")
}

// cluster is the directory of key and certificate.
func (p *place) cluster() string { return filepath.Join(p.state, "cluster") }

// open makes the directories, which belong to the daemon's user. files are those
// that will be written beside the configuration.
func (p *place) open(files ...string) (err error) {
	p.uid, p.gid = -1, -1
	name := p.user
	if name == "" {
		name = "dsco"
	}
	u, err := user.Lookup(name)
	switch {
	case err == nil && os.Geteuid() == 0:
		p.uid, err = strconv.Atoi(u.Uid)
		if err == nil {
			p.gid, err = strconv.Atoi(u.Gid)
		}
	case err != nil && p.user == "":
		err = nil
	case err == nil && p.user != "" && strconv.Itoa(os.Geteuid()) != u.Uid:
		err = errors.New("only root can do that for another user")
	}
	if err != nil {
		return fmt.Errorf("--user %s: %w", p.user, err)
	}
	if p.config, err = filepath.Abs(p.config); err != nil {
		return err
	}
	if p.state, err = filepath.Abs(p.state); err != nil {
		return err
	}
	if err := identity.Vacant(p.cluster(), p.force); err != nil {
		return err
	}
	for _, file := range append(files, p.config) {
		if _, err := os.Stat(file); err == nil && !p.force {
			return fmt.Errorf("%s is there already; move it away, or replace it with --force", file)
		}
	}
	for _, d := range []struct {
		path string
		mode fs.FileMode
		mine bool // the daemon's to write
	}{{filepath.Dir(p.config), 0o750, false}, {p.state, 0o750, true}, {p.cluster(), 0o700, true}} {
		if err := p.mkdir(d.path, d.mode, d.mine); err != nil {
			if errors.Is(err, fs.ErrPermission) {
				err = fmt.Errorf("%w; run it as root, or give --config and --state", err)
			}
			return err
		}
	}
	return nil
}

// mkdir makes a directory, unless it is there: then it stays as it is.
func (p *place) mkdir(path string, mode fs.FileMode, mine bool) error {
	if info, err := os.Stat(path); err == nil {
		if !info.IsDir() {
			return fmt.Errorf("%s is not a directory", path)
		}
		return nil
	}
	if err := os.MkdirAll(path, mode); err != nil {
		return err
	}
	uid := -1
	if mine {
		uid = p.uid
	}
	return errors.Join(os.Chmod(path, mode), os.Chown(path, uid, p.gid)) // whatever umask and group are here
}

// write writes a file that the daemon may read and not change. One that was there
// stays beside it.
func (p *place) write(path string, b []byte) (err error) {
	if _, err := os.Stat(path); err == nil {
		if err := os.Rename(path, path+".old"); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o640)
	if err != nil {
		return err
	}
	if err = errors.Join(f.Chmod(0o640), f.Chown(-1, p.gid)); err == nil {
		_, err = f.Write(b)
	}
	return errors.Join(err, f.Close())
}

// finish tells what is wrong with the configuration that was written.
func (p *place) finish(cfg *config.Config) error {
	text, err := config.Format(cfg)
	if err != nil {
		return err
	}
	if err := p.write(p.config, text); err != nil {
		return err
	}
	if _, err := config.Load(p.config); err != nil {
		return fmt.Errorf("the node is made, and its configuration needs a change before dsco can start:\n%w", err)
	}
	return nil
}

// local fills in what was not said about this machine.
func (n *nodeFlags) local() (address netip.Addr, err error) {
	if n.name == "" {
		host, err := os.Hostname()
		if err != nil {
			return address, fmt.Errorf("%w; give --name", err)
		}
		n.name, _, _ = strings.Cut(strings.ToLower(host), ".")
	}
	all, err := addresses()
	if err != nil {
		return address, err
	}
	if n.address != "" {
		if address, err = parseAddr("--address", n.address); err != nil {
			return address, err
		}
	} else {
		if len(all) != 1 {
			return address, fmt.Errorf("this host has %d global IPv6 addresses%s; say which the daemon takes: --address", len(all), list(all))
		}
		for address = range all {
		}
	}
	if n.iface == "" {
		if n.iface = all[address]; n.iface == "" {
			return address, fmt.Errorf("no interface of this host has the address %s; it has %d%s: add it, or give another with --address", address, len(all), list(all))
		}
	}
	return address, nil
}

// addresses are the global IPv6 addresses of this host, with their interfaces.
func addresses() (map[netip.Addr]string, error) {
	ifs, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	all := make(map[netip.Addr]string)
	for _, i := range ifs {
		addrs, err := i.Addrs()
		if err != nil || i.Flags&net.FlagLoopback != 0 || strings.HasPrefix(i.Name, "ds") && i.Flags&net.FlagPointToPoint != 0 {
			continue
		}
		for _, a := range addrs {
			p, err := netip.ParsePrefix(a.String())
			if err == nil && p.Addr().Is6() && !p.Addr().Is4In6() && p.Addr().IsGlobalUnicast() {
				all[p.Addr()] = i.Name
			}
		}
	}
	return all, nil
}

func list(all map[netip.Addr]string) string {
	var s []string
	for a, i := range all {
		s = append(s, a.String()+" ("+i+")")
	}
	if len(s) == 0 {
		return ""
	}
	slices.Sort(s)
	return ", " + strings.Join(s, ", ")
}

// careOfs are the care-of addresses that were given; :: is the only server.
func (n *nodeFlags) careOfs() (map[netip.Addr]netip.Addr, error) {
	all := make(map[netip.Addr]netip.Addr)
	for _, s := range n.careOf {
		server, addr, ok := strings.Cut(s, "=")
		if !ok {
			server, addr = "::", s
		}
		of, err := parseAddr("--care-of", server)
		if err != nil {
			return nil, err
		}
		if all[of], err = parseAddr("--care-of", addr); err != nil {
			return nil, err
		}
	}
	return all, nil
}
