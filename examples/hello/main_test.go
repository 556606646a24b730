package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/distributed-servers/ds/dstest"
	"github.com/distributed-servers/ds/internal/demo/pattern"
)

// The program in the README is the one that is compiled here.
func TestReadme(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	main, err := os.ReadFile("main.go")
	if err != nil {
		t.Fatal(err)
	}
	_, program, _ := strings.Cut(string(readme), "```go\n")
	program, _, ok := strings.Cut(program, "```\n")
	if !ok || program != string(main) {
		t.Error("the program in README.md is not main.go: copy it there")
	}
}

// A client is greeted by each node, and handed on in the middle of a download.
func TestHello(t *testing.T) {
	cluster := dstest.New("a", "b")
	defer cluster.Close()
	file := make([]byte, 1<<20)
	pattern.Fill(file, 0)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	move := make(map[string]func(client netip.Addr, to string) error)
	for _, name := range []string{"a", "b"} {
		node := cluster.Node(name)
		node.Patience = time.Minute // a busy machine is no fault
		defer node.Close()
		files := fstest.MapFS{"file": {Data: file, ModTime: time.Unix(1, 0)}}
		s := server(node, http.FS(files))
		s.Buffer = 16 << 10 // so that a download is under way for long
		go s.ListenAndServe()
		defer s.Close()
		move[name] = func(client netip.Addr, to string) error {
			_, err := s.Move(ctx, client, to)
			return err
		}
	}
	// Until the nodes listen they refuse clients: others than ours.
	for i, name := range []string{"b", "a"} {
		cluster.First(name)
		early := cluster.Client(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 9, 15: byte(i + 1)}))
		for {
			c, err := early.Dial(ctx, cluster.Address(80))
			if err == nil {
				c.Close()
				break
			}
			if ctx.Err() != nil {
				t.Fatal(err)
			}
		}
	}
	client := netip.MustParseAddr("2001:db8:1::1")
	hc := &http.Client{Transport: &http.Transport{
		MaxConnsPerHost: 1, // so that it is one connection all the time
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			return cluster.Client(client).Dial(ctx, address)
		},
	}}
	defer hc.CloseIdleConnections()
	get := func(path string) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+cluster.Address(80)+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := hc.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	hello := func(from string) {
		t.Helper()
		resp := get("/hello")
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if want := fmt.Sprintf("this is %s\n", from); err != nil || !strings.HasSuffix(string(b), want) {
			t.Errorf("got %q, %v: want %q", b, err, want)
		}
	}
	hello("a")
	if err := cluster.AwaitOwner(ctx, client, "a"); err != nil {
		t.Fatal(err)
	}
	if err := move["a"](client, "b"); err != nil {
		t.Fatal(err)
	}
	hello("b")
	resp := get("/file")
	defer resp.Body.Close()
	check := pattern.Checker{}
	for at, to := "b", "a"; check.Offset < int64(len(file)); at, to = to, at {
		if n, err := io.CopyN(&check, resp.Body, 128<<10); err != nil {
			t.Fatalf("after %d octets: %v", n, err)
		}
		if err := move[at](client, to); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := io.Copy(&check, resp.Body); n != 0 || err != nil || check.Wrong != 0 {
		t.Errorf("%d octets more, %d wrong, %v", n, check.Wrong, err)
	}
	hello("b")
	for _, f := range cluster.Faults() {
		if strings.Contains(f, client.String()) {
			t.Error(f)
		}
	}
}
