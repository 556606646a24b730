package migrate_test

import (
	"fmt"
	"testing"
	"time"

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

// passClient is pass for all n connections of the client.
func (p *passer) passClient(tb testing.TB, n int, stages *[5]time.Duration) {
	last := time.Now()
	stage := func(i int, err error) {
		if err != nil {
			tb.Fatal(err)
		}
		now := time.Now()
		stages[i] += now.Sub(last)
		last = now
	}
	d := migrate.NewClientDonor(p.w.node[p.at], client6)
	stage(0, d.Freeze())
	var err error
	p.buf, err = d.Export(p.buf[:0])
	stage(1, err)
	t, err := migrate.Import(p.w.node[1-p.at], p.buf)
	stage(2, err)
	_, err = d.Discard(nil, 0)
	stage(3, err)
	conns, err := t.Activate()
	stage(4, err)
	if len(conns) != n {
		tb.Fatalf("%d connections: want %d", len(conns), n)
	}
	p.at = 1 - p.at
}

func newPasser(tb testing.TB, more int) (p *passer, client *stack.Conn) {
	w := newWorld(tb, options{})
	c, s := w.connect(service6)
	for range more {
		w.connect(service6)
	}
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
		p, _ := newPasser(b, 0)
		b.ReportAllocs()
		for b.Loop() {
			p.pass(b)
		}
		b.ReportMetric(float64(len(p.buf)), "octets")
	})
	b.Run("unsent64k", func(b *testing.B) {
		p, _ := newPasser(b, 0)
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
		p, c := newPasser(b, 0)
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

// BenchmarkClient moves all connections of a client at once: how the work grows
// with their number, and which stage it is in, in microseconds.
func BenchmarkClient(b *testing.B) {
	for _, n := range []int{1, 10, 100, 1000} {
		b.Run(fmt.Sprintf("connections=%d", n), func(b *testing.B) {
			p, _ := newPasser(b, n-1)
			var stages [5]time.Duration
			b.ReportAllocs()
			for b.Loop() {
				p.passClient(b, n, &stages)
			}
			for i, name := range []string{"freeze", "export", "import", "discard", "activate"} {
				b.ReportMetric(stages[i].Seconds()*1e6/float64(b.N), name)
			}
			b.ReportMetric(b.Elapsed().Seconds()*1e6/float64(b.N*n), "µs/connection")
			b.ReportMetric(float64(len(p.buf))/float64(n), "octets/connection")
		})
	}
}
