package migrate_test

import (
	"errors"
	"flag"
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"github.com/distributed-servers/ds/internal/lab"
	"github.com/distributed-servers/ds/stack"
)

var (
	flagSeed = flag.Uint64("seed", 1, "seed of the stories' randomness")
	flagMiB  = flag.Int64("mib", defaultMiB, "MiB each way in the stories that transfer in bulk")
)

// TestStory tells what can happen to a connection while it moves hundreds of
// times between two nodes. In every story each octet of both streams is
// checked, and a watcher on the network looks for what a move must not cause:
// resets, and timestamps, acknowledgements or window edges that go back.
func TestStory(t *testing.T) {
	for _, family := range []struct {
		name    string
		service netip.Addr
	}{{"IPv6", service6}, {"IPv4", service4}} {
		t.Run(family.name, func(t *testing.T) {
			for _, story := range []struct {
				name string
				tell func(t *testing.T, w *world)
				opts options
			}{
				{name: "plain", tell: plain},
				{name: "lossy", tell: lossy},
				{name: "zero window", tell: zeroWindow},
				{name: "smaller MTU at one node", tell: plain, opts: options{mtu: [2]int{1500, 1300}}},
				{name: "another congestion control at one node", tell: plain, opts: options{cc: [2]string{"reno", "cubic"}}},
				{name: "no SACK", tell: withoutSACK},
				{name: "RACK", tell: withRACK},
			} {
				t.Run(story.name, func(t *testing.T) {
					o := story.opts
					o.service = family.service
					o.seed = *flagSeed
					story.tell(t, newWorld(t, o))
				})
			}
		})
	}
}

func plain(t *testing.T, w *world) {
	for n := 0; n < 100; {
		n += w.bulk(*flagMiB<<20, 16<<10, true)
	}
}

// impairment is a bad network.
var impairment = lab.Impair{Loss: 0.01, Reorder: 0.02, Duplicate: 0.01}

func lossy(t *testing.T, w *world) {
	w.clientP.SetImpair(impairment, impairment)
	for n := 0; n < 100; {
		n += w.bulk(*flagMiB<<20/4, 8<<10, false)
	}
}

func withoutSACK(t *testing.T, w *world) {
	off := tcpip.TCPSACKEnabled(false)
	w.set(&off)
	w.clientP.SetImpair(lab.Impair{Loss: 0.005}, lab.Impair{Loss: 0.005})
	w.bulk(*flagMiB<<20/8, 8<<10, false)
}

func withRACK(t *testing.T, w *world) {
	on := tcpip.TCPRACKLossDetection
	w.set(&on)
	w.clientP.SetImpair(lab.Impair{Loss: 0.01}, lab.Impair{Loss: 0.01})
	w.bulk(*flagMiB<<20/4, 8<<10, false)
}

// set sets a TCP option of all stacks.
func (w *world) set(o tcpip.SettableTransportProtocolOption) {
	w.t.Helper()
	for _, ns := range w.netstacks() {
		if err := ns.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			w.t.Fatal(err)
		}
	}
}

// zeroWindow lets each receiver in turn stop reading until its window is
// closed, and moves the connection many times before it reads on: with the
// service's octets waiting for the window, then with the client's unread.
func zeroWindow(t *testing.T, w *world) {
	c, s := w.connect(w.service)
	// Auto-tuning would open the windows ever wider.
	if err := errors.Join(c.SetReadBuffer(512<<10), s.SetReadBuffer(512<<10)); err != nil {
		t.Fatal(err)
	}
	const size = 900 << 10 // what the window does not admit waits in the send buffer
	blocked := func(c *stack.Conn) bool {
		s := look(t, c).Send
		return s.Wnd == 0 || len(s.Queue) > 0 && s.Nxt-s.Una == 0
	}
	for range 5 {
		if err := send(s, 0, size); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the client's window to close", func() bool { return blocked(s) })
		for range 20 {
			s = w.must(s)
		}
		if err := receive(c, 0, size); err != nil {
			t.Fatal(err)
		}
		sent := make(chan error, 1)
		go func() { sent <- send(c, 0, size) }()
		eventually(t, "the service's window to close", func() bool { return blocked(c) })
		for range 20 {
			s = w.must(s)
		}
		if err := errors.Join(receive(s, 0, size), <-sent); err != nil {
			t.Fatal(err)
		}
	}
	w.watch.check(t)
}
