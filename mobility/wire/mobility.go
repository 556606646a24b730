package wire

import "errors"

var (
	errNotMobility = errors.New("wire: parse mobility header: not the packet's payload")
	errMHShort     = errors.New("wire: parse mobility header: shorter than it states")
	errMHChecksum  = errors.New("wire: parse mobility header: wrong checksum")
	errMHType      = errors.New("wire: parse mobility header: not of the message's type")
)

// fixedLen is the length of each type's message without options, header
// included. A mobility header is a multiple of 8 octets: BU and BA have at
// least four octets of padding.
var fixedLen = [...]int{
	TypeBindingRefreshRequest: 8,
	TypeHomeTestInit:          16,
	TypeCareOfTestInit:        16,
	TypeHomeTest:              24,
	TypeCareOfTest:            24,
	TypeBindingUpdate:         12,
	TypeBindingAck:            12,
	TypeBindingError:          24,
}

// ParseMobility checks the mobility header that is p's payload and parses the
// message in it. The checks are those of RFC 6275 section 9.2 in order:
// checksum (silence), known type (an [*UnknownTypeError]), payload protocol
// (a [*Problem] at the field), length (a [*Problem] at the field). Options
// that are unknown, or that the message does not define, are skipped; a
// reserved field is ignored, and so is alignment. Options that do not fit their
// length, one that is repeated, or any after Binding Authorization Data (padding
// too), are errors.
//
// The checksum is that of all of p's payload, as the length in the pseudo-header
// is; octets after the mobility header are ignored otherwise.
//
// It allocates the message. [TypeOf] and [Decode] do not.
func ParseMobility(p *Packet) (Message, error) {
	t, err := TypeOf(p)
	if err != nil {
		return nil, err
	}
	var m Message
	switch t {
	case TypeBindingRefreshRequest:
		m = new(BindingRefreshRequest)
	case TypeHomeTestInit:
		m = new(HomeTestInit)
	case TypeCareOfTestInit:
		m = new(CareOfTestInit)
	case TypeHomeTest:
		m = new(HomeTest)
	case TypeCareOfTest:
		m = new(CareOfTest)
	case TypeBindingUpdate:
		m = new(BindingUpdate)
	case TypeBindingAck:
		m = new(BindingAck)
	case TypeBindingError:
		m = new(BindingError)
	}
	if err := Decode(p, m); err != nil {
		return nil, err
	}
	return m, nil
}

// TypeOf makes the checks of [ParseMobility] and returns the type of the
// message, for [Decode].
func TypeOf(p *Packet) (Type, error) {
	if p.Protocol != Mobility {
		return 0, errNotMobility
	}
	b := p.Payload
	if len(b) < 8 {
		return 0, errMHShort
	}
	if checksum(b, p.Source(), p.Destination(), Mobility) != 0 {
		return 0, errMHChecksum
	}
	t := Type(b[2])
	if int(t) >= len(fixedLen) {
		return 0, &UnknownTypeError{Type: t}
	}
	if Protocol(b[0]) != NoNext {
		return 0, &Problem{Pointer: uint32(p.Offset), Cause: "payload protocol of a mobility header"}
	}
	switch n := mobilityLen(b); {
	case n < fixedLen[t]:
		return 0, &Problem{Pointer: uint32(p.Offset + 1), Cause: "length of a mobility header"}
	case n > len(b):
		return 0, errMHShort
	}
	return t, nil
}

// mobilityLen is the length that the mobility header b states.
func mobilityLen(b []byte) int { return 8 + 8*int(b[1]) }

// Decode parses the message in p, whose type is that of m, into m: all of it,
// or nothing if there is an error. TypeOf has accepted p. A MobileAuth is new.
func Decode(p *Packet, m Message) error {
	b := p.Payload
	if len(b) < 8 {
		return errMHShort
	}
	n := mobilityLen(b)
	if n > len(b) {
		return errMHShort
	}
	t := Type(b[2])
	if int(t) >= len(fixedLen) || t != typeOf(m) {
		return errMHType
	}
	if n < fixedLen[t] {
		return errMHShort
	}
	b = b[:n]
	switch m := m.(type) {
	case *BindingRefreshRequest:
		return m.parse(b)
	case *HomeTestInit:
		return m.parse(b)
	case *CareOfTestInit:
		return m.parse(b)
	case *HomeTest:
		return m.parse(b)
	case *CareOfTest:
		return m.parse(b)
	case *BindingUpdate:
		return m.parse(b)
	case *BindingAck:
		return m.parse(b)
	case *BindingError:
		return m.parse(b)
	}
	return errMHType
}

// typeOf is m.Type(). A call through the interface would let m escape.
func typeOf(m Message) Type {
	switch m.(type) {
	case *BindingRefreshRequest:
		return TypeBindingRefreshRequest
	case *HomeTestInit:
		return TypeHomeTestInit
	case *CareOfTestInit:
		return TypeCareOfTestInit
	case *HomeTest:
		return TypeHomeTest
	case *CareOfTest:
		return TypeCareOfTest
	case *BindingUpdate:
		return TypeBindingUpdate
	case *BindingAck:
		return TypeBindingAck
	case *BindingError:
		return TypeBindingError
	}
	return Type(len(fixedLen))
}
