// Command hello serves HTTP from a TCP/IP stack of its own.
package main

import (
	"fmt"
	"log"
	"net/http"
	"net/netip"

	"github.com/distributed-servers/ds/stack"
	"github.com/distributed-servers/ds/tun"
)

func main() {
	service := netip.MustParseAddr("fd00:2::1")
	dev, err := tun.Open(tun.Config{ // needs CAP_NET_ADMIN
		Offload: true,
		Addrs:   []netip.Prefix{netip.MustParsePrefix("fd00:1::1/64")},
		Routes:  []netip.Prefix{netip.PrefixFrom(service, 128)},
	})
	if err != nil {
		log.Fatal(err)
	}
	s, err := stack.New(stack.Config{Device: dev, Addrs: []netip.Addr{service}})
	if err != nil {
		log.Fatal(err)
	}
	defer s.Close()
	l, err := s.Listen("tcp", ":80")
	if err != nil {
		log.Fatal(err)
	}
	hello := func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "hello", r.RemoteAddr) }
	log.Fatal(http.Serve(l, http.HandlerFunc(hello))) // curl -g 'http://[fd00:2::1]/'
}
