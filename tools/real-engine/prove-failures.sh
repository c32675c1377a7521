#!/usr/bin/env bash
# pdrelay in front of real vLLM when clients leave and engines die: P's KV must be free again at once, none may be left
# to its lease, and a death must cost only the streams that had begun on the dead engine.
#
#   prove-failures.sh [PART...]    parts of failures.py, by default: departures deaths strangers pairs
#
# The parts `first` and `returns` restart engines again and again, a minute or more each: so only by name.
# env: BIN (default: pdrelay is built first)   P_PORT=24010 D_PORT=24020   TIMES=20 clients per case   PROMPT=4000 tokens
#      N=400 requests of each round of the benchmark   those of engines.sh. PASS and FAIL lines; exit code 0: all passed.
set -u
. "$(dirname "$0")/lab.sh"
export P_PORT=${P_PORT:-24010} D_PORT=${D_PORT:-24020} RT="$RT/failures"
parts=("${@:-departures}")
[ $# = 0 ] && parts=(departures deaths strangers pairs)
mkdir -p "$RT"
"$HERE/install.sh" || exit 1
release_binaries pdrelay || exit 1
export BIN
cleanup() {
  "$HERE/engines.sh" down
  [ $FAILED = 0 ] && rm -rf "$RT" || echo "logs: $RT"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

up=''
need() { # TAG...: these engines, and no others
  [ "$up" = "$*" ] && return
  "$HERE/engines.sh" down
  "$HERE/engines.sh" up "$@" || { FAILED=1; exit 1; }
  up="$*"
}
for part in "${parts[@]}"; do
  case $part in
    # Strangers must be newly started.
    strangers) up='' && need p0 p1 d0 d1 ;;
    pairs) need p0 p1 d0 d1 ;;
    *) need p0 d0 ;;
  esac
  check "$part" "$CLIENT_PY" "$HERE/failures.py" "$part"
done
echo
[ $FAILED = 0 ] && echo "PASS  all" || echo "FAIL  $FAILED of the checks"
exit $((FAILED > 0))
