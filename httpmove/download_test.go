package httpmove_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/distributed-servers/ds"
	"github.com/distributed-servers/ds/httpmove"
	"github.com/distributed-servers/ds/internal/demo/pattern"
)

// size is that of downloads: many times what buffers hold.
const size = 200_000

// content is the first octets of a pattern, as a file.
type content struct {
	pattern.Reader
	read *atomic.Int64
}

func (c *content) Read(b []byte) (int, error) {
	n, err := c.Reader.Read(b)
	if c.read != nil {
		c.read.Add(int64(n))
	}
	return n, err
}

func (c *content) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += c.Offset
	case io.SeekEnd:
		offset += c.End
	}
	c.Offset = offset
	return offset, nil
}

// odd gives a few octets at a time, never the same number.
type odd struct {
	r io.Reader
	n int
}

func (o *odd) Read(b []byte) (int, error) {
	o.n = (o.n*7 + 13) % 5003
	return o.r.Read(b[:min(len(b), 1+o.n)])
}

func octets() []byte {
	b := make([]byte, size)
	pattern.Fill(b, 0)
	return b
}

// downloads are handlers that give the pattern, in the ways that there are.
func downloads(read *atomic.Int64) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/file", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Etag", `"1"`)
		http.ServeContent(w, r, "x.bin", time.Time{}, &content{pattern.Reader{End: size}, read})
	})
	mux.HandleFunc("/weak", func(w http.ResponseWriter, r *http.Request) { // nothing to tell it by
		http.ServeContent(w, r, "x.bin", time.Time{}, &content{pattern.Reader{End: size}, read})
	})
	mux.HandleFunc("/stream", func(w http.ResponseWriter, r *http.Request) { // in chunks
		io.Copy(w, &odd{r: &pattern.Reader{End: size}, n: int(time.Now().UnixNano() % 1000)})
	})
	mux.HandleFunc("/flush", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusEarlyHints)
		b := octets()
		for at := 0; at < len(b); {
			n := min(1+at%9999, len(b)-at)
			w.Write(b[at : at+n])
			w.(http.Flusher).Flush()
			at += n
		}
	})
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		fmt.Fprintf(w, "%s\n", b)
		io.Copy(w, &pattern.Reader{End: size - int64(len(b)) - 1})
	})
	mux.HandleFunc("/small", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "small") })
	return httpmove.Repeatable(mux)
}

// A response goes on where it was, to the octet, from node to node, whatever its
// framing; and so does the connection afterwards.
func TestDownload(t *testing.T) {
	all := octets()
	small := strings.Repeat("x", 1000)
	echo := append([]byte(small+"\n"), all[:size-1001]...)
	for _, tt := range []struct {
		name, request string
		status        int
		want          []byte
		ends          bool // the connection does, with the response
	}{
		{"a file", "GET /file HTTP/1.1\r\nHost: h\r\n\r\n", 200, all, false},
		{"no validator", "GET /weak HTTP/1.1\r\nHost: h\r\n\r\n", 200, all, false},
		{"a range", "GET /file HTTP/1.1\r\nHost: h\r\nRange: bytes=100-150000\r\n\r\n", 206, all[100:150_001], false},
		{"chunks", "GET /stream HTTP/1.1\r\nHost: h\r\n\r\n", 200, all, false},
		{"chunks and flushes", "GET /flush HTTP/1.1\r\nHost: h\r\n\r\n", 200, all, false},
		{"close", "GET /file HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", 200, all, true},
		{"to the end", "GET /stream HTTP/1.0\r\n\r\n", 200, all, true},
		{"a body", "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n" + small, 200, echo, false},
		{"a body that is waited for", "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\nExpect: 100-continue\r\n\r\n" + small, 200, echo, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var read atomic.Int64
			w := newWorld(t, func(string) http.Handler { return downloads(&read) })
			c := w.dial()
			c.send("%s", tt.request)
			r := c.response(http.MethodGet)
			for r.StatusCode < 200 {
				r = c.response(http.MethodGet)
			}
			if r.StatusCode != tt.status {
				t.Fatal(r.Status)
			}
			b := make([]byte, len(tt.want))
			moves := 0
			for at := 0; at < len(b); at += len(b) / 10 {
				if _, err := io.ReadFull(r.Body, b[at:min(len(b), at+len(b)/10)]); err != nil {
					t.Fatalf("at %d: %v", at, err)
				}
				w.move()
				moves++
			}
			if n, err := r.Body.Read(make([]byte, 1)); n != 0 || err != io.EOF {
				t.Errorf("%d octets more, %v", n, err)
			}
			if !bytes.Equal(b, tt.want) {
				t.Error("other octets")
			}
			if n := read.Load(); tt.name == "a file" && n > size+int64(moves)*(64<<10) {
				t.Errorf("%d octets were read from the file, in %d moves", n, moves)
			}
			if tt.ends {
				c.expectEnd()
			} else {
				w.move()
				c.send("GET /small HTTP/1.1\r\nHost: h\r\n\r\n")
				c.expect(http.StatusOK, "small")
			}
			w.noFaults()
		})
	}
}

