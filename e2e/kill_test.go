//go:build linux

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/distributed-servers/ds"
	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/e2e/watch"
	"github.com/distributed-servers/ds/internal/killpoint"
	"github.com/distributed-servers/ds/internal/netns"
	"github.com/distributed-servers/ds/internal/netns/topology"
)

// victim is a program that dies in a handoff from node b to node c.
type victim string

const (
	donor     victim = "donor"                // dsco of b
	donorApp  victim = "donor's application"  // of b
	target    victim = "target"               // dsco of c
	targetApp victim = "target's application" // of c
	contact   victim = "contact"              // dsco of a
)

// death is that kill -9 ends a program at a point (internal/killpoint).
type death struct {
	who victim
	at  string
}

// end is what has become of the client.
type end uint8

const (
	stays  end = iota // with the donor
	goes              // to the target
	either            // one of the two: which of two messages is first is nobody's to say
	lost              // its connections, with the donor's application
	lostThere
)

// killed is a handoff in which programs die, one after the other, and the stage that
// its error tells: what the donor's application has to say, or, if that is dead or has
// nothing to say, "".
type killed struct {
	death
	ends  end
	stage ds.Stage
	then  []death
}

// killings are all messages of a handoff, from both sides, and all that is written:
// before it is sent, when it has been sent, when it has come.
var killings = []killed{
	{death: death{donor, "session send asked"}, ends: stays},
	{death: death{donor, "session sent asked"}, ends: stays},
	{death: death{donor, "session received prepare"}, ends: stays, stage: ds.StagePrepare},
	{death: death{donor, "peer send prepare"}, ends: stays, stage: ds.StagePrepare},
	{death: death{donor, "peer sent prepare"}, ends: stays, stage: ds.StagePrepare},
	{death: death{donor, "peer received prepared"}, ends: stays, stage: ds.StagePrepare},
	{death: death{donor, "session send prepared"}, ends: stays, stage: ds.StagePrepare},
	{death: death{donor, "session sent prepared"}, ends: stays},
	{death: death{donor, "session received transfer"}, ends: stays, stage: ds.StageTransfer},
	{death: death{donor, "peer send transfer"}, ends: stays, stage: ds.StageTransfer},
	{death: death{donor, "peer sent transfer"}, ends: either, stage: ds.StageTransfer},
	{death: death{donor, "session received late"}, ends: either, stage: ds.StageTransfer},
	{death: death{donor, "peer send late"}, ends: either, stage: ds.StageTransfer},
	{death: death{donor, "peer sent late"}, ends: either, stage: ds.StageTransfer},
	{death: death{donor, "peer received done"}, ends: goes, stage: ds.StageTransfer},
	{death: death{donor, "session send done"}, ends: goes, stage: ds.StageTransfer},
	{death: death{donor, "session sent done"}, ends: goes},
	{death: death{donor, "session received settled"}, ends: goes},
	{death: death{donor, "peer send settled"}, ends: goes},
	{death: death{donor, "peer sent settled"}, ends: goes},
	{death: death{donor, "session received answered"}, ends: goes},

	{death: death{donorApp, "session received asked"}, ends: lost},
	{death: death{donorApp, "session send prepare"}, ends: lost},
	{death: death{donorApp, "session sent prepare"}, ends: lost},
	{death: death{donorApp, "session received prepared"}, ends: lost},
	{death: death{donorApp, "session send transfer"}, ends: lost},
	{death: death{donorApp, "session sent transfer"}, ends: goes},
	{death: death{donorApp, "session send late"}, ends: goes},
	{death: death{donorApp, "session sent late"}, ends: goes},
	{death: death{donorApp, "session received done"}, ends: goes},
	{death: death{donorApp, "session send settled"}, ends: goes},
	{death: death{donorApp, "session sent settled"}, ends: goes},
	{death: death{donorApp, "session send answered"}, ends: goes},
	{death: death{donorApp, "session sent answered"}, ends: goes},

	{death: death{target, "peer received prepare"}, ends: stays, stage: ds.StagePrepare},
	{death: death{target, "session send expect"}, ends: stays, stage: ds.StagePrepare},
	{death: death{target, "session sent expect"}, ends: stays, stage: ds.StagePrepare},
	{death: death{target, "session received expected"}, ends: stays, stage: ds.StagePrepare},
	{death: death{target, "peer send prepared"}, ends: stays, stage: ds.StagePrepare},
	{death: death{target, "peer sent prepared"}, ends: stays},
	{death: death{target, "peer received transfer"}, ends: stays, stage: ds.StageTransfer},
	{death: death{target, "record write taken"}, ends: stays, stage: ds.StageTransfer},
	{death: death{target, "record written taken"}, ends: stays, stage: ds.StageTransfer},
	{death: death{target, "session send offer"}, ends: stays, stage: ds.StageTransfer},
	{death: death{target, "session sent offer"}, ends: stays, stage: ds.StageTransfer},
	{death: death{target, "session send activate"}, ends: stays, stage: ds.StageTransfer},
	{death: death{target, "session sent activate"}, ends: goes},
	{death: death{target, "peer received late"}, ends: goes},
	{death: death{target, "session send late"}, ends: goes},
	{death: death{target, "session sent late"}, ends: goes},
	{death: death{target, "session received activated"}, ends: goes},
	{death: death{target, "record write activated"}, ends: goes},
	{death: death{target, "record written activated"}, ends: goes},
	{death: death{target, "peer send owners"}, ends: goes},
	{death: death{target, "peer sent owners"}, ends: goes},
	{death: death{target, "peer send done"}, ends: goes},
	{death: death{target, "peer sent done"}, ends: goes},
	{death: death{target, "peer received settled"}, ends: goes},
	{death: death{target, "record write forgotten"}, ends: goes},
	{death: death{target, "record written forgotten"}, ends: goes},

	{death: death{targetApp, "session received expect"}, ends: stays, stage: ds.StagePrepare},
	{death: death{targetApp, "session send expected"}, ends: stays, stage: ds.StagePrepare},
	{death: death{targetApp, "session sent expected"}, ends: stays},
	{death: death{targetApp, "session received offer"}, ends: stays, stage: ds.StageTransfer},
	{death: death{targetApp, "session received activate"}, ends: stays, stage: ds.StageTransfer},
	{death: death{targetApp, "session received late"}, ends: lostThere},
	{death: death{targetApp, "session send activated"}, ends: lostThere},
	{death: death{targetApp, "session sent activated"}, ends: lostThere},

	{death: death{contact, "peer received owners"}, ends: goes},

	// What comes about because one is dead already.
	{death: death{target, "peer received transfer"}, ends: stays, stage: ds.StageTransfer, then: []death{{donor, "peer send query"}}},
	{death: death{target, "peer received transfer"}, ends: stays, stage: ds.StageTransfer, then: []death{{donor, "peer sent query"}}},
	{death: death{donor, "peer received done"}, ends: goes, stage: ds.StageTransfer, then: []death{{target, "peer received query"}}},
	{death: death{donor, "peer send abort"}, ends: lost, then: []death{{donorApp, "session received prepared"}}},
	{death: death{target, "peer received abort"}, ends: lost, then: []death{{donorApp, "session received prepared"}}},
}

