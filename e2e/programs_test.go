//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/distributed-servers/ds/internal/demo/pattern"
	"github.com/distributed-servers/ds/internal/netns/topology"
)

// What clients do, with programs that know nothing of distributed servers.

// Ports of the service.
const (
	portHTTP = 80
	portLine = 7
	portRESP = 6379
)

func url(server netip.Addr, path string) string { return "http://[" + server.String() + "]" + path }

// job is something that a client does meanwhile.
type job struct {
	octets atomic.Int64 // that have come, of a download
	done   chan struct{}
	err    error // set before done is closed
}

func (j *job) Write(p []byte) (int, error) {
	j.octets.Add(int64(len(p)))
	return len(p), nil
}

func (j *job) ended() bool {
	select {
	case <-j.done:
		return true
	default:
		return false
	}
}

// connections waits until the client's kernel has so many connections, which are
// established.
func (cl *client) connections(want int) {
	c := cl.cluster
	c.t.Helper()
	const established = "01" // include/net/tcp_states.h; the others are told as they are
	c.eventually(fmt.Sprintf("%s has %d connections", cl.Name(), want), func(context.Context) (bool, error) {
		var b []byte
		err := cl.Do(func() (err error) { b, err = os.ReadFile("/proc/thread-self/net/tcp6"); return err })
		got := map[string]int{}
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) > 3 && f[0] != "sl" {
				got[f[3]]++
			}
		}
		return got[established] == want, errors.Join(err, fmt.Errorf("it has these, by state: %v", got))
	})
}

// pulse is a connection to the line server on which there is always one line
// under way.
type pulse struct {
	*job
	stop    chan struct{}
	longest atomic.Int64 // time that a line has taken, in nanoseconds
}

// pulse begins one, and waits for the first answer. Every answer must have the number that it should.
func (cl *client) pulse(server netip.Addr) *pulse {
	p := &pulse{stop: make(chan struct{})}
	p.job = cl.background(func(*job) error {
		conn, err := cl.Dial("tcp", net.JoinHostPort(server.String(), fmt.Sprint(portLine)))
		if err != nil {
			return fmt.Errorf("%s: pulse: %w", cl.Name(), err)
		}
		defer conn.Close()
		defer context.AfterFunc(cl.cluster.ctx, func() { conn.Close() })()
		r := bufio.NewReader(conn)
		for i := 1; ; i++ {
			select {
			case <-p.stop:
				return nil
			default:
			}
			begun := time.Now()
			_, err := io.WriteString(conn, "beat\n")
			var line string
			if err == nil {
				line, err = r.ReadString('\n')
			}
			if err != nil {
				return fmt.Errorf("%s: pulse, beat %d: %w", cl.Name(), i, err)
			}
			if !strings.HasPrefix(line, fmt.Sprintf("%d ", i)) {
				return fmt.Errorf("%s: pulse, beat %d: the answer is %q", cl.Name(), i, line)
			}
			p.longest.Store(max(p.longest.Load(), int64(time.Since(begun))))
		}
	})
	cl.cluster.eventually(cl.Name()+" has a pulse", func(context.Context) (bool, error) { return p.longest.Load() > 0, nil })
	p.longest.Store(1)
	return p
}

// end ends it and says how long a line has taken at most.
func (p *pulse) end(c *cluster) time.Duration {
	c.t.Helper()
	close(p.stop)
	c.wait(p.job)
	return time.Duration(p.longest.Load())
}

// lineClient is a connection to the line server.
type lineClient struct {
	c     *cluster
	conn  net.Conn
	in    *bufio.Reader
	beats int
}

// line connects from an address, which the host is given, and says a line.
func (cl *client) line(from, server netip.Addr) *lineClient {
	c := cl.cluster
	c.t.Helper()
	if from != cl.Addr {
		c.ok(cl.AddAddr("eth0", netip.PrefixFrom(from, 64)))
	}
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: from.AsSlice()}}
	l := &lineClient{c: c}
	c.ok(cl.Do(func() (err error) {
		l.conn, err = dialer.DialContext(c.ctx, "tcp", net.JoinHostPort(server.String(), fmt.Sprint(portLine)))
		return err
	}))
	c.t.Cleanup(func() { l.conn.Close() })
	l.in = bufio.NewReader(l.conn)
	l.beat()
	return l
}

