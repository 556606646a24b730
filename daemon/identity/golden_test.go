package identity

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What a release has written down or sent, later ones read: tokens, lists of
// members, requests. The files are never changed.
func TestGolden(t *testing.T) {
	read := func(name string) []byte {
		t.Helper()
		b, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	token, err := ParseToken(string(read("token-1.txt")))
	if err != nil || *token != *sampleToken() {
		t.Errorf("token: %+v, %v", token, err)
	}
	roots, err := decodeCerts(read("ca-1.pem"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := ParseRoster(read("members-1.json"), roots)
	if err != nil {
		t.Fatal(err)
	}
	b := r.Nodes["b"]
	if r.Cluster != "0123456789abcdef" || r.Serial != 7 || r.Authority != "a" || b.Address != member("b").Address || b.Port != 7846 ||
		b.CareOf[server.Address.Addr()] != netip.MustParseAddr("2001:db8:5::80:b") || b.Issuer != Short(roots[0].Raw) {
		t.Errorf("members: %+v", r)
	}
	for i, line := range strings.Split(strings.TrimSpace(string(read("requests-1.txt"))), "\n") {
		q, err := parseRequest([]byte(line))
		if err != nil {
			t.Errorf("request %d: %v", i+1, err)
			continue
		}
		want := []string{kindJoin, kindRenew, kindMembers}[i]
		if q.Kind != want || want != kindMembers && len(q.CSR) == 0 ||
			want == kindJoin && (q.Name != "b" || q.Member.Address != member("b").Address || q.Secret[0] != 5 || q.Member.CareOf[netip.IPv6Unspecified()] != netip.MustParseAddr("2001:db8:5::80:b")) {
			t.Errorf("request %d: %+v", i+1, q)
		}
	}
}
