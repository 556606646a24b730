//go:build linux

package e2e

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/e2e/watch"
	"github.com/distributed-servers/ds/internal/evaluation"
	"github.com/distributed-servers/ds/internal/netns"
	"github.com/distributed-servers/ds/internal/probe"
)

// An operator empties a node from another one, and evens the nodes out afterwards;
// sessions go on.
func TestDrain(t *testing.T) {
	if !inside(t, everything...) {
		return
	}
	c := launchAll(t, setup{Clients: 2}, 0)
	d := c.Servers[0]
	server := d.Addr.Addr()
	optimised, relayed := c.clients[0], c.clients[1]
	k := []*capture{c.capture(optimised.Host, "eth0"), c.capture(relayed.Host, "eth0")}
	lines, other := optimised.socat(server), relayed.socat(server)
	lines.expect("hello", "1 a hello")
	other.expect("hello", "1 a hello")
	c.mode(d, optimised, api.Optimised)
	a, b := c.Nodes[0], c.Nodes[1]

	out, err := c.ds(b, 0, "drain", "a", "--to", "b")
	if err != nil || !strings.Contains(out, "a is drained: clients that have gone: 2 (2 to b)") || !strings.Contains(out, "a is the contact") {
		t.Fatalf("%v: %s", err, out)
	}
	lines.expect("again", "2 b again")
	other.expect("again", "2 b again")
	if out, err := c.ds(b, 0, "handoff", optimised.Addr.String(), "a"); err == nil || !strings.Contains(out, "it is being drained") {
		t.Errorf("a node that is drained takes a client: %v: %s", err, out)
	}
	if out, err := c.ds(a, 0, "nodes"); err != nil || !strings.Contains(out, "contact, this, draining") {
		t.Errorf("%v: %s", err, out)
	}
	if out, err := c.ds(b, 0, "undrain", "a"); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	// The counts that others know are a second old.
	c.eventually("a plan of one client for each of two nodes", func(context.Context) (bool, error) {
		out, err := c.ds(b, 0, "rebalance", "--dry-run")
		return strings.Contains(out, "b     1       2        1") && strings.Contains(out, "b     a   1"), err
	})
	if out, err := c.ds(b, 0, "rebalance"); err != nil || !strings.Contains(out, "rebalanced: clients that have gone: 1 (1 to a)") {
		t.Errorf("%v: %s", err, out)
	}
	owners := map[*node]bool{c.owner(d, optimised): true, c.owner(d, relayed): true}
	if len(owners) != 2 || !owners[a] || !owners[b] {
		t.Errorf("both clients are at one node")
	}
	lines.expect("bye", "3 "+c.owner(d, optimised).Name()+" bye")
	other.expect("bye", "3 "+c.owner(d, relayed).Name()+" bye")
	lines.bye()
	other.bye()
	for _, k := range k {
		k.check(server, watch.Limits{Handoffs: 5, Again: fewAgain})
	}
}

// All that ds bench handoff measures it can measure, and write down.
func TestEvaluation(t *testing.T) {
	if netns.Inside() {
		return // it makes its own
	}
	if testing.Short() {
		t.Skip("it takes seconds")
	}
	for _, name := range append([]probe.Name{probe.NetNS}, everything...) {
		probe.Skip(t, name)
	}
	build(t)
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program("ds"), "bench", "handoff", "--quick", "--json",
		"--svg", filepath.Join(dir, "plots.svg"), "--markdown", filepath.Join(dir, "evaluation.md"))
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, &said)
	}
	var r evaluation.Result
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := r.Check(); err != nil {
		t.Error(err)
	}
	if len(r.Missing) != 1 || r.Missing[0].Name != "client_1000_conns_ms" { // too many for --quick
		t.Errorf("missing are %+v", r.Missing)
	}
	for _, name := range []string{"plots.svg", "evaluation.md", "evaluation/queued.svg", "evaluation/loss.svg"} {
		if s, err := os.Stat(filepath.Join(dir, name)); err != nil || s.Size() == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
}
