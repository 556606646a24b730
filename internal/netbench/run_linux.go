package netbench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"time"

	"github.com/distributed-servers/ds/internal/netns"
	"github.com/distributed-servers/ds/internal/probe"
)

// The processes, each started by the one above it:
//
//	ds bench net
//	└─ coordinator   in the client's namespace: builds the network, asks for samples
//	   ├─ client     there too
//	   └─ server     in a namespace of its own
//
// Client and server come in pairs: for the rows that pin them, a pair is started
// on one processor. Each ends with its standard input.
const (
	roleCoordinator = "coordinator"
	roleClient      = "client"
	roleServer      = "server"
)

// patience bounds what takes milliseconds.
const patience = 10 * time.Second

// event is what the coordinator says, one JSON object a line.
type event struct {
	Progress string
	Result   *Result
	Error    string
}

// run starts the coordinator and listens to it.
func run(ctx context.Context, o *Options) (*Result, error) {
	for _, need := range []probe.Name{probe.NetNS, probe.TUN} {
		if r := probe.Check(need); !r.OK {
			return nil, fmt.Errorf("netbench: %s", r)
		}
	}
	options, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	p, err := start(ctx, netns.Reexec(ctx, nil, o.args(roleCoordinator)...))
	if err != nil {
		return nil, err
	}
	defer p.stop()
	if _, err := p.in.Write(append(options, '\n')); err != nil {
		return nil, fmt.Errorf("netbench: %w", err)
	}
	for {
		var e event
		switch err := p.out.Decode(&e); {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err != nil:
			return nil, fmt.Errorf("netbench: the process inside the namespaces ended: %w", err)
		case e.Error != "":
			return nil, errors.New(e.Error)
		case e.Result != nil:
			return e.Result, nil
		}
		o.Progress(e.Progress)
	}
}

func (o *Options) args(role string) []string { return append(slices.Clone(o.Worker), role) }

// process is one of the others.
type process struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
	enc *json.Encoder
}

func start(ctx context.Context, cmd *exec.Cmd) (*process, error) {
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	cmd.Cancel = in.Close
	cmd.WaitDelay = patience
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("netbench: start: %w", err)
	}
	return &process{cmd: cmd, in: in, out: json.NewDecoder(out), enc: json.NewEncoder(in)}, nil
}

// ask sends a command and waits for the answer.
func (p *process) ask(c command) (answer, error) {
	var a answer
	if err := p.enc.Encode(c); err != nil {
		return a, fmt.Errorf("netbench: %s: %w", c.Do, err)
	}
	if err := p.out.Decode(&a); err != nil {
		return a, fmt.Errorf("netbench: %s: the process ended: %w", c.Do, err)
	}
	if a.Error != "" {
		return a, fmt.Errorf("netbench: %s: %s", c.Do, a.Error)
	}
	return a, nil
}

// stop ends the process and waits for it.
func (p *process) stop() {
	p.in.Close()
	p.cmd.Wait()
}

// command is what a client or a server is asked to do, answer what it says.
type command struct {
	Do       string
	Service  service
	Job      job
	Duration time.Duration
	Profile  string // with "memory" and others of the server: where to
	Bound    bool
}

type answer struct {
	Value float64
	Error string
}

// Worker is one of the processes; role is what Options.Worker was called with.
func Worker(ctx context.Context, role string, in io.Reader, out io.Writer) error {
	if !netns.Inside() {
		return errors.New("netbench: not in a network namespace of its own; ds bench net starts this by itself")
	}
	signal.Ignore(os.Interrupt) // a terminal sends it to all; the first one decides
	switch role {
	case roleCoordinator:
		return coordinate(ctx, in, out)
	case roleClient:
		return obey(in, out, new(client).do)
	case roleServer:
		s := new(server)
		defer s.close()
		return obey(in, out, s.do)
	}
	return fmt.Errorf("netbench: no role %q", role)
}

// obey does what it is told until in ends.
func obey(in io.Reader, out io.Writer, do func(command) (float64, error)) error {
	dec, enc := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var c command
		switch err := dec.Decode(&c); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("netbench: %w", err)
		}
		var a answer
		v, err := do(c)
		if a.Value = v; err != nil {
			a.Error = err.Error()
		}
		if err := enc.Encode(a); err != nil {
			return fmt.Errorf("netbench: %w", err)
		}
	}
}

// coordinate takes options from in and tells events to out. It stops early when
// in ends.
func coordinate(ctx context.Context, in io.Reader, out io.Writer) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	dec, enc := json.NewDecoder(in), json.NewEncoder(out)
	var o Options
	if err := dec.Decode(&o); err != nil {
		return fmt.Errorf("netbench: options: %w", err)
	}
	go func() {
		io.Copy(io.Discard, in)
		cancel(errors.New("netbench: interrupted"))
	}()
	o.Progress = func(what string) { enc.Encode(event{Progress: what}) }
	res, err := measure(ctx, &o)
	if err != nil {
		return enc.Encode(event{Error: err.Error()})
	}
	return enc.Encode(event{Result: res})
}
