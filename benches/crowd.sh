#!/usr/bin/env bash
# What a crowd does to streams that run beside it: 64 streams of a token each 5 ms, and 2,000 clients that ask one shard for
# whole answers as fast as it gives them. Time between two tokens, first alone, then beside the crowd; for several programs
# in turns, to compare two builds. Loopback only.
#
#   benches/crowd.sh [SECONDS=3] [ROUNDS=3] [PDRELAY...]
#
# Needs two CPUs and 10,000 open files; builds what else it needs, or takes the programs in BIN.
set -euo pipefail
cd "$(dirname "$0")/.."
S=${1:-3} R=${2:-3}; shift $(($# < 2 ? $# : 2))
PROXY_CPU=${PROXY_CPU:-0} LOAD_CPU=${LOAD_CPU:-1} BASE=${BASE:-9750}
ulimit -n 10000
if [ -z "${BIN:-}" ]; then
  cargo build --release --locked --quiet -p pdrelay -p pdsim -p pdload
  BIN=${CARGO_TARGET_DIR:-target}/release
fi
[ $# -gt 0 ] || set -- "$BIN/pdrelay"
W=$(mktemp -d); trap 'kill $(jobs -p) 2>/dev/null; sleep 0.3; rm -rf "$W"' EXIT
taskset -c "$LOAD_CPU" "$BIN/pdsim" --prefill 1 --decode 1 --port-base "$BASE" --model dummy --decode-tick-ms 5 --decode-batch 65536 \
  --max-model-len 100000000 --keep-alive-s 60 >/dev/null &
load() { # PORT NAME ARGUMENTS...
  local port=$1 name=$2; shift 2
  taskset -c "$LOAD_CPU" "$BIN/pdload" --url "http://127.0.0.1:$port" --model dummy --prompt-bytes 1024 --json "$W/$name" "$@" >/dev/null
}
streams() { load "$1" "$2" --stream --max-tokens 500 -c 64 --warmup-s "$3" -s "$S"; }
for ((round = 0; round < R; round++)); do
  number=0
  for program in "$@"; do
    port=$((BASE + 10 + number)); number=$((number + 1))
    "$program" serve --handshake nixl --prefill "127.0.0.1:$BASE" --decode "127.0.0.1:$((BASE + 1))" --host 127.0.0.1 --port "$port" \
      --cpus "$PROXY_CPU" --log-level warning 2>/dev/null & proxy=$!
    sleep 1
    streams "$port" alone 1
    load "$port" crowd --no-stream --max-tokens 1 -c 2000 --warmup-s 1 -s $((S + 3)) & crowd=$!
    streams "$port" beside 2
    wait "$crowd"
    kill "$proxy"; wait "$proxy" || true
    python3 - "$program" "$W" <<'PY'
import json, sys
program, folder = sys.argv[1:]
of = lambda name: json.load(open(f"{folder}/{name}"))
ms = lambda spread: ", ".join(f"{spread[p] / 1e3:.1f}" for p in ("p50_us", "p90_us", "p99_us"))
crowd = of("crowd")
print(f"{program}: between two tokens, p50, p90, p99, ms: alone {ms(of('alone')['latency']['itl'])}; "
      f"beside the crowd {ms(of('beside')['latency']['itl'])} (which got {crowd['window']['counts']['requests'] / crowd['window']['seconds']:.0f} answers/s)", flush=True)
PY
  done
done
