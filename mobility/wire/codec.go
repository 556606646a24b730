package wire

import (
	"encoding/binary"
	"net/netip"
	"time"
)

const (
	mhHeaderLen = 6       // payload protocol, length, type, reserved, checksum (RFC 6275 section 6.1.1)
	maxMHLen    = 8 * 256 // of a mobility header
)

// Flags of a Binding Update (RFC 6275 section 6.1.7) and of a Binding
// Acknowledgement (section 6.1.8).
const (
	flagAck           = 0x80
	flagHome          = 0x40
	flagLinkLocal     = 0x20
	flagKeyManagement = 0x10

	ackFlagKeyManagement = 0x80
)

func flagIf(set bool, f uint8) uint8 {
	if set {
		return f
	}
	return 0
}

// toUnits counts a lifetime in units of four seconds.
func toUnits(d time.Duration) uint16 {
	return uint16(min(max(d/LifetimeUnit, 0), 0xffff))
}

func fromUnits(b []byte) time.Duration {
	return time.Duration(binary.BigEndian.Uint16(b)) * LifetimeUnit
}

// beginMH appends the header of a message; endMH sets its length and checksum.
func beginMH(b []byte, t Type) []byte {
	return append(b, byte(NoNext), 0, byte(t), 0, 0, 0)
}

// endMH completes the mobility header that begins at start.
func endMH(b []byte, start int, src, dst netip.Addr) []byte {
	b = padMH(b, start)
	mh := b[start:]
	binary.BigEndian.PutUint16(mh[4:], checksum(mh, src, dst, Mobility))
	return b
}

// padMH pads the mobility header that begins at start and sets its length.
func padMH(b []byte, start int) []byte {
	b = appendPadding(b, start, 8, 0)
	b[start+1] = byte((len(b)-start)/8 - 1)
	return b
}

// Type is TypeBindingRefreshRequest.
func (*BindingRefreshRequest) Type() Type { return TypeBindingRefreshRequest }

// Append implements [Message].
func (m *BindingRefreshRequest) Append(b []byte, src, dst netip.Addr) []byte {
	start := len(b)
	b = beginMH(b, TypeBindingRefreshRequest)
	b = append(b, 0, 0) // reserved
	return endMH(b, start, src, dst)
}

func (m *BindingRefreshRequest) parse(b []byte) error {
	_, err := parseOptions(b[8:], noOptions)
	return err
}

// Type is TypeHomeTestInit.
func (*HomeTestInit) Type() Type { return TypeHomeTestInit }

// Append implements [Message].
func (m *HomeTestInit) Append(b []byte, src, dst netip.Addr) []byte {
	return appendInit(b, TypeHomeTestInit, &m.Cookie, src, dst)
}

func (m *HomeTestInit) parse(b []byte) error { return parseInit(b, &m.Cookie) }

// Type is TypeCareOfTestInit.
func (*CareOfTestInit) Type() Type { return TypeCareOfTestInit }

// Append implements [Message].
func (m *CareOfTestInit) Append(b []byte, src, dst netip.Addr) []byte {
	return appendInit(b, TypeCareOfTestInit, &m.Cookie, src, dst)
}

func (m *CareOfTestInit) parse(b []byte) error { return parseInit(b, &m.Cookie) }

func appendInit(b []byte, t Type, cookie *Cookie, src, dst netip.Addr) []byte {
	start := len(b)
	b = beginMH(b, t)
	b = append(b, 0, 0) // reserved
	b = append(b, cookie[:]...)
	return endMH(b, start, src, dst)
}

func parseInit(b []byte, cookie *Cookie) error {
	if _, err := parseOptions(b[16:], noOptions); err != nil {
		return err
	}
	*cookie = Cookie(b[8:16])
	return nil
}

// Type is TypeHomeTest.
func (*HomeTest) Type() Type { return TypeHomeTest }

// Append implements [Message].
func (m *HomeTest) Append(b []byte, src, dst netip.Addr) []byte {
	return appendTest(b, TypeHomeTest, m.NonceIndex, &m.Cookie, &m.Token, src, dst)
}

func (m *HomeTest) parse(b []byte) error {
	return parseTest(b, &m.NonceIndex, &m.Cookie, &m.Token)
}

// Type is TypeCareOfTest.
func (*CareOfTest) Type() Type { return TypeCareOfTest }

// Append implements [Message].
func (m *CareOfTest) Append(b []byte, src, dst netip.Addr) []byte {
	return appendTest(b, TypeCareOfTest, m.NonceIndex, &m.Cookie, &m.Token, src, dst)
}

func (m *CareOfTest) parse(b []byte) error {
	return parseTest(b, &m.NonceIndex, &m.Cookie, &m.Token)
}

func appendTest(b []byte, t Type, nonce uint16, cookie *Cookie, token *Token, src, dst netip.Addr) []byte {
	start := len(b)
	b = beginMH(b, t)
	b = binary.BigEndian.AppendUint16(b, nonce)
	b = append(b, cookie[:]...)
	b = append(b, token[:]...)
	return endMH(b, start, src, dst)
}

