//go:build !race

package migrate_test

const (
	defaultMiB = 8
	seedRuns   = 8  // of each seed of TestTortureSeeds
	seedInputs = 12 // of FuzzImport, for each of its snapshots
)
