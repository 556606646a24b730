package migrate_test

import (
	"context"
	"io"
	"net/netip"
	"testing"
	"time"

	"github.com/distributed-servers/ds/migrate"
)

// A client without connections moves: what it sends meanwhile, the beginning of
// a connection, is processed by the target.
func TestMoveEmptyClient(t *testing.T) {
	w := newWorld(t, options{})
	d := migrate.NewClientDonor(w.node[0], client6)
	wantErr(t, d.Freeze(), migrate.ErrEnded, client6.String())
	d.AllowEmpty()
	if err := d.Freeze(); err != nil {
		t.Fatal(err)
	}
	snap, err := d.Export(nil)
	if err != nil {
		t.Fatal(err)
	}
	target, err := migrate.Import(w.node[1], snap)
	if err != nil {
		t.Fatal(err)
	}
	if target.Client() != client6 || target.Len() != 0 {
		t.Errorf("a target of %d connections of %s", target.Len(), target.Client())
	}
	l, err := w.node[1].Listen("tcp", netip.AddrPortFrom(service6, 443).String())
	if err != nil {
		t.Fatal(err)
	}
	dialled := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	go func() { // still to the donor
		c, err := w.client.DialContext(ctx, "tcp", l.Addr().String())
		if err == nil {
			c.Close()
		}
		dialled <- err
	}()
	w.route(1)
	late, err := d.Discard(w.node[1].Inject, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	conns, err := target.Activate(late...)
	if err != nil || len(conns) != 0 {
		t.Errorf("activate: %v, %v", conns, err)
	}
	if err := <-dialled; err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Error(err)
	}
}
