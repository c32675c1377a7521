#!/usr/bin/env bash
# CPU time per chunk when tokens come one by one, with and without a batch window, interleaved in one run: eight simulator
# processes, whose ticks of a millisecond fall where they fall, so that the chunks of 64 streams at 5 ms are 78 us apart.
# (One simulator sends them in clumps, once a millisecond, which is a batch already.) Loopback only.
#
#   benches/spread.sh [SECONDS] [ROUNDS] [BINARY...]
#
# Given other binaries of pdrelay, it compares those instead, without a window. Needs two CPUs; builds what else it needs.
set -euo pipefail
cd "$(dirname "$0")/.."
S=${1:-2.5} R=${2:-3}; shift $(($# < 2 ? $# : 2))
ENGINES=8 STREAMS=${STREAMS:-64} PROXY_CPU=${PROXY_CPU:-0} LOAD_CPU=${LOAD_CPU:-1} BASE=${BASE:-9600}
cargo build --release --locked --quiet -p pdrelay -p pdsim -p pdload
T=${CARGO_TARGET_DIR:-target}/release
W=$(mktemp -d); trap 'kill $(jobs -p) 2>/dev/null; sleep 0.3; rm -rf "$W"' EXIT
p=() d=() names=() ports=() pids=()
for ((i = 0; i < ENGINES; i++)); do
  taskset -c "$LOAD_CPU" "$T/pdsim" --prefill 1 --decode 1 --port-base $((BASE + 2 * i)) --model dummy --kv-elsewhere --decode-tick-ms 5 --stagger >/dev/null &
  p+=("127.0.0.1:$((BASE + 2 * i))") d+=("127.0.0.1:$((BASE + 2 * i + 1))")
  sleep "0.$((RANDOM % 90 + 10))"
done
start() { # NAME BINARY FLAG...
  local port=$((BASE + 50 + ${#pids[@]}))
  taskset -c "$PROXY_CPU" "$2" serve --handshake nixl --prefill "${p[@]}" --decode "${d[@]}" --host 127.0.0.1 --port "$port" \
    --cpus "$PROXY_CPU" --log-level warning "${@:3}" 2>/dev/null &
  names+=("$1") ports+=("$port") pids+=($!)
}
if [ $# -gt 0 ]; then
  for one in "$@"; do start "$one" "$one"; done
else
  start off "$T/pdrelay"
  for window in 100us 300us 1ms; do start "$window" "$T/pdrelay" --batch-window "$window"; done
fi
sleep 1
for ((round = 0; round < R; round++)); do
  for ((i = 0; i < ${#pids[@]}; i++)); do
    taskset -c "$LOAD_CPU" "$T/pdload" --url "http://127.0.0.1:${ports[i]}" --endpoint completions --model dummy --prompt-bytes 1024 \
      --stream --max-tokens 200 -c "$STREAMS" -s "$S" --warmup-s 0.5 --cpus "$LOAD_CPU" --pid "${pids[i]}" --pid-tree >"$W/out"
    printf '%-8s %s | ttft, itl: n mean p50 p90 p99 p99.9 max ms: %s | %s\n' "${names[i]}" "$(grep ^cpu "$W/out" | grep -o '[0-9.]* us/chunk')" \
      "$(grep ^ttft "$W/out" | cut -c5-90 | tr -s ' ')" "$(grep ^itl "$W/out" | cut -c4-90 | tr -s ' ')"
  done
done
