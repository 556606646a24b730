package httpmove

import (
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"
)

// version of records. A node refuses those of a later one.
const version = 1

// record is what the target must know of a connection, in CBOR.
type record struct {
	Version  int    `cbor:"1,keyasint"`
	Request  []byte `cbor:"2,keyasint,omitempty"` // octets of the current request, from its beginning
	Skip     int64  `cbor:"3,keyasint,omitempty"` // octets of its body that follow and are dealt with
	Unread   []byte `cbor:"4,keyasint,omitempty"` // octets that follow
	Response []byte `cbor:"5,keyasint,omitempty"` // heads of the response, if some of it was sent
	Sent     int64  `cbor:"6,keyasint,omitempty"` // octets of the response, heads included
	Sum      uint32 `cbor:"7,keyasint,omitempty"` // CRC32C of those of its body, on the wire
	Kept     bool   `cbor:"8,keyasint,omitempty"` // the handler keeps a checkpoint
	Saved    []byte `cbor:"9,keyasint,omitempty"` // which is this
	Hijacked bool   `cbor:"10,keyasint,omitempty"`
}

// checkpoint is what a handler has saved.
func (r *record) checkpoint(saved []byte) { r.Kept, r.Saved = true, saved }

// idle tells whether it is of a connection between two requests.
func (r *record) idle() bool { return len(r.Request)+len(r.Unread) == 0 }

func (r *record) append() ([]byte, error) { return cbor.Marshal(r) }

// parseRecord reads a record. It comes from a node of ours, and is checked all the
// same.
func parseRecord(b []byte) (*record, error) {
	r := new(record)
	if err := cbor.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	if r.Version != version {
		return nil, fmt.Errorf("state of version %d: this node knows version %d", r.Version, version)
	}
	if err := r.valid(); err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	return r, nil
}

func (r *record) valid() error {
	heads, last := lastHead(r.Response)
	switch {
	case len(r.Request) > maxHead+maxBody, len(r.Response) > maxHead:
		return fmt.Errorf("a request of %d octets and a response's heads of %d", len(r.Request), len(r.Response))
	case r.Skip < 0, r.Sent < 0:
		return errors.New("a negative length")
	case !r.Kept && (r.Skip > 0 || r.Hijacked || len(r.Saved) > 0):
		return errors.New("no checkpoint, and something that needs one")
	case r.Hijacked && r.Sent > 0:
		return errors.New("hijacked, and a response")
	case r.Sent == 0 && len(r.Response) == 0:
		return nil
	case r.Sent == 0 || heads == 0 || r.idle():
		return fmt.Errorf("a response of %d octets with %d heads to a request of %d", r.Sent, heads, len(r.Request))
	}
	code, err := statusOf(last)
	if err == nil && code < 200 && r.Sent > int64(len(r.Response)) {
		err = errors.New("a body without a final head")
	}
	return err
}
