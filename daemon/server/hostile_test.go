package server

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestGarbage(t *testing.T) {
	s, c := serve(t, Config{})
	for _, tt := range []struct{ name, send, want string }{
		{"not HTTP", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", "400"},
		{"no such call", "GET /v1/nothing HTTP/1.0\r\n\r\n", `"error":"no call GET \"/v1/nothing\""`},
		{"no such version", "GET /v2/status HTTP/1.0\r\n\r\n", "404"},
		{"no such method", "PATCH /v1/status HTTP/1.0\r\n\r\n", "404"},
		{"a long header", "GET /v1/status HTTP/1.0\r\nX: " + strings.Repeat("x", 64<<10) + "\r\n\r\n", "431"},
		{"a long body", postOf("handoff", "application/json", strings.Repeat(" ", maxBody+1)), "at most 16384 octets"},
		{"a body that is not JSON", postOf("handoff", "", "to=b"), "invalid character"},
		{"a body of something else", postOf("handoff", "", `["b"]`), "cannot unmarshal"},
		{"an unknown field", postOf("handoff", "", `{"too":"b"}`), "unknown field"},
		{"two values", postOf("handoff", "", `{"to":"b"} {"to":"c"}`), "more than one value"},
		{"no body", postOf("handoff", "", ""), "no node to hand off to"},
		{"a body where there is none", postOf("optimise", "", "anything"), "204"},
		{"a body in pieces", strings.Replace(postOf("handoff", "", ""), "Content-Length: 0", "Transfer-Encoding: chunked", 1) + "ffffffffffffffff0\r\n", "400"},
		{"a deep path", "GET /v1/servers/" + strings.Repeat("../", 1000) + "status HTTP/1.0\r\n\r\n", "404"},
	} {
		conn := dialRaw(t, s)
		go io.WriteString(conn, tt.send)
		answer, _ := io.ReadAll(conn)
		if !strings.Contains(string(answer), tt.want) {
			t.Errorf("%s: got %q, want %q", tt.name, answer, tt.want)
		}
	}
	if _, err := c.Status(t.Context()); err != nil {
		t.Error(err)
	}
}

func postOf(call, contentType, body string) string {
	return fmt.Sprintf("POST /v1/servers/%s/clients/%s/%s HTTP/1.0\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s", dsa, client1, call, contentType, len(body), body)
}

// Who sends slowly, or nothing, is hung up on.
func TestSlow(t *testing.T) {
	s, _ := serve(t, Config{RequestTimeout: 50 * time.Millisecond})
	head := strings.TrimSuffix(postOf("handoff", "", strings.Repeat(" ", 100)), strings.Repeat(" ", 100))
	for name, send := range map[string]string{
		"no hello": "POST /v1/servers/2001:db8::1/attach HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: dsco-session/3\r\n\r\n",
		"nothing":  "", "half a line": "GET /v1/st", "half a header": "GET /v1/status HTTP/1.1\r\nHost: x\r\n",
		"half a body": head + "{", "half a body, of a call that does not exist": strings.Replace(head, "/v1/", "/v9/", 1) + "{",
	} {
		conn := dialRaw(t, s)
		io.WriteString(conn, send)
		if _, err := io.ReadAll(conn); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			continue // a reset: it did not read everything
		} else if err != nil {
			t.Errorf("%s: still there: %v", name, err)
		}
	}
}

// A user who opens all there is does not lock root out, nor, as root, itself.
func TestTooMany(t *testing.T) {
	s, _ := serve(t, Config{PerUser: 4})
	var conns []net.Conn
	for range 4 {
		conn := dialRaw(t, s)
		fmt.Fprint(conn, "GET /v1/watch HTTP/1.1\r\nHost: x\r\n\r\n")
		if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || !strings.Contains(line, "200") {
			t.Fatalf("got %q, %v", line, err)
		}
		conns = append(conns, conn)
	}
	if _, err := io.ReadAll(dialRaw(t, s)); err != nil && !strings.Contains(err.Error(), "reset") {
		t.Errorf("the fifth: %v", err)
	}
	conns[0].Close()
	deadline := time.Now().Add(patience)
	for { // until the server has noticed
		conn := dialRaw(t, s)
		fmt.Fprint(conn, "GET /v1/status HTTP/1.0\r\n\r\n")
		if answer, _ := io.ReadAll(conn); strings.Contains(string(answer), "200 OK") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a connection that has ended still counts")
		}
	}
}

func TestLimits(t *testing.T) {
	l := &listener{perUser: 3, others: 4, own: 50, users: make(map[uint32]int)}
	for i, step := range []struct {
		uid  uint32
		want bool
	}{
		{1, true}, {1, true}, {1, true}, {1, false}, // of one user
		{2, true}, {2, false}, {3, false}, // of all
		{0, true}, {0, true}, {0, true}, {0, false}, {50, true}, // but root and the daemon's own
	} {
		if got := l.enter(step.uid); got != step.want {
			t.Errorf("step %d, user %d: %t", i, step.uid, got)
		}
	}
	l.leave(1)
	if !l.enter(3) || l.enter(2) {
		t.Error("after one has left: not one more")
	}
	for uid, n := range map[uint32]int{0: 3, 1: 2, 2: 1, 3: 1, 50: 1} {
		for range n {
			l.leave(uid)
		}
	}
	if len(l.users) != 0 || l.sum != 0 {
		t.Errorf("left: %v, %d", l.users, l.sum)
	}
}

// FuzzRequest: whatever arrives, the server answers HTTP or hangs up, and goes
// on.
func FuzzRequest(f *testing.F) {
	f.Add("GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
	f.Add(postOf("handoff", "application/json", `{"to":"b"}`))
	f.Add("GET /v1/watch?since=1 HTTP/1.1\r\nHost: x\r\n\r\n")
	f.Add("POST /v1/servers/2001:db8::1/attach HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: dsco-session/3\r\n\r\n\x00\x00\x00\x01\xa0")
	path := filepath.Join(temp(f), "s")
	s, c := serve(f, Config{Socket: path, RequestTimeout: time.Second})
	f.Fuzz(func(t *testing.T, data string) {
		conn := dialRaw(t, s)
		io.WriteString(conn, data)
		conn.(*net.UnixConn).CloseWrite()
		r := bufio.NewReader(conn)
		if _, err := r.Peek(1); err == nil {
			if res, err := http.ReadResponse(r, nil); err != nil {
				t.Errorf("answer: %v", err)
			} else if res.StatusCode == http.StatusInternalServerError {
				t.Errorf("answer: %v", res)
			}
		}
		conn.Close()
		if _, err := c.Status(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

var _ Backend = (*fake)(nil)
