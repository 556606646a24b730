//go:build linux

package e2e

import (
	"encoding/json"
	"strings"
	"syscall"
	"testing"

	"github.com/distributed-servers/ds/daemon/api"
)

// ds runs the tool on a node, as root or, if it is not zero, as another user.
func (c *cluster) ds(n *node, uid int, args ...string) (string, error) {
	c.t.Helper()
	cmd := n.Command(c.ctx, program("ds"), append(args, "--socket", n.Socket)...)
	if uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// An operator sees what there is and moves a client and the contact, with the
// command line alone.
func TestOperator(t *testing.T) {
	if !inside(t, everything...) {
		return
	}
	c := launchAll(t, setup{}, 0)
	d, cl, a, b := c.Servers[0], c.clients[0], c.Nodes[0], c.Nodes[1]
	lines := cl.socat(d.Addr.Addr())
	lines.expect("hello", "1 a hello")
	c.mode(d, cl, api.Optimised)

	says := func(n *node, want []string, args ...string) {
		t.Helper()
		out, err := c.ds(n, 0, args...)
		if err != nil {
			t.Errorf("ds %s on %s: %v: %s", strings.Join(args, " "), n.Name(), err, out)
		}
		for _, w := range want {
			if !strings.Contains(out, w) {
				t.Errorf("ds %s on %s: no %q in\n%s", strings.Join(args, " "), n.Name(), w, out)
			}
		}
	}
	client, server := cl.Addr.String(), d.Addr.Addr().String()
	says(a, []string{server, a.CareOf(d).String()}, "status")
	says(a, []string{"a", "b", "c", b.CareOf(d).String()}, "nodes")
	says(a, []string{client, string(api.Optimised)}, "clients")
	says(a, []string{"a", "b"}, "handoff", client, "b")
	lines.expect("there", "2 b there")
	says(b, []string{client, "established"}, "trace", client)
	says(b, []string{"b"}, "contact", "takeover")
	c.agreed(d, b)
	says(b, nil, "handoff", client, "c")
	lines.expect("there", "3 c there")

	out, err := c.ds(b, 0, "nodes", "--json")
	var nodes []api.NodeInfo
	if err != nil || json.Unmarshal([]byte(out), &nodes) != nil || len(nodes) != 3 || !nodes[1].Contact {
		t.Errorf("ds nodes --json: %v: %s", err, out)
	}

	// What cannot be done says why.
	refused := func(n *node, uid int, want string, args ...string) {
		t.Helper()
		if out, err := c.ds(n, uid, args...); err == nil || !strings.Contains(out, want) {
			t.Errorf("ds %s as user %d: %v: no %q in %s", strings.Join(args, " "), uid, err, want, out)
		}
	}
	refused(a, 0, "the contact, b, knows the owners", "handoff", client, "b")
	refused(c.Nodes[2], 0, `no node "x"; there are a, b, c`, "handoff", client, "x")
	if uid := appUID(); uid != 0 {
		if out, err := c.ds(a, uid, "clients"); err != nil {
			t.Errorf("ds clients as user %d: %v: %s", uid, err, out)
		}
		refused(a, uid, "root", "handoff", client, "a")
		refused(a, uid, "root", "contact", "takeover")
	}
	lines.expect("still", "4 c still")
	lines.bye()
}
