package httpmove

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/distributed-servers/ds"
	"github.com/distributed-servers/ds/stack"
)

// wire is what a scripted client says and hears. Its octets come in pieces, and
// every few calls the connection moves, as soon as it can.
type wire struct {
	in     []byte
	out    bytes.Buffer
	piece  int
	every  int // calls of one connection; 0: it never moves
	server *Server
	moves  int
	done   chan struct{} // closed when the server has closed the connection
	end    sync.Once     // does that
	err    error         // why it could not move
}

func (w *wire) over() { w.end.Do(func() { close(w.done) }) }

// scripted is the wire's connection on one node.
type scripted struct {
	*wire
	mu     sync.Mutex
	more   sync.Cond // pins, deadline or gone has changed
	calls  int
	pins   int
	past   bool // the read deadline
	moving bool
	gone   error
}

func (w *wire) conn() *scripted {
	c := &scripted{wire: w}
	c.more.L = &c.mu
	return c
}

// step counts a call that takes or gives octets, and tells whether it must wait.
func (c *scripted) step() error {
	if c.gone != nil {
		return c.gone
	}
	c.calls++
	if c.every > 0 && c.calls > c.every && c.pins == 0 {
		return syscall.EAGAIN
	}
	return nil
}

func (c *scripted) TryRead(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.step(); err != nil {
		return 0, err
	}
	if len(c.in) == 0 {
		c.calls-- // it has got on, and does not move for that
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), c.piece)], c.in)
	c.in = c.in[n:]
	return n, nil
}

func (c *scripted) TryWrite(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.step(); err != nil {
		return 0, err
	}
	return c.out.Write(b[:min(len(b), c.piece)])
}

// Await moves the connection if that is due: it would wait otherwise.
func (c *scripted) Await(e stack.Event) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.gone == nil {
		due := c.every > 0 && c.calls > c.every
		switch {
		case due && c.pins == 0 && !c.moving:
			c.move()
		case !due && e != stack.Ended, due && c.pins > 0 && e != stack.Ended:
			return nil
		case c.past && e != stack.Writable && (!due || c.pins > 0):
			return os.ErrDeadlineExceeded
		default:
			c.more.Wait()
		}
	}
	return c.gone
}

// move moves it. mu is held: nothing else happens.
func (c *scripted) move() {
	c.moving = true
	v, _ := c.server.conns.Load(net.Conn(c))
	c.mu.Unlock() // nobody gets octets in or out any more
	r, err := v.(*conn).snapshot()
	var b []byte
	if err == nil {
		b, err = r.append()
	}
	c.moves++
	if err == nil {
		if err = c.server.Resume(c.wire.conn(), b); err != nil {
			err = fmt.Errorf("%w: %+v", err, r)
		}
	}
	c.mu.Lock()
	if err != nil {
		c.err = err
		c.over()
	}
	c.gone = ds.ErrMoved
	c.more.Broadcast()
}

func (c *scripted) Pin() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.gone == nil && c.moving {
		c.more.Wait()
	}
	if c.gone == nil {
		c.pins++
	}
	return c.gone
}

func (c *scripted) Unpin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pins--
	c.more.Broadcast()
}

func (c *scripted) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.past = !t.IsZero() && t.Before(time.Now())
	c.more.Broadcast()
	return nil
}

func (c *scripted) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone != nil {
		return c.gone
	}
	c.gone = net.ErrClosed
	c.more.Broadcast()
	c.over()
	return nil
}

func (c *scripted) Read([]byte) (int, error)         { panic("Read") }
func (c *scripted) Write([]byte) (int, error)        { panic("Write") }
func (c *scripted) SetDeadline(t time.Time) error    { return c.SetReadDeadline(t) }
func (c *scripted) SetWriteDeadline(time.Time) error { return nil }
func (c *scripted) CloseWrite() error                { return nil }
func (c *scripted) SetLinger(int) error              { return nil }
func (c *scripted) LocalAddr() net.Addr              { return arrivedAddr{} }
func (c *scripted) RemoteAddr() net.Addr             { return arrivedAddr{} }

