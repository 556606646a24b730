package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/distributed-servers/ds/internal/demo/pattern"
	"github.com/distributed-servers/ds/internal/probe"
)

const (
	insideArg = "demo-inside"
	nodeArg   = "demo-node"
)

func TestMain(m *testing.M) {
	probe.Main()
	if len(os.Args) == 2 {
		var err error
		switch os.Args[1] {
		case insideArg:
			err = Inside(context.Background(), os.Stdin, os.Stdout)
		case nodeArg:
			err = Node()
		default:
			os.Exit(m.Run())
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func run(t *testing.T, o Options) {
	t.Helper()
	o.InsideArgs, o.NodeArgs = []string{insideArg}, []string{nodeArg}
	res, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(res)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", b)
	if err := res.Err(); err != nil {
		t.Error(err)
	}
	if res.Mode != o.Mode || res.Bytes != 2*o.Size || res.Gap.P50 <= 0 || res.Handoff.P50 <= 0 {
		t.Errorf("got %+v", res)
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"mode", "handoffs", "bytes", "bytes_wrong", "resets", "gap_ms"} {
		if _, ok := m[key]; !ok {
			t.Errorf("no %q in the result", key)
		}
	}
}

func TestMemory(t *testing.T) {
	for _, v4 := range []bool{false, true} {
		t.Run(fmt.Sprintf("ipv4=%t", v4), func(t *testing.T) {
			run(t, Options{Mode: Memory, Size: 8 << 20, Handoffs: 10, IPv4: v4})
		})
	}
}

func TestProcess(t *testing.T) {
	probe.Skip(t, probe.NetNS, probe.TUN)
	for _, v4 := range []bool{false, true} {
		t.Run(fmt.Sprintf("ipv4=%t", v4), func(t *testing.T) {
			run(t, Options{Mode: Process, Size: 8 << 20, Handoffs: 10, IPv4: v4})
		})
	}
}

// Far more handoffs than data between them.
func TestManyHandoffs(t *testing.T) {
	run(t, Options{Mode: Memory, Size: 4 << 20, Handoffs: 100})
}

func TestCanceled(t *testing.T) {
	modes := []string{Memory}
	if probe.Check(probe.TUN).OK {
		modes = append(modes, Process)
	}
	for _, mode := range modes {
		ctx, cancel := context.WithCancel(t.Context())
		o := Options{Mode: mode, Size: 1 << 30, Handoffs: 40, InsideArgs: []string{insideArg}, NodeArgs: []string{nodeArg}}
		o.Progress = func(Progress) { cancel() }
		if _, err := Run(ctx, o); err == nil {
			t.Errorf("%s: a canceled run succeeded", mode)
		}
		cancel()
	}
}

func TestOptions(t *testing.T) {
	for _, o := range []Options{{Mode: "magic"}, {Handoffs: -1}, {Size: -1}, {Size: 1000, Handoffs: 40}} {
		if _, err := Run(t.Context(), o); err == nil || !strings.HasPrefix(err.Error(), "demo: ") {
			t.Errorf("%+v: error %v", o, err)
		}
	}
}

// What goes wrong shows.
func TestErr(t *testing.T) {
	good := Result{Handoffs: 3, Asked: 3, Checked: true}
	if err := good.Err(); err != nil {
		t.Error(err)
	}
	for _, spoil := range []func(*Result){
		func(r *Result) { r.Handoffs = 2 },
		func(r *Result) { r.Wrong = 1 },
		func(r *Result) { r.Checked = false },
		func(r *Result) { r.Resets = 1 },
	} {
		r := good
		spoil(&r)
		if r.Err() == nil {
			t.Errorf("no error for %+v", r)
		}
	}
}

// talk drives a session with input in pieces, writes accepted in pieces, and
// the state taken apart and put together after each, and returns what it wrote.
func talk(t *testing.T, in []byte, piece int) []byte {
	t.Helper()
	s := &session{}
	var got []byte
	for !s.done() {
		if out := s.output(make([]byte, 3*piece)); len(out) > 0 {
			n := min(len(out), piece)
			got = append(got, out[:n]...)
			if err := s.wrote(n); err != nil {
				t.Fatal(err)
			}
		} else {
			if len(in) == 0 {
				break
			}
			n := min(len(in), piece)
			if err := s.input(in[:n]); err != nil {
				t.Fatal(err)
			}
			in = in[n:]
		}
		var err error
		if s, err = parseSession(s.append(nil)); err != nil {
			t.Fatal(err)
		}
	}
	return got
}

func TestSession(t *testing.T) {
	body := make([]byte, 1000)
	pattern.Fill(body, 0)
	in := []byte("GET /download?size=1000 HTTP/1.1\r\nHost: a\r\n\r\n" +
		"PUT /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\nExpect: 100-continue\r\n\r\n" + string(body) +
		"GET /download?size=0 HTTP/1.1\r\nHost: a\r\n\r\n" +
		"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nxy" +
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	want := talk(t, in, len(in))
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + string(body) + "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK",
		"\r\n\r\n1000 ", " 0\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP", "\r\n\r\n2 ", " 2\nHTTP/1.1 404 Not Found\r\n",
	} {
		if !bytes.Contains(want, []byte(s)) {
			t.Errorf("no %q in %q", s, want)
		}
	}
	for piece := 1; piece < 200; piece += 7 {
		if got := talk(t, in, piece); !bytes.Equal(got, want) {
			t.Fatalf("in pieces of %d the answer is %q, not %q", piece, got, want)
		}
	}
	for in, status := range map[string]string{
		"POST /upload HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n": "411 ",
		"GET /download?size=-1 HTTP/1.1\r\nHost: a\r\n\r\n":                      "400 ",
	} {
		if got := talk(t, []byte(in), 10); !bytes.HasPrefix(got, []byte("HTTP/1.1 "+status)) {
			t.Errorf("%q: answer %q, want %s", in, got, status)
		}
	}
	if err := (&session{}).input(bytes.Repeat([]byte("x"), maxHead+1)); err == nil {
		t.Error("an endless head is accepted")
	}
}

// What parses is written again as it was.
func FuzzSession(f *testing.F) {
	f.Add((&session{kind: kindUpload, size: 1000, offset: 10, crc: 7, in: []byte("abc"), out: []byte("d")}).append(nil))
	f.Add([]byte{sessionVersion, byte(kinds)})
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseSession(b)
		if err != nil || len(b) == 0 {
			return
		}
		again, err := parseSession(s.append(nil))
		if err != nil || !bytes.Equal(again.append(nil), s.append(nil)) {
			t.Errorf("%+v became %+v: %v", s, again, err)
		}
	})
}

func FuzzOffer(f *testing.F) {
	o := offer{stopped: 5, clients: []offered{{snapshot: []byte("snap"), sessions: [][]byte{nil, []byte("s")}}}}
	f.Add(o.append(nil))
	f.Add([]byte{0, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := parseOffer(b)
		if err == nil {
			if _, err := parseOffer(o.append(nil)); err != nil {
				t.Error(err)
			}
		}
		parseCommit(b)
	})
}

func TestFrame(t *testing.T) {
	var b bytes.Buffer
	if err := sendFrame(&b, frameOffer, []byte("payload")); err != nil {
		t.Fatal(err)
	}
	if p, err := expectFrame(&b, nil, frameOffer); err != nil || string(p) != "payload" {
		t.Errorf("got %q, %v", p, err)
	}
	if _, _, err := receiveFrame(bytes.NewReader([]byte{frameOffer, 0xff, 0, 0, 0}), nil); err == nil || err == io.ErrUnexpectedEOF {
		t.Errorf("a huge frame: %v", err)
	}
	sendFrame(&b, frameReady, nil)
	if _, err := expectFrame(&b, nil, frameCommit); err == nil {
		t.Error("a frame of another type passes")
	}
}
