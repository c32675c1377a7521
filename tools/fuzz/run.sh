#!/usr/bin/env bash
# tools/fuzz/run.sh [SECONDS] [TARGET...]: fuzzes each target (default: all) for SECONDS (default 600), one
# after the other, and prints a line for each: name, seconds, executions, result. Fails if one of them did.
#
# What it makes (builds, corpora, logs, crashing inputs) goes to target/fuzz of the repository.
set -euo pipefail
cd "$(dirname "$0")/../.."

seconds=600
case ${1:-} in [0-9]*) seconds=$1; shift ;; esac
out=${CARGO_TARGET_DIR:-$PWD/target}/fuzz
command -v cargo-fuzz >/dev/null || cargo install cargo-fuzz --locked

# cargo-fuzz wants nightly for the address sanitizer (-Z). Without a sanitizer a stable compiler will do; only
# RUSTC_BOOTSTRAP makes it take the coverage passes. pdrelay's parsers have no unsafe code that one could catch.
export RUSTC_BOOTSTRAP=1
fuzz() { cargo fuzz "$1" --fuzz-dir tools/fuzz --target-dir "$out/build" --sanitizer none "${@:2}"; }

if [ $# -eq 0 ]; then set -- $(cargo fuzz list --fuzz-dir tools/fuzz); fi
mkdir -p "$out/logs"
for target in "$@"; do fuzz build "$target"; done

failed=0
printf '%-16s %8s %14s  %s\n' target seconds executions result
for target in "$@"; do
  mkdir -p "$out/corpus/$target" "$out/artifacts/$target"
  log=$out/logs/$target.log
  result=clean
  began=$(date +%s)
  # The first folder is the one that libFuzzer adds to; the seeds stay as they are.
  folders=("$out/corpus/$target" "tools/fuzz/seeds/$target")
  if [ "$target" = config ]; then folders+=(configs); fi
  fuzz run "$target" "${folders[@]}" -- \
    -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
    -artifact_prefix="$out/artifacts/$target/" >"$log" 2>&1 || { result="FAILED, see $log"; failed=1; }
  took=$(($(date +%s) - began))
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  printf '%-16s %8s %14s  %s\n' "$target" "$took" "${runs:-?}" "$result"
done
exit $failed
