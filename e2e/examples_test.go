//go:build linux

package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/e2e/watch"
	"github.com/distributed-servers/ds/internal/netns"
	"github.com/distributed-servers/ds/internal/probe"
)

// Each of the examples that run on a distributed server runs on one, as its reader would run
// it: with the daemon's socket where it is by default, and no arguments.
func TestExamples(t *testing.T) {
	for name, use := range map[string]func(*exampleCluster){"hello": hello, "counter": counter, "websocket": webSocket} {
		t.Run(name, func(t *testing.T) {
			if !netns.Inside() && !testing.Short() {
				buildTagged(t, "", "./examples/"+name)
			}
			if !inside(t, append([]probe.Name{probe.Program("unshare")}, everything...)...) {
				return
			}
			c := start(t, setup{})
			c.ok(c.Configure())
			c.ok(c.StartDaemons(c.ctx, 0))
			d, cl := c.Servers[0], c.clients[0]
			for _, n := range c.Nodes {
				cmd := n.Command(context.Background(), "unshare", "--mount", "sh", "-ec",
					`mount -t tmpfs none /run; mkdir /run/dsco; ln -s "$1" `+api.NodeSocket+`; exec "$2"`, "sh", n.Socket, program(name))
				cmd.Dir = c.Dir
				c.launch(cmd)
			}
			c.registered(c.Nodes[0], d)
			for _, n := range c.Nodes {
				c.eventually("all nodes take clients, as "+n.Name()+" knows", func(ctx context.Context) (bool, error) {
					nodes, err := n.API.Nodes(ctx, d.Addr.Addr())
					takes := 0
					for _, i := range nodes {
						if i.Connected && i.AcceptsHandoffs {
							takes++
						}
					}
					return takes == len(c.Nodes), errors.Join(err, fmt.Errorf("they are %+v", nodes))
				})
			}
			k := c.capture(cl.Host, "eth0")
			x := &exampleCluster{cluster: c, d: d, cl: cl}
			use(x)
			k.check(d.Addr.Addr(), watch.Limits{Handoffs: 2*x.handoffs + 2, Again: 4 << 20})
		})
	}
}

// exampleCluster runs an example.
type exampleCluster struct {
	*cluster
	d        *server
	cl       *client
	handoffs int
}

// dial connects, as soon as the example listens.
func (x *exampleCluster) dial(port int) (conn net.Conn) {
	x.t.Helper()
	x.eventually("somebody listens", func(context.Context) (ok bool, err error) {
		conn, err = x.cl.Dial("tcp", net.JoinHostPort(x.d.Addr.Addr().String(), fmt.Sprint(port)))
		return err == nil, err
	})
	conn.SetDeadline(time.Now().Add(time.Minute))
	x.t.Cleanup(func() { conn.Close() })
	return conn
}

// around hands the client off to each node in turn, and has it do something at each.
func (x *exampleCluster) around(at func(n *node)) {
	x.t.Helper()
	x.mode(x.d, x.cl, api.Optimised)
	at(x.Nodes[0])
	for i := range 2 * len(x.Nodes) {
		n := x.Nodes[(i+1)%len(x.Nodes)]
		x.handoff(x.d, x.cl, n)
		x.handoffs++
		at(n)
	}
}

// expect reads exactly that.
func (x *exampleCluster) expect(r io.Reader, want string) {
	x.t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(r, got); err != nil || string(got) != want {
		x.t.Fatalf("got %q, %v: want %q", got, err, want)
	}
}

// hello: greetings on one connection from whichever node has it, and a download of a file
// that goes on from node to node.
func hello(x *exampleCluster) {
	server := x.d.Addr.Addr()
	const octets = 32 << 20
	file, _ := x.pattern(octets) // in the directory that it serves
	conn := x.dial(80)
	web := &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		DialContext:  func(context.Context, string, string) (net.Conn, error) { return conn, nil },
		MaxIdleConns: 1, MaxConnsPerHost: 1,
	}}
	get := func(n *node) {
		x.t.Helper()
		r, err := web.Get(url(server, "/hello"))
		x.ok(err)
		defer r.Body.Close()
		said, err := io.ReadAll(r.Body)
		if want := fmt.Sprintf("hello %s, this is %s\n", conn.LocalAddr(), n.Name()); err != nil || string(said) != want {
			x.t.Errorf("%s says %q, %v: want %q", n.Name(), said, err, want)
		}
	}
	get(x.Nodes[0])
	download := x.cl.fetch(url(server, "/"+filepath.Base(file)), octets, 16<<20)
	x.around(get)
	x.wait(download)
}

// counter: the count goes on, with half a line read, and a line has the client move.
func counter(x *exampleCluster) {
	conn := x.dial(7000)
	fmt.Fprint(conn, "hel")
	lines := 0
	x.around(func(n *node) {
		x.t.Helper()
		fmt.Fprintf(conn, "lo, %s\nhel", n.Name())
		lines++
		x.expect(conn, fmt.Sprintf("%d hello, %s\n", lines, n.Name()))
	})
	fmt.Fprint(conn, "p\nmove b\n")
	x.expect(conn, fmt.Sprintf("%d help\n%d move b\n", lines+1, lines+2))
	x.eventually("the client is at b", func(context.Context) (bool, error) { return x.owner(x.d, x.cl).Name() == "b", nil })
	x.handoffs++
	fmt.Fprint(conn, "there\n")
	x.expect(conn, fmt.Sprintf("%d there\n", lines+3))
}

// webSocket: the count of messages goes on, with half a frame read.
func webSocket(x *exampleCluster) {
	conn := x.dial(80)
	key := base64.StdEncoding.EncodeToString(make([]byte, 16))
	fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n\r\n", key)
	var head bytes.Buffer
	for b := make([]byte, 1); !bytes.HasSuffix(head.Bytes(), []byte("\r\n\r\n")); head.Write(b) {
		_, err := io.ReadFull(conn, b)
		x.ok(err)
	}
	if !bytes.HasPrefix(head.Bytes(), []byte("HTTP/1.1 101 ")) {
		x.t.Fatalf("the answer is %q", &head)
	}
	// frame is a client's text (RFC 6455, section 5.2): it is masked.
	frame := func(text string) []byte {
		mask := [4]byte{1, 2, 3, 4}
		b := append([]byte{0x81, 0x80 | byte(len(text))}, mask[:]...)
		for i := range text {
			b = append(b, text[i]^mask[i%4])
		}
		return b
	}
	messages := 0
	next := frame("at first")
	conn.Write(next[:5])
	said := "at first"
	x.around(func(n *node) {
		x.t.Helper()
		conn.Write(next[5:])
		messages++
		answer := fmt.Sprintf("%d %s", messages, said)
		x.expect(conn, string([]byte{0x81, byte(len(answer))})+answer)
		said = "after " + n.Name()
		next = frame(said)
		conn.Write(next[:5])
	})
}
