package api

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/netip"
)

// MoveRequest is the body of drain and move calls.
type MoveRequest struct {
	// To are the nodes that clients go to. Default of drain: all others that
	// take clients.
	To []MoveTarget `json:"to,omitempty"`

	// Rate is how many handoffs begin in a second; 0: as many as there can be.
	Rate float64 `json:"rate,omitempty"`
	// Concurrency is how many there are at the same time, at most 1024; 0: 64.
	Concurrency int `json:"concurrency,omitempty"`
}

// MoveTarget is a node that clients go to.
type MoveTarget struct {
	Node string `json:"node"`
	// Weight is its share of all clients, relative to the others', 1 to 1000; 0
	// is 1. Of drain.
	Weight int `json:"weight,omitempty"`
	// Clients is how many go there. Of move, which needs it.
	Clients int `json:"clients,omitempty"`
}

// MoveProgress is how far a drain or a move is.
type MoveProgress struct {
	Node   string `json:"node"`   // whose clients they are
	Moved  int    `json:"moved"`  // clients that have gone
	Moving int    `json:"moving"` // are going
	Left   int    `json:"left"`   // are still to go, those that are going included
	Stuck  int    `json:"stuck"`  // stay, because their handoffs failed too often
	Failed int    `json:"failed"` // handoffs that have failed; most are tried again

	Rate float64      `json:"rate"`            // clients gone in a second, lately
	ETA  Seconds      `json:"eta_s,omitempty"` // to the end, at this rate
	To   []MoveTarget `json:"to,omitempty"`    // where they have gone, and how many

	// Failures are those since the line before, as far as they are not too many.
	Failures []MoveFailure `json:"failures,omitempty"`

	// Done: this is the last line, with Error if not all is done.
	Done  bool   `json:"done,omitempty"`
	Error string `json:"error,omitempty"`
}

// MoveFailure is a handoff that has failed. The client is served where it was.
type MoveFailure struct {
	Client  netip.Addr `json:"client"`
	To      string     `json:"to"`
	Error   string     `json:"error"`
	GivenUp bool       `json:"given_up,omitempty"` // it is not tried again
}

// Drain has a node hand all of its clients to others, and take none, and tells how
// far it is until that is done. When the context ends, or the loop does, no more
// handoffs begin; the node goes on taking none until [Client.Undrain]. An error
// comes last.
func (c *Client) Drain(ctx context.Context, dsa netip.Addr, node string, r MoveRequest) iter.Seq2[MoveProgress, error] {
	return c.stream(ctx, r, "servers", dsa.String(), "nodes", node, "drain")
}

// Move has a node hand some of its clients to others, and tells how far it is
// until that is done. When the context ends, or the loop does, no more handoffs
// begin. An error comes last.
func (c *Client) Move(ctx context.Context, dsa netip.Addr, node string, r MoveRequest) iter.Seq2[MoveProgress, error] {
	return c.stream(ctx, r, "servers", dsa.String(), "nodes", node, "move")
}

// Undrain has a node take clients again.
func (c *Client) Undrain(ctx context.Context, dsa netip.Addr, node string) error {
	_, err := call[none](ctx, c, http.MethodDelete, nil, "servers", dsa.String(), "nodes", node, "drain")
	return err
}

// maxLine bounds a line of progress, in octets.
const maxLine = 4 << 20

// stream reads lines up to the one that is the last.
func (c *Client) stream(ctx context.Context, r MoveRequest, path ...string) iter.Seq2[MoveProgress, error] {
	return func(yield func(MoveProgress, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		res, err := c.do(ctx, http.MethodPost, r, nil, path...)
		if err != nil {
			yield(MoveProgress{}, err)
			return
		}
		defer res.Body.Close()
		lines := bufio.NewScanner(res.Body)
		lines.Buffer(nil, maxLine)
		for lines.Scan() {
			var p MoveProgress
			if err := json.Unmarshal(lines.Bytes(), &p); err != nil {
				yield(MoveProgress{}, fmt.Errorf("api: %s: %w", path[len(path)-1], err))
				return
			}
			if !yield(p, nil) || p.Done {
				return
			}
		}
		err = lines.Err()
		if cause := ctx.Err(); cause != nil {
			err = cause
		} else if err == nil {
			err = fmt.Errorf("the daemon has ended the stream: %w", io.ErrUnexpectedEOF)
		}
		yield(MoveProgress{}, fmt.Errorf("api: %s: %w", path[len(path)-1], err))
	}
}
