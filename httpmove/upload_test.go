package httpmove_test

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/distributed-servers/ds"
	"github.com/distributed-servers/ds/httpmove"
)

// digest answers with the SHA-256 of the body, and the node.
func digest(node string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := sha256.New()
		saved := httpmove.Checkpoint(r, h.(encoding.BinaryMarshaler).MarshalBinary)
		if saved != nil && h.(encoding.BinaryUnmarshaler).UnmarshalBinary(saved) != nil {
			panic(http.ErrAbortHandler)
		}
		if _, err := io.Copy(h, r.Body); err == nil {
			fmt.Fprintf(w, "%x %s", h.Sum(nil), node)
		}
	})
}

// An upload goes on where it was, to the octet.
func TestUpload(t *testing.T) {
	for _, expect := range []string{"", "Expect: 100-continue\r\n"} {
		w := newWorld(t, digest)
		c := w.dial()
		body := octets()
		c.send("PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n%s\r\n", len(body), expect)
		if expect != "" {
			w.move() // it waits
			if r := c.response(http.MethodPut); r.StatusCode != http.StatusContinue {
				t.Fatal(r.Status)
			}
		}
		const pieces = 20
		for i := range pieces {
			c.send("%s", body[len(body)*i/pieces:len(body)*(i+1)/pieces-1])
			w.move()
			c.send("%s", body[len(body)*(i+1)/pieces-1:len(body)*(i+1)/pieces])
		}
		c.expect(http.StatusOK, fmt.Sprintf("%x %s", sha256.Sum256(body), w.at))
		w.move()
		c.send("PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n")
		c.expect(http.StatusOK, fmt.Sprintf("%x %s", sha256.Sum256(nil), w.at))
		w.noFaults()
	}
}

// A body without a checkpoint, and one in chunks, is finished first.
func TestUploadFinishedFirst(t *testing.T) {
	for name, request := range map[string][2]string{
		"no checkpoint": {"POST /plain HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhel", "lo"},
		"chunks":        {"POST /digest HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel", "lo\r\n0\r\n\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			reading := make(chan struct{}, 1)
			w := newWorld(t, func(node string) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					reading <- struct{}{}
					if r.URL.Path == "/digest" {
						digest(node).ServeHTTP(w, r)
					} else {
						named(node).ServeHTTP(w, r)
					}
				})
			})
			w.servers["a"].Node.Patience = 50 * time.Millisecond
			c := w.dial()
			c.send("%s", request[0])
			<-reading
			if err := w.tryMove(); !errors.Is(err, ds.ErrRestless) {
				t.Errorf("got %v, want ErrRestless", err)
			}
			c.send("%s", request[1])
			want := "a /plain hello"
			if name == "chunks" {
				want = fmt.Sprintf("%x a", sha256.Sum256([]byte("hello")))
			}
			c.expect(http.StatusOK, want)
			w.noFaults()
		})
	}
}

// What save and the handler at the target can do wrong.
func TestCheckpointFaults(t *testing.T) {
	fails := errors.New("not now")
	saved := func() ([]byte, error) { return nil, nil }
	for _, tt := range []struct {
		name   string
		a, b   http.HandlerFunc
		stays  error // "": it moves, and then is reset
		hijack bool
	}{
		{"save fails", func(w http.ResponseWriter, r *http.Request) {
			httpmove.Checkpoint(r, func() ([]byte, error) { return nil, fails })
			io.Copy(w, r.Body)
		}, nil, fails, false},
		{"save panics", func(w http.ResponseWriter, r *http.Request) {
			httpmove.Checkpoint(r, func() ([]byte, error) { panic(fails) })
			io.Copy(w, r.Body)
		}, nil, ds.ErrState, false},
		{"save gives too much", func(w http.ResponseWriter, r *http.Request) {
			httpmove.Checkpoint(r, func() ([]byte, error) { return make([]byte, ds.MaxState), nil })
			io.Copy(w, r.Body)
		}, nil, ds.ErrState, false},
		{"no checkpoint at the target", func(w http.ResponseWriter, r *http.Request) {
			httpmove.Checkpoint(r, saved)
			io.Copy(w, r.Body)
		}, func(w http.ResponseWriter, r *http.Request) {
			io.Copy(w, r.Body)
		}, nil, false},
		{"no hijack at the target", func(w http.ResponseWriter, r *http.Request) {
			httpmove.Checkpoint(r, saved)
			c, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			c.Read(make([]byte, 1))
		}, func(w http.ResponseWriter, r *http.Request) {
			httpmove.Checkpoint(r, saved)
			io.WriteString(w, "hello")
		}, nil, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			serving := make(chan struct{}, 1)
			w := newWorld(t, func(node string) http.Handler {
				h := tt.a
				if node == "b" {
					h = tt.b
				}
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					serving <- struct{}{}
					h(w, r)
				})
			})
			c := w.dial()
			length := 5
			if tt.hijack {
				length = 0
			}
			c.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n", length)
			<-serving
			err := w.tryMove()
			if tt.stays != nil {
				if !errors.Is(err, tt.stays) {
					t.Errorf("got %v, want %q", err, tt.stays)
				}
				c.send("hello")
				c.expect(http.StatusOK, "hello")
				w.noFaults()
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			_, werr := c.Write([]byte("hello")) // a reset is told once
			if b, err := io.ReadAll(c.in); err == nil && werr == nil {
				t.Errorf("the client got %q, and no reset", b)
			}
		})
	}
}

// lines numbers the lines that come on a hijacked connection.
func lines(t *testing.T) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		count := byte(0)
		var in *bufio.Reader
		saved := httpmove.Checkpoint(r, func() ([]byte, error) {
			unread, _ := in.Peek(in.Buffered())
			return append([]byte{count}, unread...), nil
		})
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		go func() { // as programs may: the handler returns
			defer c.Close()
			in = rw.Reader
			if saved != nil {
				count = saved[0]
				in = bufio.NewReader(io.MultiReader(bytes.NewReader(saved[1:]), c))
			} else {
				io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: lines\r\nConnection: Upgrade\r\n\r\n")
			}
			for {
				line, err := in.ReadString('\n')
				if err != nil {
					return
				}
				count++
				fmt.Fprintf(c, "%d %s", count, line)
			}
		}()
	})
}

// A hijacked connection moves with its handler's checkpoint.
func TestHijack(t *testing.T) {
	w := newWorld(t, func(string) http.Handler { return lines(t) })
	c := w.dial()
	c.send("GET / HTTP/1.1\r\nHost: h\r\nUpgrade: lines\r\nConnection: Upgrade\r\n\r\nin advance\nhal")
	if r := c.response(http.MethodGet); r.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(r.Status)
	}
	for i := range 20 {
		w.move()
		if i == 0 {
			c.line("1 in advance")
			c.send("f\nhal")
		} else {
			c.send("f\nhal")
		}
		c.line(fmt.Sprintf("%d half", i+2))
	}
	w.noFaults()
}

func (c *client) line(want string) {
	c.t.Helper()
	if got, err := c.in.ReadString('\n'); err != nil || got != want+"\n" {
		c.t.Fatalf("got %q, %v: want %q", got, err, want)
	}
}

// Outside of a Server there is no checkpoint, and handlers work all the same.
func TestElsewhere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: httpmove.Repeatable(digest("x"))}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	defer func() { s.Close(); <-served }()
	resp, err := http.Post("http://"+l.Addr().String(), "text/plain", bytes.NewReader(octets()))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err != nil || string(b) != fmt.Sprintf("%x x", sha256.Sum256(octets())) {
		t.Errorf("%q, %v", b, err)
	}
}
