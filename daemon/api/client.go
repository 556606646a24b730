package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// Client calls a daemon. Its methods may be used at the same time. Errors that
// the daemon answers are of type [*Error]; without a daemon they are
// [ErrNotRunning].
type Client struct {
	// Socket of the daemon. Default [NodeSocket].
	Socket string

	once sync.Once
	http *http.Client
}

// maxAnswer bounds an answer, in octets: a million clients.
const maxAnswer = 512 << 20

func (c *Client) socket() string {
	if c.Socket == "" {
		return NodeSocket
	}
	return c.Socket
}

func (c *Client) init() *http.Client {
	c.once.Do(func() {
		socket := c.socket()
		c.http = &http.Client{Transport: &http.Transport{
			DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, socket) },
			MaxIdleConnsPerHost: 2,
			IdleConnTimeout:     30 * time.Second,
			DisableCompression:  true,
		}}
	})
	return c.http
}

// Close closes connections that are idle.
func (c *Client) Close() { c.init().CloseIdleConnections() }

// dial connects to a daemon, and says what to do when there is none.
func dial(ctx context.Context, socket string) (*net.UnixConn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err == nil {
		return conn.(*net.UnixConn), nil
	}
	cause := err
	if op, ok := errors.AsType[*net.OpError](err); ok {
		cause = op.Err
	}
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("%w at %s (%w); start it (systemctl start dsco-node), or name the socket of another", ErrNotRunning, socket, cause)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("%w for this user at %s (%w); the socket and its directories must be open to it", ErrNotRunning, socket, cause)
	}
	return nil, fmt.Errorf("api: %s: %w", socket, cause)
}

// Status tells what the daemon is, and how it is doing.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	return get[*Status](ctx, c, "status")
}

// Servers are the distributed servers of this node.
func (c *Client) Servers(ctx context.Context) ([]Server, error) {
	return get[[]Server](ctx, c, "servers")
}

// Nodes are all nodes of a distributed server.
func (c *Client) Nodes(ctx context.Context, dsa netip.Addr) ([]NodeInfo, error) {
	return get[[]NodeInfo](ctx, c, "servers", dsa.String(), "nodes")
}

// LocalNode is the one that is asked.
func (c *Client) LocalNode(ctx context.Context, dsa netip.Addr) (*NodeInfo, error) {
	return get[*NodeInfo](ctx, c, "servers", dsa.String(), "nodes", "local")
}

// Clients are those that this node knows of: its own and, if it is the contact,
// those of the others.
func (c *Client) Clients(ctx context.Context, dsa netip.Addr) ([]ClientInfo, error) {
	return get[[]ClientInfo](ctx, c, "servers", dsa.String(), "clients")
}

// Client is the trace of one: all that is known, with recent events.
func (c *Client) Client(ctx context.Context, dsa, client netip.Addr) (*ClientInfo, error) {
	return get[*ClientInfo](ctx, c, "servers", dsa.String(), "clients", client.String())
}

// Sequence is the number of the last Binding Update to a client.
func (c *Client) Sequence(ctx context.Context, dsa, client netip.Addr) (*Sequence, error) {
	return get[*Sequence](ctx, c, "servers", dsa.String(), "clients", client.String(), "sequence")
}

// Optimise begins route optimisation with a client. How it went, events tell.
func (c *Client) Optimise(ctx context.Context, dsa, client netip.Addr) error {
	_, err := call[none](ctx, c, http.MethodPost, nil, "servers", dsa.String(), "clients", client.String(), "optimise")
	return err
}

// DeleteBinding deletes a client's binding: it is relayed from then on.
func (c *Client) DeleteBinding(ctx context.Context, dsa, client netip.Addr) error {
	_, err := call[none](ctx, c, http.MethodDelete, nil, "servers", dsa.String(), "clients", client.String(), "binding")
	return err
}

// HandoffRequest is the body of a handoff call.
type HandoffRequest struct {
	To string `json:"to"` // a node
}

// Handoff has the application that owns a client hand it off to another node,
// and waits until it is done.
func (c *Client) Handoff(ctx context.Context, dsa, client netip.Addr, to string) (*Handoff, error) {
	return call[*Handoff](ctx, c, http.MethodPost, HandoffRequest{to}, "servers", dsa.String(), "clients", client.String(), "handoff")
}

// ContactRequest is the body of a contact call.
type ContactRequest struct {
	Node string `json:"node"`
}

