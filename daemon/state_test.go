package daemon

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/distributed-servers/ds/daemon/member"
)

func TestState(t *testing.T) {
	s := state{t.TempDir()}
	a, b := netip.MustParseAddr("2001:db8:1::1"), netip.MustParseAddr("2001:db8:1::2")
	if _, ok, err := s.load(a); ok || err != nil {
		t.Fatalf("nothing was saved: %v, %v", ok, err)
	}
	for epoch := range uint64(3) {
		if err := s.save(a, member.Contact{Name: "x", Epoch: epoch}); err != nil {
			t.Fatal(err)
		}
		if c, ok, err := s.load(a); !ok || err != nil || c != (member.Contact{Name: "x", Epoch: epoch}) {
			t.Fatalf("loaded %+v, %v, %v", c, ok, err)
		}
	}
	if _, ok, err := s.load(b); ok || err != nil {
		t.Fatalf("another server's: %v, %v", ok, err)
	}
	if files, _ := filepath.Glob(filepath.Join(s.dir, "*")); len(files) != 1 {
		t.Errorf("left behind: %v", files)
	}
}

func TestStateDamaged(t *testing.T) {
	for _, content := range []string{"", "{", "null", `{"epoch":3}`, `{"contact":3}`} {
		s := state{t.TempDir()}
		a := netip.MustParseAddr("2001:db8:1::1")
		if err := os.WriteFile(s.path(a), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, ok, err := s.load(a); ok || err == nil || !strings.Contains(err.Error(), "remove it") {
			t.Errorf("%q: %v, %v", content, ok, err)
		}
	}
	s := state{filepath.Join(t.TempDir(), "missing")}
	if err := s.save(netip.MustParseAddr("2001:db8::1"), member.Contact{Name: "x"}); err == nil {
		t.Error("saved in a directory that does not exist")
	}
}
