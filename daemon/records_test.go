package daemon

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/daemon/member"
	"github.com/distributed-servers/ds/daemon/peer"
)

var recordsOf = netip.MustParseAddr("2001:db8:1::1")

func tempState(t *testing.T) state { return state{t.TempDir()} }

func record(id uint64, s member.State) member.Record {
	return member.Record{From: "a", ID: id, Client: netip.MustParseAddr("2001:db8:c::1"), State: s}
}

// What was added is there after the daemon is started anew, although it was
// killed while it wrote; what is forgotten goes, and the file stays small.
func TestRecords(t *testing.T) {
	s := state{t.TempDir()}
	r, recs, err := s.openRecords(recordsOf)
	if err != nil || len(recs) != 0 {
		t.Fatalf("nothing was recorded: %v, %v", recs, err)
	}
	for id := uint64(1); id <= 3*minRewrite; id++ {
		add := []member.Record{record(id, member.Taken), record(id, member.Activated)}
		if id%100 != 0 {
			add = append(add, record(id, member.Forgotten))
		}
		if err := r.add(add); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(r.path); err != nil || info.Size() > 100*2*minRewrite {
		t.Errorf("the file has %d octets, %v", info.Size(), err)
	}
	if _, err := io.WriteString(r.file, `{"from":"a","id":77,"cli`); err != nil {
		t.Fatal(err)
	}
	if err := r.close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		r, recs, err := s.openRecords(recordsOf)
		if err != nil {
			t.Fatal(err)
		}
		defer r.close()
		got := make(map[uint64]member.State)
		for _, rec := range recs {
			got[rec.ID] = rec.State
		}
		left := 0
		for id, state := range got {
			if state == member.Forgotten {
				continue
			}
			if left++; state != member.Activated || id%100 != 0 {
				t.Errorf("%d is %v", id, state)
			}
		}
		if want := 3 * minRewrite / 100; left != want || len(r.all) != want {
			t.Errorf("%d are left, want %d", left, want)
		}
	}
	if files, _ := filepath.Glob(filepath.Join(s.dir, "*")); len(files) != 1 {
		t.Errorf("left behind: %v", files)
	}
}

// What a full disk has not taken is told, and is there once there is room again;
// half a line that it has taken is no damage.
func TestRecordsFullDisk(t *testing.T) {
	s := state{t.TempDir()}
	r, _, err := s.openRecords(recordsOf)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.add([]member.Record{record(1, member.Taken)}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(r.file, `{"from":"a","id":2,"cli`); err != nil { // of what comes next
		t.Fatal(err)
	}
	disk, path := r.file, r.path
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	r.file = full
	if err := r.add([]member.Record{record(2, member.Taken)}); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), path) {
		t.Fatalf("no room: %v", err)
	}
	r.file, r.path = disk, filepath.Join(s.dir, "no directory", "x") // nor for another file
	if err := r.add([]member.Record{record(3, member.Taken)}); err == nil {
		t.Fatal("written to nowhere")
	}
	killed, recs, err := s.openRecords(recordsOf) // the daemon has ended here
	if err != nil || len(recs) != 1 {
		t.Fatalf("%v, %v", recs, err)
	}
	killed.close()
	r.path = path
	if err := r.add([]member.Record{record(1, member.Activated)}); err != nil {
		t.Fatal(err)
	}
	if err := r.add([]member.Record{record(4, member.Taken)}); err != nil {
		t.Fatal(err)
	}
	r.close()
	r, recs, err = s.openRecords(recordsOf)
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	got := make(map[uint64]member.State)
	for _, rec := range recs {
		got[rec.ID] = rec.State
	}
	if want := map[uint64]member.State{1: member.Activated, 2: member.Taken, 3: member.Taken, 4: member.Taken}; !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// A disk that fails, in each way, at each record of a handoff to this node: what could
// not be recorded as taken is not taken, what was is known to the daemon that is
// started after, and no more clients are taken until there is room again.
func TestTargetFullDisk(t *testing.T) {
	half := func(b []byte) int { return len(b) / 2 }
	for _, f := range []struct {
		name  string
		err   syscall.Errno
		takes func(b []byte) int
	}{
		{"full", syscall.ENOSPC, func([]byte) int { return 0 }},
		{"half a line", syscall.ENOSPC, half},
		{"a line", syscall.ENOSPC, func(b []byte) int { return len(b) }},
		{"broken", syscall.EIO, func([]byte) int { return 0 }},
		{"broken in a line", syscall.EIO, half},
	} {
		for at, state := range []member.State{member.Taken, member.Activated, member.Forgotten} {
			for _, full := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s at %s, for long %t", f.name, state, full), func(t *testing.T) {
					testTargetFullDisk(t, &faultyFile{left: at, err: f.err, takes: f.takes}, state, full)
				})
			}
		}
	}
}

// faultyFile fails when it has been written so often as is left.
type faultyFile struct {
	io.WriteCloser
	left  int
	err   syscall.Errno
	takes func(b []byte) int
}

func (f *faultyFile) Write(b []byte) (int, error) {
	if f.left--; f.left >= 0 {
		return f.WriteCloser.Write(b)
	}
	n, err := f.WriteCloser.Write(b[:f.takes(b)])
	return n, errors.Join(err, &fs.PathError{Op: "write", Path: "faulty", Err: f.err})
}