func parseTest(b []byte, nonce *uint16, cookie *Cookie, token *Token) error {
	if _, err := parseOptions(b[24:], noOptions); err != nil {
		return err
	}
	*nonce = binary.BigEndian.Uint16(b[6:])
	*cookie = Cookie(b[8:16])
	*token = Token(b[16:24])
	return nil
}

// Type is TypeBindingUpdate.
func (*BindingUpdate) Type() Type { return TypeBindingUpdate }

// Append implements [Message].
func (m *BindingUpdate) Append(b []byte, src, dst netip.Addr) []byte {
	start := len(b)
	return endMH(m.append(b), start, src, dst)
}

// append appends the message without its length, checksum and last padding.
func (m *BindingUpdate) append(b []byte) []byte {
	start := len(b)
	b = beginMH(b, TypeBindingUpdate)
	b = binary.BigEndian.AppendUint16(b, m.Sequence)
	b = append(b, flagIf(m.Ack, flagAck)|flagIf(m.Home, flagHome)|
		flagIf(m.LinkLocal, flagLinkLocal)|flagIf(m.KeyManagement, flagKeyManagement), 0)
	b = binary.BigEndian.AppendUint16(b, toUnits(m.Lifetime))
	if m.AltCareOf.IsValid() {
		b = appendOption(b, start, moAltCareOf)
		b = appendAddr(b, m.AltCareOf)
	}
	if m.HasNonces {
		b = appendOption(b, start, moNonceIndices)
		b = binary.BigEndian.AppendUint16(b, m.HomeNonce)
		b = binary.BigEndian.AppendUint16(b, m.CareOfNonce)
	}
	return appendAuth(b, start, m.MobileAuth, m.Authenticated, &m.Authenticator)
}

func (m *BindingUpdate) parse(b []byte) error {
	s, err := parseOptions(b[12:], updateOptions)
	if err != nil {
		return err
	}
	flags := b[8]
	*m = BindingUpdate{
		Sequence:      binary.BigEndian.Uint16(b[6:]),
		Ack:           flags&flagAck != 0,
		Home:          flags&flagHome != 0,
		LinkLocal:     flags&flagLinkLocal != 0,
		KeyManagement: flags&flagKeyManagement != 0,
		Lifetime:      fromUnits(b[10:]),
		AltCareOf:     s.altCareOf,
		HasNonces:     s.has(moNonceIndices),
		HomeNonce:     s.homeNonce,
		CareOfNonce:   s.careOfNonce,
		MobileAuth:    s.newMobileAuth(),
		Authenticated: s.has(moAuthData),
		Authenticator: s.authenticator,
	}
	return nil
}

// Type is TypeBindingAck.
func (*BindingAck) Type() Type { return TypeBindingAck }

// Append implements [Message].
func (m *BindingAck) Append(b []byte, src, dst netip.Addr) []byte {
	start := len(b)
	return endMH(m.append(b), start, src, dst)
}

// append appends the message without its length, checksum and last padding.
func (m *BindingAck) append(b []byte) []byte {
	start := len(b)
	b = beginMH(b, TypeBindingAck)
	b = append(b, byte(m.Status), flagIf(m.KeyManagement, ackFlagKeyManagement))
	b = binary.BigEndian.AppendUint16(b, m.Sequence)
	b = binary.BigEndian.AppendUint16(b, toUnits(m.Lifetime))
	if advice := toUnits(m.RefreshAdvice); advice != 0 {
		b = appendOption(b, start, moRefreshAdvice)
		b = binary.BigEndian.AppendUint16(b, advice)
	}
	return appendAuth(b, start, m.MobileAuth, m.Authenticated, &m.Authenticator)
}

func (m *BindingAck) parse(b []byte) error {
	s, err := parseOptions(b[12:], ackOptions)
	if err != nil {
		return err
	}
	*m = BindingAck{
		Status:        Status(b[6]),
		KeyManagement: b[7]&ackFlagKeyManagement != 0,
		Sequence:      binary.BigEndian.Uint16(b[8:]),
		Lifetime:      fromUnits(b[10:]),
		RefreshAdvice: time.Duration(s.refreshAdvice) * LifetimeUnit,
		MobileAuth:    s.newMobileAuth(),
		Authenticated: s.has(moAuthData),
		Authenticator: s.authenticator,
	}
	return nil
}

// Type is TypeBindingError.
func (*BindingError) Type() Type { return TypeBindingError }

// Append implements [Message].
func (m *BindingError) Append(b []byte, src, dst netip.Addr) []byte {
	start := len(b)
	b = beginMH(b, TypeBindingError)
	b = append(b, byte(m.Status), 0)
	b = appendAddr(b, m.Home)
	return endMH(b, start, src, dst)
}

func (m *BindingError) parse(b []byte) error {
	if _, err := parseOptions(b[24:], noOptions); err != nil {
		return err
	}
	*m = BindingError{
		Status: ErrorStatus(b[6]),
		Home:   netip.AddrFrom16([16]byte(b[8:24])),
	}
	return nil
}
