package api

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"reflect"
	"strings"
	"sync"
	"testing"
)

func pair(t *testing.T) (app, dsco *Session) {
	t.Helper()
	app, dsco, err := SessionPair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { app.Close(); dsco.Close() })
	return app, dsco
}

func TestSession(t *testing.T) {
	app, dsco := pair(t)
	for _, m := range complete[1:] {
		from, to := app, dsco
		if rules[m.Kind].from == daemon {
			from, to = dsco, app
		}
		if err := to.Send(m); !errors.Is(err, ErrMessage) && rules[m.Kind].from != either {
			t.Errorf("%s the wrong way: %v", m.Kind, err)
		}
		if err := from.Send(m); err != nil {
			t.Errorf("%s: %v", m.Kind, err)
		}
		ends := []*Session{to}
		if rules[m.Kind].from == either {
			ends = append(ends, from)
		}
		for _, s := range ends {
			if got, err := s.Receive(); err != nil || !reflect.DeepEqual(got, m) {
				t.Errorf("%s: got %+v, %v", m.Kind, got, err)
			}
		}
	}
	if !app.Used() || !dsco.Used() {
		t.Error("both ends have sent")
	}
	app.Close()
	if _, err := dsco.Receive(); err != io.EOF {
		t.Errorf("the other end has closed: %v", err)
	}
	if err := dsco.Send(complete[Bound]); err != io.EOF {
		t.Errorf("the other end has closed: %v", err)
	}
	if _, err := app.Receive(); err != net.ErrClosed {
		t.Errorf("this end has closed: %v", err)
	}
	if err := app.Send(complete[Gone]); err != net.ErrClosed {
		t.Errorf("this end has closed: %v", err)
	}
}

// What is said the wrong way ends the session.
func TestSessionDirection(t *testing.T) {
	app, dsco := pair(t)
	b, err := AppendMessage(nil, complete[Welcome])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := app.conn.Write(b); err != nil {
		t.Fatal(err)
	}
	if _, err := dsco.Receive(); !errors.Is(err, ErrMessage) || !strings.Contains(err.Error(), "welcome from the application") {
		t.Errorf("got %v", err)
	}
	if err := dsco.Send(complete[Bound]); !errors.Is(err, ErrMessage) {
		t.Errorf("got %v", err)
	}
}

// A mistake of this end is told, and nothing else happens.
func TestSessionMistake(t *testing.T) {
	app, dsco := pair(t)
	for _, m := range []*Message{{}, {Kind: 200}, {Kind: Owned}, {Kind: Bound, Client: addr1}} {
		if err := app.Send(m); !errors.Is(err, ErrMessage) {
			t.Errorf("%+v: %v", m, err)
		}
	}
	if err := app.Send(complete[Gone]); err != nil {
		t.Error(err)
	}
	if m, err := dsco.Receive(); err != nil || m.Kind != Gone {
		t.Errorf("got %+v, %v", m, err)
	}
}

