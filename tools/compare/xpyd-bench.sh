#!/usr/bin/env bash
# The benchmark of xPyD-proxy's README against `xpyd --config` over simulated engines: `vllm bench serve`, 100 sonnet
# prompts of 1,024 tokens, 10 requests/s, 128 tokens out. Exit code 0: none failed, and all tokens arrived.
#
#   xpyd-bench.sh               env: N=100 RATE=10 IN=1024 OUT=128   PORT=8868 (xpyd) SIM_PORT=9300 (2 prefill, 2 decode)
#                                    BIN=target/release (default: built first)   SIM_FLAGS: timing of the engines
# `xpyd` is a link to pdrelay, and its file one of xPyD-proxy's. The client is installed into $LAB on first use
# (tools/real-engine/install.sh client: 450 MB, a minute). Stops what it started.
set -u
. "$(dirname "$0")/../real-engine/lab.sh"
TOOLS=$(cd "$(dirname "$0")/../real-engine" && pwd)
N=${N:-100} RATE=${RATE:-10} IN=${IN:-1024} OUT=${OUT:-128} PORT=${PORT:-8868} SIM_PORT=${SIM_PORT:-9300}
SIM_FLAGS=${SIM_FLAGS:---prefill-tokens-per-s 200000 --decode-tick-ms 10}
"$TOOLS/install.sh" client || exit 1
ROOT=$(cd "$TOOLS/../.." && pwd)
release_binaries pdrelay pdsim || exit 1
work=$(mktemp -d "$RT/xpyd.XXXXXX")
sim='' relay=''
cleanup() {
  for pid in $relay $sim; do kill "$pid" 2>/dev/null && wait "$pid" 2>/dev/null; done
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

"$BIN/pdsim" --prefill 2 --decode 2 --port-base "$SIM_PORT" --model DeepSeek-R1 $SIM_FLAGS >"$work/sim.log" 2>&1 &
sim=$!
for i in 0 1 2 3; do
  wait_http "http://127.0.0.1:$((SIM_PORT + i))/health" $sim 10 || { cat "$work/sim.log"; exit 1; }
done
at() { echo "127.0.0.1:$((SIM_PORT + $1))"; }
ln -s "$(realpath "$BIN/pdrelay")" "$work/xpyd"

for mode in direct nixl; do
  cat >"$work/xpyd.yaml" <<Y
model: DeepSeek-R1
prefill: [$(at 0), $(at 1)]
decode: [$(at 2), $(at 3)]
port: $PORT
disaggregated_mode: $mode
startup: {wait_timeout_seconds: 60, probe_interval_seconds: 1}
Y
  "$work/xpyd" --config "$work/xpyd.yaml" >"$work/relay.log" 2>&1 &
  relay=$!
  # Behind the gate until the engines are healthy.
  wait_http "http://127.0.0.1:$PORT/v1/models" $relay 20 || { cat "$work/relay.log"; exit 1; }
  for backend in openai openai-chat; do
    NAME=DeepSeek-R1 DATASET=sonnet BACKEND=$backend CONC=none N=$N RATE=$RATE IN=$IN OUT=$OUT BIN=$BIN \
      check "xpyd --config, $mode: vllm bench serve, $backend, $N sonnets of $IN tokens, $RATE requests/s, $OUT out" \
      "$TOOLS/bench-serve.sh" "http://localhost:$PORT"
  done
  kill $relay && wait $relay 2>/dev/null
  relay=''
done
exit $((FAILED > 0))
