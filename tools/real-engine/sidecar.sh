#!/usr/bin/env bash
# pdrelay sidecar next to a real vLLM decode engine, and two prefill engines of which a header names one; beside them a single
# server. Text must be the single server's, and only the named P may have worked.
#
#   sidecar.sh            installs on first use, starts, checks, stops; PASS and FAIL lines; exit code 0: all passed
#
# env: BIN=target/release (default: pdrelay is built first)   RELAY_PORT=24200 REF_PORT=24201 P_PORT=24210 D_PORT=24220
#      SIDE=25700   GENERATION=g3   those of engines.sh and same_text.py
# Needs what prove.sh needs, with four engines: 11 GB of memory.
set -u
. "$(dirname "$0")/lab.sh"
export REF_PORT=${REF_PORT:-24201} P_PORT=${P_PORT:-24210} D_PORT=${D_PORT:-24220} SIDE=${SIDE:-25700}
export RELAY_PORT=${RELAY_PORT:-24200} NAME=${NAME:-tiny} RT="$RT/sidecar"
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
"$HERE/engines.sh" up ref p0 p1 d0 || exit 1
"$BIN/pdrelay" sidecar --generation "${GENERATION:-g3}" --port "$RELAY_PORT" --model-server-port "$D_PORT" --kv-connector nixlv2 >"$RT/relay.log" 2>&1 &
relay=$!
URL=http://127.0.0.1:$RELAY_PORT
wait_http "$URL/health" $relay 10 || { cat "$RT/relay.log"; exit 1; }
FAILED=0

p0=http://127.0.0.1:$P_PORT p1=http://127.0.0.1:$((P_PORT + 1))
alive=("$p0" "$p1")
named() { "$CLIENT_PY" "$HERE/sidecar.py" "$URL" "http://127.0.0.1:$REF_PORT" "http://127.0.0.1:$D_PORT" "$1" "${alive[@]}"; }
check "the header names the first P: it works, the other does not, and the text is the single server's" named "$p0"
check "the header names the second P" named "$p1"
HEADER=x-prefiller-url check "the older header names the first P" named "$p0"
check "no header: D works alone" named none
"$HERE/engines.sh" crash p0
alive=("$p1")
dead() {
  local body='{"model":"'"$NAME"'","prompt":"hello there, who works on this?","max_tokens":8,"temperature":0}' answer
  answer=$(curl -s -o "$RT/dead.json" -w '%{http_code}' "$URL/v1/completions" -H 'content-type: application/json' -H "x-prefiller-host-port: ${p0#http://}" -d "$body")
  echo "  $answer $(head -c 200 "$RT/dead.json")"
  # A gateway tries elsewhere when it is told so; an answer that D computed alone would hide the dead P.
  [ "$answer" = 502 ] || [ "$answer" = 503 ] || [ "$answer" = 500 ]
}
check "the named P is dead: an error, not a hang" dead
check "and the other P goes on" named "$p1"
echo
[ $FAILED = 0 ] && echo "PASS  all" || echo "FAIL  $FAILED of the checks"
exit $((FAILED > 0))
