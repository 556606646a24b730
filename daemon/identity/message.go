package identity

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
)

// Protocol is what is spoken on the port of the daemons beside their own (ALPN).
// A request, and its answer; each is four octets with the length of what follows,
// big-endian, and a JSON object. Members that are not known are skipped.
const Protocol = "dsco-identity/1"

// Kinds of requests.
const (
	kindJoin    = "join"    // by whoever has a token
	kindRenew   = "renew"   // by a member
	kindMembers = "members" // by a member
)

// request is what a node, or what is to be one, asks.
type request struct {
	Kind string `json:"kind"`

	// Join: the token, the name and the addresses that are wanted. A care-of
	// address of the server :: is one of the only server.
	ID     hexBytes `json:"id,omitempty"`
	Secret hexBytes `json:"secret,omitempty"`
	Name   string   `json:"name,omitempty"`
	Member *Member  `json:"member,omitempty"`

	// Join, renew: the request for a certificate (PKCS #10, DER).
	CSR []byte `json:"csr,omitempty"`

	// Members: the list that the sender has.
	Roster []byte `json:"roster,omitempty"`
}

// answer is what it gets.
type answer struct {
	// Error says why not; all else is empty then.
	Error string `json:"error,omitempty"`

	// Chain is the certificate and what vouches for its issuer (DER).
	Chain [][]byte `json:"chain,omitempty"`

	// Roster is the list of members; of kind members only if it is later.
	Roster []byte `json:"roster,omitempty"`

	// Servers are the distributed servers, for a new node.
	Servers []Server `json:"servers,omitempty"`
}

// Server is a distributed server as a new node needs to know it.
type Server struct {
	Address      netip.Prefix `json:"address"`
	HomeAgent    netip.Addr   `json:"home_agent"`
	SPI          uint32       `json:"spi,omitempty"`
	Key          []byte       `json:"key,omitempty"` // shared with the home agent and all nodes
	Contact      string       `json:"contact"`
	Users        []string     `json:"users,omitempty"`
	UserGroups   []string     `json:"user_groups,omitempty"`
	MTU          int          `json:"mtu,omitempty"`
	DirectReturn bool         `json:"direct_return,omitempty"`
	Tunnel       string       `json:"tunnel,omitempty"`
	Idle         string       `json:"idle_timeout,omitempty"`
}

// hexBytes are octets in hexadecimal.
type hexBytes []byte

func (h hexBytes) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(h)), nil }

func (h *hexBytes) UnmarshalText(b []byte) (err error) {
	*h, err = hex.DecodeString(string(b))
	return err
}

// Limits, in octets: of what somebody asks who may be anybody, and of all else. A
// list is in base64.
const (
	maxStranger = 16 << 10
	maxMessage  = 2 * maxRoster
)

// ErrMessage is returned for what is not a message.
var ErrMessage = errors.New("identity: not a message")

// parseRequest reads a request that has what its kind needs.
func parseRequest(b []byte) (*request, error) {
	r := new(request)
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMessage, err)
	}
	switch r.Kind {
	case kindJoin:
		switch {
		case len(r.ID) != len(Token{}.ID) || len(r.Secret) != len(Token{}.Secret):
			return nil, fmt.Errorf("%w: join without a token", ErrMessage)
		case r.Member == nil || len(r.CSR) == 0:
			return nil, fmt.Errorf("%w: join without addresses or a request for a certificate", ErrMessage)
		}
	case kindRenew:
		if len(r.CSR) == 0 {
			return nil, fmt.Errorf("%w: renew without a request for a certificate", ErrMessage)
		}
	case kindMembers:
		if len(r.Roster) == 0 {
			return nil, fmt.Errorf("%w: members without a list", ErrMessage)
		}
	default:
		return nil, fmt.Errorf("%w: there is no %.20q in this release", ErrMessage, r.Kind)
	}
	return r, nil
}

// send writes a message.
func send(w io.Writer, m any) error {
	body, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(body) > maxMessage {
		return fmt.Errorf("%w: %d octets, more than %d", ErrMessage, len(body), maxMessage)
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...))
	return err
}

// receive reads the octets of a message. Memory grows with what has arrived.
func receive(r io.Reader, most int) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if uint64(n) > uint64(most) {
		return nil, fmt.Errorf("%w: %d octets, more than %d", ErrMessage, n, most)
	}
	b, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err == nil && len(b) < int(n) {
		err = io.ErrUnexpectedEOF
	}
	return b, err
}
