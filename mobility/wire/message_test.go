package wire

import (
	"encoding/hex"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

var (
	home          = netip.MustParseAddr("2001:db8:a::1234")
	agent         = netip.MustParseAddr("2001:db8:a::1")
	careOf        = netip.MustParseAddr("2001:db8:f::5")
	correspondent = netip.MustParseAddr("2001:db8:c::2")
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var (
	cookie        = Cookie{1, 2, 3, 4, 5, 6, 7, 8}
	token         = Token{0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8}
	authenticator = Authenticator{0xc1, 0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7, 0xc8, 0xc9, 0xca, 0xcb, 0xcc}
)

// messages are mobility headers from home to correspondent, as RFC 6275 draws
// them.
var messages = []struct {
	name string
	m    Message
	hex  string
}{
	{"binding refresh request, section 6.1.2", &BindingRefreshRequest{},
		"3b 00 00 00 56b2 0000"},
	{"home test init, section 6.1.3", &HomeTestInit{Cookie: cookie},
		"3b 01 01 00 4595 0000 0102030405060708"},
	{"care-of test init, section 6.1.4", &CareOfTestInit{Cookie: cookie},
		"3b 01 02 00 4495 0000 0102030405060708"},
	{"home test, section 6.1.5", &HomeTest{NonceIndex: 0x1234, Cookie: cookie, Token: token},
		"3b 02 03 00 9ec1 1234 0102030405060708 a1a2a3a4a5a6a7a8"},
	{"care-of test, section 6.1.6", &CareOfTest{NonceIndex: 0x1234, Cookie: cookie, Token: token},
		"3b 02 04 00 9dc1 1234 0102030405060708 a1a2a3a4a5a6a7a8"},

	{"binding update, section 6.1.7: four octets of padding", &BindingUpdate{Sequence: 0xfffe},
		"3b 01 05 00 50a8 fffe 00 00 0000 01020000"},
	{"binding update: all flags, longest lifetime",
		&BindingUpdate{Ack: true, Home: true, LinkLocal: true, KeyManagement: true, Lifetime: 0xffff * LifetimeUnit},
		"3b 01 05 00 60a6 0000 f0 00 ffff 01020000"},
	{"binding update: alternate care-of address at 8n+6, section 6.2.5",
		&BindingUpdate{Sequence: 1, Ack: true, Home: true, Lifetime: time.Hour, AltCareOf: careOf},
		"3b 03 05 00 5c34 0001 c0 00 0384 0100 0310 20010db8000f00000000000000000005"},
	{"binding update: nonce indices at 2n, section 6.2.6, and authorization at 8n+2, section 6.2.7",
		&BindingUpdate{Sequence: 1, Ack: true, Lifetime: 420 * time.Second, HasNonces: true, HomeNonce: 2, CareOfNonce: 3,
			Authenticated: true, Authenticator: authenticator},
		"3b 03 05 00 1f69 0001 80 00 0069 0404 0002 0003 050c c1c2c3c4c5c6c7c8c9cacbcc"},
	{"binding update: deregistration with the home nonce alone",
		&BindingUpdate{Sequence: 2, Ack: true, HasNonces: true, HomeNonce: 2, Authenticated: true, Authenticator: authenticator},
		"3b 03 05 00 1fd4 0002 80 00 0000 0404 0002 0000 050c c1c2c3c4c5c6c7c8c9cacbcc"},
	{"binding update: all options of RFC 6275",
		&BindingUpdate{Sequence: 1, AltCareOf: careOf, HasNonces: true, HomeNonce: 2, CareOfNonce: 3,
			Authenticated: true, Authenticator: authenticator},
		"3b 06 05 00 6cd8 0001 00 00 0000 0100 0310 20010db8000f00000000000000000005" +
			"0404 0002 0003 01020000 050c c1c2c3c4c5c6c7c8c9cacbcc"},
	{"binding update: mobile-node/home-agent authentication at 4n+1, RFC 4285 section 5.1",
		&BindingUpdate{Sequence: 1, Ack: true, Home: true, Lifetime: time.Hour,
			MobileAuth: &MobileAuth{SPI: 0x01020304, Authenticator: authenticator}},
		"3b 03 05 00 d052 0001 c0 00 0384 00 0911 01 01020304 c1c2c3c4c5c6c7c8c9cacbcc"},
	{"binding update: with the timestamp at 8n+2, RFC 4285 section 6",
		&BindingUpdate{Sequence: 1, Ack: true, Home: true, Lifetime: time.Hour, AltCareOf: careOf,
			MobileAuth: &MobileAuth{SPI: 256, Authenticator: authenticator, Timestamp: 0xe1e2e3e4e5e6e7e8}},
		"3b 07 05 00 02b8 0001 c0 00 0384 0100 0310 20010db8000f00000000000000000005" +
			"0100 0a08 e1e2e3e4e5e6e7e8 00 0911 01 00000100 c1c2c3c4c5c6c7c8c9cacbcc"},

	{"binding acknowledgement, section 6.1.8", &BindingAck{Sequence: 0x1234, Lifetime: 420 * time.Second},
		"3b 01 06 00 3d0a 00 00 1234 0069 01020000"},
	{"binding acknowledgement: K, refused", &BindingAck{Status: SequenceOutOfWindow, KeyManagement: true, Sequence: 7},
		"3b 01 06 00 c81f 87 80 0007 0000 01020000"},
	{"binding acknowledgement: refresh advice at 2n, section 6.2.4",
		&BindingAck{Lifetime: time.Hour, RefreshAdvice: 40 * time.Minute},
		"3b 01 06 00 48cb 00 00 0000 0384 0202 0258"},
	{"binding acknowledgement: authorization at 8n+2, section 6.2.7",
		&BindingAck{Sequence: 1, Lifetime: 420 * time.Second, Authenticated: true, Authenticator: authenticator},
		"3b 03 06 00 a16e 00 00 0001 0069 010400000000 050c c1c2c3c4c5c6c7c8c9cacbcc"},
	{"binding acknowledgement: refresh advice and RFC 4285",
		&BindingAck{Status: MessageIDMismatch, Lifetime: time.Hour, RefreshAdvice: 40 * time.Minute,
			MobileAuth: &MobileAuth{SPI: 256, Authenticator: authenticator, Timestamp: 1}},
		"3b 05 06 00 f2e4 90 00 0000 0384 0202 0258 0100 0a08 0000000000000001" +
			"00 0911 01 00000100 c1c2c3c4c5c6c7c8c9cacbcc"},

	{"binding error, section 6.1.9", &BindingError{Status: UnknownBinding, Home: home},
		"3b 02 07 00 0ea9 01 00 20010db8000a00000000000000001234"},
	{"binding error: no home address", &BindingError{Status: UnknownMHType, Home: netip.IPv6Unspecified()},
		"3b 02 07 00 4da0 02 00 00000000000000000000000000000000"},
}

// mobility is a packet from home to correspondent that has mh, with its
// checksum made right.
func mobility(mh []byte) Packet {
	p := Packet{Src: home, Dst: correspondent, Protocol: Mobility, Payload: mh, Offset: HeaderLen}
	mh[4], mh[5] = 0, 0
	sum := checksum(mh, home, correspondent, Mobility)
	mh[4], mh[5] = byte(sum>>8), byte(sum)
	return p
}

func TestMessages(t *testing.T) {
	for _, tt := range messages {
		t.Run(tt.name, func(t *testing.T) {
			want := unhex(t, tt.hex)
			got := tt.m.Append([]byte("before"), home, correspondent)
			same(t, "written", got, append([]byte("before"), want...))
			if Type(want[2]) != tt.m.Type() {
				t.Errorf("type %d, want %d", tt.m.Type(), want[2])
			}
			p := Packet{Src: home, Dst: correspondent, Protocol: Mobility, Payload: want}
			m, err := ParseMobility(&p)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(m, tt.m) {
				t.Errorf("parsed\n%+v, want\n%+v", m, tt.m)
			}
		})
	}
}

// The same message parses without a heap, and is not touched if it is wrong.
func TestDecode(t *testing.T) {
	mh := (&BindingUpdate{Sequence: 9, Authenticated: true}).Append(nil, home, correspondent)
	p := mobility(mh)
	u := BindingUpdate{Sequence: 1, AltCareOf: careOf, HasNonces: true}
	if err := Decode(&p, &u); err != nil {
		t.Fatal(err)
	}
	if want := (BindingUpdate{Sequence: 9, Authenticated: true}); u != want {
		t.Errorf("got %+v, want %+v", u, want)
	}

	before := u
	for _, mh := range [][]byte{
		nil,
		{59, 0, 5, 0, 0, 0, 0, 0},
		{59, 1, 5, 0, 0, 0, 0, 0},
		{59, 1, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0},
		(&BindingAck{}).Append(nil, home, correspondent),
		{59, 1, 200, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
	} {
		if err := Decode(&Packet{Src: home, Dst: correspondent, Protocol: Mobility, Payload: mh}, &u); err == nil {
			t.Errorf("%x: no error", mh)
		}
		if u != before {
			t.Errorf("%x: changed to %+v", mh, u)
		}
	}
	if err := Decode(&p, nil); err == nil {
		t.Error("no error without a message")
	}
}

// Lifetimes are rounded down and do not wrap.
func TestLifetimes(t *testing.T) {
	tests := []struct{ in, want time.Duration }{
		{0, 0},
		{-time.Hour, 0},
		{LifetimeUnit - 1, 0},
		{LifetimeUnit, LifetimeUnit},
		{420*time.Second + 3, 420 * time.Second},
		{0xffff * LifetimeUnit, 0xffff * LifetimeUnit},
		{0x10000 * LifetimeUnit, 0xffff * LifetimeUnit},
		{1<<63 - 1, 0xffff * LifetimeUnit},
	}
	for _, tt := range tests {
		p := mobility((&BindingAck{Lifetime: tt.in, RefreshAdvice: tt.in}).Append(nil, home, correspondent))
		var a BindingAck
		if err := Decode(&p, &a); err != nil {
			t.Fatal(err)
		}
		if a.Lifetime != tt.want || a.RefreshAdvice != tt.want {
			t.Errorf("%v: got %v and %v, want %v", tt.in, a.Lifetime, a.RefreshAdvice, tt.want)
		}
	}
}

// The checks of a mobility header, in the order of RFC 6275 section 9.2. Where
// the public conformance suite has a title for one, the title is named.
func TestHeaderChecks(t *testing.T) {
	mh := func(hex string) Packet { return mobility(unhex(t, hex)) }
	const (
		silence   = "silence"
		protocol  = "problem at the payload protocol"
		length    = "problem at the length"
		unknown   = "unknown type"
		noProblem = "accepted"
	)
	wrong := func(p Packet) Packet { p.Payload[5] ^= 1; return p }
	tests := []struct {
		name string
		p    Packet
		want string
	}{
		{"a Home Test Init", mh("3b 01 01 00 0000 0000 0102030405060708"), noProblem},
		{"CN-2-1-4, CN-2-2-4, CN-2-3-4: reserved is ignored", mh("3b 01 01 ff 0000 ffff 0102030405060708"), noProblem},
		{"CN-2-3-9: reserved flags are ignored", mh("3b 01 05 00 0000 0001 0f ff 0000 01020000"), noProblem},
		{"CN-2-1-3: length 0 of a Home Test Init", mh("3b 00 01 00 0000 0000"), length},
		{"CN-2-1-3: as long as it should be, but it says 0", mh("3b 00 01 00 0000 0000 0102030405060708"), length},
		{"CN-2-2-3: length 0 of a Care-of Test Init", mh("3b 00 02 00 0000 0000"), length},
		{"CN-2-3-3: length 0 of a Binding Update", mh("3b 00 05 00 0000 0001 80 00 0069 01020000"), length},
		{"MN-4-2-1-2-006: length 1 of a Home Test", mh("3b 01 03 00 0000 0000 0102030405060708 a1a2a3a4a5a6a7a8"), length},
		{"MN-4-2-1-2-012: length 1 of a Care-of Test", mh("3b 01 04 00 0000 0000 0102030405060708 a1a2a3a4a5a6a7a8"), length},
		{"MN-6-2-1-1-002: length 0 of a Binding Acknowledgement", mh("3b 00 06 00 0000 00 00 0001 0000 01020000"), length},
		{"length 1 of a Binding Error", mh("3b 01 07 00 0000 01 00 20010db8000a0000"), length},
		{"CN-2-1-5, CN-2-2-5, CN-2-3-5: payload protocol 6", mh("06 01 01 00 0000 0000 0102030405060708"), protocol},
		{"payload protocol before length", mh("06 00 01 00 0000 0000"), protocol},
		{"CN-2-1-6, CN-2-2-6, CN-2-3-6: wrong checksum", wrong(mh("3b 01 01 00 0000 0000 0102030405060708")), silence},
		{"checksum before payload protocol and length", wrong(mh("06 00 01 00 0000 0000")), silence},
		{"checksum before type", wrong(mh("3b 00 63 00 0000 0000")), silence},
		{"CN-2-4-1, MN-6-2-1-1-003: unknown type", mh("3b 01 63 00 0000 0000 0102030405060708"), unknown},
		{"the first type that is unknown", mh("3b 00 08 00 0000 0000"), unknown},
		{"type before payload protocol", mh("06 00 63 00 0000 0000"), unknown},
		{"longer than the packet", mh("3b 02 01 00 0000 0000 0102030405060708"), silence},
		{"octets after the header", mh("3b 01 01 00 0000 0000 0102030405060708 090a0b"), noProblem},
		{"seven octets", Packet{Src: home, Dst: correspondent, Protocol: Mobility, Payload: make([]byte, 7)}, silence},
		{"nothing", Packet{Src: home, Dst: correspondent, Protocol: Mobility}, silence},
		{"not a mobility header", Packet{Src: home, Dst: correspondent, Protocol: UDP, Payload: make([]byte, 8)}, silence},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, offset := range []int{40, 64, 88} {
				tt.p.Offset = offset
				_, err := TypeOf(&tt.p)
				_, err2 := ParseMobility(&tt.p)
				if (err == nil) != (err2 == nil) {
					t.Errorf("TypeOf says %v, ParseMobility %v", err, err2)
				}
				var problem *Problem
				var unknownType *UnknownTypeError
				got := silence
				switch {
				case err == nil:
					got = noProblem
				case errors.As(err, &unknownType):
					got = unknown
					if unknownType.Type != Type(tt.p.Payload[2]) {
						t.Errorf("type %d", unknownType.Type)
					}
				case errors.As(err, &problem):
					switch at := int(problem.Pointer) - offset; {
					case problem.Code != 0 || problem.EvenMulticast:
					case at == 0:
						got = protocol
					case at == 1:
						got = length
					}
				}
				if got != tt.want {
					t.Errorf("%s (%v), want %s", got, err, tt.want)
				}
			}
		})
	}
}

// The checksum is for the home address where there is a Home Address option or
// a type 2 routing header (RFC 6275 section 6.1.1).
func TestChecksumUsesHomeAddress(t *testing.T) {
	update := BindingUpdate{Sequence: 1}
	for _, tt := range []struct {
		name string
		p    Packet
		ok   bool
	}{
		{"home address option", Packet{Src: careOf, Dst: correspondent, Home: home}, true},
		{"type 2 routing header", Packet{Src: home, Dst: careOf, Routing: correspondent}, true},
		{"both", Packet{Src: careOf, Dst: agent, Home: home, Routing: correspondent}, true},
		{"neither", Packet{Src: careOf, Dst: correspondent}, false},
	} {
		tt.p.Protocol = Mobility
		tt.p.Payload = update.Append(nil, home, correspondent)
		b, err := tt.p.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		p, err := ParsePacket(b)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := TypeOf(&p); (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// Options of a Binding Update, in what order and alignment they may come.
func TestOptions(t *testing.T) {
	const (
		before = "3b 00 05 00 0000 0001 80 00 0069"
		nonces = "0404 0002 0003"
		alt    = "0310 20010db8000f00000000000000000005"
		auth   = "050c c1c2c3c4c5c6c7c8c9cacbcc"
		mobile = "0911 01 00000100 c1c2c3c4c5c6c7c8c9cacbcc"
		id     = "0a08 e1e2e3e4e5e6e7e8"
	)
	plain := BindingUpdate{Sequence: 1, Ack: true, Lifetime: 420 * time.Second}
	with := func(set func(u *BindingUpdate)) *BindingUpdate {
		u := plain
		set(&u)
		return &u
	}
	withNonces := func(u *BindingUpdate) { u.HasNonces, u.HomeNonce, u.CareOfNonce = true, 2, 3 }
	full := with(func(u *BindingUpdate) {
		withNonces(u)
		u.Authenticated, u.Authenticator = true, authenticator
	})
	tests := []struct {
		name    string
		options string
		want    *BindingUpdate // nil: dropped in silence
	}{
		{"none but Pad1", "00000000", &plain},
		{"PadN, whatever is in it", "0102ffff", &plain},
		{"CN-1-2: as they should be", nonces + auth, full},
		{"CN-2-3-1-1: an option for another message is skipped", "0202 0010" + nonces + "01020000" + auth, full},
		{"an unknown option is skipped", "f002abcd" + nonces + "01020000" + auth, full},
		{"an unknown option without content", "f000" + nonces + "0104ffffffff" + auth, full},
		{"not aligned", "00" + nonces + "0105ffffffffff" + auth, full},
		{"alternate care-of address not aligned", "00" + alt + "00", with(func(u *BindingUpdate) { u.AltCareOf = careOf })},
		{"in another order", nonces + alt + "01020000" + "0100", with(func(u *BindingUpdate) { withNonces(u); u.AltCareOf = careOf })},
		{"CN-2-3-10-1: without nonce indices, which is the receiver's to judge", "010400000000" + auth,
			with(func(u *BindingUpdate) { u.Authenticated, u.Authenticator = true, authenticator })},

		{"CN-2-3-1-2: nonces, authorization, alternate care-of address", nonces + auth + "010400000000" + alt + "00000000", nil},
		{"CN-2-3-1-2: authorization, nonces", "010400000000" + auth + nonces + "0100", nil},
		{"authorization, padding", nonces + "01020000" + "0100" + auth + "01020000", nil},
		{"authorization, Pad1", "000000" + nonces + "00" + auth + "00000000", nil},
		{"authorization, unknown option", nonces + auth + "f006000000000000", nil},
		{"authorization twice", nonces + auth + auth + "0000", nil},
		{"authorization of ten octets", "00000000" + "00000000" + "050a c1c2c3c4c5c6c7c8c9ca", nil},
		{"authorization of fourteen octets", "00000000" + "050e c1c2c3c4c5c6c7c8c9cacbcccdce", nil},
		{"nonces of two octets", "0402 0002", nil},
		{"nonces without content", "0400 0000", nil},
		{"nonces twice", nonces + nonces, nil},
		{"alternate care-of address of four octets", "0304 20010db8 010400000000", nil},
		{"alternate care-of address twice", "0100" + alt + "010400000000" + alt, nil},
		{"an option that exceeds the header", "f003abcd", nil},
		{"a type and no length", "000000f0", nil},
		{"PadN that exceeds the header", "0000 0101", nil},

		{"RFC 4285: authentication", "00" + mobile,
			with(func(u *BindingUpdate) { u.MobileAuth = &MobileAuth{SPI: 256, Authenticator: authenticator} })},
		{"RFC 4285: authentication, then padding", "0000" + mobile + "0105ffffffffff", // not aligned
			with(func(u *BindingUpdate) { u.MobileAuth = &MobileAuth{SPI: 256, Authenticator: authenticator} })},
		{"RFC 4285: timestamp", "01040000000000" + id + "00" + mobile,
			with(func(u *BindingUpdate) {
				u.MobileAuth = &MobileAuth{SPI: 256, Authenticator: authenticator, Timestamp: 0xe1e2e3e4e5e6e7e8}
			})},
		{"RFC 4285: timestamp alone", "00000000 0000" + id, &plain},
		{"RFC 4285: timestamp after the authentication, that does not cover it", "00" + mobile + "0000" + id + "01020000", nil},
		{"RFC 4285: alternate care-of address after it", "00" + mobile + "0000" + alt + "01020000", nil},
		{"RFC 4285: unknown option after it", "00" + mobile + "f006000000000000",
			with(func(u *BindingUpdate) { u.MobileAuth = &MobileAuth{SPI: 256, Authenticator: authenticator} })},
		{"RFC 4285: twice", "00" + mobile + "00" + mobile, nil},
		{"RFC 4285: mobile node and AAA, subtype 2, is another option", "00" + "0911 02 00000100 c1c2c3c4c5c6c7c8c9cacbcc", &plain},
		{"RFC 4285: authentication data of eleven octets", "00" + "0910 01 00000100 c1c2c3c4c5c6c7c8c9cacb" + "00", nil},
		{"RFC 4285: without subtype", "0900 01020000 0000", nil},
		{"RFC 4285: timestamp of four octets", "0a04 00000001 000000000000", nil},
		{"RFC 4285: then the authorization of RFC 6275", "00" + mobile + "0100" + auth,
			with(func(u *BindingUpdate) {
				u.MobileAuth = &MobileAuth{SPI: 256, Authenticator: authenticator}
				u.Authenticated, u.Authenticator = true, authenticator
			})},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			mh := unhex(t, before+tt.options)
			for len(mh)%8 != 0 && tt.want != nil && !tt.want.Authenticated {
				mh = append(mh, moPad1)
			}
			if len(mh)%8 != 0 && tt.want != nil {
				t.Fatalf("%d octets", len(mh))
			}
			for len(mh)%8 != 0 { // what is to be dropped must be so for its own reason
				mh = append(mh[:12], append([]byte{moPad1}, mh[12:]...)...)
			}
			mh[1] = byte(len(mh)/8 - 1)
			p := mobility(mh)
			m, err := ParseMobility(&p)
			if tt.want == nil {
				if err == nil {
					t.Fatalf("accepted as %+v", m)
				}
				if _, ok := err.(*Problem); ok {
					t.Fatalf("answered: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(m, Message(tt.want)) {
				t.Errorf("got\n%+v, want\n%+v", m, tt.want)
			}
		})
	}
}

// The same of a Binding Acknowledgement, which has some options of its own
// (MN-3-2-1-2-023, MN-3-2-1-2-025).
func TestOptionsOfAck(t *testing.T) {
	const before, auth = "3b 00 06 00 0000 00 00 0001 0069", "050c c1c2c3c4c5c6c7c8c9cacbcc"
	signed := BindingAck{Sequence: 1, Lifetime: 420 * time.Second, Authenticated: true, Authenticator: authenticator}
	advised := signed
	advised.RefreshAdvice = 64 * time.Second
	for _, tt := range []struct {
		name, options string
		want          *BindingAck // nil: dropped in silence
	}{
		{"refresh advice", "0202 0010 0104ffffffff" + "01020000" + auth, &advised},
		{"refresh advice of 0 is none", "0202 0000 0104ffffffff" + "01020000" + auth, &signed},
		{"nonce indices are skipped", "0404 0002 0003" + auth, &signed},
		{"refresh advice twice", "0202 0010 0202 0010 0104ffffffff" + auth, nil},
		{"refresh advice of four octets", "0204 00000010" + auth, nil},
		{"refresh advice after the authorization", "010400000000" + auth + "0202 0010 01020000", nil},
	} {
		mh := unhex(t, before+tt.options)
		mh[1] = byte(len(mh)/8 - 1)
		p := mobility(mh)
		m, err := ParseMobility(&p)
		switch {
		case len(mh)%8 != 0:
			t.Errorf("%s: %d octets", tt.name, len(mh))
		case tt.want == nil && err == nil:
			t.Errorf("%s: accepted as %+v", tt.name, m)
		case tt.want != nil && (err != nil || !reflect.DeepEqual(m, Message(tt.want))):
			t.Errorf("%s: got %+v (%v), want %+v", tt.name, m, err, tt.want)
		}
	}
}

func TestStatusOK(t *testing.T) {
	for status, ok := range map[Status]bool{
		Accepted: true, AcceptedPrefixDiscovery: true, 127: true,
		Unspecified: false, SequenceOutOfWindow: false, AuthFail: false, 255: false,
	} {
		if status.OK() != ok {
			t.Errorf("%d: %t", status, !ok)
		}
	}
}

// Messages that define no options skip all of them, whatever is in them, as
// long as they are options (CN-2-1-1, CN-2-2-1-1, CN-2-2-1-2).
func TestOptionsOfOthers(t *testing.T) {
	fixed := map[string]string{
		"binding refresh request": "3b 00 00 00 0000 0000",
		"home test init":          "3b 01 01 00 0000 0000 0102030405060708",
		"care-of test init":       "3b 01 02 00 0000 0000 0102030405060708",
		"home test":               "3b 02 03 00 0000 0000 0102030405060708 a1a2a3a4a5a6a7a8",
		"care-of test":            "3b 02 04 00 0000 0000 0102030405060708 a1a2a3a4a5a6a7a8",
		"binding error":           "3b 02 07 00 0000 01 00 20010db8000a00000000000000001234",
	}
	options := []struct {
		name, hex string
		ok        bool
	}{
		{"nonce indices", "0404 0002 0003 0100", true},
		{"nonce indices of another length", "0402 0002 01020000", true},
		{"alternate care-of address", "0100 0310 20010db8000f00000000000000000005 01020000", true},
		{"authorization, padding", "050c c1c2c3c4c5c6c7c8c9cacbcc 0100", true},
		{"exceeds the header", "0407 0002 0003 0100", false},
	}
	for name, hex := range fixed {
		for _, o := range options {
			mh := unhex(t, hex+o.hex)
			mh[1] = byte(len(mh)/8 - 1)
			p := mobility(mh)
			m, err := ParseMobility(&p)
			if (err == nil) != o.ok {
				t.Errorf("%s with %s: %v", name, o.name, err)
			}
			if err == nil {
				n := len(unhex(t, hex))
				mh := append([]byte(nil), mh[:n]...)
				mh[1] = byte(n/8 - 1)
				same(t, name+" with "+o.name, m.Append(nil, home, correspondent), mobility(mh).Payload)
			}
		}
	}
}
