package demo

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/distributed-servers/ds/internal/demo/pattern"
)

// client is what watches: it downloads and uploads over HTTP, and checks every
// octet.
type client struct {
	*host
	base     string // URL
	http     *http.Client
	handoffs int // asked for
	sizes    sizes

	gate     atomic.Pointer[gate] // nil while it warms up
	resetsAt int                  // before the transfers
	down, up body
	arrivals arrivals // of the download's data
	moves    []*move
}

// body is about a transfer.
type body struct {
	err     error
	took    time.Duration
	arrived int64
	wrong   int64
	sent    string // SHA-256
	got     string
}

func newClient(h *host, address string, handoffs int) *client {
	return &client{host: h, base: "http://" + address, handoffs: handoffs, http: &http.Client{Transport: &http.Transport{
		DialContext:        h.dial,
		DisableCompression: true,
		ReadBufferSize:     64 << 10,
		WriteBufferSize:    64 << 10,
	}}}
}

// warmSize is the most octets each way that are transferred before anything
// moves.
const warmSize = 4 << 20

// largest and smallest size of a transfer that is chosen by time, in octets.
const (
	largest  = 1 << 30
	smallest = 4 << 20
)

// warmUp opens the connections, finds out how much fits in the time, and waits
// until packets come the way they are to come.
func (c *client) warmUp(ctx context.Context, o *Options) error {
	size := int64(warmSize)
	if o.Size > 0 {
		size = min(size, o.Size)
	}
	if err := c.bodies(ctx, sizes{size, size}); err != nil {
		return err
	}
	if b := []body{c.down, c.up}; b[0].wrong+b[1].wrong != 0 {
		return fmt.Errorf("%s: %d octets are wrong before anything has moved", c.name, b[0].wrong+b[1].wrong)
	}
	c.sizes = sizes{o.fit(size, c.down.took), o.fit(size, c.up.took)}
	if err := c.ready(ctx); err != nil {
		return err
	}
	var err error
	c.resetsAt, err = c.resets()
	return err
}

// fit is the size of a body: the one that was asked for, or what fits in the time
// when a size took so long.
func (o *Options) fit(size int64, took time.Duration) int64 {
	if o.Size > 0 {
		return o.Size
	}
	const unit = 1 << 20
	fits := min(float64(size)*float64(o.Duration)/float64(max(took, 1)), largest)
	return max(int64(fits)/unit*unit, smallest, (o.leastSize()+unit-1)/unit*unit)
}

// transfer downloads and uploads, and is handed from node to node.
func (c *client) transfer(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c.arrivals = nil
	g := newGate(c.sizes, c.handoffs)
	c.gate.Store(g)
	defer context.AfterFunc(ctx, func() { g.fail(context.Cause(ctx)) })()
	done := make(chan error, 1)
	go func() {
		err := c.goRound(ctx, g)
		if err != nil {
			cancel(err) // the transfers then wait in vain
		}
		done <- err
	}()
	err := c.bodies(ctx, c.sizes)
	g.fail(err)
	return cmp.Or(<-done, err)
}

// goRound hands the client round the nodes.
func (c *client) goRound(ctx context.Context, g *gate) error {
	for i := range c.handoffs {
		if !g.next(i + 1) {
			return nil // why is known already
		}
		from, to := i%len(nodes), (i+1)%len(nodes)
		m, err := c.handoff(ctx, from, to)
		if err != nil {
			return fmt.Errorf("handoff %d of %s, from %s to %s: %w", i+1, c.name, nodes[from], nodes[to], err)
		}
		c.moves = append(c.moves, m)
		g.handed()
	}
	return nil
}

// bodies downloads and uploads so many octets.
func (c *client) bodies(ctx context.Context, size sizes) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan struct{})
	begin := time.Now()
	go func() {
		defer close(done)
		if c.up = c.upload(ctx, size.up); c.up.err != nil {
			cancel()
		}
		c.up.took = time.Since(begin)
	}()
	if c.down = c.download(ctx, size.down); c.down.err != nil {
		cancel()
	}
	c.down.took = time.Since(begin)
	<-done
	for _, b := range []body{c.down, c.up} {
		if b.err != nil && !errors.Is(b.err, context.Canceled) {
			return fmt.Errorf("%s: %w", c.name, b.err)
		}
	}
	return cmp.Or(c.down.err, c.up.err)
}

