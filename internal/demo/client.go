package demo

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/distributed-servers/ds/internal/demo/pattern"
)

// after is how long after a handoff's end a gap may begin and still count as
// its doing: a packet lost then would show as silence.
const after = time.Millisecond

// client is what watches: it downloads and uploads over HTTP, checks every
// octet, and has the nodes hand over at equal steps.
type client struct {
	o        *Options
	base     string // URL
	dial     func(ctx context.Context, network, address string) (net.Conn, error)
	controls [2]io.ReadWriter // of the nodes
	resets   func() int       // seen on the network so far
	gate     gate

	arrivals []arrival // of download data
}

// arrival is the time without data before some arrived.
type arrival struct{ from, to int64 }

func (c *client) run(ctx context.Context) (*Result, error) {
	for _, rw := range c.controls {
		if _, err := expectFrame(rw, nil, frameUp); err != nil {
			return nil, fmt.Errorf("demo: a node did not start: %w", err)
		}
	}
	c.gate.init(c.o, func(owner int) error { return sendFrame(c.controls[owner], frameHandoff, nil) })
	stop := context.AfterFunc(ctx, func() { c.gate.fail(context.Cause(ctx)) })
	defer stop()
	for i, rw := range c.controls {
		go c.watch(i, rw)
	}
	transport := &http.Transport{
		DialContext:        c.dial,
		DisableCompression: true,
		ReadBufferSize:     64 << 10,
		WriteBufferSize:    64 << 10,
	}
	defer transport.CloseIdleConnections()
	h := &http.Client{Transport: transport}

	begin, before := time.Now(), c.resets()
	ticks := c.tick(begin)
	var wg sync.WaitGroup
	var down, up verdict
	wg.Go(func() { down = c.download(ctx, h); c.gate.fail(down.err) })
	wg.Go(func() { up = c.upload(ctx, h); c.gate.fail(up.err) })
	wg.Wait()
	err := c.gate.wait()
	ticks()

	res := &Result{
		Handoffs: len(c.gate.reports),
		Bytes:    down.arrived + up.arrived,
		Wrong:    down.wrong + up.wrong,
		Resets:   c.resets() - before,
		Checked:  down.err == nil && up.err == nil && down.got == down.want && up.got == up.want,
		Checksum: fmt.Sprintf("%08x down, %08x up", down.got, up.got),
		Seconds:  time.Since(begin).Seconds(),
	}
	for _, e := range []error{down.err, up.err} {
		if errors.Is(e, syscall.ECONNRESET) {
			res.Resets++
		}
	}
	c.measure(res)
	switch {
	case ctx.Err() != nil: // connections that end then say nothing
		return nil, context.Cause(ctx)
	case err != nil && res.Resets == 0:
		return nil, err
	}
	return res, nil
}

// watch takes what a node says.
func (c *client) watch(i int, rw io.ReadWriter) {
	for {
		typ, p, err := receiveFrame(rw, nil)
		switch {
		case err != nil:
			c.gate.fail(fmt.Errorf("demo: node %c ended: %w", 'A'+i, err))
			return
		case typ == frameDone:
			var r report
			if err := json.Unmarshal(p, &r); err != nil {
				c.gate.fail(err)
				return
			}
			c.gate.handed(i, r)
		default:
			c.gate.fail(fmt.Errorf("demo: node %c: %s", 'A'+i, p))
		}
	}
}

// tick reports progress until the returned function is called.
func (c *client) tick(begin time.Time) (stop func()) {
	t := time.NewTicker(100 * time.Millisecond)
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-t.C:
				bytes, handoffs := c.gate.progress()
				c.o.Progress(Progress{c.o.Mode, time.Since(begin).Seconds(), handoffs, c.o.Handoffs, bytes, 2 * c.o.Size})
			case <-end:
				return
			}
		}
	}()
	return func() { t.Stop(); close(end); <-ended }
}

// verdict is about one body.
type verdict struct {
	err       error
	arrived   int64
	wrong     int64
	got, want uint32 // CRC-32C
}

func (c *client) download(ctx context.Context, h *http.Client) (v verdict) {
	defer func() {
		if v.err != nil {
			v.err = fmt.Errorf("demo: download: %w", v.err)
		}
	}()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("%s/download?size=%d", c.base, c.o.Size), nil)
	if err != nil {
		return verdict{err: err}
	}
	resp, err := h.Do(req)
	if err != nil {
		return verdict{err: err}
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.ContentLength != c.o.Size {
		return verdict{err: fmt.Errorf("answer %s with %d octets", resp.Status, resp.ContentLength)}
	}
	var check pattern.Checker
	b := make([]byte, 64<<10)
	want := make([]byte, len(b))
	for last := monotonic(); ; {
		n, err := resp.Body.Read(b)
		now := monotonic()
		if n > 0 {
			c.arrivals = append(c.arrivals, arrival{last, now})
			last = now
			pattern.Fill(want[:n], check.Offset)
			v.want = crc32.Update(v.want, castagnoli, want[:n])
			v.got = crc32.Update(v.got, castagnoli, b[:n])
			check.Write(b[:n])
			if c.gate.downloaded(n) {
				last = monotonic() // it was us who did not read
			}
		}
		if err != nil {
			v.arrived, v.wrong = check.Offset, check.Wrong+c.o.Size-check.Offset
			if err != io.EOF {
				v.err = err
			}
			return v
		}
	}
}

