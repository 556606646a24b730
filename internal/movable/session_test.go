package movable

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"testing"

	"github.com/distributed-servers/ds/internal/demo/pattern"
)

var errMoved = errors.New("moved")

// scripted is a connection whose client sends what in has, and which moves now
// and then: a call that would have to wait fails with errMoved.
type scripted struct {
	net.Conn
	in     io.Reader
	out    bytes.Buffer
	move   func() bool
	closed bool
}

func (c *scripted) Read(b []byte) (int, error) {
	if c.move() {
		return 0, errMoved
	}
	return c.in.Read(b)
}

func (c *scripted) Write(b []byte) (int, error) {
	if c.move() {
		return 0, errMoved
	}
	return c.out.Write(b)
}

func (c *scripted) Close() error { c.closed = true; return nil }

// converse lets a server of the protocol read in, in pieces of at most piece
// octets, and returns what it answers.
func converse(t *testing.T, protocol, in string, piece int, move func() bool) string {
	t.Helper()
	c := &scripted{in: pieces{strings.NewReader(in), piece}, move: move}
	s := newSession(protocol, "a")
	for {
		err := s.serve(c)
		if err == nil {
			break
		}
		if !errors.Is(err, errMoved) {
			t.Fatal(err)
		}
		b, err := s.save()
		if err != nil {
			t.Fatal(err)
		}
		if s, err = load(b, "a"); err != nil {
			t.Fatal(err)
		}
	}
	if !c.closed {
		t.Error("not closed")
	}
	return c.out.String()
}

type pieces struct {
	r    io.Reader
	size int
}

func (p pieces) Read(b []byte) (int, error) { return p.r.Read(b[:min(len(b), p.size)]) }

func never() bool { return false }

func octets(n int64) string {
	b := make([]byte, n)
	pattern.Fill(b, 0)
	return string(b)
}