// handlers of all kinds there are.
func handlers() http.Handler {
	mux := http.NewServeMux()
	echo := func(w http.ResponseWriter, r *http.Request) {
		w.Header()["Date"] = nil
		b, _ := io.ReadAll(io.LimitReader(r.Body, 1<<10))
		fmt.Fprintf(w, "%s %q %s", r.Method, r.URL.Path, b)
	}
	long := func(w http.ResponseWriter, r *http.Request) {
		w.Header()["Date"] = nil
		for i := range 1500 {
			fmt.Fprintf(w, "line %d\n", i)
		}
	}
	file := func(w http.ResponseWriter, r *http.Request) {
		w.Header()["Date"] = nil
		w.Header().Set("Etag", `"1"`)
		http.ServeContent(w, r, "x.txt", time.Time{}, strings.NewReader(strings.Repeat("ghijklmnop", 2000)))
	}
	count := func(w http.ResponseWriter, r *http.Request) {
		w.Header()["Date"] = nil
		var n uint8
		saved := Checkpoint(r, func() ([]byte, error) { return []byte{n}, nil })
		if len(saved) > 0 {
			n = saved[0]
		}
		var b [1]byte
		for {
			if _, err := r.Body.Read(b[:]); err != nil {
				break
			}
			n += b[0]
		}
		fmt.Fprintf(w, "sum %d", n)
	}
	mux.HandleFunc("/echo", echo)
	mux.HandleFunc("/long", long)
	mux.HandleFunc("/count", count)
	mux.Handle("/r/", http.StripPrefix("/r", Repeatable(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/long":
			long(w, r)
		case "/file":
			file(w, r)
		default:
			echo(w, r)
		}
	}))))
	return mux
}

// converse has a server answer in, and returns what it says and how often the
// connection has moved.
func converse(t *testing.T, in []byte, piece, every int) (string, int) {
	t.Helper()
	s := &Server{Handler: handlers(), HTTP: &http.Server{ErrorLog: log.New(io.Discard, "", 0)}}
	defer s.Close()
	w := &wire{in: in, piece: piece, every: every, server: s, done: make(chan struct{})}
	s.init()
	c, err := s.wrap(w.conn())
	if err != nil {
		t.Fatal(err)
	}
	s.arrived.add(c)
	<-w.done
	if w.err != nil {
		t.Fatal(w.err)
	}
	return varying.ReplaceAllString(w.out.String(), ""), w.moves
}

// varying is what is never the same: dates, and the boundaries between ranges.
var varying = regexp.MustCompile("Date: .*\r\n|[0-9a-f]{60}")

const (
	get  = "GET %s HTTP/1.1\r\nHost: h\r\n\r\n"
	post = "POST %s HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s"
)

// conversations are what clients say.
var conversations = map[string]string{
	"nothing":          "",
	"a request":        fmt.Sprintf(get, "/echo"),
	"requests":         fmt.Sprintf(get+get+get, "/echo", "/long", "/r/long"),
	"repeatable":       fmt.Sprintf(get+get+get, "/r/long", "/r/file", "/r/echo"),
	"bodies":           fmt.Sprintf(post+post+post, "/echo", 5, "hello", "/r/echo", 5, "hello", "/count", 5, "hello"),
	"empty body":       fmt.Sprintf(post, "/count", 0, ""),
	"lines between":    "\r\n\n" + fmt.Sprintf(get, "/r/echo") + "\r\n\r\n" + fmt.Sprintf(get, "/echo"),
	"bare line feeds":  "GET /echo HTTP/1.1\nHost: h\n\nGET /echo HTTP/1.1\nHost: h\n\n",
	"a range":          "GET /r/file HTTP/1.1\r\nHost: h\r\nRange: bytes=5-15000\r\n\r\n",
	"ranges":           "GET /r/file HTTP/1.1\r\nHost: h\r\nRange: bytes=5-400,1000-1010\r\n\r\n",
	"head":             "HEAD /r/file HTTP/1.1\r\nHost: h\r\n\r\nHEAD /r/long HTTP/1.1\r\nHost: h\r\n\r\n" + fmt.Sprintf(get, "/echo"),
	"close":            "GET /r/long HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n" + fmt.Sprintf(get, "/echo"),
	"1.0":              "GET /r/long HTTP/1.0\r\n\r\n" + fmt.Sprintf(get, "/echo"),
	"1.0 keep-alive":   "GET /r/file HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + fmt.Sprintf(get, "/echo"),
	"chunks":           "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n00A;x\r\n0123456789\r\n0\r\nT: x\r\n\r\n" + fmt.Sprintf(get, "/r/long"),
	"bad chunks":       "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nhello\r\n" + fmt.Sprintf(get, "/echo"),
	"cut chunks":       "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
	"expect":           "POST /count HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello" + fmt.Sprintf(get, "/echo"),
	"expect, repeat":   "POST /r/echo HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello" + fmt.Sprintf(get, "/echo"),
	"expect wonders":   "POST /echo HTTP/1.1\r\nHost: h\r\nExpect: wonders\r\nContent-Length: 5\r\n\r\nhello",
	"unread body":      fmt.Sprintf(post+get, "/r/long", 3000, strings.Repeat("x", 3000), "/echo"),
	"options":          "OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n" + fmt.Sprintf(get, "/r/echo"),
	"no HTTP":          "hello\r\n\r\n",
	"no host":          "GET / HTTP/1.1\r\n\r\n",
	"two lengths":      "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
	"length and chunk": "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"HTTP/2":           "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
	"half a head":      "GET / HTTP/1.1\r\nHost:",
	"half a body":      fmt.Sprintf(post, "/count", 9, "hello"),
	"large head":       "GET /r/long HTTP/1.1\r\nHost: h\r\nX: " + strings.Repeat("x", maxHead) + "\r\n\r\n" + fmt.Sprintf(get, "/r/long"),
}

