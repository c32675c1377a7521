#!/usr/bin/env bash
# The real `vllm bench serve` and the official `openai` client against pdrelay over simulated engines: no GPU, no vLLM.
#
#   bench-sim.sh                env: N=1000 CONC=256 RATE=50   PORT=9350 (pdrelay) SIM_PORT=9300 (2 prefill, 2 decode)
#                                    BIN=target/release (default: built first)   SIM_FLAGS: timing of the engines
#                                    RELAY_FLAGS: further flags of `pdrelay serve`
# Installs the clients into $LAB on first use (see install.sh); stops what it started. Exit code 0: all passed.
set -u
. "$(dirname "$0")/lab.sh"
N=${N:-1000} CONC=${CONC:-256} RATE=${RATE:-50} PORT=${PORT:-9350} SIM_PORT=${SIM_PORT:-9300}
SIM_FLAGS=${SIM_FLAGS:---prefill-tokens-per-s 200000 --decode-tick-ms 10}
"$HERE/install.sh" client || exit 1
release_binaries pdrelay pdsim || exit 1
work=$(mktemp -d "$RT/sim.XXXXXX")
sim='' relay=''
cleanup() {
  for pid in $relay $sim; do kill "$pid" 2>/dev/null && wait "$pid" 2>/dev/null; done
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

"$BIN/pdsim" --prefill 2 --decode 2 --port-base "$SIM_PORT" --model tiny --max-model-len 4096 $SIM_FLAGS >"$work/sim.log" 2>&1 &
sim=$!
for i in 0 1 2 3; do
  wait_http "http://127.0.0.1:$((SIM_PORT + i))/health" $sim 10 || { cat "$work/sim.log"; exit 1; }
done
at() { echo "127.0.0.1:$((SIM_PORT + $1))"; }
"$BIN/pdrelay" serve --host 127.0.0.1 --port "$PORT" --handshake nixl --prefill "$(at 0)" "$(at 1)" --decode "$(at 2)" "$(at 3)" \
  ${RELAY_FLAGS:-} >"$work/relay.log" 2>&1 &
relay=$!
URL=http://127.0.0.1:$PORT
wait_http "$URL/health" $relay 10 || { cat "$work/relay.log"; exit 1; }

for backend in openai openai-chat; do
  BACKEND=$backend N=$N CONC=$CONC RATE=inf check "vllm bench serve, $backend, $N prompts, concurrency $CONC" "$HERE/bench-serve.sh" "$URL"
  BACKEND=$backend N=$N CONC=none RATE=$RATE check "vllm bench serve, $backend, $N prompts, $RATE requests/s" "$HERE/bench-serve.sh" "$URL"
done
check "openai client" "$CLIENT_PY" "$HERE/openai_check.py" "$URL" "http://$(at 2)" "http://$(at 3)"

# The simulator's ledger of KV: nothing expired, nothing wrong.
kill -TERM $sim
wait $sim 2>/dev/null
sim=''
grep '^ledger:\|^violation:' "$work/sim.log"
grep -q '^ledger: .* expired 0 held 0 lost 0 | reused 0 malformed 0 never-issued 0 wrong-prompt 0 violations 0\( |\|$\)' "$work/sim.log"
verdict "the simulator saw every KV grant fetched or released, and nothing wrong" $?
exit $((FAILED > 0))
