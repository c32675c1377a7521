# Sourced by the scripts here. Everything they install or write lives under $LAB.
LAB=${LAB:-${XDG_CACHE_HOME:-$HOME/.cache}/pdrelay-lab}
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(cd "$HERE/../.." && pwd)
RT=${RT:-$LAB/rt} # logs, pids and results of a run
ENGINE_VENV=${ENGINE_VENV:-$LAB/venv-vllm}
CLIENT=${CLIENT:-$LAB/vllm-bench-lite}
CLIENT_PY=$CLIENT/venv/bin/python
export PYTHONDONTWRITEBYTECODE=1
mkdir -p "$LAB" "$RT"

# The first Python 3.10 to 3.13 that really runs (a version manager's shim may not).
find_python() {
  local candidate
  for candidate in ${PY:+"$PY"} "$HOME"/.pyenv/versions/3.1[23]*/bin/python python3.12 python3.13 python3.11 python3.10 python3; do
    "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && { PY=$candidate; return; }
  done
  echo "no Python 3.10 to 3.13 found; name one with PY=" >&2
  return 1
}

# wait_http URL PID SECONDS [COMMAND...]: until it answers 2xx; at once a failure if the process is gone.
# The command is run before each look.
wait_http() {
  local url=$1 pid=$2 end=$((SECONDS + $3))
  shift 3
  while ((SECONDS < end)); do
    [ $# = 0 ] || "$@"
    curl -sf -m 2 -o /dev/null "$url" && return 0
    kill -0 "$pid" 2>/dev/null || return 1
    sleep 0.3
  done
  return 1
}

# release_binaries PACKAGE...: builds them unless $BIN names a folder that has them; sets BIN.
release_binaries() {
  local packages=() package
  if [ -n "${BIN:-}" ]; then
    for package; do
      [ -x "$BIN/$package" ] || { echo "BIN=$BIN: not a folder with $package in it" >&2; return 1; }
    done
    return
  fi
  for package; do packages+=(-p "$package"); done
  (cd "$ROOT" && cargo build --release --quiet "${packages[@]}") || return 1
  BIN=${CARGO_TARGET_DIR:-$ROOT/target}/release
}

# Results of checks: check NAME COMMAND... prints PASS or FAIL; FAILED counts.
FAILED=0
verdict() { # name rc
  if [ "$2" = 0 ]; then echo "PASS  $1"; else echo "FAIL  $1"; FAILED=$((FAILED + 1)); fi
}
check() {
  local name=$1 rc=0
  shift
  echo "----  $name"
  "$@" || rc=$?
  verdict "$name" $rc
}