// Real programs are killed at every stage of a handoff of a client that is in the
// middle of something, and started anew as systemd would. However that ends, the
// client is served by one node, or its connections have ended with the application
// that had them; and it says so.
func TestKilledAtEveryStage(t *testing.T) {
	if !netns.Inside() && !testing.Short() {
		buildTagged(t, "killpoint", "./cmd/dsco", "./e2e/service")
	}
	if !inside(t, everything...) {
		return
	}
	c := start(t, setup{Programs: filepath.Join(os.Getenv(programsEnv), "killpoint"), Clients: 2})
	t.Setenv(killpoint.Env, c.Dir)
	hosts := []*topology.Host{c.Home, c.clients[0].Host, c.Nodes[0].Host, c.Nodes[1].Host, c.Nodes[2].Host}
	before := make([][]string, len(hosts))
	for i, h := range hosts {
		before[i] = c.traces(h)
	}
	c.startAll(0)
	var captures []*capture
	for _, cl := range c.clients {
		captures = append(captures, c.capture(cl.Host, "eth0"))
	}
	// Of clients' ends of connections, whether they may have been reset.
	resets := make(map[netip.AddrPort]bool)
	all := t.Context()
	for i, k := range killings {
		name := fmt.Sprintf("%s: %s", k.who, k.at)
		for _, d := range k.then {
			name += fmt.Sprintf(", %s: %s", d.who, d.at)
		}
		if !t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeoutCause(all, 2*patience, errors.New("it has taken too long"))
			defer cancel()
			c.t, c.ctx = t, ctx
			j := i % 2
			if strings.HasSuffix(k.at, " late") || k.ends == lost && len(k.then) > 0 {
				// A binding takes what the client sends to the target at once; and where
				// daemon and application have ended, nobody can say that it is not another
				// node's: it is not reset.
				j = 1
			}
			s, gone := c.kill(k, c.clients[j], []api.Mode{api.Optimised, api.Relayed}[j])
			for _, conn := range s.conns {
				resets[conn.LocalAddr().(*net.TCPAddr).AddrPort()] = gone
			}
		}) {
			break // the next ones begin where this one should have ended
		}
	}
	c.t, c.ctx = t, all

	for _, k := range captures {
		for _, f := range k.flows().Of(c.Servers[0].Addr.Addr()) {
			for _, p := range f.Problems(watch.Limits{Handoffs: 6, Again: fewAgain}) {
				if !strings.Contains(p, "resets") || !resets[f.Dst] && !resets[f.Src] {
					t.Error(p)
				}
			}
		}
	}
	for _, n := range c.Nodes {
		c.forgotten(n)
		if err := errors.Join(n.Apps[0].Stop(patience), n.Daemon.Stop(patience)); err != nil {
			t.Error(err)
		}
	}
	if err := errors.Join(c.Clients[0].Correspondent.Stop(patience), c.HomeAgent.Stop(patience)); err != nil {
		t.Error(err)
	}
	for i, h := range hosts {
		c.same(h, before[i], "at the end")
	}
}

