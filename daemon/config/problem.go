package config

import (
	"fmt"
	"strings"
)

// Problem is something wrong in a file.
type Problem struct {
	File string
	Line int    // from 1; 0: about the whole file
	Key  string // such as server[0].nodes.a
	What string
	Cure string
}

// Error is file:line: key: what; cure.
func (p *Problem) Error() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d", p.Line)
	}
	if p.Key != "" {
		b.WriteString(": " + p.Key)
	}
	b.WriteString(": " + p.What)
	if p.Cure != "" {
		b.WriteString("; " + p.Cure)
	}
	return b.String()
}

// Problems are all that were found, by their lines.
type Problems []*Problem

// Error has a problem in each line.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.Error()
	}
	return strings.Join(lines, "\n")
}
