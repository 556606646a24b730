package wire

import (
	"net/netip"
	"time"
)

// Type is the type of a mobility header (RFC 6275 section 6.1.1).
type Type uint8

// Types of mobility header.
const (
	TypeBindingRefreshRequest Type = iota
	TypeHomeTestInit
	TypeCareOfTestInit
	TypeHomeTest
	TypeCareOfTest
	TypeBindingUpdate
	TypeBindingAck
	TypeBindingError
)

// Message is one of [*BindingRefreshRequest], [*HomeTestInit],
// [*CareOfTestInit], [*HomeTest], [*CareOfTest], [*BindingUpdate],
// [*BindingAck], [*BindingError].
type Message interface {
	Type() Type

	// Append appends the mobility header that is the message, with options in
	// canonical order and alignment, and the checksum for src and dst, which
	// are the addresses of [Packet.Source] and [Packet.Destination].
	Append(b []byte, src, dst netip.Addr) []byte

	// parse sets the message from the mobility header b, which is checked
	// except for what follows its type's fixed part.
	parse(b []byte) error
}

// Cookie is a random number that ties a test to its answer.
type Cookie [8]byte

// Token is a keygen token.
type Token [8]byte

// Authenticator is the content of a Binding Authorization Data option.
type Authenticator [12]byte

// LifetimeUnit is what lifetimes in Binding Updates and Acknowledgements, and
// the refresh interval, are counted in.
const LifetimeUnit = 4 * time.Second

// BindingRefreshRequest asks a mobile node for a Binding Update (RFC 6275
// section 6.1.2).
type BindingRefreshRequest struct{}

// HomeTestInit begins the test of a home address (section 6.1.3).
type HomeTestInit struct{ Cookie Cookie }

// CareOfTestInit begins the test of a care-of address (section 6.1.4).
type CareOfTestInit struct{ Cookie Cookie }

// HomeTest answers a HomeTestInit (section 6.1.5).
type HomeTest struct {
	NonceIndex uint16
	Cookie     Cookie
	Token      Token
}

// CareOfTest answers a CareOfTestInit (section 6.1.6).
type CareOfTest struct {
	NonceIndex uint16
	Cookie     Cookie
	Token      Token
}

// BindingUpdate tells of a care-of address (section 6.1.7).
type BindingUpdate struct {
	Sequence      uint16
	Ack           bool          // A: an acknowledgement is wanted
	Home          bool          // H: home registration
	LinkLocal     bool          // L: the link-local address has the same interface identifier
	KeyManagement bool          // K: the key management survives movement
	Lifetime      time.Duration // multiple of LifetimeUnit, rounded down; 0: delete the binding

	AltCareOf netip.Addr // Alternate Care-of Address option; zero: none

	// Nonces are in the Nonce Indices option, there if HasNonces.
	HasNonces              bool
	HomeNonce, CareOfNonce uint16

	// MobileAuth is the mobile-node/home-agent authentication option; nil: none.
	MobileAuth *MobileAuth

	// Authenticator is the content of the Binding Authorization Data option,
	// which is the last one; there if Authenticated.
	Authenticated bool
	Authenticator Authenticator
}

// BindingAck answers a BindingUpdate (section 6.1.8).
type BindingAck struct {
	Status        Status
	KeyManagement bool // K
	Sequence      uint16
	Lifetime      time.Duration // multiple of LifetimeUnit, rounded down

	RefreshAdvice time.Duration // Binding Refresh Advice option; 0: none

	MobileAuth *MobileAuth // as in BindingUpdate

	Authenticated bool // as in BindingUpdate
	Authenticator Authenticator
}

// BindingError tells of an error about a binding (section 6.1.9).
type BindingError struct {
	Status ErrorStatus
	Home   netip.Addr // the home address that was in the offending packet; the unspecified address if none
}

// Status is that of a BindingAck; below 128 the update was accepted.
type Status uint8

// Statuses of a BindingAck (RFC 6275 section 6.1.8, RFC 4285 section 6).
const (
	Accepted                Status = 0
	AcceptedPrefixDiscovery Status = 1 // accepted, but prefix discovery is necessary
	Unspecified             Status = 128
	Prohibited              Status = 129 // administratively prohibited
	InsufficientResources   Status = 130
	HomeRegNotSupported     Status = 131
	NotHomeSubnet           Status = 132
	NotHomeAgent            Status = 133 // not home agent for this mobile node
	DuplicateAddress        Status = 134 // duplicate address detection failed
	SequenceOutOfWindow     Status = 135
	ExpiredHomeNonce        Status = 136
	ExpiredCareOfNonce      Status = 137
	ExpiredNonces           Status = 138
	TypeChangeDisallowed    Status = 139
	MessageIDMismatch       Status = 144
	MessageIDRequired       Status = 145
	AuthFail                Status = 146
)

// OK reports whether the update was accepted.
func (s Status) OK() bool { return s < 128 }

// ErrorStatus is that of a BindingError (RFC 6275 section 6.1.9).
type ErrorStatus uint8

// Statuses of a BindingError.
const (
	UnknownBinding ErrorStatus = 1 // for a Home Address option
	UnknownMHType  ErrorStatus = 2
)

// MobileAuth is the mobility message authentication option of subtype 1,
// mobile node and home agent (RFC 4285 section 5.1). It is the last option but
// for Binding Authorization Data.
type MobileAuth struct {
	SPI           uint32
	Authenticator Authenticator // HMAC_SHA1_SPI: the first 96 bits (RFC 4285 section 5.1)

	// Timestamp is that of the message identification option, against replay
	// (RFC 4285 section 6), in NTP's format; 0: there is none.
	Timestamp uint64
}
