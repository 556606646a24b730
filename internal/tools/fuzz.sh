#!/bin/sh
# Fuzzes every Fuzz target of every package for FUZZTIME, one after another:
# `go test -fuzz` takes one target at a time. The seeds run first. A failing
# input is left in the package's testdata/fuzz, to be named and committed.
#
#	FUZZTIME=30s internal/tools/fuzz.sh [packages]     (default 60s, ./...)
set -eu

cd "$(dirname "$0")/../.."
GO=${GO:-go}
FUZZTIME=${FUZZTIME:-60s}
[ $# -gt 0 ] || set -- ./...

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT TERM

# `go test -list` prints the targets of a package, then "ok <package> <time>".
if ! "$GO" test -list '^Fuzz' "$@" >"$tmp/list" 2>&1; then
	cat "$tmp/list" >&2
	exit 1
fi
awk '/^Fuzz[^ ]*$/ { names[++n] = $1 }
     $1 == "ok"    { for (i = 1; i <= n; i++) print $2, names[i]; n = 0 }' \
	"$tmp/list" >"$tmp/targets"

# outran LOG: the run failed only because the fuzzing engine took the end of
# FUZZTIME for a failure (golang/go#75804, Go before 1.27, on a busy machine).
# Nothing was found then, and nothing else was reported.
outran() {
	! grep -q 'Failing input written' "$1" &&
		[ "$(sed -n '/^--- FAIL: /,$p' "$1" | sed -n '2p')" = '    context deadline exceeded' ] &&
		[ "$(sed -n '/^--- FAIL: /,$p' "$1" | sed -n '3p')" = FAIL ]
}

# fuzz PACKAGE TARGET: at most three tries, and only after outran.
fuzz() {
	for try in 1 2 3; do
		"$GO" test -run='^$' -fuzz="^$2\$" -fuzztime="$FUZZTIME" "$1" </dev/null >"$tmp/log" 2>&1 && return 0
		outran "$tmp/log" || return 1
	done
	return 1
}

count=0
while read -r pkg name; do
	count=$((count + 1))
	if ! fuzz "$pkg" "$name"; then
		cat "$tmp/log"
		echo "fuzz: FAILED: $name in $pkg" >&2
		exit 1
	fi
	# The engine's last count says how far it came.
	printf 'ok\t%s\t%s\t%s\n' "$pkg" "$name" "$(sed -n 's/.*\(execs: [0-9]*\).*/\1/p' "$tmp/log" | tail -n 1)"
done <"$tmp/targets"
echo "fuzz: $count targets, $FUZZTIME each, no failing input"
