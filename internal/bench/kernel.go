package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"github.com/distributed-servers/ds/internal/netns"
	"github.com/distributed-servers/ds/internal/probe"
	"github.com/distributed-servers/ds/internal/tcprepair"
)

// task is what the worker is asked to do, one JSON object a line.
type task struct {
	Moves  int `json:"moves"`
	Unsent int `json:"unsent"`
	Unread int `json:"unread"`
}

// answer is what the worker says to each task, and once unasked: whether it
// can work at all.
type answer struct {
	Took  []time.Duration `json:"took,omitempty"`
	Error string          `json:"error,omitempty"`
}

// Worker moves connections of the kernel, in a process and a network namespace
// of its own, as the tasks on in say, until in ends.
func Worker(ctx context.Context, in io.Reader, out io.Writer) error {
	enc, dec := json.NewEncoder(out), json.NewDecoder(in)
	say := func(a answer, err error) error {
		if err != nil {
			a.Error = err.Error()
		}
		return enc.Encode(a)
	}
	if !netns.Inside() {
		return say(answer{}, errors.New("not in a network namespace of its own; ds bench starts this by itself"))
	}
	if err := errors.Join(netns.UpLoopback(), tcprepair.Probe()); err != nil {
		return say(answer{}, err)
	}
	if err := say(answer{}, nil); err != nil {
		return err
	}
	for {
		var t task
		switch err := dec.Decode(&t); {
		case err == io.EOF:
			return nil
		case err != nil:
			return fmt.Errorf("bench: worker: %w", err)
		}
		release := pin()
		took, err := tcprepair.Bench(ctx, t.Moves, tcprepair.Contents{Unsent: t.Unsent, Unread: t.Unread})
		release()
		if err := say(answer{Took: took}, err); err != nil {
			return err
		}
	}
}

// kernel is a running [Worker].
type kernel struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	enc *json.Encoder
	dec *json.Decoder
}

// startKernel starts a worker, or tells why there can be none.
func startKernel(ctx context.Context, args []string) (k *kernel, missing string) {
	if args == nil {
		return nil, "not asked for"
	}
	if r := probe.Check(probe.TCPRepair); !r.OK {
		return nil, r.String()
	}
	k = &kernel{cmd: netns.Reexec(ctx, nil, args...)}
	k.cmd.Stderr = os.Stderr
	in, err := k.cmd.StdinPipe()
	if err != nil {
		return nil, err.Error()
	}
	out, err := k.cmd.StdoutPipe()
	if err != nil {
		return nil, err.Error()
	}
	if err := k.cmd.Start(); err != nil {
		return nil, err.Error()
	}
	k.in, k.enc, k.dec = in, json.NewEncoder(in), json.NewDecoder(out)
	if _, err := k.answer(); err != nil {
		k.close()
		return nil, err.Error()
	}
	return k, ""
}

func (k *kernel) answer() ([]time.Duration, error) {
	var a answer
	if err := k.dec.Decode(&a); err != nil {
		return nil, fmt.Errorf("the process that measures TCP_REPAIR ended: %w", err)
	}
	if a.Error != "" {
		return nil, errors.New(a.Error)
	}
	return a.Took, nil
}

func (k *kernel) bench(moves int, c tcprepair.Contents) ([]time.Duration, error) {
	if err := k.enc.Encode(task{moves, c.Unsent, c.Unread}); err != nil {
		return nil, err
	}
	return k.answer()
}

// close ends the worker and waits for it.
func (k *kernel) close() {
	if k == nil {
		return
	}
	k.in.Close()
	k.cmd.Wait()
}
