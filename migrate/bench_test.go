package migrate_test

import (
	"testing"

	"github.com/distributed-servers/ds/migrate"
	"github.com/distributed-servers/ds/stack"
)

// passer moves one connection to and fro between the nodes, with nobody
// sending.
type passer struct {
	w    *world
	conn *stack.Conn
	at   int
	buf  []byte
}

func (p *passer) pass(tb testing.TB) {
	d := migrate.NewDonor(p.conn)
	if err := d.Freeze(); err != nil {
		tb.Fatal(err)
	}
	var err error
	if p.buf, err = d.Export(p.buf[:0]); err != nil {
		tb.Fatal(err)
	}
	t, err := migrate.Import(p.w.node[1-p.at], p.buf)
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := d.Discard(nil, 0); err != nil {
		tb.Fatal(err)
	}
	conns, err := t.Activate()
	if err != nil {
		tb.Fatal(err)
	}
	p.conn = conns[0]
	p.at = 1 - p.at
}

func newPasser(tb testing.TB) (p *passer, client *stack.Conn) {
	w := newWorld(tb, options{})
	c, s := w.connect(service6)
	for _, n := range w.node { // a service listens
		l, err := n.Listen("tcp", "[fd00:2::1]:443")
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() { l.Close() })
	}
	for range 10 { // round-trip samples and the like
		if err := exchange(c, s, 0, 1000); err != nil {
			tb.Fatal(err)
		}
		if err := exchange(s, c, 0, 1000); err != nil {
			tb.Fatal(err)
		}
	}
	w.watch.off.Store(true)
	return &passer{w: w, conn: s}, c
}

// exchange sends n octets of the pattern from one connection to another.
func exchange(from, to *stack.Conn, offset, n int64) error {
	errs := make(chan error, 1)
	go func() { errs <- send(from, offset, n) }()
	if err := receive(to, offset, n); err != nil {
		return err
	}
	return <-errs
}

func BenchmarkMove(b *testing.B) {
	b.Run("idle", func(b *testing.B) {
		p, _ := newPasser(b)
		b.ReportAllocs()
		for b.Loop() {
			p.pass(b)
		}
		b.ReportMetric(float64(len(p.buf)), "octets")
	})
	b.Run("unsent64k", func(b *testing.B) {
		p, _ := newPasser(b)
		p.w.net.Unroute(prefix(client6))
		if err := send(p.conn, 0, 64<<10); err != nil {
			b.Fatal(err)
		}
		b.ReportAllocs()
		for b.Loop() {
			p.pass(b)
		}
	})
	b.Run("unread64k", func(b *testing.B) {
		p, c := newPasser(b)
		if err := send(c, 0, 64<<10); err != nil {
			b.Fatal(err)
		}
		waitUnread(b, p.conn, 64<<10)
		b.ReportAllocs()
		for b.Loop() {
			p.pass(b)
		}
	})
}