// A client that does not read does not hold anything up.
func TestSlowClient(t *testing.T) {
	w := newWorld(t, func(string) http.Handler { return downloads(nil) })
	c, idle := w.dial(), w.dial()
	c.send("GET /file HTTP/1.1\r\nHost: h\r\n\r\nGET /small HTTP/1.1\r\nHost: h\r\n\r\n")
	for range 10 {
		w.move()
	}
	idle.send("GET /small HTTP/1.1\r\nHost: h\r\n\r\n")
	idle.expect(http.StatusOK, "small")
	c.expect(http.StatusOK, string(octets()))
	c.expect(http.StatusOK, "small")
	w.noFaults()
}

// HEAD has the head of a GET, and no body.
func TestHead(t *testing.T) {
	w := newWorld(t, func(string) http.Handler { return downloads(nil) })
	c := w.dial()
	for _, path := range []string{"/file", "/stream"} {
		c.send("HEAD %s HTTP/1.1\r\nHost: h\r\n\r\n", path)
		if r := c.response(http.MethodHead); r.StatusCode != http.StatusOK {
			t.Error(r.Status)
		}
		w.move()
	}
	w.noFaults()
}

// A response of a handler that has not said that it is repeatable is finished
// where it began, and then the client moves. If that takes too long it stays.
func TestFinishedFirst(t *testing.T) {
	goOn := make(chan struct{})
	w := newWorld(t, func(node string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, node)
			w.(http.Flusher).Flush()
			if r.URL.Path == "/wait" {
				<-goOn
			}
			io.WriteString(w, node)
		})
	})
	w.servers["a"].Node.Patience = 50 * time.Millisecond
	c := w.dial()
	c.send("GET /wait HTTP/1.1\r\nHost: h\r\n\r\n")
	r := c.response(http.MethodGet)
	if _, err := io.ReadFull(r.Body, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	err := w.tryMove()
	var he *ds.HandoffError
	if !errors.As(err, &he) || !errors.Is(err, ds.ErrRestless) || he.Committed || he.Stage != ds.StageDrain {
		t.Fatalf("got %v, want ErrRestless", err)
	}
	w.servers["a"].Node.Patience = 10 * time.Second
	moved := make(chan error, 1)
	go func() { moved <- w.tryMove() }()
	close(goOn)
	if b, err := io.ReadAll(r.Body); err != nil || string(b) != "a" {
		t.Errorf("%q, %v", b, err)
	}
	if err := <-moved; err != nil {
		t.Fatal(err)
	}
	c.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n")
	c.expect(http.StatusOK, "bb")
	w.noFaults()
}

// A response that turns out to be another one on the other node ends with a reset,
// whatever differs.
func TestNotRepeatable(t *testing.T) {
	for _, tt := range []struct {
		name    string
		differs func(w http.ResponseWriter, b []byte) []byte
	}{
		{"an octet", func(_ http.ResponseWriter, b []byte) []byte { b[5]++; return b }},
		{"the length", func(_ http.ResponseWriter, b []byte) []byte { return b[1:] }},
		{"the tag", func(w http.ResponseWriter, b []byte) []byte { w.Header().Set("Etag", `"2"`); return b }},
		{"the status", func(w http.ResponseWriter, b []byte) []byte { w.WriteHeader(http.StatusNotFound); return b }},
		{"all", func(w http.ResponseWriter, b []byte) []byte { return nil }},
		{"a panic", func(http.ResponseWriter, []byte) []byte { panic(http.ErrAbortHandler) }},
	} {
		for _, length := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, length %t", tt.name, length), func(t *testing.T) {
				w := newWorld(t, func(node string) http.Handler {
					return httpmove.Repeatable(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						b := octets()
						w.Header().Set("Etag", `"1"`)
						if node == "b" {
							b = tt.differs(w, b)
						}
						if length {
							w.Header().Set("Content-Length", fmt.Sprint(len(b)))
						}
						w.Write(b)
					}))
				})
				c := w.dial()
				c.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n")
				r := c.response(http.MethodGet)
				if _, err := io.ReadFull(r.Body, make([]byte, 50_000)); err != nil {
					t.Fatal(err)
				}
				w.move()
				if _, err := io.ReadAll(r.Body); err == nil {
					t.Error("the client has got it")
				}
			})
		}
	}
}

// Heads that are too large to travel are no mistake: their requests are finished
// first.
func TestLargeHeads(t *testing.T) {
	w := newWorld(t, func(string) http.Handler {
		return httpmove.Repeatable(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/response" {
				w.Header().Set("X-Large", r.Header.Get("X-Large")+strings.Repeat("y", 200<<10))
			}
			w.Write(octets())
		}))
	})
	c := w.dial()
	for _, tt := range []struct {
		path   string
		octets int
	}{{"/", 100 << 10}, {"/", 200 << 10}, {"/response", 10}} {
		c.send("GET %s HTTP/1.1\r\nHost: h\r\nX-Large: %s\r\n\r\n", tt.path, strings.Repeat("x", tt.octets))
		moved := make(chan error, 1)
		go func() { moved <- w.tryMove() }()
		c.expect(http.StatusOK, string(octets()))
		if err := <-moved; err != nil {
			t.Error(err)
		}
	}
	w.noFaults()
}