// result is what the client has seen, once its transfers have ended.
func (c *client) result() (*Client, error) {
	now, err := c.resets()
	if err != nil {
		return nil, err
	}
	r := &Client{
		Name: c.name, Want: c.redirect, Asked: c.handoffs,
		Down: c.down.result(), Up: c.up.result(), Resets: now - c.resetsAt,
	}
	if r.Resets == 0 {
		for _, b := range []body{c.down, c.up} {
			if errors.Is(b.err, syscall.ECONNRESET) {
				r.Resets++
			}
		}
	}
	r.measure(c.moves, c.arrivals)
	return r, nil
}

func (b *body) result() Body {
	return Body{Bytes: b.arrived, Wrong: b.wrong, SHA256: b.got, Checked: b.err == nil && b.got == b.sent}
}

func (c *client) addProgress(p *Progress) {
	if g := c.gate.Load(); g != nil {
		octets, handoffs := g.progress()
		p.Bytes += octets
		p.Total += g.sizes.down + g.sizes.up
		p.Handoffs += handoffs
	}
}

// downloaded tells of octets of the download. It waits while the handoffs are
// behind, and tells whether it did.
func (c *client) downloaded(n int) (waited bool) {
	g := c.gate.Load()
	return g != nil && g.downloaded(n)
}

func (c *client) download(ctx context.Context, size int64) (b body) {
	defer func() {
		if b.err != nil {
			b.err = fmt.Errorf("download: %w", b.err)
		}
	}()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("%s/pattern/%d", c.base, size), nil)
	if err != nil {
		return body{err: err}
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return body{err: err}
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.ContentLength != size {
		return body{err: fmt.Errorf("answer %s with %d octets", resp.Status, resp.ContentLength)}
	}
	var check pattern.Checker
	buf := make([]byte, 64<<10)
	want := make([]byte, len(buf))
	sent, got := sha256.New(), sha256.New()
	for last := monotonic(); ; {
		n, err := resp.Body.Read(buf)
		now := monotonic()
		if n > 0 {
			c.arrivals = append(c.arrivals, arrival{from: last, to: now})
			last = now
			pattern.Fill(want[:n], check.Offset)
			sent.Write(want[:n])
			got.Write(buf[:n])
			check.Write(buf[:n])
			if c.downloaded(n) {
				last = monotonic()
				c.arrivals = append(c.arrivals, arrival{now, last, true})
			}
		}
		if err != nil {
			b = body{arrived: check.Offset, wrong: check.Wrong + size - check.Offset, sent: hex(sent), got: hex(got)}
			if err != io.EOF {
				b.err = err
			}
			return b
		}
	}
}

func (c *client) upload(ctx context.Context, size int64) (b body) {
	defer func() {
		if b.err != nil {
			b.err = fmt.Errorf("upload: %w", b.err)
			b.wrong = size
		}
	}()
	source := &source{gate: c.gate.Load(), r: pattern.Reader{End: size}, sent: sha256.New()}
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, c.base+"/upload", source)
	if err != nil {
		return body{err: err}
	}
	req.ContentLength = size
	resp, err := c.http.Do(req)
	if err != nil {
		return body{err: err}
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return body{err: fmt.Errorf("answer %s", resp.Status)}
	}
	if _, err := fmt.Fscanf(resp.Body, "%d octets, %d wrong, sha256 %s\n", &b.arrived, &b.wrong, &b.got); err != nil {
		return body{err: fmt.Errorf("answer: %w", err)}
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil { // the connection serves again after its end
		return body{err: err}
	}
	b.sent = hex(source.sent)
	b.wrong += max(size-b.arrived, b.arrived-size)
	return b
}

func hex(h hash.Hash) string { return fmt.Sprintf("%x", h.Sum(nil)) }

// source makes the upload's octets.
type source struct {
	gate *gate // or nil
	r    pattern.Reader
	sent hash.Hash
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.sent.Write(p[:n])
	if s.gate != nil && n > 0 {
		if err := s.gate.uploading(n); err != nil {
			return 0, err
		}
	}
	return n, err
}

// arrivals are in order of time.
type arrivals []arrival

// arrival is the time without data before some arrived, or one in which the
// client did not read.
type arrival struct {
	from, to int64
	paused   bool
}

// silence is the longest time without data that overlaps a span; ok is false
// if the client did not read all the time, or the download was over, or not begun.
func (as arrivals) silence(from, to int64) (longest int64, ok bool) {
	first, _ := slices.BinarySearchFunc(as, from, func(a arrival, t int64) int { return cmp.Compare(a.to, t) })
	for _, a := range as[first:] {
		if a.from > to {
			break
		}
		if a.paused {
			return 0, false
		}
		longest, ok = max(longest, a.to-a.from), true
	}
	return longest, ok
}
