package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"

	"github.com/distributed-servers/ds"
	"github.com/distributed-servers/ds/internal/movable"
)

// appSocket is where the application on a node can be asked for handoffs: beside
// the socket of its daemon.
func appSocket(daemon string) string { return daemon + ".app" }

// buffers are what a node may keep of a connection, each way, in octets. The
// paths are short and need no more; what is kept travels in handoffs.
const buffers = 128 << 10

// App is the application on a node, until the context ends. It says "ready on"
// and the node's name on out when it serves. At a socket of its own it takes
//
//	POST /handoff?client=ADDRESS&to=NODE
//
// and answers with a move, in JSON.
func App(ctx context.Context, socket string, addr netip.Addr, out io.Writer) error {
	node := &ds.Node{Socket: socket, Addr: addr}
	l, err := net.Listen("unix", appSocket(socket))
	if err != nil {
		return err
	}
	asked := http.NewServeMux()
	asked.HandleFunc("POST /handoff", func(w http.ResponseWriter, r *http.Request) {
		client, err := netip.ParseAddr(r.FormValue("client"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		m, err := handoff(r.Context(), node, client, r.FormValue("to"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(m)
	})
	server := &http.Server{Handler: asked}
	serving := &movable.Server{Buffers: buffers, Ready: func(name string) {
		go server.Serve(l)
		fmt.Fprintf(out, "ready on %s\n", name)
	}}
	err = serving.ServeNode(ctx, node)
	return errors.Join(err, server.Close(), ignoreClosed(l.Close()), node.Close())
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// asker asks the application on a node for handoffs.
type asker struct{ http http.Client }

func newAsker(daemon string) *asker {
	return &asker{http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", appSocket(daemon))
		},
	}}}
}

func (a *asker) handoff(ctx context.Context, client netip.Addr, to string) (*move, error) {
	q := url.Values{"client": {client.String()}, "to": {to}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://app/handoff?"+q.Encode(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := a.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return nil, errors.Join(errors.New(string(text)), err)
	}
	m := new(move)
	return m, json.NewDecoder(resp.Body).Decode(m)
}
