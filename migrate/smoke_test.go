package migrate_test

import (
	"github.com/distributed-servers/ds/migrate"
	"github.com/distributed-servers/ds/migrate/snapshot"
	"sort"
	"sync"
	"testing"
	"time"
)

func TestSmoke(t *testing.T) {
	w := newWorld(t, options{})
	c, s := w.connect(service6)
	for i := range 20 {
		var wg sync.WaitGroup
		wg.Add(2)
		go func() {
			defer wg.Done()
			if err := send(c, int64(i)*1000, 1000); err != nil {
				t.Error(err)
			}
		}()
		go func() {
			defer wg.Done()
			if err := receive(s, int64(i)*1000, 1000); err != nil {
				t.Error(err)
			}
		}()
		wg.Wait()
		n, err := w.move(s)
		if err != nil {
			t.Fatal(err)
		}
		s = n
	}
	w.watch.check(t)
}

func TestQuickPerf(t *testing.T) {
	w := newWorld(t, options{})
	c, s := w.connect(service6)
	go send(c, 0, 1000)
	receive(s, 0, 1000)
	go send(s, 0, 1000)
	receive(c, 0, 1000)
	time.Sleep(50 * time.Millisecond)
	w.watch.stop()
	var d []time.Duration
	var buf []byte
	at := 0
	for i := 0; i < 20000; i++ {
		to := w.node[1-at]
		t0 := time.Now()
		dn := migrate.NewDonor(s)
		if err := dn.Freeze(); err != nil {
			t.Fatal(err)
		}
		var err error
		buf, err = dn.Export(buf[:0])
		if err != nil {
			t.Fatal(err)
		}
		tg, err := migrate.Import(to, buf)
		if err != nil {
			t.Fatal(err)
		}
		dn.Discard(nil, 0)
		cs, err := tg.Activate()
		d = append(d, time.Since(t0))
		if err != nil {
			t.Fatal(err)
		}
		s = cs[0]
		at = 1 - at
	}
	sort.Slice(d, func(i, j int) bool { return d[i] < d[j] })
	t.Logf("p50 %v p99 %v size %d", d[len(d)/2], d[len(d)*99/100], len(buf))
	sn, err := snapshot.Parse(buf)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", sn)
	res := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			to := w.node[1-at]
			dn := migrate.NewDonor(s)
			dn.Freeze()
			buf, _ = dn.Export(buf[:0])
			tg, err := migrate.Import(to, buf)
			if err != nil {
				b.Fatal(err)
			}
			dn.Discard(nil, 0)
			cs, _ := tg.Activate()
			s = cs[0]
			at = 1 - at
		}
	})
	t.Log(res.String(), res.MemString())
}
