// Command websocket numbers the messages of each WebSocket. Run it on each node:
// clients are handed from one to another with "ds handoff", and the count goes on.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"

	"github.com/distributed-servers/ds"
	"github.com/distributed-servers/ds/httpmove"
)

// session is what the server keeps of a WebSocket, and what travels with it.
type session struct {
	Count  int
	Unread []byte // part of a frame, or frames in advance
}

// serve is an ordinary handler that keeps a checkpoint.
func serve(w http.ResponseWriter, r *http.Request) {
	if !isUpgrade(r) {
		http.Error(w, "this is a WebSocket", http.StatusUpgradeRequired)
		return
	}
	var s session
	saved := httpmove.Checkpoint(r, func() ([]byte, error) { return json.Marshal(s) })
	if saved != nil && json.Unmarshal(saved, &s) != nil {
		panic(http.ErrAbortHandler)
	}
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer c.Close()
	if saved == nil { // else it was answered on the node before
		ahead, _ := rw.Reader.Peek(rw.Reader.Buffered())
		s.Unread = append(s.Unread, ahead...)
		fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n",
			accept(r.Header.Get("Sec-WebSocket-Key")))
	}
	if err := s.converse(c); err != nil {
		log.Println(r.RemoteAddr, err)
	}
}

// converse answers until the client closes the WebSocket, or the connection moves.
func (s *session) converse(c io.ReadWriter) error {
	b := make([]byte, maxPayload)
	for {
		op, payload, n, err := parseFrame(s.Unread)
		if err != nil {
			return err
		}
		if n == 0 {
			n, err := c.Read(b)
			s.Unread = append(s.Unread, b[:n]...)
			if err != nil && n == 0 {
				return err
			}
			continue
		}
		s.Unread = s.Unread[n:]
		switch op {
		case opText:
			s.Count++
			payload = fmt.Appendf(nil, "%d %s", s.Count, payload)
		case opPing:
			op = opPong
		case opClose:
			_, err := c.Write(appendFrame(nil, opClose, payload))
			return err
		default:
			continue
		}
		if _, err := c.Write(appendFrame(nil, op, payload)); err != nil {
			return err
		}
	}
}

func main() {
	s := &httpmove.Server{Node: new(ds.Node), Handler: http.HandlerFunc(serve)}
	log.Fatal(s.ListenAndServe())
}
