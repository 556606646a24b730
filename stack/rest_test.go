package stack_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/distributed-servers/ds/stack"
	"github.com/distributed-servers/ds/tun/tuntest"
)

// A connection comes to rest in Read, and its reader waits, deadline or not,
// until EndRest.
func TestRest(t *testing.T) {
	c, peer := restPair(t, nil)
	read := make(chan error, 1)
	b := make([]byte, 8)
	go func() { _, err := c.Read(b); read <- err }()
	<-c.Rest(false)
	if !c.AtRest() {
		t.Error("not at rest")
	}
	if _, err := peer.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	c.SetReadDeadline(time.Unix(1, 0))
	if _, err := c.Write([]byte("writes go on")); err != nil {
		t.Error(err)
	}
	c.SetReadDeadline(time.Time{})
	select {
	case err := <-read:
		t.Fatalf("read while at rest: %v", err)
	default:
	}
	c.EndRest()
	if err := <-read; err != nil || string(b[:5]) != "hello" {
		t.Errorf("read %q, %v", b[:5], err)
	}
	if c.AtRest() {
		t.Error("at rest after EndRest")
	}
}

// A deadline that passes at rest counts when it is over.
func TestRestDeadline(t *testing.T) {
	c, _ := restPair(t, nil)
	read := make(chan error, 1)
	go func() { _, err := c.Read(make([]byte, 8)); read <- err }()
	<-c.Rest(false)
	c.SetReadDeadline(time.Unix(1, 0))
	c.EndRest()
	if err := <-read; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
}

// Writes that have taken something go on to their end; the next one rests, if
// writes are asked to.
func TestRestInWrite(t *testing.T) {
	c, peer := restPair(t, nil)
	const chunk = 4 << 20
	wrote := make(chan int, 8)
	go func() {
		for {
			n, err := c.Write(make([]byte, chunk))
			wrote <- n
			if err != nil {
				return
			}
		}
	}()
	b := make([]byte, 64<<10)
	n, err := peer.Read(b) // the first write has begun
	if err != nil {
		t.Fatal(err)
	}
	reached := c.Rest(true)
	go io.Copy(io.Discard, peer)
	<-reached
	if got := <-wrote; got != chunk || n == 0 {
		t.Errorf("a write that had begun took %d octets", got)
	}
	if len(wrote) != 0 {
		t.Error("the next went on")
	}
	c.EndRest()
}

// A write that finds room for a part of it takes nothing, and rests while the client
// reads nothing; unless there will never be room for all.
func TestRestInWriteOfAClientThatDoesNotRead(t *testing.T) {
	c, peer := restPair(t, nil)
	if err := peer.Stack().Pause(); err != nil {
		t.Fatal(err)
	}
	size := 100_000
	sent := make([]byte, size, 2*size)
	sent = append(sent, bytes.Repeat([]byte("whole "), 3000)...)
	if err := c.SetWriteBuffer(size); err != nil {
		t.Fatal(err)
	}
	if n, err := c.TryWrite(sent[:size]); n != size || err != nil {
		t.Fatalf("%d octets fill the buffer, %v", n, err)
	}
	if err := c.SetWriteBuffer(size + 10_000); err != nil {
		t.Fatal(err)
	}
	c.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
	if n, err := c.Write(sent[size:]); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("until the deadline %d octets were taken, %v", n, err)
	}
	c.SetWriteDeadline(time.Time{})
	wrote := make(chan int, 1)
	go func() { n, _ := c.Write(sent[size:]); wrote <- n }()
	result(t, "rest", c.Rest(true))
	c.EndRest()
	if err := peer.Stack().Resume(); err != nil {
		t.Fatal(err)
	}
	read := make(chan []byte, 1)
	go func() { b, _ := io.ReadAll(peer); read <- b }()
	if n := result(t, "the write", wrote); n != len(sent)-size {
		t.Errorf("%d octets were taken", n)
	}
	if err := c.SetWriteBuffer(10_000); err != nil {
		t.Fatal(err)
	}
	go func() { n, _ := c.Write(sent[size:]); wrote <- n }()
	if n := result(t, "a write that is larger than the buffer", wrote); n != len(sent)-size {
		t.Errorf("%d octets were taken", n)
	}
	c.Close()
	if got := result(t, "the peer", read); !bytes.Equal(got, append(sent, sent[size:]...)) {
		t.Errorf("of %d octets %d have arrived, or others", 2*len(sent)-size, len(got))
	}
}

// Closing is coming to rest too.
func TestRestClosed(t *testing.T) {
	c, _ := restPair(t, nil)
	reached := c.Rest(false)
	if c.AtRest() || c.Unattended() {
		t.Error("at rest before anything was called")
	}
	c.Close()
	<-reached
	if !c.Unattended() {
		t.Error("closed, and attended")
	}
	<-c.Rest(true) // and at once when it is closed before
}

