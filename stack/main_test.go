package stack_test

import (
	"os"
	"testing"

	"github.com/distributed-servers/ds/internal/probe"
)

func TestMain(m *testing.M) {
	probe.Main()
	os.Exit(m.Run())
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}
