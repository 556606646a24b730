//go:build linux

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
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

// A node with many clients, one of which downloads meanwhile, is emptied at a rate, and whoever
// does that sees how far it is. It is interrupted, and goes on with the rest.
func TestDrainAtARate(t *testing.T) {
	if !inside(t, everything...) {
		return
	}
	const (
		crowd = 23
		all   = crowd + 1 // and the one that downloads
		rate  = 5
		first = 4 // have gone when it is interrupted
	)
	c := launchAll(t, setup{Clients: 2}, 0)
	d := c.Servers[0]
	server := d.Addr.Addr()
	bulk, host := c.clients[0], c.clients[1]
	k := []*capture{c.capture(bulk.Host, "eth0"), c.capture(host.Host, "eth0")}
	download := bulk.download(server, 20<<20, 4<<20)
	lines := []*lineClient{bulk.line(bulk.Addr, server)}
	for i := range crowd {
		addr := host.Addr.As16()
		addr[14], addr[15] = 1, byte(i)
		lines = append(lines, host.line(netip.AddrFrom16(addr), server))
	}
	c.mode(d, bulk, api.Optimised)
	b := c.Nodes[1]
	// spread waits until clients are spread over the nodes as ok says, and b knows.
	spread := func(what string, ok func(has []int) bool) {
		t.Helper()
		c.eventually(what, func(ctx context.Context) (bool, error) {
			nodes, err := b.API.Nodes(ctx, server)
			var has []int
			for _, i := range nodes {
				has = append(has, i.Clients)
			}
			return len(has) == 3 && ok(has), errors.Join(err, fmt.Errorf("they have %d", has))
		})
	}
	spread("all clients are at a", func(has []int) bool { return has[0] == all })

	// drain is ds drain, from b. It shows each line of progress, until show wants no more.
	drain := func(show func(api.MoveProgress) bool) (last api.MoveProgress, err error) {
		t.Helper()
		cmd := b.Command(c.ctx, program("ds"), "drain", "a", "--rate", fmt.Sprint(rate), "--json", "--socket", b.Socket)
		var said strings.Builder
		cmd.Stderr = &said
		out, err := cmd.StdoutPipe()
		c.ok(err)
		c.ok(cmd.Start())
		in, interrupted := json.NewDecoder(out), false
		for {
			var p api.MoveProgress
			if err := in.Decode(&p); err == io.EOF {
				break
			} else if err != nil {
				t.Fatalf("ds drain --json: %v", err)
			}
			if p.Node != "a" || p.Failed != 0 || p.Stuck != 0 || p.Moving > p.Left || p.Moved < last.Moved || last.Node != "" && p.Moved+p.Left != last.Moved+last.Left {
				t.Errorf("after %+v ds drain says %+v", last, p)
			}
			last = p
			if !show(p) && !interrupted {
				interrupted = true
				c.ok(cmd.Process.Signal(os.Interrupt))
			}
		}
		if err := cmd.Wait(); err != nil {
			return last, fmt.Errorf("%w: %s", err, &said)
		}
		return last, nil
	}
	begin := time.Now()
	part, err := drain(func(p api.MoveProgress) bool { return p.Moved < first })
	if err == nil || part.Moved < first || part.Moved+part.Left != all || !strings.Contains(err.Error(), "a is being drained: run it again to go on, or ds undrain a") {
		t.Fatalf("interrupted it says %+v, %v", part, err)
	}
	estimates := 0
	rest, err := drain(func(p api.MoveProgress) bool {
		if p.Left > 0 && p.Rate > 0 && p.ETA > 0 {
			estimates++
		}
		return true
	})
	took := time.Since(begin)
	if err != nil || !rest.Done || rest.Error != "" || rest.Left != 0 {
		t.Fatalf("in the end it says %+v, %v", rest, err)
	}
	t.Logf("%d clients, %d, and what was under way between, have gone in %v; %d lines have an estimate", part.Moved, rest.Moved, took, estimates)
	// Of both drains the first begins at once, and a tenth of a second may be made up for.
	if least := (all-2)*time.Second/rate - 2*time.Second/10; took < least || estimates == 0 {
		t.Errorf("at %d a second it takes %v at least, and to tell how long yet", rate, least)
	}
	// How many there are elsewhere a knows a second later, or more if the machine is busy:
	// that may be some to each too many.
	spread("they are at b and c, at each about as many", func(has []int) bool {
		return has[0] == 0 && has[1]+has[2] == all && max(has[1], has[2]) <= all*3/4
	})
	c.wait(download)
	for _, l := range lines {
		l.beat()
	}
	for _, k := range k {
		k.check(server, watch.Limits{Handoffs: 3, Again: 1 << 20})
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
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
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
	if r.Has("client_1000_conns_ms") {
		t.Error("a thousand connections are too many for --quick")
	}
	for _, m := range r.Missing {
		if m.Name != "client_1000_conns_ms" && !stoodStill(errors.New(m.Why)) {
			t.Errorf("missing is %+v", m)
		}
	}
	for _, name := range []string{"plots.svg", "evaluation.md", "evaluation/queued.svg", "evaluation/loss.svg"} {
		if s, err := os.Stat(filepath.Join(dir, name)); err != nil || s.Size() == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
}
