package httpmove_test

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

// A connection goes on between requests, from node to node.
func TestKeepAlive(t *testing.T) {
	w := newWorld(t, named)
	c := w.dial()
	for range 10 {
		c.send("GET /x HTTP/1.1\r\nHost: h\r\n\r\n")
		c.expect(http.StatusOK, w.at+" /x ")
		w.move()
	}
	w.noFaults()
}

// One that has not asked for anything yet moves too.
func TestNothingYet(t *testing.T) {
	w := newWorld(t, named)
	c := w.dial()
	w.move()
	w.move()
	c.send("GET /x HTTP/1.1\r\nHost: h\r\n\r\n")
	c.expect(http.StatusOK, "a /x ")
	w.noFaults()
}

// Half a head, and half of the next one: nothing that has come is lost, however it
// came.
func TestHalfRead(t *testing.T) {
	w := newWorld(t, named)
	c := w.dial()
	const request = "POST /path HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"
	for cut := range len(request) - len("hello") {
		c.send("%s", request[:cut])
		w.move()
		c.send("%s", request[cut:])
		c.expect(http.StatusOK, w.at+" /path hello")
	}
	w.noFaults()
}

// Requests in advance are answered one after another, wherever.
func TestPipelined(t *testing.T) {
	w := newWorld(t, named)
	c := w.dial()
	const many = 20 // the answers fit in buffers: who moves does not read meanwhile
	one := "GET /x HTTP/1.1\r\nHost: h\r\n\r\n"
	chunked := "POST /y HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\nTrailer: x\r\n\r\n"
	body := "POST /z HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"
	go c.Write([]byte(strings.Repeat(one+chunked+body, many)))
	for i := range many {
		for _, want := range []string{" /x ", " /y hello", " /z hello"} {
			r := c.response(http.MethodGet)
			b, err := io.ReadAll(r.Body)
			if err != nil || (string(b) != "a"+want && string(b) != "b"+want) {
				t.Fatalf("got %q, %v: want %q", b, err, want)
			}
		}
		if i%2 == 0 {
			w.move()
		}
	}
	w.noFaults()
}
