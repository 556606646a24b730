//go:build linux

package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/distributed-servers/ds"
	"github.com/distributed-servers/ds/internal/netns/topology"
	"github.com/distributed-servers/ds/internal/probe"
)

// exhaust lets a user's program have no more memory than it has now, and a little.
func (c *cluster) exhaust(p *topology.Process, uid int) {
	c.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	c.ok(err)
	_, data, _ := strings.Cut(string(b), "\nVmData:")
	var kib uint64
	_, err = fmt.Sscanf(data, "%d kB", &kib)
	c.ok(err)
	const more = 24 << 10 // threads are no handoff, and their stacks want 8 MiB each
	cmd := exec.CommandContext(c.ctx, "prlimit", "--pid", fmt.Sprint(p.PID()), fmt.Sprintf("--data=%d", (kib+more)<<10))
	if uid != 0 { // who is not that user may not, and root not everywhere
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		c.t.Fatalf("%v: %s", err, out)
	}
}

// goDies is the exit status of a program that Go's runtime has ended. A panic, which has it
// too, is found by cluster.end.
const goDies = 2

// Programs run out of memory in the middle of the handoff of a client whose state wants
// much of it. They end of that, whatever they are, and are started anew; the client stays
// at the donor, with all of its connections and what was said on them, and it is said
// where the handoff has failed.
func TestOutOfMemory(t *testing.T) {
	if !inside(t, append(slices.Clone(everything), probe.Program("prlimit"))...) {
		return
	}
	c := start(t, setup{})
	c.startAll()
	d, cl, from, to := c.Servers[0], c.clients[0], c.Nodes[1], c.Nodes[2]

	// Each connection has said half a line, which is the application's state: 25 MB.
	const conns = 100
	half := strings.Repeat("x", 250_000)
	said := make([]net.Conn, conns)
	heard := make([]*bufio.Reader, conns)
	for i := range said {
		conn, err := cl.Dial("tcp", net.JoinHostPort(d.Addr.Addr().String(), fmt.Sprint(portLine)))
		c.ok(err)
		t.Cleanup(func() { conn.Close() })
		conn.SetDeadline(time.Now().Add(2 * time.Minute))
		said[i], heard[i] = conn, bufio.NewReader(conn)
		if i == 0 {
			c.handoff(d, cl, from) // while it has little
		}
	}
	lines := 0
	begin := func() {
		t.Helper()
		for _, conn := range said {
			_, err := io.WriteString(conn, half)
			c.ok(err)
		}
	}
	// servedBy ends the line, and checks that one node answers, which has the client.
	servedBy := func(want *node) {
		t.Helper()
		lines++
		for i, conn := range said {
			_, err := io.WriteString(conn, "\n")
			c.ok(err)
			answer, err := heard[i].ReadString('\n')
			if whole := fmt.Sprintf("%d %s %s\n", lines, want.Name(), half); err != nil || answer != whole {
				t.Fatalf("connection %d is answered by %d octets, %.20q, instead of %d, %.20q: %v", i, len(answer), answer, len(whole), whole, err)
			}
		}
		c.eventually("one node has the client", func(ctx context.Context) (bool, error) {
			var has []string
			for _, n := range c.Nodes {
				if i, err := n.API.Client(ctx, d.Addr.Addr(), cl.Addr); err == nil && i.Local {
					has = append(has, n.Name())
				}
			}
			return slices.Equal(has, []string{want.Name()}), fmt.Errorf("%q have it", has)
		})
	}

	for _, who := range []victim{targetApp, target, donor} {
		t.Run(string(who), func(t *testing.T) {
			ctx, cancel := context.WithTimeoutCause(c.ctx, 2*patience, errors.New("it has taken too long"))
			defer cancel()
			before := c.t
			c.t = t
			defer func() { c.t = before }()
			p, again := c.victim(who)
			if who != targetApp { // it has had such a client, and memory is left of that
				c.ok(p.Stop(patience))
				again()
				c.connected(d)
				p, _ = c.victim(who)
			}
			begin()
			giver := from.Apps[0]
			logged := giver.Log.Len()
			uid := 0
			if who == targetApp {
				uid = appUID()
			}
			c.exhausted = append(c.exhausted, p)
			c.exhaust(p, uid)
			answer := make(chan error, 1)
			go func() {
				_, err := from.API.Handoff(ctx, d.Addr.Addr(), cl.Addr, to.Name())
				answer <- err
			}()
			select {
			case <-p.Ended():
			case <-ctx.Done():
				t.Fatalf("the %s has memory enough\n%s", who, tail(p.Log.String(), 20))
			}
			// A runtime that gets no memory may say so, or fall over itself.
			if e, ok := errors.AsType[*exec.ExitError](p.Wait()); !ok || e.ExitCode() != goDies {
				t.Errorf("the %s has ended for another reason: %v\n%s", who, p.Wait(), tail(p.Log.String(), 40))
			}
			again()
			// Nobody can say at which octet: it may be a thread that gets no stack.
			failed := fmt.Sprintf("ds: hand off %s to %s: ", cl.Addr, to.Name())
			at, err := giver.Log.WaitFor(ctx, logged, failed)
			c.ok(err)
			end, err := giver.Log.WaitFor(ctx, at, "\n")
			c.ok(err)
			where := giver.Log.String()[at:end]
			t.Log(where)
			if !strings.HasPrefix(where, string(ds.StageTransfer)+": ") && !strings.HasPrefix(where, string(ds.StagePrepare)+": ") {
				t.Errorf("it has failed at %s", where)
			}
			want := failed
			if who == donor {
				want = "the daemon has ended before it answered"
			}
			if err := <-answer; err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("the answer is %v, without %q", err, want)
			}
			servedBy(from)
			c.connected(d)
		})
		if t.Failed() {
			return
		}
	}
	begin()
	c.handoff(d, cl, to) // and now it goes
	servedBy(to)
}
