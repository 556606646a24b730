package identity

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func sampleToken() *Token {
	return &Token{
		Address: netip.MustParseAddrPort("[2001:db8:5::a]:7846"), Authority: "a.example", Pin: [32]byte{1, 2, 3}, ID: [8]byte{4}, Secret: [16]byte{5},
		Expires: time.Unix(1795000000, 0),
	}
}

func TestToken(t *testing.T) {
	s := sampleToken().String()
	got, err := ParseToken(" " + s + "\n")
	if err != nil || *got != *sampleToken() {
		t.Fatalf("%+v, %v", got, err)
	}
	for _, bad := range []struct{ token, want string }{
		{"", "does not begin with"},
		{s[:len(s)-3], "not whole"},
		{strings.Replace(s, s[30:31], "_", 1), "not whole"},
		{"dsjoin2." + s[8:], "of another release"},
		{s + strings.Repeat("A", 600), "too long"},
		{"dsjoin1.", "not whole"},
		{s[:40] + "\n" + s[40:], "not whole"},
	} {
		if _, err := ParseToken(bad.token); !errors.Is(err, ErrToken) || !strings.Contains(err.Error(), bad.want) {
			t.Errorf("%.20q: %v, want %q", bad.token, err, bad.want)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add(sampleToken().String())
	f.Add("dsjoin1.AAAA")
	f.Add(strings.Replace(sampleToken().String(), "AA", "A\nA", 1))
	f.Fuzz(func(t *testing.T, s string) {
		got, err := ParseToken(s)
		if err != nil {
			if !errors.Is(err, ErrToken) {
				t.Fatal(err)
			}
			return
		}
		if got.String() != strings.TrimSpace(s) {
			t.Fatalf("%q is read as %q", s, got)
		}
	})
}

func sampleRoster(t testing.TB) (*Roster, []*x509.Certificate) {
	t.Helper()
	s, err := newSigner("0123456789abcdef", nil)
	if err != nil {
		t.Fatal(err)
	}
	r := &Roster{Cluster: "0123456789abcdef", Serial: 7, Authority: "a", Nodes: map[string]Member{"a": member("a"), "b": member("b")}}
	if err := r.seal(&Authority{now: s}); err != nil {
		t.Fatal(err)
	}
	return r, []*x509.Certificate{s.cert}
}

// A list is taken if it is whole and signed by who is believed.
func TestRoster(t *testing.T) {
	r, roots := sampleRoster(t)
	raw := r.Encoded()
	got, err := ParseRoster(raw, roots)
	if err != nil || got.Serial != 7 || got.Nodes["b"].Address != r.Nodes["b"].Address {
		t.Fatalf("%+v, %v", got, err)
	}
	if !bytes.Equal(got.Encoded(), raw) {
		t.Error("it is passed on as something else")
	}
	_, others := sampleRoster(t)
	if _, err := ParseRoster(raw, others); err == nil || !strings.Contains(err.Error(), "no authority that this node believes has signed it") {
		t.Errorf("of another cluster: %v", err)
	}
	if _, err := ParseRoster(bytes.Replace(raw, []byte(`"serial": 7`), []byte(`"serial": 8`), 1), roots); err == nil {
		t.Error("a changed list is taken")
	}
	for name, change := range map[string]func(*Roster){
		"no cluster":       func(r *Roster) { r.Cluster = "" },
		"no nodes":         func(r *Roster) { r.Nodes = nil },
		"another has it":   func(r *Roster) { r.Authority = "c" },
		"an address twice": func(r *Roster) { r.Nodes["b"] = r.Nodes["a"] },
		"IPv4":             func(r *Roster) { r.Nodes["b"] = Member{Address: netip.MustParseAddr("192.0.2.1"), Port: 1} },
		"no port":          func(r *Roster) { r.Nodes["b"] = Member{Address: member("b").Address} },
		"bad name":         func(r *Roster) { r.Nodes["b c"] = member("c") },
		"no authority":     func(r *Roster) { r.Authorities = [][]byte{{1}} },
	} {
		r, _ := sampleRoster(t)
		change(r)
		body, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := parseRoster(append(body, "\nAAAA"...)); !errors.Is(err, ErrRoster) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, bad := range []string{"", "x", "{}\n", "{}\n!", "{\nAAAA", "{}\n" + strings.Repeat("AAAA,", 5) + "AAAA"} {
		if _, _, err := parseRoster([]byte(bad)); !errors.Is(err, ErrRoster) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzParseRoster(f *testing.F) {
	r, _ := sampleRoster(f)
	f.Add(r.Encoded())
	f.Add([]byte("{}\nAAAA"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, signatures, err := parseRoster(b)
		if err != nil {
			if !errors.Is(err, ErrRoster) {
				t.Fatal(err)
			}
			return
		}
		if len(signatures) == 0 || len(r.Nodes) == 0 || r.Nodes[r.Authority].Port == 0 || !bytes.HasPrefix(b, r.Encoded()) {
			t.Fatalf("%q is read as %+v", b, r)
		}
		for name, m := range r.Nodes {
			if !usable(m.Address) || checkName(name) != nil {
				t.Fatalf("node %q at %s", name, m.Address)
			}
		}
	})
}

func FuzzRequest(f *testing.F) {
	for _, q := range []*request{
		{Kind: kindJoin, ID: make([]byte, 8), Secret: make([]byte, 16), Name: "b", Member: &Member{}, CSR: []byte{1}},
		{Kind: kindRenew, CSR: []byte{1}},
		{Kind: kindMembers, Roster: []byte("{}")},
	} {
		var b bytes.Buffer
		if err := send(&b, q); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{0, 0, 0, 9, '{'})
	f.Fuzz(func(t *testing.T, b []byte) {
		body, err := receive(bytes.NewReader(b), maxStranger)
		if err != nil {
			return
		}
		if int(binary.BigEndian.Uint32(b)) != len(body) || len(body) > maxStranger || cap(body) > 2*len(b)+1024 {
			t.Fatalf("%d octets are read as %d of %d", len(b), len(body), cap(body))
		}
		q, err := parseRequest(body)
		if err != nil {
			if !errors.Is(err, ErrMessage) {
				t.Fatal(err)
			}
			return
		}
		if q.Kind == kindJoin && (len(q.ID) != 8 || len(q.Secret) != 16 || q.Member == nil) {
			t.Fatalf("%s is read as %+v", body, q)
		}
	})
}

func TestCareOfDiffers(t *testing.T) {
	seen := make(map[netip.Addr]bool)
	for _, node := range []string{"a", "b"} {
		for _, server := range []string{"2001:db8:1::80", "2001:db8:1::81"} {
			a := CareOf(netip.MustParseAddr("2001:db8:5::a"), netip.MustParseAddr(server), node)
			if seen[a] || !netip.MustParsePrefix("2001:db8:5::/64").Contains(a) || a != CareOf(netip.MustParseAddr("2001:db8:5::b"), netip.MustParseAddr(server), node) {
				t.Errorf("%s of %s is %s", node, server, a)
			}
			seen[a] = true
		}
	}
}

func TestNames(t *testing.T) {
	for name, ok := range map[string]bool{
		"a": true, "node-1.example.org": true, "x_y": true, "": false, "-a": false, "a..b": false, ".a": false, "a.": false, "ä": false, "a b": false,
		strings.Repeat("a", 64): false, strings.Repeat("a.", 130) + "a": false,
	} {
		if err := checkName(name); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
}