// forgotten waits until a node remembers no handoff any more: all donors know how
// theirs have ended.
func (c *cluster) forgotten(n *node) {
	c.t.Helper()
	files, err := filepath.Glob(filepath.Join(c.Dir, "state-"+n.Name(), "handoffs-*.log"))
	c.ok(err)
	for _, name := range files {
		c.eventually(n.Name()+" has forgotten all handoffs", func(context.Context) (bool, error) {
			b, err := os.ReadFile(name)
			if err != nil {
				return false, err
			}
			last := make(map[string]int)
			for line := range strings.Lines(string(b)) {
				var r struct {
					From  string
					ID    uint64
					State int
				}
				if err := json.Unmarshal([]byte(line), &r); err != nil {
					return false, err
				}
				last[fmt.Sprint(r.From, " ", r.ID)] = r.State
			}
			const forgotten = 3
			for _, state := range last {
				if state != forgotten {
					return false, fmt.Errorf("%v", last)
				}
			}
			return true, nil
		})
	}
}

// victim is a victim's program, and what starts it anew.
func (c *cluster) victim(v victim) (p *topology.Process, again func()) {
	n := c.Nodes[map[victim]int{contact: 0, donor: 1, donorApp: 1, target: 2, targetApp: 2}[v]]
	if v == donorApp || v == targetApp {
		return n.Apps[0], func() { c.startApp(n, c.Servers[0]) }
	}
	return n.Daemon, func() { c.startDaemon(n) }
}

// arm says at which points something happens to a program.
func (c *cluster) arm(p *topology.Process, points string) {
	c.t.Helper()
	name := filepath.Join(c.Dir, fmt.Sprint(p.PID()))
	c.ok(os.WriteFile(name+".new", []byte(points), 0o644))
	c.ok(os.Rename(name+".new", name)) // it may be looking
}