// conversations are what clients say and hear.
var conversations = []struct{ name, protocol, in, want string }{
	{"lines", "line", "hello\r\nthere\n\nquit\nmore\n", "1 a hello\n2 a there\n3 a \n"},
	{"a line without end", "line", "hello", ""},

	{"count", "http", "GET /count HTTP/1.1\r\nHost: x\r\n\r\nGET /count HTTP/1.1\r\nHost: x\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n1 a\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n2 a\n"},
	{"close", "http", "GET /count HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\nGET /count HTTP/1.1\r\nHost: x\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\n1 a\n"},
	{"download", "http", "GET /pattern/50000 HTTP/1.1\r\nHost: x\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 50000\r\n\r\n" + octets(50000)},
	{"two downloads", "http", "GET /pattern/3 HTTP/1.1\r\nHost: x\r\n\r\nGET /pattern/5 HTTP/1.1\r\nHost: x\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n" + octets(3) + "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + octets(5)},
	{"head", "http", "HEAD /pattern/50000 HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 50000\r\n\r\n"},
	{"upload", "http", "PUT /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 30000\r\nExpect: 100-continue\r\n\r\n" + octets(30000) + "GET /count HTTP/1.1\r\nHost: x\r\n\r\n",
		"HTTP/1.1 100 Continue\r\n\r\n" + answered(fmt.Sprintf("30000 octets, 0 wrong, sha256 %x\n", sha256.Sum256([]byte(octets(30000))))) + answered("2 a\n")},
	{"wrong upload", "http", "POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n\x00\x00\x00",
		answered(fmt.Sprintf("3 octets, %d wrong, sha256 %x\n", wrong(3), sha256.Sum256(make([]byte, 3))))},
	{"empty upload", "http", "POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
		answered(fmt.Sprintf("0 octets, 0 wrong, sha256 %x\n", sha256.Sum256(nil)))},
	{"not found", "http", "GET /pattern/-1 HTTP/1.1\r\nHost: x\r\n\r\n",
		"HTTP/1.1 404 Not Found\r\nContent-Length: 41\r\n\r\nthere are /pattern/N, /upload and /count\n"},
	{"bad method", "http", "DELETE /count HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n"},
	{"chunked", "http", "PUT /upload HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"HTTP/1.1 411 Length Required\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"},
	{"no HTTP", "http", "hello\r\n\r\n", "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"},
	{"long header", "http", strings.Repeat("x", maxHeader+1), "HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"},

	{"ping", "resp", "PING\r\n*1\r\n$4\r\nPING\r\n*2\r\n$4\r\nping\r\n$2\r\nhi\r\n\r\n", "+PONG\r\n+PONG\r\n$2\r\nhi\r\n"},
	{"set and get", "resp", "SET k v\nGET k\n*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$0\r\n\r\nGET k\nGET none\nSTRLEN k\nDBSIZE\n",
		"+OK\r\n$1\r\nv\r\n+OK\r\n$0\r\n\r\n$-1\r\n:0\r\n:1\r\n"},
	{"incr", "resp", "INCR n\nINCR n\nDECR n\nSET s x\nINCR s\nSET m 9223372036854775807\nINCR m\n",
		":1\r\n:2\r\n:1\r\n+OK\r\n-ERR value is not an integer or out of range\r\n+OK\r\n-ERR increment or decrement would overflow\r\n"},
	{"del and exists", "resp", "SET a 1\nSET b 2\nSET c 3\nEXISTS a b x\nDEL a c x\nDBSIZE\nGET b\nFLUSHALL\nDBSIZE\n",
		"+OK\r\n+OK\r\n+OK\r\n:2\r\n:2\r\n:1\r\n$1\r\n2\r\n+OK\r\n:0\r\n"},
	{"what redis-benchmark asks", "resp", "CONFIG GET save\nCOMMAND DOCS\nCLIENT SETNAME x\nSELECT 0\n",
		"*2\r\n$4\r\nsave\r\n$0\r\n\r\n*0\r\n+OK\r\n+OK\r\n"},
	{"info", "resp", "INFO\n", "$18\r\n# Server\r\nnode:a\r\n\r\n"},
	{"quit", "resp", "QUIT\nPING\n", "+OK\r\n"},
	{"wrong commands", "resp", "NO\nGET\nCONFIG SET a b\n",
		"-ERR unknown command '\"NO\"'\r\n-ERR wrong number of arguments for 'get' command\r\n-ERR unknown command '\"CONFIG\"'\r\n"},
	{"bad bulk", "resp", "*1\r\nPING\r\n", "-ERR Protocol error: expected '$'\r\n"},
	{"bad length", "resp", "*1\r\n$999999999\r\n", "-ERR Protocol error: invalid bulk length\r\n"},
	{"bad array", "resp", "*9999\r\n", "-ERR Protocol error: invalid multibulk length\r\n"},
	{"no room", "resp", "*3\r\n$3\r\nSET\r\n$1\r\na\r\n$131072\r\n" + strings.Repeat("x", maxBulk) + "\r\n" +
		"*3\r\n$3\r\nSET\r\n$1\r\nb\r\n$131072\r\n" + strings.Repeat("x", maxBulk) + "\r\nDBSIZE\r\n",
		"+OK\r\n-OOM a connection's store has at most 256 KiB\r\n:1\r\n"},
}

func answered(body string) string {
	return "HTTP/1.1 200 OK\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n" + body
}

// wrong is how many of n zeros differ from the pattern.
func wrong(n int64) int64 {
	c := pattern.Checker{}
	c.Write(make([]byte, n))
	return c.Wrong
}

func TestConversations(t *testing.T) {
	for _, tt := range conversations {
		t.Run(tt.name, func(t *testing.T) {
			if got := converse(t, tt.protocol, tt.in, math.MaxInt, never); got != tt.want {
				t.Errorf("got  %.300q\nwant %.300q", got, tt.want)
			}
		})
	}
}

// Wherever a connection moves, and however its octets come, the client hears
// the same.
func TestConversationsMove(t *testing.T) {
	for _, tt := range conversations {
		t.Run(tt.name, func(t *testing.T) {
			for seed := range uint64(20) {
				r := rand.New(rand.NewPCG(seed, 1))
				piece := 1 + r.IntN(1+len(tt.in))
				if len(tt.in) > 1000 {
					piece = max(piece, len(tt.in)/50)
				}
				move := func() bool { return r.IntN(3) == 0 }
				if got := converse(t, tt.protocol, tt.in, piece, move); got != tt.want {
					t.Fatalf("seed %d, pieces of %d:\ngot  %.300q\nwant %.300q", seed, piece, got, tt.want)
				}
			}
		})
	}
}

func TestARequestTooLong(t *testing.T) {
	c := &scripted{in: strings.NewReader(strings.Repeat("x", 2*inputSize)), move: never}
	if err := newSession("line", "a").serve(c); !errors.Is(err, errTooLong) || !c.closed {
		t.Errorf("error %v, closed %t", err, c.closed)
	}
}

func TestLoadChecks(t *testing.T) {
	good, err := newSession("http", "a").save()
	if err != nil {
		t.Fatal(err)
	}
	save := func(s *session) []byte {
		b, err := s.save()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for name, b := range map[string][]byte{
		"nothing":       nil,
		"cut":           good[:len(good)-1],
		"no protocol":   save(&session{name: "gopher", p: &lineServer{}}),
		"end first":     save(&session{name: "http", p: &httpServer{Offset: 2, End: 1}}),
		"no hash":       save(&session{name: "http", p: &httpServer{Upload: &upload{Hash: []byte{1}}}}),
		"less than all": save(&session{name: "http", p: &httpServer{Upload: &upload{Left: -1}}}),
		"not sorted":    save(&session{name: "resp", p: &respServer{Store: []entry{{[]byte("b"), nil}, {[]byte("a"), nil}}}}),
		"too much":      save(&session{name: "resp", p: &respServer{Store: []entry{{nil, make([]byte, maxStore+1)}}}}),
	} {
		if s, err := load(b, "a"); err == nil {
			t.Errorf("%s: loaded %+v", name, s)
		}
	}
}

// FuzzSession feeds a server with anything, and moves it: a session that moves
// says the same as one that does not.
func FuzzSession(f *testing.F) {
	for _, tt := range conversations {
		if len(tt.in) < 1000 {
			f.Add(tt.protocol, []byte(tt.in))
		}
	}
	f.Fuzz(func(t *testing.T, protocol string, in []byte) {
		if protocols[protocol] == nil || bytes.Contains(in, []byte("/pattern/")) {
			return // the second would take its time, as it should
		}
		n := 0
		move := func() bool { n++; return n%3 == 0 }
		if one, two := converse(t, protocol, string(in), math.MaxInt, never), converse(t, protocol, string(in), 7, move); one != two {
			t.Errorf("%q\nand when it moves\n%q", one, two)
		}
	})
}

// FuzzLoad: what load takes, it saves again, and serves without harm.
func FuzzLoad(f *testing.F) {
	for name := range protocols {
		b, err := newSession(name, "a").save()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := load(b, "a")
		if err != nil {
			return
		}
		again, err := s.save()
		if err != nil {
			t.Fatal(err)
		}
		if s, err = load(again, "a"); err != nil {
			t.Fatal(err)
		}
		if h, ok := s.p.(*httpServer); ok {
			h.End = min(h.End, h.Offset+100_000)
		}
		s.serve(&scripted{in: strings.NewReader("PING\r\n\r\n"), move: never})
	})
}
