package node

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

var update = flag.Bool("update", false, "rewrite the scripts in testdata with what happens")

// Each script in testdata is a story: lines that begin with "> " are commands,
// those that follow are what happens. `go test -run Scripts -update` writes
// them anew.
//
//	a register, deregister, resign     a contact b
//	a optimise, abandon, release c     b prepare, bind c [from a]
//	a grant, state c                   run 2s
//	lose 2, double 1, delay 3s         what happens to the next packets
//	c deaf, hears, stock, reboots      c refuses 128
//	c requests a, denies a             Binding Refresh Request, Binding Error 1
//	h reboots, down, up, refuses 129
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.script")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := play(t, string(text))
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o666); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != string(text) {
				t.Errorf("another story than that in %s:\n%s", file, got)
			}
		})
	}
}

// play runs the commands of a script and returns it with what happened.
func play(t *testing.T, script string) string {
	var log strings.Builder
	// Sequence numbers that the reader can follow.
	w := newWorld(t, func(c *Config) {
		c.Rand = &counting{n: map[netip.Addr]uint16{addrA: 1000, addrB: 2000}[c.CareOf], rest: rand.NewChaCha8([32]byte{c.CareOf.AsSlice()[15]})}
	})
	w.log = &log
	var faults []fault
	w.fault = func(int, []byte) []time.Duration {
		if len(faults) == 0 {
			return []time.Duration{hop}
		}
		f := faults[0]
		faults = faults[1:]
		return f
	}
	grants := make(map[netip.Addr]Grant)
	byName := make(map[string]netip.Addr)
	for a, s := range names {
		byName[s] = a
	}
	for line := range strings.Lines(script) {
		if !strings.HasPrefix(line, ">") {
			if strings.HasPrefix(line, "#") || strings.TrimSpace(line) == "" {
				log.WriteString(line)
			}
			continue
		}
		log.WriteString(line)
		f := append(strings.Fields(line)[1:], "", "", "", "")
		who, a := byName[f[0]], byName[f[2]]
		n, c := w.nodes[who], w.clients[who]
		switch f[1] {
		case "register":
			w.do(who, Register{})
		case "deregister":
			w.do(who, Deregister{})
		case "resign":
			w.do(who, Resign{})
		case "contact":
			w.do(who, SetContact{a})
		case "optimise":
			w.do(who, Optimise{a})
		case "prepare":
			w.do(who, Prepare{a, grants[byName[f[4]]]})
		case "bind":
			w.do(who, Bind{a, grants[byName[f[4]]]})
		case "abandon":
			w.do(who, Abandon{a})
		case "release":
			w.do(who, Release{a})
		case "grant":
			g, ok := n.Grant(a, w.now)
			grants[who] = g
			fmt.Fprintf(&log, "           sequence %d, token for %v, %t\n", g.Sequence, g.Remaining, ok)
		case "state":
			fmt.Fprintf(&log, "           %v\n", n.State(a))
		case "deaf":
			c.deaf = true
		case "hears":
			c.deaf, c.stock = false, false
		case "stock":
			c.stock = true
		case "reboots":
			if c != nil {
				c.reboot()
			} else {
				w.agent.expires = 0
			}
		case "refuses":
			s, _ := strconv.Atoi(f[2])
			if c != nil {
				c.dislike = wire.Status(s)
			} else {
				w.agent.dislike = wire.Status(s)
			}
		case "requests":
			w.put(f[0], mobility(who, a, addrHome, &wire.BindingRefreshRequest{}), 0)
		case "denies":
			w.put(f[0], mobility(who, a, netip.Addr{}, &wire.BindingError{Status: wire.UnknownBinding, Home: addrHome}), 0)
		case "down":
			w.agent.down = true
		case "up":
			w.agent.down = false
		default:
			switch f[0] {
			case "run":
				d, err := time.ParseDuration(f[1])
				if err != nil {
					t.Fatalf("%q: %v", line, err)
				}
				w.run(d)
			case "lose", "double", "delay":
				n, by := 1, time.Duration(0)
				if f[0] == "delay" {
					by, _ = time.ParseDuration(f[1])
				} else {
					n, _ = strconv.Atoi(f[1])
				}
				for range n {
					faults = append(faults, map[string]fault{"lose": {}, "double": {hop, hop}, "delay": {hop + by}}[f[0]])
				}
			default:
				t.Fatalf("no such command: %q", line)
			}
		}
	}
	return log.String()
}

// fault is when a packet arrives: never, once, or several times.
type fault []time.Duration

// counting gives sequence numbers that count up, and random cookies.
type counting struct {
	n    uint16
	rest *rand.ChaCha8
}

func (c *counting) Read(b []byte) (int, error) {
	if len(b) != 2 {
		return c.rest.Read(b)
	}
	b[0], b[1] = byte(c.n>>8), byte(c.n)
	c.n += 100
	return 2, nil
}