// kill does one of the killings to the handoff of a client. It returns the
// connections that the client had, and whether they are lost.
func (c *cluster) kill(k killed, cl *client, mode api.Mode) (s *stream, gone bool) {
	t, d, from, to := c.t, c.Servers[0], c.Nodes[1], c.Nodes[2]
	t.Helper()
	c.connected(d)
	s = cl.stream(d.Addr.Addr())
	if c.owner(d, cl) != from {
		c.handoff(d, cl, from)
	}
	c.mode(d, cl, mode)

	deaths := append([]death{k.death}, k.then...)
	points, dead := make(map[victim]string), make(map[victim]bool)
	late := strings.HasSuffix(k.at, " late")
	if late {
		// What the client sends while the target's application has stopped comes to
		// the donor, whose application goes on when the transfer is there.
		points[donorApp] = "stop session sent transfer\n"
		points[targetApp] = "stop session received offer\n"
		if k.who == targetApp {
			points[target] = "stop session sent late\n"
		}
	}
	for _, d := range deaths {
		points[d.who] += "kill " + d.at + "\n"
		dead[d.who] = true
	}
	for who, lines := range points {
		p, _ := c.victim(who)
		c.arm(p, lines)
	}
	giver, giving, taking := from.Apps[0], from.Daemon, to.Daemon // as they are now
	logged := map[*topology.Process]int{giver: giver.Log.Len(), giving: giving.Log.Len(), taking: taking.Log.Len()}
	answer := make(chan error, 1)
	go func() {
		_, err := from.API.Handoff(c.ctx, d.Addr.Addr(), cl.Addr, to.Name())
		answer <- err
	}()
	stopped := func(who victim) *topology.Process {
		t.Helper()
		p, _ := c.victim(who)
		c.eventually(fmt.Sprintf("the %s has stopped", who), func(context.Context) (bool, error) {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID()))
			return strings.Contains(string(b), ") T "), err
		})
		return p
	}
	resume := func(who victim) {
		t.Helper()
		p := stopped(who)
		_, kill, _ := strings.Cut(points[who], "\n")
		c.arm(p, kill)
		c.ok(p.Signal(syscall.SIGCONT))
	}
	if late {
		stopped(targetApp)
		resume(donorApp)
	}
	if late && k.who == targetApp {
		resume(target)
		resume(targetApp)
	}
	for _, death := range deaths {
		p, again := c.victim(death.who)
		select {
		case <-p.Ended():
		case <-c.ctx.Done():
			t.Fatalf("the %s does not come to %q\n%s", death.who, death.at, tail(p.Log.String(), 20))
		}
		if e, ok := errors.AsType[*exec.ExitError](p.Wait()); !ok || e.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("the %s has ended by itself: %v", death.who, p.Wait())
		}
		if late && k.who == donorApp {
			// The next application resets what has not come to the target yet.
			resume(targetApp)
			c.eventually("the target has the client", func(ctx context.Context) (bool, error) {
				i, err := to.API.Client(ctx, d.Addr.Addr(), cl.Addr)
				return err == nil && i.Local, err
			})
		}
		again()
	}
	if late && (k.who == donor || k.who == target) {
		resume(targetApp)
	}

	// What is said of it.
	var err error
	select {
	case err = <-answer:
	case <-c.ctx.Done():
		t.Fatal("nobody says how the handoff has ended")
	}
	stage := fmt.Sprintf("to %s: %s:", to.Name(), k.stage)
	want := "<nil>"
	switch gone = k.ends == lost || k.ends == lostThere; {
	case err == nil && (strings.HasSuffix(k.at, " settled") || strings.HasSuffix(k.at, " answered")):
		// The answer was on its way, or had come.
	case dead[donor]:
		want = "the daemon has ended before it answered"
	case dead[donorApp] && k.ends == goes:
		want = "has been given to " + to.Name()
	case k.ends == lost:
		want = "stays at " + from.Name() + ": the application has gone"
	case k.ends == stays && k.stage == "":
		want = "stays at " + from.Name()
	case k.ends == stays:
		want = stage
	}
	if said := fmt.Sprint(err); !strings.Contains(said, want) {
		t.Errorf("the answer is %q, without %q", said, want)
	}
	says := func(p *topology.Process, what string) {
		t.Helper()
		if _, err := p.Log.WaitFor(c.ctx, logged[p], what); err != nil {
			t.Errorf("%v; it has written\n%s", err, p.Log.String()[logged[p]:])
		}
	}
	if k.stage != "" {
		says(giver, stage)
	}
	if k.ends == lost && !dead[donor] {
		says(giving, "its connections are lost")
	}
	if k.ends == lostThere {
		says(taking, "its connections are lost")
	}

	// Who serves it.
	end := func(s *stream, want error) {
		t.Helper()
		for _, err := range s.end() {
			if !errors.Is(err, want) {
				t.Errorf("the client hears %v instead of %v", err, want)
			}
		}
	}
	now := s
	if gone {
		end(s, syscall.ECONNRESET)
		now = cl.stream(d.Addr.Addr())
	}
	now.answered(c)
	by := now.node.Load().(string)
	c.eventually("one node has the client, which serves it", func(ctx context.Context) (bool, error) {
		var has []string
		var all []error
		for _, n := range c.Nodes {
			i, err := n.API.Client(ctx, d.Addr.Addr(), cl.Addr)
			if err == nil && i.Local {
				has = append(has, n.Name())
			}
			all = append(all, fmt.Errorf("%s: %+v, %w", n.Name(), i, err))
		}
		return slices.Equal(has, []string{by}), fmt.Errorf("it is served by %s: %w", by, errors.Join(all...))
	})
	may := []string{stays: "b", goes: "c", either: "b c", lost: "b", lostThere: "c"}[k.ends]
	if dead[donor] && dead[donorApp] {
		may += " a" // the contact, when it has heard that nobody has the client any more
	}
	if !strings.Contains(may, by) {
		t.Errorf("the client is served by %s instead of %s", by, may)
	}
	end(now, nil)
	return s, gone
}

