// Package cli is what the commands, ds and dsco, have in common.
package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/distributed-servers/ds/internal/version"
)

// Version is the command that prints the version.
func Version() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print which build this is",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(c.OutOrStdout(), c.Root().Name(), version.String())
			return err
		},
	}
}

// Docs is the hidden command that writes man pages, made of what --help says.
// The pages go into the section of the manual that is given: 1, or 8 for what
// administers a machine.
func Docs(section string) *cobra.Command {
	docs := &cobra.Command{
		Use:    "docs",
		Short:  "Write documentation",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE:   func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	docs.AddCommand(&cobra.Command{
		Use:   "man DIR",
		Short: "Write man pages into a directory",
		Args:  cobra.ExactArgs(1),
		RunE:  func(c *cobra.Command, args []string) error { return writeMan(c.Root(), section, args[0]) },
	})
	return docs
}

func writeMan(root *cobra.Command, section, dir string) error {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	root.InitDefaultHelpCmd()
	root.DisableAutoGenTag = true // the same source, the same pages
	header := &doc.GenManHeader{Section: section, Source: "Distributed Servers " + version.String(), Manual: "Distributed Servers"}
	if err := doc.GenManTree(root, header, dir); err != nil {
		return fmt.Errorf("man pages: %w", err)
	}
	return nil
}

// Pages are the names of the man pages of a command and those below it, as Docs
// writes them.
func Pages(c *cobra.Command, section string) []string {
	pages := []string{strings.ReplaceAll(c.CommandPath(), " ", "-") + "." + section}
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() && !sub.IsAdditionalHelpTopicCommand() {
			pages = append(pages, Pages(sub, section)...)
		}
	}
	return pages
}

// CheckMan writes the pages and tells what is wrong with them, for tests.
func CheckMan(root *cobra.Command, section, dir string) error {
	if err := writeMan(root, section, dir); err != nil {
		return err
	}
	for _, page := range Pages(root, section) {
		b, err := os.ReadFile(filepath.Join(dir, page))
		if err != nil {
			return err
		}
		for _, part := range []string{".TH ", ".SH NAME", ".SH SYNOPSIS", ".SH DESCRIPTION"} {
			if !strings.Contains(string(b), part) {
				return fmt.Errorf("%s has no %q", page, part)
			}
		}
	}
	return nil
}
