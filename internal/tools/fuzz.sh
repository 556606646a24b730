#!/bin/sh
# Fuzzes every Fuzz target of every package for FUZZTIME, one after another:
# a test binary takes one target at a time, and is built once for all of its
# package's. The seeds run first. A failing input is left in the package's
# testdata/fuzz, to be named and committed.
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

# build PACKAGE: the test binary, unless it is that of the package already.
built=
build() {
	[ "$1" != "$built" ] || return 0
	"$GO" test -c -fuzz=. -o "$tmp/test" "$1" >"$tmp/log" 2>&1 || return 1
	dir=$("$GO" list -f '{{.Dir}}' "$1") && built=$1
}

# fuzz PACKAGE TARGET: at most three tries, and only after outran.
fuzz() {
	build "$1" || return 1
	for try in 1 2 3; do
		(
			cd "$dir"
			exec "$tmp/test" -test.paniconexit0 -test.timeout=10m -test.run='^$' -test.fuzz="^$2\$" -test.fuzztime="$FUZZTIME" -test.fuzzcachedir="$cache/$1"
		) </dev/null >"$tmp/log" 2>&1 && return 0
		outran "$tmp/log" || return 1
	done
	return 1
}

cache=$("$GO" env GOCACHE)/fuzz # as with go test -fuzz
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