// beat says a line and waits for the answer, which has the number that it should.
func (l *lineClient) beat() {
	l.c.t.Helper()
	l.conn.SetDeadline(time.Now().Add(patience))
	l.beats++
	_, err := io.WriteString(l.conn, "beat\n")
	l.c.ok(err)
	answer, err := l.in.ReadString('\n')
	if err != nil || !strings.HasPrefix(answer, fmt.Sprintf("%d ", l.beats)) {
		l.c.t.Errorf("%s says beat %d and hears %q, %v", l.conn.LocalAddr(), l.beats, answer, err)
	}
}

// background does f in a goroutine of its own.
func (cl *client) background(f func(j *job) error) *job {
	j := &job{done: make(chan struct{})}
	cl.cluster.jobs = append(cl.cluster.jobs, j)
	go func() {
		defer close(j.done)
		j.err = f(j)
	}()
	return j
}

// wait waits for the jobs, and fails the test if one of them has failed.
func (c *cluster) wait(jobs ...*job) {
	c.t.Helper()
	for _, j := range jobs {
		select {
		case <-j.done:
			if j.err != nil {
				c.t.Error(j.err)
			}
		case <-c.ctx.Done():
			c.t.Fatal(context.Cause(c.ctx))
		}
	}
}

// download has curl get octets of the pattern from the service, at most rate octets a
// second, and compares every one.
func (cl *client) download(server netip.Addr, octets int64, rate int) *job {
	return cl.fetch(url(server, fmt.Sprintf("/pattern/%d", octets)), octets, rate)
}

// fetch is download from anywhere.
func (cl *client) fetch(from string, octets int64, rate int) *job {
	return cl.background(func(j *job) error {
		check := &pattern.Checker{}
		cmd := cl.Command(cl.cluster.ctx, "curl", "-gsS", "--no-buffer", "--limit-rate", fmt.Sprint(rate), from)
		var stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = io.MultiWriter(check, j), &stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%s: download, after %d of %d octets: %w: %s", cl.Name(), check.Offset, octets, err, &stderr)
		}
		if check.Offset != octets || check.Wrong != 0 {
			return fmt.Errorf("%s: download: %d of %d octets, %d wrong", cl.Name(), check.Offset, octets, check.Wrong)
		}
		return nil
	})
}

// upload has curl send octets of the pattern, at most rate octets a second, and
// looks at what the server has counted.
func (cl *client) upload(server netip.Addr, octets int64, rate int) *job {
	c := cl.cluster
	c.t.Helper()
	name, sum := c.pattern(octets)
	return cl.background(func(*job) error {
		out, err := cl.Command(c.ctx, "curl", "-gsS", "--limit-rate", fmt.Sprint(rate), "-T", name, url(server, "/upload")).Output()
		if err != nil {
			return fmt.Errorf("%s: upload: %w", cl.Name(), err)
		}
		if want := fmt.Sprintf("%d octets, 0 wrong, sha256 %x\n", octets, sum); string(out) != want {
			return fmt.Errorf("%s: upload: the server says %q instead of %q", cl.Name(), out, want)
		}
		return nil
	})
}

// pattern is a file with octets of the pattern, and its SHA-256.
func (c *cluster) pattern(octets int64) (name string, sum []byte) {
	c.t.Helper()
	name = filepath.Join(c.Dir, fmt.Sprintf("%d.octets", octets))
	if f := c.files[octets]; f != nil {
		return name, f
	}
	f, err := os.Create(name)
	c.ok(err)
	defer f.Close()
	digest := sha256.New()
	_, err = io.Copy(io.MultiWriter(f, digest), &pattern.Reader{End: octets})
	c.ok(err)
	c.files[octets] = digest.Sum(nil)
	return name, c.files[octets]
}

