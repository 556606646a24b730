//go:build linux

package e2e

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/distributed-servers/ds/e2e/watch"
	"github.com/distributed-servers/ds/internal/netns/topology"
	"github.com/distributed-servers/ds/internal/probe"
)

// capture is one that runs, and its file.
type capture struct {
	cluster *cluster
	c       *topology.Capture
	file    *os.File
}

// capture begins a capture on an interface of a host.
func (c *cluster) capture(h *topology.Host, link string) *capture {
	c.t.Helper()
	f, err := os.Create(filepath.Join(c.Dir, h.Name()+"-"+link+".pcapng"))
	c.ok(err)
	k, err := h.Capture(link, f)
	c.ok(err)
	return &capture{c, k, f}
}

// flows ends the capture and reads it.
func (k *capture) flows() watch.Flows {
	c := k.cluster
	c.t.Helper()
	c.ok(k.c.Stop())
	_, err := k.file.Seek(0, 0)
	c.ok(err)
	flows, err := watch.Read(k.file)
	c.ok(err)
	return flows
}

// check ends the capture, which was made at a client, and fails the test if a
// connection to the server was reset, or two nodes have ever sent to the client,
// as far as that can be seen. It returns the connections' flows.
func (k *capture) check(server netip.Addr, limits watch.Limits) []*watch.Flow {
	c := k.cluster
	c.t.Helper()
	flows := k.flows().Of(server)
	if len(flows) == 0 {
		c.t.Errorf("%s: no connection with %s", k.file.Name(), server)
	}
	for _, f := range flows {
		for _, problem := range f.Problems(limits) {
			c.t.Errorf("%s: %s", filepath.Base(k.file.Name()), problem)
		}
	}
	k.dissect()
	return flows
}

// dissect has tshark, an independent dissector, look for packets that are not
// what they should be. The capture has ended.
func (k *capture) dissect() {
	c := k.cluster
	c.t.Helper()
	if !probe.Check(probe.Program("tshark")).OK {
		c.t.Log(probe.Check(probe.Program("tshark")))
		return
	}
	// Beginnings of packets are all there is: payload is not dissected, whatever the
	// client's port is otherwise used for.
	cmd := exec.CommandContext(c.ctx, "tshark", "-n", "-r", k.file.Name(),
		"-d", "tcp.port==1-65535,data", "-o", "tcp.try_heuristic_first:FALSE", "--disable-protocol", "data",
		"-Y", "_ws.malformed or _ws.expert.severity == error")
	cmd.Env = append(os.Environ(), "HOME="+c.Dir) // no preferences of whoever runs this
	out, err := cmd.Output()
	if err != nil {
		stderr := ""
		if e, ok := err.(*exec.ExitError); ok {
			stderr = string(e.Stderr)
		}
		c.t.Errorf("tshark: %v: %s", err, stderr)
		return
	}
	if text := strings.TrimSpace(string(out)); text != "" {
		c.t.Errorf("%s: tshark objects to %d packets:\n%s", filepath.Base(k.file.Name()), strings.Count(text, "\n")+1, tail(text, 10))
	}
}