// However octets come, and wherever the connection moves, the client hears the
// same, and the same as from net/http.
func TestConversations(t *testing.T) {
	moves := 0
	for name, in := range conversations {
		t.Run(name, func(t *testing.T) {
			want, _ := converse(t, []byte(in), 1<<20, 0)
			// The chunks of /r/long have another length, and lines between requests
			// net/http takes after a POST only.
			if !strings.Contains(in, "/r/long") && name != "lines between" {
				if theirs := plain(t, in); want != theirs {
					t.Fatalf("got  %.500q\nwant %.500q", want, theirs)
				}
			}
			for _, how := range []struct{ piece, every int }{{1000, 0}, {1 << 20, 1}, {1, 7}, {7, 13}, {700, 3}} {
				if how.piece < max(len(in), len(want))/60 {
					continue
				}
				got, n := converse(t, []byte(in), how.piece, how.every)
				if got != want {
					t.Fatalf("in pieces of %d, moved every %d calls:\ngot  %.500q\nwant %.500q", how.piece, how.every, got, want)
				}
				moves += n
			}
		})
	}
	if moves < 200 {
		t.Errorf("%d moves in all", moves)
	}
}

// plain is what net/http says, on a connection of its own.
func plain(t *testing.T, in string) string {
	t.Helper()
	c := &memory{in: strings.NewReader(in), done: make(chan struct{})}
	s := &http.Server{Handler: handlers(), ErrorLog: log.New(io.Discard, "", 0)}
	served := make(chan error, 1)
	go func() { served <- s.Serve(&once{conn: c, done: make(chan struct{})}) }()
	<-c.done
	s.Close()
	<-served
	return varying.ReplaceAllString(c.out.String(), "")
}

// memory is a connection whose client has said all that it says.
type memory struct {
	net.Conn
	in   *strings.Reader
	out  bytes.Buffer
	end  sync.Once
	done chan struct{}
}

func (m *memory) Read(b []byte) (int, error)       { return m.in.Read(b) }
func (m *memory) Write(b []byte) (int, error)      { return m.out.Write(b) }
func (m *memory) Close() error                     { m.end.Do(func() { close(m.done) }); return nil }
func (m *memory) SetDeadline(time.Time) error      { return nil }
func (m *memory) SetReadDeadline(time.Time) error  { return nil }
func (m *memory) SetWriteDeadline(time.Time) error { return nil }
func (m *memory) LocalAddr() net.Addr              { return arrivedAddr{} }
func (m *memory) RemoteAddr() net.Addr             { return arrivedAddr{} }

type once struct {
	conn net.Conn
	done chan struct{}
	end  sync.Once
}

func (o *once) Accept() (net.Conn, error) {
	if c := o.conn; c != nil {
		o.conn = nil
		return c, nil
	}
	<-o.done
	return nil, net.ErrClosed
}

func (o *once) Close() error   { o.end.Do(func() { close(o.done) }); return nil }
func (o *once) Addr() net.Addr { return arrivedAddr{} }

const badRequest = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n400 Bad Request"

