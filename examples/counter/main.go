// Command counter numbers the lines that each connection sends. A client can be
// handed off to another node that runs it, by an operator or with the line
// "move NODE", and the count goes on.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"strings"
	"sync"

	"github.com/distributed-servers/ds"
)

// session is a connection and what the server keeps of it.
type session struct {
	net.Conn
	in    *bufio.Reader
	count int
}

// server has the sessions by connection: net.Conn to *session.
type server struct {
	node     *ds.Node
	sessions sync.Map
}

// saved is what travels with a connection.
type saved struct {
	Count  int
	Unread []byte // part of a line, or lines in advance
}

// state is called while the session waits in Read.
func (v *server) state(c net.Conn) ([]byte, error) {
	s, ok := v.sessions.Load(c)
	if !ok {
		return nil, errors.New("no session")
	}
	in := s.(*session).in
	unread, _ := in.Peek(in.Buffered())
	return json.Marshal(saved{s.(*session).count, unread})
}

// serve serves a connection, from the beginning or from where another node was.
func (v *server) serve(c net.Conn, from saved) {
	s := &session{c, bufio.NewReader(io.MultiReader(bytes.NewReader(from.Unread), c)), from.Count}
	v.sessions.Store(c, s)
	defer v.sessions.Delete(c)
	defer c.Close()
	client := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr()
	for {
		line, err := s.in.ReadString('\n')
		if err != nil {
			return // the end, or ds.ErrMoved
		}
		s.count++
		fmt.Fprintf(c, "%d %s", s.count, line)
		if to, ok := strings.CutPrefix(strings.TrimSpace(line), "move "); ok {
			go func() { // it waits until we read
				report, err := v.node.Handoff(context.Background(), client, to, v.state)
				log.Println(report, err)
			}()
		}
	}
}

// listen makes the node one that clients are handed off to, and that has a
// listener.
func (v *server) listen() (net.Listener, error) {
	v.node.State = v.state // for handoffs by an operator
	arrivals, err := v.node.ListenHandoff()
	if err != nil {
		return nil, err
	}
	go func() {
		for in, err := arrivals.Accept(); err == nil; in, err = arrivals.Accept() {
			for i, c := range in.Conns {
				var from saved
				if err := json.Unmarshal(in.State[i], &from); err != nil {
					log.Println(err)
				}
				go v.serve(c, from)
			}
		}
	}()
	return v.node.Listen("tcp", ":7000")
}

func (v *server) accept(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go v.serve(c, saved{})
	}
}

func main() {
	v := &server{node: new(ds.Node)}
	l, err := v.listen()
	if err == nil {
		err = v.accept(l)
	}
	log.Fatal(err)
}
