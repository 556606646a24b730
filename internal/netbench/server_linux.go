package netbench

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/distributed-servers/ds/internal/netns"
	"github.com/distributed-servers/ds/stack"
	"github.com/distributed-servers/ds/tun"
)

// Each job has a port.
var ports = map[kind]uint16{kindUp: 1, kindDown: 2, kindEcho: 3, kindConnect: 3, kindIdle: 4}

const (
	bulkSize = 256 << 10 // octets that are read or written at a time
	echoSize = 64
)

// server serves all services.
type server struct {
	stacks  []*stack.Stack
	profile *os.File

	mu   sync.Mutex
	idle map[service][]net.Conn
}

func (s *server) do(c command) (float64, error) {
	switch c.Do {
	case "serve":
		return 0, s.serve()
	case "memory":
		if err := s.awaitIdle(c.Service, c.Job.Streams); err != nil {
			return 0, err
		}
		return resident()
	case "profile":
		return 0, s.setProfile(c.Profile)
	}
	return 0, fmt.Errorf("a server does not %q", c.Do)
}

// serve sets the network up and listens everywhere.
func (s *server) serve() error {
	s.idle = make(map[service][]net.Conn)
	if err := errors.Join(netns.UpLoopback(), awaitLink(serverEnd)); err != nil {
		return err
	}
	if err := addAddr(serverEnd, serverAddr); err != nil {
		return err
	}
	if err := sysctl("ipv6/conf/all/forwarding", "1"); err != nil {
		return err
	}
	err := s.listen(serviceKernel, func(port uint16) (net.Listener, error) {
		return net.Listen("tcp", netip.AddrPortFrom(serverAddr, port).String())
	})
	if err != nil {
		return err
	}
	for _, x := range []struct {
		service service
		home    netip.Addr
		mobile  *stack.Mobile
	}{
		{servicePlain, plainHome, nil},
		{serviceBound, boundHome, &stack.Mobile{Home: boundHome, CareOf: boundCareOf}},
	} {
		cfg := tun.Config{Offload: true, Routes: []netip.Prefix{netip.PrefixFrom(x.home, 128)}}
		if x.mobile != nil {
			cfg.Routes = append(cfg.Routes, netip.PrefixFrom(x.mobile.CareOf, 128))
		}
		dev, err := tun.Open(cfg)
		if err != nil {
			return err
		}
		st, err := stack.New(stack.Config{Device: dev, Addrs: []netip.Addr{x.home}, Mobile: x.mobile})
		if err != nil {
			dev.Close()
			return err
		}
		s.stacks = append(s.stacks, st)
		st.Bind(clientAddr) // nothing where it is not mobile
		if err := s.listen(x.service, func(port uint16) (net.Listener, error) { return st.Listen("tcp", ":"+strconv.Itoa(int(port))) }); err != nil {
			return err
		}
	}
	return nil
}

func (s *server) listen(name service, listen func(port uint16) (net.Listener, error)) error {
	for port, handle := range map[uint16]func(net.Conn){
		ports[kindUp]:   func(c net.Conn) { repeat(c, c.Read) },
		ports[kindDown]: func(c net.Conn) { repeat(c, c.Write) },
		ports[kindEcho]: echo,
		ports[kindIdle]: func(c net.Conn) {
			s.mu.Lock()
			s.idle[name] = append(s.idle[name], c)
			s.mu.Unlock()
		},
	} {
		l, err := listen(port)
		if err != nil {
			return err
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return // closed
				}
				go handle(c)
			}
		}()
	}
	return nil
}

// repeat reads or writes until it fails.
func repeat(c net.Conn, do func([]byte) (int, error)) {
	defer c.Close()
	for b := make([]byte, bulkSize); ; {
		if _, err := do(b); err != nil {
			return
		}
	}
}

func echo(c net.Conn) {
	defer c.Close()
	for b := make([]byte, echoSize); ; {
		if _, err := io.ReadFull(c, b); err != nil {
			return
		}
		if _, err := c.Write(b); err != nil {
			return
		}
	}
}

// awaitIdle returns when a service has that many idle connections.
func (s *server) awaitIdle(name service, n int) error {
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		have := len(s.idle[name])
		s.mu.Unlock()
		switch {
		case have >= n:
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("%d of %d connections were accepted", have, n)
		}
	}
}

// resident is the memory of this process, after a collection, in kB of 1000
// octets.
func resident() (float64, error) {
	runtime.GC() // what finalizers free goes with the second
	debug.FreeOSMemory()
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(b))
	if len(f) < 2 {
		return 0, fmt.Errorf("/proc/self/statm is %q", b)
	}
	pages, err := strconv.ParseFloat(f[1], 64)
	return pages * float64(os.Getpagesize()) / 1000, err
}

// setProfile begins a profile of the processor, or ends it.
func (s *server) setProfile(file string) (err error) {
	if s.profile != nil {
		pprof.StopCPUProfile()
		err = s.profile.Close()
		s.profile = nil
	}
	if file == "" || err != nil {
		return err
	}
	if s.profile, err = os.Create(file); err != nil {
		return err
	}
	return pprof.StartCPUProfile(s.profile)
}

func (s *server) close() {
	for _, st := range s.stacks {
		st.Close()
	}
}
