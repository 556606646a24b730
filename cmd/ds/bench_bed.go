package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/distributed-servers/ds/internal/bedbench"
	"github.com/distributed-servers/ds/internal/netns"
	"github.com/distributed-servers/ds/internal/probe"
)

// The processes of bench net and bench handoff that have a whole distributed server: one that has
// the namespaces, and the applications on its nodes.
const (
	bedCommand         = "bed-worker"
	bedEvaluateCommand = "bed-evaluate"
	bedServiceCommand  = "bed-service"
	localCommand       = "local-worker"
)

// benchBedCommand is a process that has namespaces, and measures in them.
func benchBedCommand[T any](name, of string, run func(context.Context, bedbench.Options) (*T, error)) *cobra.Command {
	return &cobra.Command{
		Use:    name + " OPTIONS",
		Short:  "The process of " + of + " that has the namespaces (started by it)",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			var o bedbench.Options
			if err := json.Unmarshal([]byte(args[0]), &o); err != nil {
				return err
			}
			o.App, o.Local = []string{"bench", bedServiceCommand}, []string{"bench", localCommand}
			o.Progress = func(what string) { fmt.Fprintln(os.Stderr, what) }
			res, err := run(c.Context(), o)
			if err != nil {
				return err
			}
			return writeJSON(c.OutOrStdout(), res)
		},
	}
}

func benchBedServiceCommand() *cobra.Command {
	var socket, addr string
	c := &cobra.Command{
		Use:    bedServiceCommand,
		Short:  "The application of bench net and bench handoff (started by them)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			a, err := netip.ParseAddr(addr)
			if err != nil {
				return err
			}
			return bedbench.Serve(c.Context(), socket, a, os.Stdout)
		},
	}
	c.Flags().StringVar(&socket, "socket", "", "the daemon's `path`")
	c.Flags().StringVar(&addr, "addr", "", "the distributed server `address`")
	return c
}

func benchLocalCommand() *cobra.Command {
	return &cobra.Command{
		Use:    localCommand + " NUMBER",
		Short:  "One of two processes that hand a client over (started by bench handoff)",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			number, err := strconv.Atoi(args[0])
			if err != nil {
				return err
			}
			return bedbench.LocalServe(c.Context(), number, os.Stdin, os.Stdout)
		},
	}
}

// runBed measures with a whole distributed server, in namespaces of its own, by one of
// the commands for that. why says what is missing if that cannot be.
func runBed[T any](ctx context.Context, command string, o bedbench.Options, progress func(string)) (res *T, why string, err error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, "", err
	}
	o.Programs = filepath.Dir(exe)
	if _, err := os.Stat(filepath.Join(o.Programs, "dsco")); err != nil {
		return nil, "there is no dsco beside ds in " + o.Programs + ": make build makes both", nil
	}
	for _, name := range []probe.Name{probe.NetNS, probe.TUN, probe.NFQueue, probe.Program("ip6tables")} {
		if r := probe.Check(name); !r.OK {
			return nil, r.String(), nil
		}
	}
	options, err := json.Marshal(o)
	if err != nil {
		return nil, "", err
	}
	cmd := netns.Reexec(ctx, nil, "bench", command, string(options))
	said := &lines{each: progress}
	cmd.Stderr = said
	out, err := cmd.Output()
	if err != nil {
		return nil, "", fmt.Errorf("%w: %s", err, said.all)
	}
	res = new(T)
	return res, "", json.Unmarshal(out, res)
}

// lines hands on what is written to it, line by line.
type lines struct {
	each func(string)
	part string
	all  string
}

func (l *lines) Write(b []byte) (int, error) {
	l.part += string(b)
	l.all += string(b)
	for {
		line, rest, found := strings.Cut(l.part, "\n")
		if !found {
			return len(b), nil
		}
		l.part = rest
		if l.each != nil {
			l.each(line)
		}
	}
}
