package config

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"
)

// checkHost finds what is wrong with the files and users that a configuration
// mentions.
func (d *decoder) checkHost(c *Config) {
	if n := c.Node; n != nil {
		d.checkCertificate(n)
	}
	for i, s := range c.Servers {
		path := fmt.Sprintf("server[%d]", i)
		d.checkKey(path+".key_file", s.KeyFile)
		for j, name := range s.Users {
			d.checkID(fmt.Sprintf("%s.users[%d]", path, j), "user", name, func(s string) error { _, err := user.Lookup(s); return err })
		}
		for j, name := range s.UserGroups {
			d.checkID(fmt.Sprintf("%s.user_groups[%d]", path, j), "group", name, func(s string) error { _, err := user.LookupGroup(s); return err })
		}
	}
	if h := c.HomeAgent; h != nil {
		for i, home := range h.Homes {
			d.checkKey(fmt.Sprintf("home_agent.homes[%d].key_file", i), home.KeyFile)
		}
	}
}

func (d *decoder) checkKey(path, file string) {
	if file == "" {
		return
	}
	if _, err := ReadKey(file); err != nil {
		d.reportFile(path, err)
		return
	}
	d.checkSecret(path, file)
}

// reportFile reports a file that cannot be read, or is not what it should be.
func (d *decoder) reportFile(path string, err error) {
	what, cure, ok := strings.Cut(err.Error(), "; ")
	if !ok {
		cure = "put it there, readable for the daemon's user, or name another"
	}
	d.report(path, cure, "%s", strings.TrimPrefix(what, "config: "))
}

// checkSecret wants a file that not everybody can read.
func (d *decoder) checkSecret(path, file string) {
	info, err := os.Stat(file)
	if err != nil {
		d.reportFile(path, err)
		return
	}
	if info.Mode()&0o007 != 0 {
		d.report(path, "chmod o= "+file, "every user may read or change it (mode %v)", info.Mode()&fs.ModePerm)
	}
}

// checkCertificate wants a certificate of this node's, its key, and one that has
// signed it.
func (d *decoder) checkCertificate(n *Node) {
	roots := x509.NewCertPool()
	if n.CA != "" {
		pem, err := os.ReadFile(n.CA)
		switch {
		case err != nil:
			d.reportFile("node.ca", err)
		case !roots.AppendCertsFromPEM(pem):
			d.report("node.ca", "put the certificate of the authority there, in PEM", "no certificate in %s", n.CA)
		}
	}
	if n.Cert == "" || n.Key == "" {
		return
	}
	pair, err := tls.LoadX509KeyPair(n.Cert, n.Key)
	if err != nil {
		d.report("node.cert", "put a certificate and its key there, in PEM", "%v", err)
		return
	}
	d.checkSecret("node.key", n.Key)
	leaf := pair.Leaf
	if n.Name != "" && !slices.Contains(leaf.DNSNames, n.Name) {
		d.report("node.cert", fmt.Sprintf("make one with the DNS name %s", n.Name), "it is of %q, not of this node", leaf.DNSNames)
	}
	if now := time.Now(); now.Before(leaf.NotBefore) || now.After(leaf.NotAfter) {
		cure := "make another, or set the clock"
		if n.Cluster != "" {
			cure = fmt.Sprintf("join again (ds token --replace %s at the authority, ds join --force here), or set the clock", n.Name)
		}
		d.report("node.cert", cure, "it is valid from %s until %s", leaf.NotBefore.Format(time.RFC3339), leaf.NotAfter.Format(time.RFC3339))
		return
	}
	if d.wrongAt("node.ca") {
		return
	}
	between := x509.NewCertPool()
	for _, der := range pair.Certificate[1:] {
		if c, err := x509.ParseCertificate(der); err == nil {
			between.AddCert(c)
		}
	}
	for _, use := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{use}}); err != nil {
			d.report("node.cert", "have it signed by that authority, for server and client", "%s does not vouch for it: %v", n.CA, err)
			return
		}
	}
}

func (d *decoder) checkID(path, what, name string, lookup func(string) error) {
	if _, err := strconv.ParseUint(name, 10, 32); err == nil || name == "" {
		return
	}
	if err := lookup(name); err != nil {
		d.report(path, fmt.Sprintf("add the %s, or name another", what), "%v", err)
	}
}
