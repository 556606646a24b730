package ds_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log"
	"strings"

	"github.com/distributed-servers/ds"
	"github.com/distributed-servers/ds/daemon/api"
)

// A protocol of lines, one of which moves the connection: the goroutine that serves
// it hands it off itself, with what it knows of it and what it has read ahead.
func ExampleConn_Handoff() {
	serve := func(c ds.Conn, user, unread string) {
		defer c.Close()
		in := bufio.NewReader(io.MultiReader(strings.NewReader(unread), c))
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			to, move := strings.CutPrefix(strings.TrimSpace(line), "move ")
			if !move {
				fmt.Fprintf(c, "hello %s\n", user)
				continue
			}
			ahead, _ := in.Peek(in.Buffered())
			if _, err := c.Handoff(context.Background(), to, []byte(user+"\n"+string(ahead))); err == nil {
				return // the connection is served there
			}
			fmt.Fprintf(c, "%s is not to be had\n", to)
		}
	}

	var node ds.Node
	arrivals, err := node.ListenHandoff()
	if err != nil {
		log.Fatal(err)
	}
	for {
		in, err := arrivals.Accept()
		if err != nil {
			log.Fatal(err)
		}
		for i, c := range in.Conns {
			user, unread, _ := strings.Cut(string(in.State[i]), "\n")
			go serve(c.(ds.Conn), user, unread)
		}
	}
}

// A node hands its clients to others when too many have come.
func ExampleNode_Watch() {
	var node ds.Node
	ctx := context.Background()
	for e, err := range node.Watch(ctx) {
		if err != nil {
			log.Fatal(err)
		}
		if e.Kind != api.EventOwned {
			continue
		}
		status, err := node.Status(ctx)
		if err != nil || status.Clients < 1000 {
			continue
		}
		for _, other := range status.Nodes {
			if other.AcceptsHandoffs && !other.Local && other.Clients < status.Clients/2 {
				report, err := node.Handoff(ctx, e.Client, other.Node, node.State)
				log.Println(report, err)
				break
			}
		}
	}
}