// parallel has curl get octets of the pattern count times, all at once.
func (cl *client) parallel(server netip.Addr, count int, octets int64, rate int) *job {
	return cl.background(func(*job) error {
		dir, err := os.MkdirTemp(cl.cluster.Dir, "parallel")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		cmd := cl.Command(cl.cluster.ctx, "curl", "-sS", "--parallel", "--parallel-immediate", "--parallel-max", fmt.Sprint(count),
			"--limit-rate", fmt.Sprint(rate), "--fail-early", "-o", dir+"/#1",
			url(server, fmt.Sprintf("/pattern/%d?[1-%d]", octets, count)))
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %d downloads: %w: %s", cl.Name(), count, err, out)
		}
		for i := range count {
			b, err := os.ReadFile(filepath.Join(dir, fmt.Sprint(i+1)))
			if err != nil {
				return err
			}
			check := pattern.Checker{}
			check.Write(b)
			if check.Offset != octets || check.Wrong != 0 {
				return fmt.Errorf("%s: download %d: %d of %d octets, %d wrong", cl.Name(), i+1, check.Offset, octets, check.Wrong)
			}
		}
		return nil
	})
}

// dialogue is a program that answers what it is told.
type dialogue struct {
	c    *cluster
	p    *topology.Process
	in   io.WriteCloser
	read int
}

// talk starts a program to talk to.
func (cl *client) talk(name string, args ...string) *dialogue {
	c := cl.cluster
	c.t.Helper()
	cmd := cl.Command(c.ctx, name, args...)
	in, err := cmd.StdinPipe()
	c.ok(err)
	return &dialogue{c: c, p: c.launch(cmd), in: in}
}

// socat starts an interactive session with the line server.
func (cl *client) socat(server netip.Addr) *dialogue {
	return cl.talk("socat", "-", fmt.Sprintf("TCP6:[%s]:%d", server, portLine))
}

// redis starts redis-cli, which reads commands.
func (cl *client) redis(server netip.Addr) *dialogue {
	return cl.talk("redis-cli", "-h", server.String(), "-p", fmt.Sprint(portRESP))
}

// say says a line and waits for the answer, a line.
func (d *dialogue) say(line string) string {
	d.c.t.Helper()
	_, err := io.WriteString(d.in, line+"\n")
	d.c.ok(err)
	ctx, cancel := d.c.within(patience)
	defer cancel()
	end, err := d.p.Log.WaitFor(ctx, d.read, "\n")
	if err != nil {
		d.c.t.Fatalf("said %q: %v", line, err)
	}
	answer := d.p.Log.String()[d.read : end-1]
	d.read = end
	return answer
}

// expect says a line and fails the test if the answer is another one.
func (d *dialogue) expect(line, want string) {
	d.c.t.Helper()
	if got := d.say(line); got != want {
		d.c.t.Errorf("said %q, heard %q instead of %q", line, got, want)
	}
}

// bye ends the program's input, and the program with it.
func (d *dialogue) bye() {
	d.c.t.Helper()
	d.in.Close()
	select {
	case <-d.p.Ended():
		if err := d.p.Wait(); err != nil {
			d.c.t.Errorf("%s: %v", d.p, err)
		}
	case <-d.c.ctx.Done():
		d.c.t.Fatal(context.Cause(d.c.ctx))
	}
}

// benchmark runs redis-benchmark.
func (cl *client) benchmark(server netip.Addr, requests, connections int) *job {
	return cl.background(func(*job) error {
		out, err := cl.Command(cl.cluster.ctx, "redis-benchmark", "-h", server.String(), "-p", fmt.Sprint(portRESP),
			"-t", "ping_mbulk,set,get,incr", "-n", fmt.Sprint(requests), "-c", fmt.Sprint(connections), "--csv").CombinedOutput()
		// It goes on without a connection that fails, so its status says little.
		text := string(out)
		if err != nil || strings.Contains(text, "rror") || strings.Count(text, "\n") < 5 {
			return fmt.Errorf("%s: redis-benchmark: %v: %s", cl.Name(), err, text)
		}
		return nil
	})
}