func testTargetFullDisk(t *testing.T, disk *faultyFile, state member.State, full bool) {
	s := tempState(t)
	r, _, err := s.openRecords(recordsOf)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { r.close() }()
	path := r.path
	disk.WriteCloser = r.file
	r.file = disk
	n := &Node{log: slog.New(slog.DiscardHandler), begin: time.Now(), mesh: new(peer.Mesh)}
	v := &service{n: n, home: frozenHome.Addr(), member: frozenMember(t, "b"), records: r, timer: time.NewTimer(time.Hour)}
	v.step(member.Start{})
	v.step(member.App{Message: &api.Message{Kind: api.Hello, Program: "p", AcceptsHandoffs: true, HasTUN: true}})
	v.step(member.PeerUp{Name: "a"})
	// prepared tells whether the target has agreed to a handoff.
	prepared := func(id uint64, client netip.Addr) bool {
		before := v.member.Unsettled()
		v.step(member.Peer{From: "a", Message: &member.Message{Kind: member.Prepare, ID: id, Client: client, Epoch: 2, Relayed: true}})
		return v.member.Unsettled() > before
	}
	if !prepared(1, frozenClient) {
		t.Fatal("refused")
	}
	v.step(member.App{Message: &api.Message{Kind: api.Expected, ID: 1}}) // the first offer
	if full {
		r.path = filepath.Join(s.dir, "no directory", "x") // nor is there another
	}
	v.step(member.Peer{From: "a", Message: &member.Message{Kind: member.Transfer, ID: 1, Client: frozenClient, Epoch: 2, Relayed: true, Snapshot: []byte("snapshot")}})
	if _, has := v.member.Client(frozenClient); has != (state > member.Taken) {
		t.Fatalf("it has the client: %t", has)
	}
	v.step(member.App{Message: &api.Message{Kind: api.Activated, ID: 1}})
	// known is what a daemon that is started now knows of the handoff.
	known := func(after string) (state member.State) {
		t.Helper()
		killed, recs, err := s.openRecords(recordsOf)
		if err != nil {
			t.Fatalf("%s: %v", after, err)
		}
		killed.close()
		for _, rec := range recs {
			if state = rec.State; rec.Client != frozenClient || rec.ID != 1 {
				t.Errorf("%s: recorded: %v", after, rec)
			}
		}
		return state
	}
	if full && state == member.Activated {
		if got := known("activated"); got != member.Taken && got != member.Activated {
			t.Errorf("what was taken is %v", got)
		}
	}
	v.step(member.Peer{From: "a", Message: &member.Message{Kind: member.Settled, ID: 1}})
	told := ""
	n.events.Watch(t.Context(), api.WatchOptions{}, time.Hour, func(events []api.Event) error {
		for _, e := range events {
			if e.Kind == api.EventFault && told == "" {
				told = e.Detail
			}
		}
		return io.EOF
	})
	if !strings.Contains(told, "faulty: "+disk.err.Error()) {
		t.Errorf("the fault that is told: %q", told)
	}
	other := frozenClient.Next()
	if full && prepared(2, other) {
		t.Error("it takes another")
	}
	r.path = path
	r.again = 0 // a second later
	if !prepared(3, other) {
		t.Error("refused although there is room again")
	}
	if got := known("settled"); got != 0 && got != member.Forgotten {
		t.Errorf("what is over is %v", got)
	}
}

func TestRecordsDamaged(t *testing.T) {
	for _, content := range []string{
		"\n", "{}\n", "null\n", `{"from":"a","id":1,"client":"2001:db8::1","state":6}` + "\n", `{"from":"a","id":1,"client":"2001:db8::1","state":4}` + "\n", `{"from":"a","id":-1}` + "\n",
	} {
		s := state{t.TempDir()}
		path := filepath.Join(s.dir, "handoffs-"+recordsOf.StringExpanded()+".log")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.openRecords(recordsOf); err == nil || !strings.Contains(err.Error(), "damaged") || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: %v", content, err)
		}
	}
}

// What is read is read again, the same, when written, which is as package json would; a
// piece of it is its beginning.
func FuzzRecords(f *testing.F) {
	f.Add(appendRecords(nil, record(1, member.Taken), record(1<<63, member.Forgotten)))
	f.Add([]byte("{}\n"))
	f.Add([]byte(`{"from":"\"<\\é\u0000&>\u007f","id":1,"client":"2001:db8::ffff:1.2.3.4","state":4,"to":"ü"}` + "\n"))
	f.Add([]byte(`{"from":"a","id":1,"client":"fe80::1%\"","state":1}` + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		recs, err := parseRecords(b)
		if err != nil {
			return
		}
		var want bytes.Buffer
		for _, rec := range recs {
			if err := json.NewEncoder(&want).Encode(rec); err != nil {
				t.Fatal(err)
			}
		}
		again := appendRecords(nil, recs...)
		if !bytes.Equal(again, want.Bytes()) {
			t.Fatalf("%s, not %s", again, want.Bytes())
		}
		got, err := parseRecords(again)
		if err != nil || !reflect.DeepEqual(got, recs) {
			t.Fatalf("%v\nagain %v, %v", recs, got, err)
		}
		if cut, err := parseRecords(again[:len(again)/2]); err != nil || len(cut) > 0 && fmt.Sprint(cut) != fmt.Sprint(recs[:len(cut)]) {
			t.Fatalf("half of it: %v, %v", cut, err)
		}
	})
}
