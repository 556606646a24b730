package main

import (
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"net/http"
	"strings"
)

// The part of the WebSocket protocol (RFC 6455) that a server of small messages
// needs. A library would keep half a frame where nobody can fetch it.

const (
	opText  = 0x1
	opClose = 0x8
	opPing  = 0x9
	opPong  = 0xa

	maxPayload = 4096 // of a frame, in octets
)

var errFrame = errors.New("websocket: a frame that is fragmented, not masked, or too long")

// accept is the answer to a client's key (RFC 6455 section 4.2.2).
func accept(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// isUpgrade tells whether a request is a WebSocket handshake (section 4.2.1).
func isUpgrade(r *http.Request) bool {
	key, err := base64.StdEncoding.DecodeString(r.Header.Get("Sec-WebSocket-Key"))
	return r.Method == http.MethodGet && err == nil && len(key) == 16 &&
		strings.EqualFold(r.Header.Get("Upgrade"), "websocket") &&
		strings.Contains(strings.ToLower(r.Header.Get("Connection")), "upgrade") &&
		r.Header.Get("Sec-WebSocket-Version") == "13"
}

// parseFrame takes a client's frame from the front of b. n is 0 if b has no whole
// one.
func parseFrame(b []byte) (op byte, payload []byte, n int, err error) {
	if len(b) < 2 {
		return 0, nil, 0, nil
	}
	const fin, masked = 0x80, 0x80
	head, size := 2, int(b[1]&^masked)
	if size == 126 {
		if head = 4; len(b) < head {
			return 0, nil, 0, nil
		}
		size = int(binary.BigEndian.Uint16(b[2:]))
	}
	if b[0]&^0xf != fin || b[0]&0xf == 0 || b[1]&masked == 0 || size > maxPayload || b[1]&^masked == 127 {
		return 0, nil, 0, errFrame
	}
	if n = head + 4 + size; len(b) < n {
		return 0, nil, 0, nil
	}
	payload = make([]byte, size)
	for i := range payload {
		payload[i] = b[head+4+i] ^ b[head+i%4]
	}
	return b[0] & 0xf, payload, n, nil
}

// appendFrame appends a server's frame.
func appendFrame(b []byte, op byte, payload []byte) []byte {
	if len(payload) < 126 {
		b = append(b, 0x80|op, byte(len(payload)))
	} else {
		b = binary.BigEndian.AppendUint16(append(b, 0x80|op, 126), uint16(len(payload)))
	}
	return append(b, payload...)
}