// stream is a client in the middle of something: on two connections to the line
// server lines go there and back all the time, whether or not the ones before are
// answered.
type stream struct {
	conns  [2]net.Conn
	said   [2]atomic.Int64 // lines
	heard  [2]atomic.Int64 // that were answered
	node   atomic.Value    // that has answered last, a string
	broken [2]error        // why nothing more can be said
	ended  [2]chan error   // what the client hears in the end
	stop   chan struct{}   // closed by end
	quiet  sync.WaitGroup  // nothing is said any more
}

// stream begins one.
func (cl *client) stream(server netip.Addr) *stream {
	c := cl.cluster
	c.t.Helper()
	s := &stream{stop: make(chan struct{})}
	for i := range s.conns {
		conn, err := cl.Dial("tcp", net.JoinHostPort(server.String(), fmt.Sprint(portLine)))
		c.ok(err)
		c.t.Cleanup(func() { conn.Close() })
		s.conns[i], s.ended[i] = conn, make(chan error, 1)
		s.quiet.Go(func() { s.talk(i) })
		go func() { s.ended[i] <- s.listen(i) }()
	}
	s.answered(c)
	return s
}

// answered waits until what is said from now on is answered.
func (s *stream) answered(c *cluster) {
	c.t.Helper()
	for i := range s.conns {
		said := s.said[i].Load()
		c.eventually("the client is answered", func(context.Context) (bool, error) { return s.heard[i].Load() > said, nil })
	}
}

// line is what is said, behind a number.
var line = strings.Repeat("x", 100)

// talk says a line now and then, as long as that goes well.
func (s *stream) talk(i int) {
	pause := time.NewTicker(2 * time.Millisecond)
	defer pause.Stop()
	for n := int64(1); ; n++ {
		if _, err := fmt.Fprintf(s.conns[i], "%d %s\n", n, line); err != nil {
			s.broken[i] = err
			return
		}
		s.said[i].Store(n)
		select {
		case <-s.stop:
			return
		case <-pause.C:
		}
	}
}

// listen compares answers until the connection ends.
func (s *stream) listen(i int) error {
	r := bufio.NewReader(s.conns[i])
	for n := int64(1); ; n++ {
		answer, err := r.ReadString('\n')
		if err != nil {
			return err
		}
		number, rest, _ := strings.Cut(answer, " ")
		node, rest, _ := strings.Cut(rest, " ")
		if number != fmt.Sprint(n) || rest != fmt.Sprintf("%d %s\n", n, line) {
			return fmt.Errorf("line %d is answered by %q", n, answer)
		}
		s.node.Store(node)
		s.heard[i].Store(n)
	}
}

// end says that nothing follows, and waits for what is still to be answered and for
// the server to close. It tells what the client hears on each connection.
func (s *stream) end() (errs [2]error) {
	close(s.stop)
	s.quiet.Wait()
	for i, conn := range s.conns {
		conn.SetReadDeadline(time.Now().Add(patience))
		conn.(*net.TCPConn).CloseWrite() // if it fails, listen hears why
		errs[i] = <-s.ended[i]
		if errs[i] == io.EOF && s.said[i].Load() == s.heard[i].Load() {
			errs[i] = nil
		}
		errs[i] = errors.Join(errs[i], s.broken[i]) // the kernel tells one of the two why
	}
	return errs
}
