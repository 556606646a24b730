package server

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/distributed-servers/ds/daemon/api"
)

var hello = &api.Message{Kind: api.Hello, Program: "test"}

func TestAttach(t *testing.T) {
	s, c := serve(t, Config{})
	a, err := api.Attach(t.Context(), c.Socket, dsa, hello)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	session := a.Session
	if a.Welcome.Config.Addr != dsa || len(a.TUN) != 1 {
		t.Fatalf("got %+v, %d descriptors", a.Welcome.Config, len(a.TUN))
	}
	b := make([]byte, 100)
	if n, err := a.TUN[0].Read(b); string(b[:n]) != "through the descriptor" {
		t.Errorf("got %q, %v", b[:n], err)
	}
	if !a.Decisions.Take(1, 2) {
		t.Error("the decisions are not the daemon's")
	}
	for range 3 {
		if err := session.Send(&api.Message{Kind: api.Owned, Client: client1}); err != nil {
			t.Fatal(err)
		}
		if m, err := session.Receive(); err != nil || m.Kind != api.Bound || m.Client != client1 {
			t.Errorf("got %+v, %v", m, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := session.Receive(); err != io.EOF {
		t.Errorf("after the end of the daemon: %v", err)
	}
}

func TestAttachRefused(t *testing.T) {
	attach := func(cfg Config) error {
		t.Helper()
		_, c := serve(t, cfg)
		a, err := api.Attach(t.Context(), c.Socket, dsa, hello)
		if err == nil {
			a.Close()
		}
		return err
	}
	admit := func(Cred) error { return api.Errorf(api.ErrForbidden, "be another", "you may not") }
	if err := attach(Config{Backend: &fake{admit: admit}}); !errors.Is(err, api.ErrForbidden) || err.Error() != "you may not; be another" {
		t.Errorf("not admitted: %v", err)
	}
	early := func(*api.Session) error { return errors.New("somebody is attached") }
	if err := attach(Config{Backend: &fake{attach: early}}); !errors.Is(err, api.ErrConflict) || err.Error() != "somebody is attached" {
		t.Errorf("refused in a welcome: %v", err)
	}
	hangUp := func(s *api.Session) error {
		s.Receive()
		return s.Close()
	}
	if err := attach(Config{Backend: &fake{attach: hangUp}}); !errors.Is(err, io.EOF) {
		t.Errorf("hung up: %v", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	for want, files := range map[string][]*os.File{
		"0 descriptors, not 2 of the interface and one of decisions": nil,
		"2 descriptors, not 2": {r, r},
		"4 descriptors, not 2": {r, r, r, r},
		"not memory of":        {r, r, w},
	} {
		badly := func(s *api.Session) error {
			config := &api.SessionConfig{Addr: dsa, CareOf: dsa, Via: dsa, Node: "a", MTU: 1500, Queues: 2, TUN: "dsco0"}
			s.Receive()
			s.SendFiles(&api.Message{Kind: api.Welcome, Config: config}, files...)
			_, err := s.Receive()
			return err
		}
		if err := attach(Config{Backend: &fake{attach: badly}}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%d descriptors: got %v, want %q", len(files), err, want)
		}
	}
	// Nobody holds one of those that were refused.
	w.Close()
	if _, err := r.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the other end of the pipe is open: %v", err)
	}
}

func TestAttachTimesOut(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	silent := func(s *api.Session) error {
		_, err := s.Receive()
		cancel()
		s.Receive()
		return err
	}
	_, c := serve(t, Config{Backend: &fake{attach: silent}})
	if _, err := api.Attach(ctx, c.Socket, dsa, hello); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestAttachNobody(t *testing.T) {
	for path, want := range map[string]string{"/nonexistent/s": "start it", "/dev/null": "start it"} {
		_, err := api.Attach(t.Context(), path, dsa, hello)
		if !errors.Is(err, api.ErrNotRunning) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
	}
	l, err := net.Listen("unix", temp(t)+"/s")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for answer, want := range map[string]string{
		"HTTP/1.1 101 Switching Protocols\r\nUpgrade: dsco-session/99\r\n\r\n": "one next to it",
		"HTTP/1.1 500 No\r\n\r\n": "the daemon answered 500 No",
		"garbage\r\n":             "malformed",
	} {
		go func() {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			bufio.NewReader(c).ReadString('\n')
			fmt.Fprint(c, answer)
		}()
		if _, err := api.Attach(t.Context(), l.Addr().String(), dsa, hello); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", answer, err)
		}
	}
}

// What is not an upgrade is no session, and what is said too early is heard.
func TestAttachRaw(t *testing.T) {
	s, _ := serve(t, Config{})
	conn := dialRaw(t, s)
	fmt.Fprintf(conn, "POST /v1/servers/%s/attach HTTP/1.1\r\nHost: x\r\n\r\n", dsa)
	if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || !strings.Contains(line, "400") {
		t.Errorf("no upgrade: got %s, %v", line, err)
	}
	conn = dialRaw(t, s)
	early, err := api.AppendMessage(nil, hello)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "POST /v1/servers/%s/attach HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n%s", dsa, api.SessionProtocols(), early)
	r := bufio.NewReader(conn)
	for line := ""; line != "\r\n"; {
		if line, err = r.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	if m, err := api.ReadMessage(r); err != nil || m.Kind != api.Welcome {
		t.Errorf("got %+v, %v", m, err)
	}
}
