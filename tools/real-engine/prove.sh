#!/usr/bin/env bash
# pdrelay in front of real vLLM: one prefill and one decode engine that move KV over NIXL, next to a single server
# that does both. Text must be the same, and every prompt token must reach the decode engine by KV transfer.
#
#   prove.sh              installs on first use, starts, checks, stops; PASS and FAIL lines; exit code 0: all passed
#   prove.sh --hard       then also odd requests, and prove-failures.sh: clients that leave, engines that die (half an hour more)
#   prove.sh --keep       leaves engines and relay running afterwards (engines.sh down; the relay's pid is printed)
#
# env: BIN=target/release (default: pdrelay is built first)   RELAY_PORT=24000 REF_PORT=24001 P_PORT=24010 D_PORT=24020
#      N_P=1 N_D=1 engines   N=64 prompts of the benchmark, CONC=8   those of engines.sh (MODEL, ENGINE_FLAGS, ...)
#      TOKENIZER, NAME: for another MODEL
# No GPU needed: 3 GB download, 7 GB of disk and 7 GB of memory; the engines take a few minutes to start on few cores.
# What it installs lives in $LAB (default: pdrelay-lab in the user's cache folder); `install.sh remove` deletes it.
set -u
. "$(dirname "$0")/lab.sh"
hard='' keep=''
for argument; do
  case $argument in
    --hard) hard=1 ;;
    --keep) keep=1 ;;
    *) sed -n '2,15s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
done
export RELAY_PORT=${RELAY_PORT:-24000} REF_PORT=${REF_PORT:-24001} P_PORT=${P_PORT:-24010} D_PORT=${D_PORT:-24020}
export NAME=${NAME:-tiny} RT="$RT/prove"
mkdir -p "$RT"
# The hard cases ask for tool calls.
[ -n "$hard" ] && export EXTRA=${EXTRA:---enable-auto-tool-choice --tool-call-parser hermes}

"$HERE/install.sh" || exit 1
release_binaries pdrelay || exit 1
relay=''
cleanup() {
  if [ -n "$keep" ]; then
    echo "still running: RT=$RT $HERE/engines.sh down; kill $relay"
    return
  fi
  [ -n "$relay" ] && kill "$relay" 2>/dev/null && wait "$relay" 2>/dev/null
  "$HERE/engines.sh" down
  [ $FAILED = 0 ] && rm -rf "$RT" || echo "logs: $RT"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

prefill=() decode=() tags=(ref)
for ((i = 0; i < ${N_P:-1}; i++)); do tags+=(p$i) prefill+=("127.0.0.1:$((P_PORT + i))"); done
for ((i = 0; i < ${N_D:-1}; i++)); do tags+=(d$i) decode+=("127.0.0.1:$((D_PORT + i))"); done
echo "starting ${#tags[@]} vLLM engines: ${tags[*]}"
FAILED=1 # until they run
"$HERE/engines.sh" up "${tags[@]}" || exit 1
"$BIN/pdrelay" serve --host 127.0.0.1 --port "$RELAY_PORT" --handshake nixl --prefill "${prefill[@]}" --decode "${decode[@]}" >"$RT/relay.log" 2>&1 &
relay=$!
URL=http://127.0.0.1:$RELAY_PORT
SINGLE=http://127.0.0.1:$REF_PORT
wait_http "$URL/health" $relay 10 || { cat "$RT/relay.log"; exit 1; }
FAILED=0

check "greedy text is the single server's; every prompt token came by KV transfer" \
  "$CLIENT_PY" "$HERE/same_text.py" "$URL" "$SINGLE" "${decode[@]/#/http://}"
check "the official openai client" "$CLIENT_PY" "$HERE/openai_check.py" "$URL" "${decode[@]/#/http://}"
for backend in openai openai-chat; do
  BACKEND=$backend N=${N:-64} CONC=${CONC:-8} check "vllm bench serve, $backend" "$HERE/bench-serve.sh" "$URL"
done
if [ -n "$hard" ]; then
  check "odd requests" "$CLIENT_PY" "$HERE/hard_cases.py" "$URL" "$SINGLE"
  # Its engines and relay are its own; more than four at a time are too many for a small machine.
  kill "$relay" && wait "$relay" 2>/dev/null
  relay=''
  "$HERE/engines.sh" down
  check "clients that leave, engines that die" env RT="$LAB/rt" BIN="$BIN" "$HERE/prove-failures.sh"
fi
echo
[ $FAILED = 0 ] && echo "PASS  all" || echo "FAIL  $FAILED of the checks"
exit $((FAILED > 0))
