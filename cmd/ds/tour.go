package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/distributed-servers/ds/internal/ladder"
	"github.com/distributed-servers/ds/internal/tour"
)

// mobileDemo is the part of the demo with Mobile IPv6.
type mobileDemo struct {
	options tour.Options
	pcap    string
	ladder  string
}

func (m *mobileDemo) flags(c *cobra.Command) {
	c.Flags().Uint64Var(&m.options.Seed, "seed", 0, "of what is random in the simulated network")
	c.Flags().DurationVar(&m.options.OneWay, "delay", 20*time.Millisecond, "one way between client and servers, simulated")
	c.Flags().StringVar(&m.pcap, "pcap", "", "write what each simulated host sends and gets to `FILE` with the host's name in it, as pcapng")
	c.Flags().StringVar(&m.ladder, "ladder", "", "write the ladder diagram of the first handoff to `FILE`.txt and FILE.svg")
}

func (m *mobileDemo) run(ctx context.Context) (_ *tour.Result, err error) {
	o := m.options
	if m.pcap != "" {
		captures := captures{base: m.pcap, open: make(map[string]*capture)}
		defer func() { err = errors.Join(err, captures.close()) }()
		o.Packet = captures.packet
	}
	res, err := tour.Run(ctx, o)
	if err != nil {
		return nil, err
	}
	if m.ladder != "" {
		err = errors.Join(
			os.WriteFile(m.ladder+".txt", []byte(res.Ladder.Text()), 0o666),
			os.WriteFile(m.ladder+".svg", res.Ladder.SVG(), 0o666))
	}
	return res, err
}

// captures are files, one for each host.
type captures struct {
	base string
	open map[string]*capture
}

type capture struct {
	*ladder.Pcapng
	file *os.File
}

func (c *captures) packet(host string, at time.Time, packet []byte) error {
	p := c.open[host]
	if p == nil {
		ext := filepath.Ext(c.base)
		name := strings.TrimSuffix(c.base, ext) + "-" + strings.ReplaceAll(host, " ", "-") + ext
		f, err := os.Create(name)
		if err != nil {
			return err
		}
		p = &capture{file: f}
		c.open[host] = p
		if p.Pcapng, err = ladder.NewPcapng(f, host); err != nil {
			return err
		}
	}
	return p.WritePacket(at, packet)
}

func (c *captures) close() error {
	var errs []error
	for _, p := range c.open {
		if p.Pcapng != nil {
			errs = append(errs, p.Flush())
		}
		errs = append(errs, p.file.Close())
	}
	return errors.Join(errs...)
}

func tourTable(w io.Writer, r *tour.Result) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "MOBILE IPV6\t%.0f s simulated, seed %d, %d packets, trace %s\n\n", r.Simulated, r.Seed, r.Packets, r.Trace)
	fmt.Fprintf(t, "handoff\tfrom\tto\tredirect\tsnapshot\tfrozen\tclient's longest silence\n")
	for _, h := range r.Handoffs {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%.2f ms\t%.2f ms\n", h.Client, h.From, h.To, h.Redirect, octets(h.Bytes), h.Frozen, h.Gap)
	}
	fmt.Fprintf(t, "\none way\ttokens ahead: silence\tdirect after\twithout: silence\tdirect after\tRFC 6275's exchange\n")
	for _, d := range r.Delays {
		fmt.Fprintf(t, "%.0f ms\t%.2f ms\t%.2f ms\t%.2f ms\t%.2f ms\t%.2f ms\n", d.OneWay, d.Gap, d.Direct, d.GapRR, d.DirectRR, d.ExchangeRR)
	}
	fmt.Fprintf(t, "2009\t%.0f ms; %.1f ms before that (on a LAN, measured there)\n", r.Report2009, r.Before2009)
	fmt.Fprintf(t, "\noctets\t%s both ways, %d wrong; %d resets\n", octets(r.Bytes), r.Wrong, r.Resets)
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\n%s\n", r.Ladder.Text())
	return err
}