// Many senders, and more than the socket holds: nothing is lost, and what one
// sends stays in order.
func TestSessionSenders(t *testing.T) {
	app, dsco := pair(t)
	const senders, each = 8, 500
	big := bytes.Repeat([]byte("x"), 5000)
	var wg sync.WaitGroup
	for id := range senders {
		wg.Go(func() {
			for n := range each {
				m := &Message{Kind: Transfer, ID: uint64(id + 1), Snapshot: big, Connections: n}
				if err := app.Send(m); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait() // nobody has read: Send does not wait
	var next [senders]int
	for range senders * each {
		m, err := dsco.Receive()
		if err != nil {
			t.Fatal(err)
		}
		if n := &next[m.ID-1]; m.Connections != *n || len(m.Snapshot) != len(big) {
			t.Fatalf("sender %d: number %d, want %d", m.ID, m.Connections, *n)
		} else {
			*n++
		}
	}
}

// Messages that are sent together arrive together, without the one that is none.
func TestSessionTogether(t *testing.T) {
	app, dsco := pair(t)
	if dsco.Ready() {
		t.Error("nothing has been sent")
	}
	if err := app.Send(complete[Owned], &Message{Kind: Owned}, complete[Gone], complete[Settled]); !errors.Is(err, ErrMessage) {
		t.Errorf("one lacks its client: %v", err)
	}
	for i, want := range []*Message{complete[Owned], complete[Gone], complete[Settled]} {
		if ready := dsco.Ready(); ready != (i > 0) {
			t.Errorf("%s is there: %t", want.Kind, ready)
		}
		if got, err := dsco.Receive(); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, %v, want %s", got, err, want.Kind)
		}
	}
	if dsco.Ready() {
		t.Error("nothing is left")
	}
	// Of a message that has not come whole, Ready says nothing.
	if _, err := app.conn.Write([]byte{0, 0, 0, 9, 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := dsco.r.Peek(5); err != nil || dsco.Ready() {
		t.Errorf("half a message is ready, %v", err)
	}
}

func TestSessionHuge(t *testing.T) {
	app, dsco := pair(t)
	huge := &Message{Kind: Transfer, ID: 1, Snapshot: make([]byte, 8<<20)}
	if err := app.Send(huge); err != nil {
		t.Fatal(err)
	}
	if m, err := dsco.Receive(); err != nil || len(m.Snapshot) != len(huge.Snapshot) {
		t.Errorf("got %v", err)
	}
	huge.Snapshot = make([]byte, MaxMessage+1)
	if err := app.Send(huge); !errors.Is(err, ErrMessage) {
		t.Errorf("longer than a message may be: %v", err)
	}
	// Known before it is written, what CBOR adds included.
	huge.Snapshot = huge.Snapshot[:MaxMessage-maxRest-10]
	if err := huge.Check(); err != nil {
		t.Errorf("as long as a message may be: %v", err)
	}
	huge.State = [][]byte{{}, {}}
	if err := huge.Check(); !errors.Is(err, ErrMessage) {
		t.Errorf("longer with what is between the parts: %v", err)
	}
}

func TestSessionTooMuch(t *testing.T) {
	app, _ := pair(t)
	app.most = 10 << 20
	large := &Message{Kind: Transfer, ID: 1, Snapshot: make([]byte, 1<<20)}
	var err error
	for range 20 {
		if err = app.Send(large); err != nil {
			break
		}
	}
	if err != ErrSlow {
		t.Errorf("nobody reads: %v", err)
	}
}

func TestSessionFiles(t *testing.T) {
	app, dsco := pair(t)
	var files []*os.File
	for i := range maxFiles {
		f, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(f, i)
		files = append(files, f)
		defer f.Close()
	}
	m := &Message{Kind: Welcome, Config: config()}
	m.Config.Nodes = make([]string, 20000) // more than the socket holds at once
	for i := range m.Config.Nodes {
		m.Config.Nodes[i] = fmt.Sprintf("node%d", i)
	}
	if err := dsco.SendFiles(m, append(files, files[0])...); err == nil {
		t.Error("too many went")
	}
	received := make(chan error)
	go func() {
		got, err := app.Receive()
		if err == nil && !reflect.DeepEqual(got, m) {
			err = errors.New("another message")
		}
		received <- err
	}()
	if err := dsco.SendFiles(m, files...); err != nil {
		t.Fatal(err)
	}
	if err := <-received; err != nil {
		t.Fatal(err)
	}
	got := app.in.take()
	if len(got) != len(files) {
		t.Fatalf("%d descriptors", len(got))
	}
	for i, f := range got {
		b := make([]byte, 10)
		n, err := f.ReadAt(b, 0)
		if string(b[:n]) != fmt.Sprint(i) {
			t.Errorf("%d: got %q, %v", i, b[:n], err)
		}
		f.Close()
	}
	if err := dsco.SendFiles(complete[ConfigChanged], files[0]); err == nil {
		t.Error("descriptors with a later message")
	}
	if err := dsco.Send(complete[ConfigChanged]); err != nil {
		t.Error(err)
	}
}

// What is sent in excess is closed, and what nobody takes, at the end.
func TestSessionFilesLeft(t *testing.T) {
	app, dsco := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for range 3 {
		files := make([]*os.File, 40)
		for i := range files {
			files[i] = w
		}
		b, err := AppendMessage(nil, complete[Bound])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := writeFiles(dsco.conn, b, files); err != nil {
			t.Fatal(err)
		}
		if _, err := app.Receive(); err != nil {
			t.Fatal(err)
		}
	}
	// To the daemon nothing can be passed.
	b, err := AppendMessage(nil, complete[Gone])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := writeFiles(app.conn, b, []*os.File{w}); err != nil {
		t.Fatal(err)
	}
	if _, err := dsco.Receive(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	app.Close()
	if _, err := r.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("somebody still holds one: %v", err)
	}
}

func BenchmarkSession(b *testing.B) {
	app, dsco, err := SessionPair()
	if err != nil {
		b.Fatal(err)
	}
	defer app.Close()
	defer dsco.Close()
	go func() {
		for {
			m, err := dsco.Receive()
			if err != nil {
				return
			}
			dsco.Send(&Message{Kind: Prepared, ID: m.ID})
		}
	}()
	m := complete[Prepare]
	b.ReportAllocs()
	for b.Loop() {
		if err := app.Send(m); err != nil {
			b.Fatal(err)
		}
		if _, err := app.Receive(); err != nil {
			b.Fatal(err)
		}
	}
}
