#!/usr/bin/env bash
# The real `vllm bench serve` (openai-chat with images) and the official `openai` client with images against `pdrelay epd`
# over simulated engines: no GPU, no vLLM.
#
#   interop-sim.sh              env: N=200 CONC=32   PORT=9450 (pdrelay) SIM_PORT=9400 (2 encode, 1 prefill, 2 decode)
#                                    BIN=target/release (default: built first)
# Installs the clients into $LAB on first use (see ../real-engine/install.sh); stops what it started. Exit code 0: all passed.
set -u
. "$(dirname "$0")/../real-engine/lab.sh"
EPD=$(cd "$(dirname "$0")" && pwd)
N=${N:-200} CONC=${CONC:-32} PORT=${PORT:-9450} SIM_PORT=${SIM_PORT:-9400}
"$HERE/install.sh" client || exit 1
release_binaries pdrelay pdsim || exit 1
work=$(mktemp -d "$RT/epd.XXXXXX")
sim='' relay=''
cleanup() {
  for pid in $relay $sim; do kill "$pid" 2>/dev/null && wait "$pid" 2>/dev/null; done
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM
at() { echo "http://127.0.0.1:$((SIM_PORT + $1))"; }

"$BIN/pdsim" --encode 2 --prefill 1 --decode 2 --port-base "$SIM_PORT" --model tiny --max-model-len 16384 \
  --prefill-tokens-per-s 200000 --decode-tick-ms 10 >"$work/sim.log" 2>&1 &
sim=$!
wait_http "$(at 4)/health" $sim 10 || { cat "$work/sim.log"; exit 1; }
"$BIN/pdrelay" epd --host 127.0.0.1 --port "$PORT" --encode-servers-urls "$(at 0),$(at 1)" --prefill-servers-urls "$(at 2)" \
  --decode-servers-urls "$(at 3),$(at 4)" >"$work/relay.log" 2>&1 &
relay=$!
URL=http://127.0.0.1:$PORT
wait_http "$URL/health" $relay 10 || { cat "$work/relay.log"; exit 1; }

# The benchmark's own count of the output's tokens is of text; the simulator's answers have as many as were asked for.
bench() { # items per request, buckets
  BACKEND=openai-chat N=$N CONC=$CONC RATE=inf IN=64 OUT=16 "$HERE/bench-serve.sh" "$URL" \
    --dataset-name random-mm --random-input-len 64 --random-output-len 16 \
    --random-mm-base-items-per-request "$1" --random-mm-num-mm-items-range-ratio 0 \
    --random-mm-limit-mm-per-prompt '{"image": 8, "video": 0}' --random-mm-bucket-config '{(64, 64, 1): 1.0}'
}
check "vllm bench serve, openai-chat, $N prompts with an image" bench 1
check "vllm bench serve, openai-chat, $N prompts with three images" bench 3
check "openai client with images" "$CLIENT_PY" "$EPD/images_check.py" "$URL"
check "openai client" "$CLIENT_PY" "$HERE/openai_check.py" "$URL" "$(at 3)" "$(at 4)"

kill -TERM $sim
wait $sim 2>/dev/null
sim=''
grep '^ledger:\|^violation:\|^encode' "$work/sim.log"
grep -q '^ledger: .* expired 0 held 0 lost 0 | reused 0 malformed 0 never-issued 0 wrong-prompt 0 violations 0 ' "$work/sim.log"
verdict "the simulator saw every grant fetched or released, every reference resolved, and nothing wrong" $?
exit $((FAILED > 0))
