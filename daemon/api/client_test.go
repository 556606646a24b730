package api

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

// A daemon that is not there, and one that ends in the middle of a call, are told
// apart: the call of the second may have been done.
func TestDaemonEnds(t *testing.T) {
	c := &Client{Socket: filepath.Join(t.TempDir(), "sock")}
	defer c.Close()
	if _, err := c.Status(context.Background()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("without a daemon: %v", err)
	}
	l, err := net.Listen("unix", c.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			http.ReadRequest(bufio.NewReader(conn))
			conn.Close()
		}
	}()
	_, err = c.Status(context.Background())
	if !errors.Is(err, io.EOF) || errors.Is(err, ErrNotRunning) || !strings.Contains(err.Error(), "the daemon has ended before it answered") {
		t.Errorf("it ends before it answers: %v", err)
	}
}
