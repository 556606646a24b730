//go:build !race

package migrate_test

const (
	defaultMiB = 8
	seedInputs = 12 // of FuzzImport, for each of its snapshots
)
