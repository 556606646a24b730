#!/bin/sh
# Everything a change must pass, one step after another, from the root of the
# module; stops at the first step that fails. `make check` builds the commands
# and runs it.
set -eu

cd "$(dirname "$0")/../.."
here=internal/tools
GO=${GO:-go}
export GO

current=start
trap 'status=$?; [ "$status" -eq 0 ] || echo "check: FAILED at: $current" >&2' EXIT

step() {
	current=$1
	printf '\n=== %s\n' "$current"
}

# empty NAME OUTPUT FIX: a check whose output is what it objects to.
empty() {
	[ -n "$2" ] || return 0
	printf '%s\n%s (fix: %s)\n' "$2" "$1" "$3" >&2
	return 1
}

step "gofmt"
unformatted=$("$("$GO" env GOROOT)/bin/gofmt" -l .)
empty "not gofmt-clean" "$unformatted" "gofmt -w ."

step "go vet"
"$GO" vet ./...

step "staticcheck"
"$GO" tool -modfile="$here/go.mod" staticcheck ./...

step "govulncheck"
sh "$here/vulncheck.sh"

step "modules: verified and tidy"
for dir in . "$here"; do
	(
		cd "$dir"
		"$GO" mod verify
		# -diff exits 1 when there is one: the diff is what to print.
		diff=$("$GO" mod tidy -diff) || [ -n "$diff" ]
		empty "go.mod or go.sum in $dir is not tidy" "$diff" "go mod tidy"
	)
done

# -count=1: a cached pass would not notice that a probe (a tool, a privilege)
# now answers differently.
step "tests, race detector on"
"$GO" test -race -count=1 -timeout 15m ./...

# With the race detector their tests move a quarter of the octets, try each
# thirteenth mutant and make the tour once. TestTortureSeeds is whole there.
step "moves, snapshots and the tour in full"
"$GO" test -count=1 -timeout 10m -skip '^TestTortureSeeds$' ./migrate ./migrate/snapshot ./internal/tour

# One goroutine: the race detector would only slow it down.
step "handoffs between the machines of daemons that end"
"$GO" test -count=1 -timeout 10m -run 'TestSoak$' -v ./daemon/member

step "model of the handoff"
sh "$here/model.sh"

step "every fuzz target, ${FUZZTIME:=5s} each"
FUZZTIME=$FUZZTIME sh "$here/fuzz.sh"

echo
echo "check: all passed"
