package httpmove_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/distributed-servers/ds"
	"github.com/distributed-servers/ds/dstest"
	"github.com/distributed-servers/ds/httpmove"
)

var clientAddr = netip.MustParseAddr("2001:db8:1::1")

// buffer is small, so that transfers are under way for long.
const buffer = 16 << 10

// world is a distributed server of nodes "a" and "b" that serve HTTP, and one
// client that moves between them.
type world struct {
	t       *testing.T
	cluster *dstest.Cluster
	servers map[string]*httpmove.Server
	ctx     context.Context
	at      string // where the client is
}

// newWorld has the nodes serve; handler makes one for each.
func newWorld(t *testing.T, handler func(node string) http.Handler, set ...func(*httpmove.Server)) *world {
	t.Helper()
	w := &world{t: t, cluster: dstest.New("a", "b"), servers: make(map[string]*httpmove.Server), at: "a"}
	t.Cleanup(w.cluster.Close)
	var cancel func()
	w.ctx, cancel = context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	for _, name := range []string{"a", "b"} {
		node := w.cluster.Node(name)
		node.Patience = 10 * time.Second
		s := &httpmove.Server{
			Node: node, Handler: handler(name), Buffer: buffer,
			HTTP: &http.Server{ErrorLog: log.New(testLog{t, name}, "", 0)},
		}
		for _, f := range set {
			f(s)
		}
		w.servers[name] = s
		served := make(chan error, 1)
		go func() { served <- s.ListenAndServe() }()
		t.Cleanup(func() {
			s.Close()
			node.Close()
			if err := <-served; !errors.Is(err, http.ErrServerClosed) {
				t.Errorf("%s: served until %v", name, err)
			}
		})
	}
	w.awaitServing()
	return w
}

type testLog struct {
	t    *testing.T
	node string
}

func (l testLog) Write(b []byte) (int, error) {
	l.t.Logf("%s: %s", l.node, b)
	return len(b), nil
}

// awaitServing waits until a listens, and b accepts what is handed off to it: a
// client that is not ours goes there.
func (w *world) awaitServing() {
	w.t.Helper()
	for _, s := range w.servers {
		if _, err := s.Node.Name(w.ctx); err != nil { // attached: it refuses at once what it does not serve yet
			w.t.Fatal(err)
		}
	}
	early := netip.MustParseAddr("2001:db8:9::1")
	var c net.Conn
	w.until(func() (err error) {
		c, err = w.cluster.Client(early).Dial(w.ctx, w.cluster.Address(80))
		return err
	})
	w.until(func() error { _, err := w.servers["a"].Move(w.ctx, early, "b"); return err })
	c.Close()
}

func (w *world) until(f func() error) {
	w.t.Helper()
	for err := f(); err != nil; err = f() {
		if w.ctx.Err() != nil {
			w.t.Fatal(err)
		}
	}
}

// dial opens a connection of the client.
func (w *world) dial() *client {
	w.t.Helper()
	c, err := w.cluster.Client(clientAddr).Dial(w.ctx, w.cluster.Address(80))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	deadline, _ := w.ctx.Deadline()
	c.SetDeadline(deadline)
	c.(interface{ SetReadBuffer(int) error }).SetReadBuffer(buffer)
	cl := &client{Conn: c, t: w.t, in: bufio.NewReaderSize(c, 512)}
	if err := w.cluster.AwaitOwner(w.ctx, clientAddr, w.at); err != nil {
		w.t.Fatal(err)
	}
	return cl
}

// move hands the client to the other node.
func (w *world) move() {
	w.t.Helper()
	if err := w.tryMove(); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) tryMove() error {
	to := map[string]string{"a": "b", "b": "a"}[w.at]
	if _, err := w.servers[w.at].Move(w.ctx, clientAddr, to); err != nil {
		return err
	}
	w.at = to
	return nil
}

func (w *world) noFaults() {
	w.t.Helper()
	for _, f := range w.cluster.Faults() {
		if strings.Contains(f, clientAddr.String()) {
			w.t.Error(f)
		}
	}
}

// client is a connection, with which a test says and hears what is on the wire.
type client struct {
	net.Conn
	t  *testing.T
	in *bufio.Reader
}

func (c *client) send(format string, args ...any) {
	c.t.Helper()
	if _, err := fmt.Fprintf(c, format, args...); err != nil {
		c.t.Fatal(err)
	}
}

// response reads the head of the next response, to a request by method.
func (c *client) response(method string) *http.Response {
	c.t.Helper()
	r, err := http.ReadResponse(c.in, &http.Request{Method: method})
	if err != nil {
		c.t.Fatal(err)
	}
	return r
}

// expect reads a whole response.
func (c *client) expect(status int, body string) *http.Response {
	c.t.Helper()
	r := c.response(http.MethodGet)
	got, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != status || string(got) != body {
		c.t.Fatalf("got %s, %.200q, %v: want %d, %.200q", r.Status, got, err, status, body)
	}
	return r
}

// expectEnd reads the end of the connection.
func (c *client) expectEnd() {
	c.t.Helper()
	if b, err := io.ReadAll(c.in); err != nil || len(b) > 0 {
		c.t.Fatalf("at the end: %.200q, %v", b, err)
	}
}

func named(node string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s", node, r.URL.Path, b)
	})
}

var _ *ds.Report