func (c *client) upload(ctx context.Context, h *http.Client) (v verdict) {
	defer func() {
		if v.err != nil {
			v.err = fmt.Errorf("demo: upload: %w", v.err)
			v.wrong = c.o.Size - v.arrived
		}
	}()
	body := &uploadBody{gate: &c.gate, r: pattern.Reader{End: c.o.Size}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, c.base+"/upload", body)
	if err != nil {
		return verdict{err: err}
	}
	req.ContentLength = c.o.Size
	resp, err := h.Do(req)
	if err != nil {
		return verdict{err: err}
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return verdict{err: fmt.Errorf("answer %s", resp.Status)}
	}
	var octets int64
	if _, err := fmt.Fscanf(resp.Body, "%d %x %d\n", &octets, &v.got, &v.wrong); err != nil {
		return verdict{err: fmt.Errorf("answer: %w", err)}
	}
	v.arrived, v.want = octets, body.crc
	v.wrong += max(c.o.Size-octets, octets-c.o.Size)
	return v
}

// uploadBody makes the upload's octets.
type uploadBody struct {
	gate *gate
	r    pattern.Reader
	crc  uint32
}

func (b *uploadBody) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	b.crc = crc32.Update(b.crc, castagnoli, p[:n])
	if e := b.gate.uploaded(n); e != nil {
		return 0, e
	}
	return n, err
}

// measure derives the gaps from arrivals and handoffs, both in order of time.
func (c *client) measure(res *Result) {
	const ms = 1e6
	var gaps, otherwise, handoffs, bytes []float64
	reports := c.gate.reports
	for i, r := range reports {
		took := r.Started - r.Stopped
		handoffs = append(handoffs, float64(took)/ms)
		bytes = append(bytes, float64(r.Bytes))
		if gap, ok := c.silence(r.Stopped, r.Started+int64(after)); ok {
			gaps = append(gaps, float64(gap)/ms)
		}
		if i+1 == len(reports) {
			break
		}
		// As long a time, half-way to the next handoff.
		middle := r.Started + (reports[i+1].Stopped-r.Started-took-int64(after))/2
		if gap, ok := c.silence(middle, middle+took+int64(after)); ok && middle > r.Started+int64(after) {
			otherwise = append(otherwise, float64(gap)/ms)
		}
	}
	res.Gap, res.Otherwise, res.Handoff, res.Snapshot = quantiles(gaps), quantiles(otherwise), quantiles(handoffs), quantiles(bytes)
}

// silence is the longest time without data that overlaps a span; ok is false
// if the download was over, or not begun.
func (c *client) silence(from, to int64) (longest int64, ok bool) {
	first, _ := slices.BinarySearchFunc(c.arrivals, from, func(a arrival, t int64) int { return cmp.Compare(a.to, t) })
	for _, a := range c.arrivals[first:] {
		if a.from > to {
			break
		}
		longest, ok = max(longest, a.to-a.from), true
	}
	return longest, ok
}

// gate keeps the two bodies and the handoffs in step: the i-th handoff is asked
// for when the download passes the i-th of equal steps, none of both bodies
// runs away from the other, and neither from the handoffs. So all handoffs
// happen in the middle of both bodies, however fast these are.
type gate struct {
	size    int64
	steps   int64
	request func(owner int) error

	mu       sync.Mutex
	change   sync.Cond
	down, up int64 // octets so far
	asked    int
	owner    int // node
	reports  []report
	err      error // the first
}

func (g *gate) init(o *Options, request func(owner int) error) {
	g.size, g.steps, g.request = o.Size, int64(o.Handoffs+1), request
	g.change.L = &g.mu
}

// stepLocked is the step that octets have reached.
func (g *gate) stepLocked(octets int64) int { return int(octets * g.steps / g.size) }

// pass waits until ok, and tells whether it had to. mu is held.
func (g *gate) pass(ok func() bool) (waited bool) {
	for g.err == nil && !ok() {
		waited = true
		g.change.Wait()
	}
	return waited
}

func (g *gate) downloaded(n int) (waited bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.down += int64(n)
	g.change.Broadcast()
	for g.err == nil {
		step := min(g.stepLocked(g.down), int(g.steps)-1)
		if g.asked >= step {
			// One handoff may be under way while data flow, not two.
			return g.pass(func() bool { return len(g.reports) >= step-1 && g.stepLocked(g.up) >= step-2 }) || waited
		}
		waited = g.pass(func() bool { return len(g.reports) == g.asked }) || waited
		if g.err == nil {
			g.asked++
			if err := g.request(g.owner); err != nil {
				g.failLocked(err)
			}
		}
	}
	return waited
}

func (g *gate) uploaded(n int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.up += int64(n)
	g.change.Broadcast()
	g.pass(func() bool { return g.stepLocked(g.up) <= g.stepLocked(g.down)+2 })
	return g.err
}

// handed notes a handoff to a node.
func (g *gate) handed(to int, r report) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.owner = to
	g.reports = append(g.reports, r)
	g.change.Broadcast()
}

func (g *gate) fail(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.failLocked(err)
}

func (g *gate) failLocked(err error) {
	if g.err == nil && err != nil {
		g.err = err
		g.change.Broadcast()
	}
}

// wait waits for the last handoff.
func (g *gate) wait() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.pass(func() bool { return len(g.reports) == g.asked })
	return g.err
}

func (g *gate) progress() (octets int64, handoffs int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.down + g.up, len(g.reports)
}

// url is where the service is.
func url(service netip.Addr) string {
	return "http://" + netip.AddrPortFrom(service, servicePort).String()
}
