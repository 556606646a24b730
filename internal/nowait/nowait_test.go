//go:build unix

package nowait

import (
	"bytes"
	"io"
	"net"
	"testing"
)

// What is written without waiting arrives, and when the socket is full nothing is
// written and nobody waits.
func TestWrite(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	out, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	in, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	var sent []byte
	chunk := make([]byte, 1<<20)
	for i := range chunk {
		chunk[i] = byte(i * 7)
	}
	for {
		n, err := Write(out.(*net.TCPConn), chunk)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break
		}
		sent = append(sent, chunk[:n]...)
	}
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(in, got); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, sent) {
		t.Error("other octets")
	}
	out.Close()
	if _, err := Write(out.(*net.TCPConn), chunk); err == nil {
		t.Error("a closed connection takes octets")
	}
}
