package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/distributed-servers/ds/dstest"
	"github.com/distributed-servers/ds/httpmove"
)

// masked is a client's frame.
func masked(op byte, payload string) []byte {
	b := appendFrame(nil, op, []byte(payload))
	head := len(b) - len(payload)
	mask := []byte{1, 2, 3, 4}
	out := append(append(bytes.Clone(b[:head]), mask...), payload...)
	out[1] |= 0x80
	for i := range payload {
		out[head+4+i] ^= mask[i%4]
	}
	return out
}

// The count goes on from node to node, even with half a frame read.
func TestWebSocket(t *testing.T) {
	cluster := dstest.New("a", "b")
	defer cluster.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	servers := make(map[string]*httpmove.Server)
	for _, name := range []string{"b", "a"} {
		node := cluster.Node(name)
		node.Patience = time.Minute
		defer node.Close()
		s := &httpmove.Server{Node: node, Handler: http.HandlerFunc(serve)}
		served := make(chan error, 1)
		go func() { served <- s.ListenAndServe() }()
		defer func() {
			s.Close()
			if err := <-served; !errors.Is(err, http.ErrServerClosed) {
				t.Errorf("%s: %v", name, err)
			}
		}()
		servers[name] = s
	}
	for i, name := range []string{"b", "a"} { // until they listen they refuse clients
		cluster.First(name)
		dial(ctx, t, cluster, netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 9, 15: byte(i + 1)}))
	}
	client := netip.MustParseAddr("2001:db8:1::1")
	c := dial(ctx, t, cluster, client)
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	in := bufio.NewReader(c)
	r, err := http.ReadResponse(in, nil)
	if err != nil || r.StatusCode != http.StatusSwitchingProtocols || r.Header.Get("Sec-WebSocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
		t.Fatalf("%v, %v", r, err)
	}
	expect := func(op byte, payload string) {
		t.Helper()
		want := appendFrame(nil, op, []byte(payload))
		got := make([]byte, len(want))
		if _, err := io.ReadFull(in, got); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("got %q, %v: want %q", got, err, want)
		}
	}
	if err := cluster.AwaitOwner(ctx, client, "a"); err != nil {
		t.Fatal(err)
	}
	at, to := "a", "b"
	for n := 1; n <= 20; n++ {
		frames := append(masked(opPing, "ping"), masked(opText, "hello")...)
		cut := n % len(frames)
		c.Write(frames[:cut])
		if _, err := servers[at].Move(ctx, client, to); err != nil {
			t.Fatal(err)
		}
		c.Write(frames[cut:])
		expect(opPong, "ping")
		expect(opText, fmt.Sprintf("%d hello", n))
		at, to = to, at
	}
	c.Write(masked(opClose, ""))
	expect(opClose, "")
	if b, err := io.ReadAll(in); len(b) > 0 || err != nil {
		t.Errorf("at the end: %q, %v", b, err)
	}
	for _, f := range cluster.Faults() {
		if strings.Contains(f, client.String()) {
			t.Error(f)
		}
	}
}

func dial(ctx context.Context, t *testing.T, cluster *dstest.Cluster, client netip.Addr) net.Conn {
	t.Helper()
	for {
		c, err := cluster.Client(client).Dial(ctx, cluster.Address(80))
		if err == nil {
			return c
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
}

// FuzzParseFrame: what is a frame is so in pieces too, and is as long as it says.
func FuzzParseFrame(f *testing.F) {
	f.Add(masked(opText, "hello"))
	f.Add(masked(opText, string(make([]byte, 300))))
	f.Add([]byte{0x81, 0xfe, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		op, payload, n, err := parseFrame(b)
		if n > len(b) || len(payload) > maxPayload || err != nil && n > 0 {
			t.Fatalf("%d of %d octets, %v", n, len(b), err)
		}
		if n == 0 {
			return
		}
		if again, _, m, _ := parseFrame(b[:n-1]); m != 0 || again != 0 {
			t.Errorf("a frame of %d octets in %d", n, n-1)
		}
		if k := len(appendFrame(nil, op, payload)); k+4 > n {
			t.Errorf("%d octets of payload in a frame of %d", len(payload), n)
		}
	})
}
