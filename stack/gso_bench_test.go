package stack_test

import (
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"syscall"
	"testing"

	"github.com/distributed-servers/ds/stack"
	"github.com/distributed-servers/ds/tun/tuntest"
)

func leanWorld(b *testing.B, mode string, size int) (client, server *stack.Stack) {
	cd, sd := tuntest.NewEnd("c", 1500, nil), tuntest.NewEnd("s", 1500, nil)
	cd.Out = func(p []byte) {
		switch mode {
		case "optimised":
			sd.Deliver(routing2(p, careOf[0]))
		case "tunnel":
			sd.Deliver(packet6(homeAgent, careOf[0], 41, p))
		default:
			sd.Deliver(p)
		}
	}
	sd.Out = func(p []byte) {
		switch mode {
		case "optimised":
			p[30] = p[40]
			copy(p[24:], p[:8])
			p[30] = 6
			copy(p[32:48], server6.AsSlice())
			x := client6.As16()
			copy(p[48:64], x[:])
			p = p[24:]
			binary.BigEndian.PutUint16(p[4:], uint16(len(p)-40))
			cd.Deliver(p)
		case "tunnel":
			cd.Deliver(p[40:])
		default:
			cd.Deliver(p)
		}
	}
	cfg := stack.Config{Device: sd, Addrs: []netip.Addr{server6}}
	if mode != "plain" {
		cfg.Mobile = &stack.Mobile{Home: server6, CareOf: careOf[0], Via: homeAgent}
	}
	server, err := stack.New(cfg)
	if err != nil {
		b.Fatal(err)
	}
	server.SetSuperSegments(size)
	b.Cleanup(func() { server.Close() })
	client, err = stack.New(stack.Config{Device: cd, Addrs: []netip.Addr{client6}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { client.Close() })
	if mode == "optimised" {
		server.Bind(client6)
	}
	return client, server
}

func cpu() int64 {
	var r syscall.Rusage
	syscall.Getrusage(0, &r)
	return r.Utime.Nano() + r.Stime.Nano()
}

func BenchmarkBulk(b *testing.B) {
	for _, mode := range []string{"plain", "optimised", "tunnel"} {
		for _, size := range []int{0, 4, 6, 8, 12, 24} {
			b.Run(fmt.Sprintf("%s/super=%d", mode, size), func(b *testing.B) {
				const chunk = 1 << 20
				client, server := leanWorld(b, mode, size)
				c, s := connect(b, client, server, server6)
				buf := make([]byte, chunk)
				errs := make(chan error, 1)
				b.SetBytes(chunk)
				b.ResetTimer()
				begin := cpu()
				go func() {
					for range b.N {
						if _, err := s.Write(buf); err != nil {
							errs <- err
							return
						}
					}
					errs <- nil
				}()
				if _, err := io.CopyN(io.Discard, c, int64(b.N)*chunk); err != nil {
					b.Fatal(err)
				}
				if err := <-errs; err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(cpu()-begin)/float64(b.N)/1e3, "cpu-µs/MB")
				b.ReportMetric(float64(server.Netstack().Stats().TCP.Retransmits.Value())/float64(b.N), "rtx/op")
			})
		}
	}
}
