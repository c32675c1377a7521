#!/bin/sh
# The image's entry point: pdrelay's own arguments, and the commands that images of xPyD-proxy took.
# Whatever runs replaces this shell, so that it gets the signals.
set -eu

# python3 [-m] WHAT, bash WHAT: only what is run counts.
case "${1:-}" in
  python | python3 | bash)
    case "${2:-}" in
      -m) what=${3:-}; skip=3 ;;
      *) what=${2:-}; skip=2 ;;
    esac
    ;;
  *) what=${1:-}; skip=1 ;;
esac

case "$what" in
  *MicroPDProxyServer.py | core.MicroPDProxyServer | xpyd.proxy | xpyd)
    shift "$skip"
    exec pdrelay xpyd "$@"
    ;;
  *xpyd_start_proxy.sh)
    shift "$skip"
    exec pdrelay xpyd-start "$@"
    ;;
  uvicorn)
    shift "$skip"
    exec pdrelay sim "$@"
    ;;
esac

case "${1:-}" in
  pdrelay | pdsim | sh | /*) exec "$@" ;;
  python | python3 | bash)
    echo "this image has no $1; it takes pdrelay's arguments, pdsim, and the commands of xPyD-proxy" >&2
    exit 127
    ;;
  *) exec pdrelay "$@" ;;
esac
