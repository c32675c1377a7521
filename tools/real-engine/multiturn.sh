#!/usr/bin/env bash
# pdrelay multiturn in front of real vLLM with bidirectional KV transfer: one prefill and one decode engine, next to a
# single server. Text of every turn must be the single server's; the later turns' history must come to P by KV transfer.
#
#   multiturn.sh          installs on first use, starts, checks, stops; PASS and FAIL lines; exit code 0: all passed
#
# env: BIN=target/release (default: pdrelay is built first)   RELAY_PORT=24100 REF_PORT=24101 P_PORT=24110 D_PORT=24120
#      SIDE=25600   REDIS=redis://... (conversations are kept there)   those of engines.sh
# Needs what prove.sh needs.
set -u
. "$(dirname "$0")/lab.sh"
export REF_PORT=${REF_PORT:-24101} P_PORT=${P_PORT:-24110} D_PORT=${D_PORT:-24120} SIDE=${SIDE:-25600}
export RELAY_PORT=${RELAY_PORT:-24100} NAME=${NAME:-tiny} RT="$RT/multiturn" KV_ROLE=kv_both BIDIR=1
mkdir -p "$RT"

"$HERE/install.sh" || exit 1
release_binaries pdrelay || exit 1
relay=''
cleanup() {
  [ -n "$relay" ] && kill "$relay" 2>/dev/null && wait "$relay" 2>/dev/null
  "$HERE/engines.sh" down
  [ $FAILED = 0 ] && rm -rf "$RT" || echo "logs: $RT"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

FAILED=1 # until they run
"$HERE/engines.sh" up ref p0 d0 || exit 1
redis=()
[ -n "${REDIS:-}" ] && redis=(--redis "$REDIS")
"$BIN/pdrelay" multiturn --host 127.0.0.1 --port "$RELAY_PORT" --prefiller-host 127.0.0.1 --prefiller-port "$P_PORT" \
  --decoder-host 127.0.0.1 --decoder-port "$D_PORT" "${redis[@]}" >"$RT/relay.log" 2>&1 &
relay=$!
URL=http://127.0.0.1:$RELAY_PORT
wait_http "$URL/health" $relay 10 || { cat "$RT/relay.log"; exit 1; }
FAILED=0

turns() { "$CLIENT_PY" "$HERE/multiturn.py" "$1" "$URL" "http://127.0.0.1:$REF_PORT" "http://127.0.0.1:$P_PORT"; }
check "three turns: greedy text is the single server's; turns 2 and 3 came to P by KV transfer" turns three
check "an edited history is computed again, with the right text" turns edited
check "a chat: the same text, usage, no block ids" turns chat
restarted() {
  turns before-restart || return 1
  "$HERE/engines.sh" crash d0
  "$HERE/engines.sh" up d0 || return 1
  # Until the relay has seen that it is back.
  wait_http "$URL/ready" $relay 60 || return 1
  turns after-restart
}
check "a turn after D was restarted is computed again, with the right text" restarted
echo
grep '^pdrelay_conversations_total' <(curl -s "$URL/metrics") || true
[ $FAILED = 0 ] && echo "PASS  all" || echo "FAIL  $FAILED of the checks"
exit $((FAILED > 0))