// FuzzConn: whatever a client sends, it hears the same when the connection moves.
func FuzzConn(f *testing.F) {
	for _, in := range conversations {
		if len(in) < 5000 {
			f.Add([]byte(in), uint16(7), uint8(5))
		}
	}
	f.Fuzz(func(t *testing.T, in []byte, piece uint16, every uint8) {
		want, _ := converse(t, in, 1<<20, 0)
		got, _ := converse(t, in, max(1+int(piece), len(want)/20), 1+int(every))
		// Less than four octets before the end net/http answers only if they are the
		// first of a connection.
		if got != want && got != want+badRequest {
			t.Errorf("%q\nand when it moves\n%q", want, got)
		}
	})
}

// FuzzRecord: what is taken for a record can be served, and moves on as it came.
func FuzzRecord(f *testing.F) {
	add := func(r record) {
		r.Version = version
		b, err := r.append()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	head := []byte("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n")
	add(record{})
	add(record{Request: []byte("GET /r/long HTTP/1.1\r\nHost: h\r\n\r\n"), Unread: []byte("GET"), Response: head, Sent: 100, Sum: 1})
	add(record{Request: []byte("POST /count HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n"), Skip: 5, Unread: []byte("abcd"), Kept: true, Saved: []byte{1}})
	add(record{Request: []byte("GET / HTTP/1.1\r\nHost: h\r\n\r\n"), Kept: true, Hijacked: true})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRecord(b)
		if err != nil {
			return
		}
		c := &conn{transport: new(wire).conn()}
		c.restore(r)
		again, err := c.snapshot()
		if err != nil {
			t.Fatal(err)
		}
		if got, want := append(again.Request, again.Unread...), append(r.Request, r.Unread...); !bytes.Equal(got, want) ||
			again.Skip != r.Skip || again.Sent != r.Sent || again.Kept != r.Kept || again.Hijacked != r.Hijacked ||
			!bytes.Equal(again.Saved, r.Saved) || !bytes.Equal(again.Response, r.Response) {
			t.Fatalf("%+v becomes %+v", r, again)
		}
		if r.Skip > 1<<20 {
			return // it takes its time
		}
		s := &Server{Handler: handlers(), HTTP: &http.Server{ErrorLog: log.New(io.Discard, "", 0)}}
		defer s.Close()
		w := &wire{piece: 1 << 20, every: 5, server: s, done: make(chan struct{})}
		if err := s.Resume(w.conn(), b); err != nil {
			t.Fatal(err)
		}
		<-w.done
		if w.err != nil {
			t.Fatal(w.err)
		}
	})
}

// FuzzChunks: a body in chunks that net/http takes ends where chunkScan says.
func FuzzChunks(f *testing.F) {
	for _, s := range []string{"0\r\n\r\n", "5\r\nhello\r\n0\r\n\r\nmore", "A;x=\"y\"\r\n0123456789\r\n0\r\nT: x\r\n\r\n", "5 \r\nhello\r\n000\r\n\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var s chunkScan
		n, over := s.find(b)
		if n > len(b) {
			t.Fatalf("%d of %d octets, %t", n, len(b), over)
		}
		var one chunkScan
		k, ended := 0, false
		for k < len(b) && !ended {
			var d int
			d, ended = one.find(b[k : k+1])
			k += d
		}
		if k != n || ended != over {
			t.Fatalf("octet by octet %d, %t: at once %d, %t", k, ended, n, over)
		}
		in := bytes.NewReader(b)
		rest := bufio.NewReaderSize(io.MultiReader(strings.NewReader("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"), in), 1<<16)
		req, err := http.ReadRequest(rest)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, req.Body); err != nil {
			return
		}
		if end := len(b) - in.Len() - rest.Buffered(); !over || end != n {
			t.Errorf("net/http sees the end at %d, chunkScan at %d, %t", end, n, over)
		}
	})
}

func TestErrors(t *testing.T) {
	s := new(Server)
	defer s.Close()
	ours, theirs := net.Pipe()
	defer theirs.Close()
	if err := s.Resume(ours, nil); err == nil || !strings.Contains(err.Error(), "ds.Node") {
		t.Errorf("a connection that cannot move: %v", err)
	}
	if _, err := s.State(ours); err == nil {
		t.Error("the state of a connection that is none of ours")
	}
	for _, state := range []string{"", "x", "\xa1\x01\x02"} {
		w := &wire{server: s, done: make(chan struct{})}
		if err := s.Resume(w.conn(), []byte(state)); err == nil {
			t.Errorf("%q was resumed", state)
		}
		<-w.done
	}
	if err := s.Serve(&once{done: make(chan struct{}), conn: ours}); err == nil || errors.Is(err, http.ErrServerClosed) {
		t.Errorf("serve: %v", err)
	}
}
