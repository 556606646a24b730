#!/bin/sh
# Checks docs/model with spin: the model has no error in any of some sizes, and
# every mutation of it has one. Skips, and says so, where spin or a C compiler is
# missing.
set -eu

cd "$(dirname "$0")/../.."
model=$PWD/docs/model/handoff.pml
for tool in spin gcc; do
	command -v "$tool" >/dev/null || {
		echo "model: skipped: probe program:$tool: not found in PATH; install it (Debian: apt-get install spin gcc)"
		exit 0
	}
done
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"

# verify FLAG...: leaves what pan says in the file out. Not optimised: that takes
# longer than it saves. There is nothing to reduce, as every step looks at what all share.
verify() {
	spin -a "$@" "$model" >out 2>&1 && gcc -w -O0 -DSAFETY -DCOLLAPSE -DNOREDUCE $unchecked -DMEMLIM=2000 -DVECTORSZ=2048 -o pan pan.c >>out 2>&1 || {
		cat out >&2
		exit 1
	}
	./pan -m100000 -w22 -n >out 2>&1 || true
}

unchecked=
while read -r flags; do
	verify $flags
	if ! grep -q 'errors: 0$' out || grep -q 'max search depth too small\|out of memory\|Search not completed' out; then
		echo "model: $flags:" >&2
		cat out >&2
		[ ! -e handoff.pml.trail ] || spin -k handoff.pml.trail -t $flags "$model" >&2
		exit 1
	fi
	printf 'model: %s: no error in %s states\n' "$flags" "$(awk '/states, stored/ { print $1 }' out)"
done <<'EOS'
-DN=2 -DH=2 -DLATES=1
-DN=2 -DH=2 -DLATES=0 -DBREAKS=0 -DFULLS=1
-DN=2 -DH=2 -DLATES=0 -DCRASHES=0 -DHANGS=1
-DN=3 -DH=2 -DFAULTY=2 -DCRASHES=0 -DLATES=0 -DBREAKS=0
-DN=2 -DH=2 -DLATES=0 -DDOUBLES=1
-DN=2 -DH=1 -DDOUBLES=2
-DN=2 -DH=2 -DCONTACT=0 -DLATES=0
-DN=2 -DH=2 -DCONTACT=1 -DLATES=0
-DN=3 -DH=1 -DCONTACT=2 -DFAULTY=2 -DCRASHES=0 -DLATES=0
EOS

unchecked=-DNOBOUNDCHECK # of indices: that is faster to compile
while read -r name flags; do
	verify -D"$name" $flags
	grep -q 'assertion violated' out || {
		echo "model: the mutation $name is not noticed" >&2
		exit 1
	}
	printf 'model: mutation %s: %s\n' "$name" "$(sed -n 's/^pan:1: //p' out)"
done <<'EOS'
LIVE_UNASKED -DH=1
OVERRULE_BLINDLY -DH=1
NO_OVERRULE_AT_END -DH=1
NO_OVERRULE_WHEN_LATE -DH=1 -DLATES=0 -DHANGS=1
DONE_AT_ACTIVATE -DH=1
TAKE_AFTER_ANSWER -DH=1
THAW_WHEN_LATE -DH=1
FORGET_ACTIVATED -DH=1
NO_QUERY -DH=1
NO_DOUBTS -DH=1
NO_RECORDS -DH=1
TAKE_UNRECORDED -DH=1 -DFULLS=1
MISSED_UNTOLD -DH=2 -DLATES=0 -DBREAKS=0 -DFULLS=1
MISSED_FROM_OFFER -DH=1
FAILED_NOT_MISSED -DH=1
SETTLE_AT_ONCE -DH=1
ASK_TOO_SOON -DH=1
PREPARE_TWICE -DH=1 -DDOUBLES=1
GUESS_EPOCH -DH=1 -DCONTACT=0
SAME_EPOCH -DH=1 -DCONTACT=0
EOS
