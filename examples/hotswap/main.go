//go:build linux

// Hotswap is a TCP server that hands its live connections to its successor:
// start it a second time, and the first process exits while its clients notice
// nothing. README.md shows how.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/distributed-servers/ds/handover"
	"github.com/distributed-servers/ds/migrate"
	"github.com/distributed-servers/ds/tun"
)

const usage = `usage: hotswap -control PATH [flags] file DIR
       hotswap -control PATH [flags] proxy HOST:PORT

Serves the files of DIR over HTTP, or connects clients with HOST:PORT. If a
hotswap serves at PATH already, this process takes over its TUN interface,
addresses, port and live connections; then the flags below -control do not
matter. Otherwise it opens the TUN itself, as root.

`

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "hotswap:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	var cfg config
	link := tun.Config{Offload: true}
	fs := flag.NewFlagSet("hotswap", flag.ExitOnError)
	fs.Usage = func() { fmt.Fprint(fs.Output(), usage); fs.PrintDefaults() }
	path := fs.String("control", "", "UNIX `socket` where a successor connects")
	fs.StringVar(&link.Name, "tun", "hs0", "`name` of the TUN interface")
	fs.IntVar(&link.MTU, "mtu", tun.DefaultMTU, "its largest packet in `octets`")
	port := fs.Uint("port", 80, "TCP `port` to serve")
	grace := fs.Duration("grace", 5*time.Second, "how long SIGTERM lets connections finish")
	fs.Func("addr", "serve this `address`; may be repeated", func(s string) error {
		a, err := netip.ParseAddr(s)
		cfg.Addrs = append(cfg.Addrs, a)
		return err
	})
	fs.Func("host", "give the kernel's end of the link this address, a `prefix`; may be repeated", func(s string) error {
		p, err := netip.ParsePrefix(s)
		link.Addrs = append(link.Addrs, p)
		return err
	})
	fs.Parse(args)
	if *path == "" || fs.NArg() != 2 || *port == 0 || *port > 65535 {
		fs.Usage()
		return errors.New("want -control, a mode and its argument")
	}
	cfg.Mode, cfg.Port, cfg.MTU = fs.Arg(0), uint16(*port), link.MTU
	m, err := newMode(fs.Arg(0), fs.Arg(1))
	if err != nil {
		return err
	}
	// Once per process, some milliseconds: not while connections stand still.
	if err := migrate.Check(); err != nil {
		return err
	}

	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	s, control, err := start(*path, cfg, link, m)
	if err != nil {
		return err
	}
	swapped := make(chan error, 1) // fails only if control is closed
	go func() { swapped <- s.listenForSuccessor(control) }()
	select {
	case <-swapped:
		return nil // handed over
	case <-ctx.Done():
		stop() // a second signal kills
		control.Close()
		if err := <-swapped; err == nil { // a swap was in progress
			return nil
		}
	}
	os.Remove(*path)
	return s.shutdown(*grace)
}

func newMode(name, arg string) (mode, error) {
	switch name {
	case "file":
		return newFileMode(arg)
	case "proxy":
		_, _, err := net.SplitHostPort(arg)
		return proxyMode{arg}, err
	}
	return nil, fmt.Errorf("mode %q: want file or proxy", name)
}

// start takes over from the process that serves at path or, if there is none,
// starts from nothing.
func start(path string, cfg config, link tun.Config, m mode) (*server, *net.UnixListener, error) {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	switch {
	case err == nil:
		conn := handover.New(c)
		defer conn.Close()
		pid, err := conn.Peer()
		if err != nil {
			return nil, nil, err
		}
		s, control, err := takeOver(conn, cfg.Mode, m, openTUN)
		if err == nil {
			fmt.Printf("hotswap: took over from process %d, serving\n", pid)
		}
		return s, control, err
	case errors.Is(err, unix.ECONNREFUSED): // left by a process that was killed
		os.Remove(path)
	case !errors.Is(err, unix.ENOENT):
		return nil, nil, err
	}

	if len(cfg.Addrs) == 0 {
		return nil, nil, errors.New("nobody to take over from; to start from nothing, name an -addr")
	}
	control, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, nil, err
	}
	fail := func(err error) (*server, *net.UnixListener, error) {
		control.Close()
		return nil, nil, err
	}
	var at []string
	for _, a := range cfg.Addrs {
		link.Routes = append(link.Routes, netip.PrefixFrom(a, a.BitLen()))
		at = append(at, netip.AddrPortFrom(a, cfg.Port).String())
	}
	dev, err := tun.Open(link)
	if err != nil {
		return fail(err)
	}
	s, err := newServer(cfg, m, dev)
	if err != nil {
		return fail(err)
	}
	if err := s.resume(); err != nil {
		s.abandon()
		return fail(err)
	}
	control.SetUnlinkOnClose(false) // the path goes to the successor
	fmt.Printf("hotswap: serving at %s on %s\n", strings.Join(at, ", "), dev.Name())
	return s, control, nil
}

func openTUN(files []*os.File, mtu int) (device, error) {
	t, err := tun.FromFiles(files, mtu)
	if err != nil {
		return nil, err
	}
	return t, nil
}

// listenForSuccessor serves the control socket until a swap has succeeded, or
// until the socket is closed: then it returns net.ErrClosed.
func (s *server) listenForSuccessor(control *net.UnixListener) error {
	for {
		c, err := control.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err != nil { // too many open files, say
			slog.Warn("control socket", "error", err)
			time.Sleep(100 * time.Millisecond)
			continue
		}
		conn := handover.New(c)
		pid, err := conn.Peer()
		var m moved
		if err == nil {
			m, err = s.handOver(conn, control)
		}
		conn.Close()
		if err == nil {
			control.Close()
			fmt.Printf("hotswap: handed %d connections of %d clients to process %d; they stood still for %v\n",
				m.conns, m.clients, pid, m.still)
			return nil
		}
		slog.Warn("no swap, serving on", "successor", pid, "error", err)
	}
}
