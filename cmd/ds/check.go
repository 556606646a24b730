package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/distributed-servers/ds/internal/probe"
	"github.com/distributed-servers/ds/migrate"
)

// about says what a probe is good for.
var about = map[probe.Name]string{
	probe.Arch:       "64 bits, little-endian",
	probe.Kernel:     "a kernel that is new enough",
	probe.Users:      "programs that give up privilege can be tested",
	probe.UserNS:     "user namespaces: tests and demo without privilege",
	probe.NetNS:      "network namespaces: tests and demo with real kernels",
	probe.NetAdmin:   "change this machine's network (dsco needs it)",
	probe.TUN:        "TUN: the way from the kernel to a netstack",
	probe.TCPRepair:  "TCP_REPAIR: what ds bench compares with",
	probe.NFQueue:    "Netfilter queues: mobility packets to dsco",
	probe.IP6Tunnel:  "the kernel's own tunnel to a home agent",
	probe.MobileIPv6: "the kernel's own route optimisation",
	probe.NFTables:   "nftables: the kernel may forward what is in tunnels",
	probe.Seg6:       "segment routes: the kernel forwards what is in tunnels",
	probe.BPF:        "BPF: the client's part in ds bench net with route optimisation",
}

// finding is a line of the table.
type finding struct {
	Name   string `json:"name"`
	About  string `json:"about"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
	Cure   string `json:"cure,omitempty"`
}

func checkCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "check",
		Short: "Tell what this machine can do, and how to make it do the rest",
		Long: `Tell what this machine can do, and how to make it do the rest.

Every line is found out by trying; nothing is left behind. A "no" is no failure:
what needs it is done another way, or not at all. Only a gVisor whose internals
are unknown is: then no connection can move, and the exit status is 1.`,
		Example: "  ds check\n  ds check --json | jq '.[] | select(.ok | not)'",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			findings, err := check()
			if e := show(c.OutOrStdout(), findings, asJSON); e != nil {
				return e
			}
			return err
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print a JSON array")
	return c
}

// check returns what was found, and an error if connections cannot move.
func check() (findings []finding, err error) {
	guard := finding{Name: "gvisor", About: "connections can be moved", OK: true, Detail: "its internals are those known"}
	if e := migrate.Check(); e != nil {
		guard.OK, guard.Detail, guard.Cure = false, e.Error(), "build with the gVisor version that go.mod names"
		err = errSaid
	}
	findings = append(findings, guard)
	for _, r := range probe.All() {
		findings = append(findings, finding{string(r.Name), about[r.Name], r.OK, r.Detail, r.Cure})
	}
	return findings, err
}

func show(w io.Writer, findings []finding, asJSON bool) error {
	if asJSON {
		return writeJSON(w, findings)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range findings {
		answer := "yes"
		if !f.OK {
			answer = "no"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", answer, f.Name, f.About)
		if !f.OK {
			fmt.Fprintf(t, "\t\tseen: %s\n\t\tcure: %s\n", f.Detail, f.Cure)
		}
	}
	return t.Flush()
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}
