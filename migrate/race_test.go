//go:build race

package migrate_test

// With the race detector everything takes ten times as long, most of it for octets
// that are copied: it sees every story, with less in it. All of it is for a run without
// (internal/tools/check.sh has both).
const (
	defaultMiB = 2
	seedInputs = 3 // of FuzzImport, for each of its snapshots
)
