package correspondent_test

import (
	"bytes"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/distributed-servers/ds/internal/netns"
	"github.com/distributed-servers/ds/internal/netns/topology"
	"github.com/distributed-servers/ds/internal/nodetest"
)

// BenchmarkBulk moves octets between the kernels of client and node, by way of a
// binding, which the kernel treats or the daemon, and through the tunnel, and for
// comparison without either, over the same links. It needs a network of its own:
//
//	DS_NETNS=outside unshare -n go test ./daemon/correspondent -run '^$' -bench Bulk
//
// cpu-ns/KiB is the processor time of the daemon in the path.
func BenchmarkBulk(b *testing.B) {
	if !netns.Inside() {
		b.Skip("not in a network of its own")
	}
	w := inWorld(b, nodetest.NewWorldHere(b, roleEnv, nodetest.NewKernel))
	const octets = 64 << 20
	both := func(name string, daemon *topology.Process, dial func() net.Conn) {
		for _, way := range []struct {
			name     string
			down, up int64
		}{{"down", octets, 0}, {"up", 0, octets}} {
			b.Run(name+"/"+way.name, func(b *testing.B) {
				b.SetBytes(octets)
				before := cpuTime(b, daemon)
				for b.Loop() {
					c := dial()
					w.Must(nodetest.Pump(c, way.down, way.up))
					c.Close()
				}
				if daemon != nil {
					b.ReportMetric(float64(cpuTime(b, daemon)-before)/float64(b.N)/(octets>>10), "cpu-ns/KiB")
				}
			})
		}
	}
	l, err := w.Server.Listen("tcp", "[2001:db8:5::2]:81")
	w.Must(err)
	go nodetest.Serve(l)
	both("kernel", nil, func() net.Conn {
		c, err := w.Client.Dial("tcp", "[2001:db8:5::2]:81")
		w.Must(err)
		return c
	})
	both("tunnel", w.agent, func() net.Conn { return w.Dial(w.Client) })
	for name, kernel := range map[string]bool{"binding/kernel": true, "binding/daemon": false} {
		w.cfg.KernelHeaders = &kernel
		p := w.start()
		w.bind()
		both(name, p, func() net.Conn { return w.Dial(w.Client) })
		w.unbind()
		w.Stop(p)
	}
}

// cpuTime is how much processor time a program has used, user's and system's.
func cpuTime(b *testing.B, p *topology.Process) time.Duration {
	b.Helper()
	if p == nil {
		return 0
	}
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(p.PID()) + "/stat")
	if err != nil {
		b.Fatal(err)
	}
	// The second field is the name, in parentheses (proc(5)).
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	var ticks int64
	for _, s := range f[11:13] {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / 100)
}
