package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/distributed-servers/ds/dstest"
)

// The count goes on from node to node, even with half a line read.
func TestCounter(t *testing.T) {
	cluster := dstest.New("a", "b")
	defer cluster.Close()
	servers := make(map[string]*server)
	for _, name := range []string{"a", "b"} {
		v := &server{node: cluster.Node(name)}
		v.node.Patience = time.Minute // a busy machine is no fault
		servers[name] = v
		l, err := v.listen()
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- v.accept(l) }()
		defer func() {
			v.node.Close()
			if err := <-done; !errors.Is(err, net.ErrClosed) {
				t.Errorf("%s: %v", name, err)
			}
		}()
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	client := netip.MustParseAddr("2001:db8:1::1")
	c, err := cluster.Client(client).Dial(ctx, cluster.Address(7000))
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(time.Minute))
	in := bufio.NewReader(c)
	expect := func(n int, line string) {
		t.Helper()
		got, err := in.ReadString('\n')
		if want := fmt.Sprintf("%d %s\n", n, line); err != nil || got != want {
			t.Fatalf("got %q, %v: want %q", got, err, want)
		}
	}
	at := "a"
	for n := 1; n < 60; n += 3 {
		to := map[string]string{"a": "b", "b": "a"}[at]
		fmt.Fprintf(c, "hello\nmove %s\n%s says go", to, at)
		expect(n, "hello")
		expect(n+1, "move "+to)
		if err := cluster.AwaitOwner(ctx, client, to); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(c, "od-bye")
		expect(n+2, at+" says good-bye")
		at = to
	}
	if f := cluster.Faults(); len(f) != 0 {
		t.Error(f)
	}
}
