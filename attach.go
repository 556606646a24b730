package ds

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/tun"
)

// attachSocket attaches to the daemon at Socket.
func (n *Node) attachSocket(ctx context.Context, hello *api.Message) (*Attachment, error) {
	if n.Addr.IsValid() {
		return n.attachTo(ctx, n.Addr, hello)
	}
	client := &api.Client{Socket: n.socket()}
	defer client.Close()
	servers, err := client.Servers(ctx)
	if err != nil {
		return nil, err
	}
	// Who may attach is for the daemon to say.
	var found *Attachment
	var refused error
	for _, s := range servers {
		a, err := n.attachTo(ctx, s.Address, hello)
		switch {
		case errors.Is(err, api.ErrForbidden) && len(servers) > 1:
			refused = err
		case err != nil:
			found.close()
			return nil, err
		case found != nil:
			a.close()
			found.close()
			return nil, fmt.Errorf("this user may attach to %s and to %s; set Node.Addr to the one that is meant", found.Config.Addr, s.Address)
		default:
			found = a
		}
	}
	switch {
	case found != nil:
		return found, nil
	case refused != nil:
		return nil, fmt.Errorf("this user may attach to none of the daemon's %d distributed servers: %w", len(servers), refused)
	}
	return nil, errors.New("the daemon has no distributed server; name one in its configuration")
}

// attachTo attaches to one distributed server.
func (n *Node) attachTo(ctx context.Context, addr netip.Addr, hello *api.Message) (*Attachment, error) {
	got, err := api.Attach(ctx, n.socket(), addr, hello)
	if err != nil {
		return nil, err
	}
	a := &Attachment{
		Session: got.Session, Config: *got.Welcome.Config, Decisions: got.Decisions,
		Daemon: &api.Client{Socket: n.socket()},
	}
	if len(got.TUN) == 0 {
		return a, nil
	}
	device, err := tun.FromFiles(got.TUN, a.Config.MTU)
	if err != nil {
		got.Close()
		return nil, err
	}
	a.Device = device
	return a, nil
}

// close gives an attachment up. A nil one is none.
func (a *Attachment) close() {
	if a == nil {
		return
	}
	a.Session.Close()
	if a.Device != nil {
		a.Device.Close()
	}
	a.Decisions.Close()
}

func (n *Node) socket() string {
	if n.Socket != "" {
		return n.Socket
	}
	return DefaultSocket
}
