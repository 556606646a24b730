package main

import (
	"os"
	"strings"
	"testing"
)

// TestReadme keeps the program in the README the one that compiles here.
func TestReadme(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile("main.go")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(readme), "```go\n"+string(program)+"```") {
		t.Error("the program in README.md is not main.go: copy it there")
	}
}