// SetContact tells this daemon, and nobody else, which node is the contact.
func (c *Client) SetContact(ctx context.Context, dsa netip.Addr, node string) (*Contact, error) {
	return call[*Contact](ctx, c, http.MethodPut, ContactRequest{node}, "servers", dsa.String(), "contact")
}

// TakeoverRequest is the body of a takeover call.
type TakeoverRequest struct {
	// Force does without the consent of the contact so far, if it is silent.
	Force bool `json:"force,omitempty"`
}

// TakeOver makes this node the contact.
func (c *Client) TakeOver(ctx context.Context, dsa netip.Addr, force bool) (*Contact, error) {
	return call[*Contact](ctx, c, http.MethodPost, TakeoverRequest{force}, "servers", dsa.String(), "contact", "takeover")
}

// Watch gives events, as they happen, until the context ends, the loop does, or
// there is an error, which comes last. A reader that is too slow gets an event
// of kind [EventMissed] in place of what it missed.
func (c *Client) Watch(ctx context.Context, o WatchOptions) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		q := make(url.Values)
		if o.Since != FromNow {
			q.Set("since", strconv.FormatUint(o.Since, 10))
		}
		if o.Server.IsValid() {
			q.Set("server", o.Server.String())
		}
		if o.Client.IsValid() {
			q.Set("client", o.Client.String())
		}
		res, err := c.do(ctx, http.MethodGet, nil, q, "watch")
		if err != nil {
			yield(Event{}, err)
			return
		}
		defer res.Body.Close()
		lines := bufio.NewScanner(res.Body) // lines of at most 64 KiB
		for lines.Scan() {
			var e Event
			if len(lines.Bytes()) == 0 {
				continue // a sign of life
			}
			if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
				yield(Event{}, fmt.Errorf("api: watch: %w", err))
				return
			}
			if !yield(e, nil) {
				return
			}
		}
		err = lines.Err()
		if cause := ctx.Err(); cause != nil {
			err = cause
		} else if err == nil {
			err = fmt.Errorf("the daemon has ended the stream: %w", io.ErrUnexpectedEOF)
		}
		yield(Event{}, fmt.Errorf("api: watch: %w", err))
	}
}

type none struct{}

func get[T any](ctx context.Context, c *Client, path ...string) (T, error) {
	return call[T](ctx, c, http.MethodGet, nil, path...)
}

// call makes a call whose answer is JSON, or nothing if T is none.
func call[T any](ctx context.Context, c *Client, method string, body any, path ...string) (answer T, err error) {
	res, err := c.do(ctx, method, body, nil, path...)
	if err != nil {
		return answer, err
	}
	defer res.Body.Close()
	if _, ok := any(answer).(none); ok {
		return answer, nil
	}
	var v T
	if err := json.NewDecoder(io.LimitReader(res.Body, maxAnswer)).Decode(&v); err != nil {
		return answer, fmt.Errorf("api: %s: answer: %w", path[len(path)-1], err)
	}
	return v, nil
}

// do makes a request. Its answer has a status of success.
func (c *Client) do(ctx context.Context, method string, body any, q url.Values, path ...string) (*http.Response, error) {
	hc := c.init()
	u := target(path...)
	u.RawQuery = q.Encode()
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("api: %w", err)
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), r)
	if err != nil {
		return nil, fmt.Errorf("api: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := hc.Do(req)
	if err != nil {
		if ue, ok := errors.AsType[*url.Error](err); ok {
			err = ue.Err // which says nothing of a made-up URL
		}
		switch {
		case errors.Is(err, ErrNotRunning):
			return nil, err
		case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
			err = fmt.Errorf("the daemon has ended before it answered (%w)", err)
		}
		return nil, fmt.Errorf("api: %s: %w", path[len(path)-1], err)
	}
	if res.StatusCode/100 != 2 {
		defer res.Body.Close()
		return nil, answeredError(res)
	}
	return res, nil
}

// target is the URL of a call; its host is never looked up.
func target(path ...string) *url.URL {
	u := &url.URL{Scheme: "http", Host: "dsco"}
	escaped := []string{fmt.Sprintf("v%d", Version)}
	for _, p := range path {
		escaped = append(escaped, url.PathEscape(p))
	}
	return u.JoinPath(escaped...)
}

// answeredError reads an answer that is none of success.
func answeredError(res *http.Response) *Error {
	e := &Error{}
	b, _ := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	if json.Unmarshal(b, e) != nil || e.Message == "" {
		e = &Error{Message: "the daemon answered " + res.Status}
	}
	e.Code = res.StatusCode
	return e
}
