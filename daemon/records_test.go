package daemon

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/distributed-servers/ds/daemon/member"
)

var recordsOf = netip.MustParseAddr("2001:db8:1::1")

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
	if _, err := r.file.WriteString(`{"from":"a","id":77,"cli`); err != nil {
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

func TestRecordsDamaged(t *testing.T) {
	for _, content := range []string{
		"\n", "{}\n", "null\n", `{"from":"a","id":1,"client":"2001:db8::1","state":4}` + "\n", `{"from":"a","id":-1}` + "\n",
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

// What is read is read again, the same, when written; a piece of it is its
// beginning.
func FuzzRecords(f *testing.F) {
	b, err := appendRecords(nil, []member.Record{record(1, member.Taken), record(1<<63, member.Forgotten)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte("{}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		recs, err := parseRecords(b)
		if err != nil {
			return
		}
		again, err := appendRecords(nil, recs)
		if err != nil {
			t.Fatal(err)
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
