package wire

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

// Mobility options (RFC 6275 section 6.2, RFC 4285 sections 5 and 6).
const (
	moPad1          = 0
	moPadN          = 1
	moRefreshAdvice = 2
	moAltCareOf     = 3
	moNonceIndices  = 4
	moAuthData      = 5
	moMobileAuth    = 9
	moMessageID     = 10

	mobileNodeHomeAgent = 1 // subtype of moMobileAuth
)

// layouts has, for each option that is known, the length of its data, and that
// it begins at an octet which is rest modulo align.
var layouts = [16]struct{ size, align, rest uint8 }{
	moRefreshAdvice: {2, 2, 0},
	moAltCareOf:     {16, 8, 6},
	moNonceIndices:  {4, 2, 0},
	moAuthData:      {12, 8, 2},
	moMobileAuth:    {1 + 4 + 12, 4, 1},
	moMessageID:     {8, 8, 2},
}

// What each message defines, for parseOptions.
const (
	authOptions   = 1<<moAuthData | 1<<moMobileAuth | 1<<moMessageID
	updateOptions = 1<<moAltCareOf | 1<<moNonceIndices | authOptions
	ackOptions    = 1<<moRefreshAdvice | authOptions
	noOptions     = 0
)

var (
	errMOTruncated = errors.New("wire: parse mobility header: an option exceeds it")
	errMOLength    = errors.New("wire: parse mobility header: wrong length of an option")
	errMORepeated  = errors.New("wire: parse mobility header: an option is repeated")
	errMOOrder     = errors.New("wire: parse mobility header: an option follows the one that authenticates")
)

// optionSet is what the options of a message say.
type optionSet struct {
	seen          uint16 // bit by type
	refreshAdvice uint16
	homeNonce     uint16
	careOfNonce   uint16
	altCareOf     netip.Addr
	mobileAuth    MobileAuth
	authenticator Authenticator
}

func (s *optionSet) has(option uint8) bool { return s.seen>>option&1 != 0 }

// newMobileAuth returns the authentication option; nil: there is none. A
// message identification without one proves nothing, and is ignored.
func (s *optionSet) newMobileAuth() *MobileAuth {
	if !s.has(moMobileAuth) {
		return nil
	}
	m := s.mobileAuth
	return &m
}

// parseOptions parses the options in b, those of the set defined; others it
// skips (RFC 6275 section 6.2.1). They need not be aligned.
//
// The RFC does not say what a repeated option means. Senders have no use for
// one, and what receivers would make of it differs: it is an error.
func parseOptions(b []byte, defined uint16) (optionSet, error) {
	var s optionSet
	for len(b) > 0 {
		// RFC 6275 section 6.2.7: "MUST be the last option". Not even padding
		// may follow.
		if s.has(moAuthData) {
			return s, errMOOrder
		}
		t := b[0]
		if t == moPad1 {
			b = b[1:]
			continue
		}
		if len(b) < 2 || len(b)-2 < int(b[1]) {
			return s, errMOTruncated
		}
		data := b[2 : 2+int(b[1])]
		b = b[2+len(data):]
		if int(t) >= len(layouts) || defined>>t&1 == 0 ||
			t == moMobileAuth && len(data) > 0 && data[0] != mobileNodeHomeAgent {
			continue
		}
		switch {
		case len(data) != int(layouts[t].size):
			return s, errMOLength
		case s.has(t):
			return s, errMORepeated
		case s.has(moMobileAuth) && t != moAuthData:
			// RFC 4285 section 5.1: what follows is not authenticated.
			return s, errMOOrder
		}
		s.seen |= 1 << t
		switch t {
		case moRefreshAdvice:
			s.refreshAdvice = binary.BigEndian.Uint16(data)
		case moAltCareOf:
			s.altCareOf = netip.AddrFrom16([16]byte(data))
		case moNonceIndices:
			s.homeNonce = binary.BigEndian.Uint16(data)
			s.careOfNonce = binary.BigEndian.Uint16(data[2:])
		case moMessageID:
			s.mobileAuth.Timestamp = binary.BigEndian.Uint64(data)
		case moMobileAuth:
			s.mobileAuth.SPI = binary.BigEndian.Uint32(data[1:])
			s.mobileAuth.Authenticator = Authenticator(data[5:])
		case moAuthData:
			s.authenticator = Authenticator(data)
		}
	}
	return s, nil
}

// appendOption appends type and length of an option, after the padding that
// aligns it in the message that begins at start. The data is to follow.
func appendOption(b []byte, start int, option uint8) []byte {
	l := &layouts[option]
	b = appendPadding(b, start, int(l.align), int(l.rest))
	return append(b, option, l.size)
}

// appendPadding appends Pad1 or PadN until the message that begins at start
// ends at an octet that is rest modulo align (RFC 6275 sections 6.2.2, 6.2.3).
func appendPadding(b []byte, start, align, rest int) []byte {
	switch n := (align + rest - (len(b)-start)%align) % align; n {
	case 0:
		return b
	case 1:
		return append(b, moPad1)
	default:
		var zero [8]byte
		b = append(b, moPadN, byte(n-2))
		return append(b, zero[:n-2]...)
	}
}

// appendAuth appends the options that authenticate, which are the last ones.
func appendAuth(b []byte, start int, mobile *MobileAuth, authenticated bool, a *Authenticator) []byte {
	if mobile != nil {
		if mobile.Timestamp != 0 {
			b = appendOption(b, start, moMessageID)
			b = binary.BigEndian.AppendUint64(b, mobile.Timestamp)
		}
		b = appendOption(b, start, moMobileAuth)
		b = append(b, mobileNodeHomeAgent)
		b = binary.BigEndian.AppendUint32(b, mobile.SPI)
		b = append(b, mobile.Authenticator[:]...)
	}
	if authenticated {
		b = appendOption(b, start, moAuthData)
		b = append(b, a[:]...)
	}
	return b
}