// A pinned connection does not come to rest, whoever waits in Read, and its calls
// go on; unpinned it is at rest at once, and Pin waits.
func TestPin(t *testing.T) {
	c, peer := restPair(t, nil)
	if err := c.Pin(); err != nil {
		t.Fatal(err)
	}
	read := make(chan error, 1)
	b := make([]byte, 8)
	go func() { _, err := c.Read(b); read <- err }()
	reached := c.Rest(true)
	if err := c.Pin(); err != nil { // once more
		t.Fatal(err)
	}
	if _, err := peer.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := <-read; err != nil || string(b[:5]) != "hello" {
		t.Errorf("read %q, %v", b[:5], err)
	}
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Error(err)
	}
	c.Unpin()
	if c.AtRest() {
		t.Error("at rest with a pin left")
	}
	c.Unpin()
	<-reached
	pinned := make(chan error, 1)
	go func() { pinned <- c.Pin() }()
	if n, err := c.TryWrite([]byte("x")); !errors.Is(err, syscall.EAGAIN) {
		t.Errorf("write at rest: %d, %v", n, err)
	}
	select {
	case err := <-pinned:
		t.Errorf("pinned at rest: %v", err)
	default:
	}
	c.EndRest()
	if err := <-pinned; err != nil {
		t.Error(err)
	}
	c.Unpin()
	<-c.Rest(false) // nobody calls anything
	go func() { pinned <- c.Pin() }()
	c.Close()
	if err := <-pinned; !errors.Is(err, net.ErrClosed) {
		t.Errorf("pin of a closed connection: %v", err)
	}
}

// Await waits as Read and Write do, and takes nothing.
func TestAwait(t *testing.T) {
	c, peer := restPair(t, nil)
	if err := c.Await(stack.Writable); err != nil {
		t.Error(err)
	}
	waits := make(chan error, 1)
	go func() { waits <- c.Await(stack.Readable) }()
	<-c.Rest(false) // it waits
	if _, err := peer.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	c.EndRest()
	if err := <-waits; err != nil {
		t.Error(err)
	}
	b := make([]byte, 8)
	if n, err := c.TryRead(b); err != nil || string(b[:n]) != "hello" {
		t.Errorf("read %q, %v", b[:n], err)
	}
	c.SetReadDeadline(time.Unix(1, 0))
	for _, e := range []stack.Event{stack.Readable, stack.Ended} {
		if err := c.Await(e); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
	}
	if err := c.Await(stack.Writable); err != nil {
		t.Error(err)
	}
	c.SetReadDeadline(time.Time{})
	go func() { waits <- c.Await(stack.Ended) }()
	<-c.Rest(false) // it waits
	c.EndRest()
	c.SetReadDeadline(time.Unix(1, 0))
	if err := <-waits; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a deadline meanwhile: %v", err)
	}
	c.SetReadDeadline(time.Time{})
	go func() { waits <- c.Await(stack.Ended) }()
	peer.SetLinger(0)
	peer.Close()
	if err := <-waits; err != nil {
		t.Errorf("the end: %v", err)
	}
}

// The first connection of a client and the end of its last are told, in order.
func TestPresent(t *testing.T) {
	var mu sync.Mutex
	var told []bool
	changed := make(chan struct{}, 100)
	c, peer := restPair(t, func(client netip.Addr, here bool) {
		mu.Lock()
		defer mu.Unlock()
		if client != restClient {
			t.Errorf("told of %s", client)
		}
		told = append(told, here)
		changed <- struct{}{}
	})
	<-changed
	peer.SetLinger(0)
	peer.Close() // a reset: no TIME_WAIT
	<-changed
	c.Close()
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(told, []bool{true, false}) {
		t.Errorf("told %v", told)
	}
}

var (
	restClient = netip.MustParseAddr("fd00:1::1")
	restServer = netip.MustParseAddr("fd00:2::1")
)

// restPair connects a client to a server, and returns both ends.
func restPair(t *testing.T, present func(netip.Addr, bool)) (server, client *stack.Conn) {
	t.Helper()
	a, b := tuntest.Pair(1500)
	ss, err := stack.New(stack.Config{Device: a, Addrs: []netip.Addr{restServer}, Present: present})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ss.Close() })
	cs, err := stack.New(stack.Config{Device: b, Addrs: []netip.Addr{restClient}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cs.Close() })
	l, err := ss.Listen("tcp", net.JoinHostPort("", "7"))
	if err != nil {
		t.Fatal(err)
	}
	if client, err = cs.Dial("tcp", netip.AddrPortFrom(restServer, 7).String()); err != nil {
		t.Fatal(err)
	}
	if server, err = l.AcceptConn(); err != nil {
		t.Fatal(err)
	}
	return server, client
}
