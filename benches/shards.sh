#!/usr/bin/env bash
# What a second shard costs on the same CPU, and whose cost that is: one shard, two shards, and two processes of one shard each, which
# share nothing but the CPU, interleaved in one run. If the twins cost what two shards do, it is the CPU's being shared and not
# what shards have in common. Whole answers of 1 KB requests, as in tools/compare. Loopback only.
#
#   benches/shards.sh [SECONDS=3] [ROUNDS=5] [CLIENTS=512]
#
# Needs two CPUs; builds what else it needs, or takes the programs in BIN.
set -euo pipefail
cd "$(dirname "$0")/.."
S=${1:-3} R=${2:-5} C=${3:-512}
PROXY_CPU=${PROXY_CPU:-0} LOAD_CPU=${LOAD_CPU:-1} BASE=${BASE:-9700}
if [ -z "${BIN:-}" ]; then
  cargo build --release --locked --quiet -p pdrelay -p pdsim -p pdload
  BIN=${CARGO_TARGET_DIR:-target}/release
fi
W=$(mktemp -d); trap 'kill $(jobs -p) 2>/dev/null; sleep 0.3; rm -rf "$W"' EXIT
taskset -c "$LOAD_CPU" "$BIN/pdsim" --prefill 1 --decode 1 --port-base "$BASE" --model dummy --kv-elsewhere >/dev/null &
ports=() pids=()
for shards in 1 2 1 1; do
  port=$((BASE + 10 + ${#pids[@]}))
  taskset -c "$PROXY_CPU" "$BIN/pdrelay" serve --handshake nixl --prefill "127.0.0.1:$BASE" --decode "127.0.0.1:$((BASE + 1))" \
    --host 127.0.0.1 --port "$port" --shards "$shards" --log-level warning 2>/dev/null &
  ports+=("$port") pids+=($!)
done
sleep 1
load() { # INDEX CLIENTS NAME
  taskset -c "$LOAD_CPU" "$BIN/pdload" --url "http://127.0.0.1:${ports[$1]}" --model dummy --prompt-bytes 1024 --no-stream \
    --max-tokens 1 -c "$2" -s "$S" --warmup-s 0.5 --cpus "$LOAD_CPU" --pid "${pids[$1]}" --json "$W/$3" >/dev/null
}
switches() { cat $(printf '/proc/%s/task/*/status ' "$@") | awk '/ctxt_switches/ {n += $2} END {print n}'; }
measure() { # NAME INDEX...
  local name=$1; shift
  local of=(); for one in "$@"; do of+=("${pids[$one]}"); done
  local before; before=$(switches "${of[@]}")
  rm -f "$W/$name".*
  local jobs=(); for one in "$@"; do load "$one" $((C / $#)) "$name.$one" & jobs+=($!); done
  for one in "${jobs[@]}"; do wait "$one"; done
  python3 - "$name" $(($(switches "${of[@]}") - before)) "$W/$name".* <<'PY'
import json, sys
runs = [json.load(open(path)) for path in sys.argv[3:]]
cpu = sum(run["cpu"]["used"]["cpu_ns"] for run in runs) / 1e9
done = sum(run["window"]["counts"]["requests"] for run in runs)
print(f"{sys.argv[1]:6} {cpu / done * 1e6:6.2f} us/request  {done} requests, {int(sys.argv[2]) / done:.3f} context switches each (warm-up included)", flush=True)
PY
}
for ((round = 0; round < R; round++)); do
  measure one 0
  measure two 1
  measure twins 2 3
done
